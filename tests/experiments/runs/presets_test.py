"""Presets: complete, possible, and as good as their page says."""

import math
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments import run
from experiments.reports import preset_page, results
from experiments.runs import presets, registry, run_folder

ROOT = Path(__file__).parents[3]
LEDGER = ROOT / "benchmarks" / "results" / "ledger.jsonl"
CHOSEN_ON = ("seeds 0 to 4", "seeds 1 to 3", "seeds 1 and 2")
NAMES = presets.names()


def parsed(algorithm: str, env: str, *more: str) -> tuple[Any, Any]:
    argv = ["run", f"--algorithm={algorithm}", f"--env={env}", "--preset", *more]
    return run.parse(argv)


def test_there_are_presets() -> None:
    assert ("pets", "cartpole_swingup") in NAMES
    assert len(NAMES) == len([*presets.FOLDER.glob("*/*.json")])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids="-".join)
def test_a_preset_is_a_run_that_can_be(name: tuple[str, str]) -> None:
    preset = presets.load(*name)
    assert presets.path(*name).exists()
    values, config = parsed(*name)
    record = run.record_of(values, config)
    assert (record["algorithm"], record["env"]) == name
    said = {**record, **record["config"]}
    assert {x: said[x] for x in preset["settings"]} == preset["settings"]
    with jax.enable_x64(record["precision"] == "x64"):
        assert registry.assemble(record).env.name


@pytest.mark.parametrize("env", presets.criteria())
def test_a_criterion_is_met_from_its_bound_on(env: str) -> None:
    criterion = presets.criteria()[env]
    name, (bound,) = criterion["measure"], criterion.keys() - {"measure", "why"}
    better = {"at_least": 1e-3, "at_most": -1e-3}[bound]
    for change, good in [(0, True), (better, True), (-better, False)]:
        measured = {"return": math.nan, "steps": math.nan}
        measured[name] = criterion[bound] + change
        assert presets.passes(env, measured) is good
    assert not presets.passes(env, {})
    assert f"{name} {bound.replace('_', ' ')}" in presets.criterion(env)


@pytest.mark.parametrize("env", presets.criteria())
def test_who_knows_nothing_fails(env: str) -> None:
    """Acting at random, doing nothing, and every method before it learns, but for those
    that plan; by two standard errors.  The best that is known passes."""
    reference = run_folder.read_json(results.REFERENCES)[env]
    ignorant = {x: reference[x] for x in ("random", "idle")} | reference["untrained"]
    for name, measured in ignorant.items():
        lucky = measured["return"] + 2 * measured["error"]
        assert not presets.passes(env, {**measured, "return": lucky}), name
    assert {*reference["untrained"]} == {
        algorithm
        for algorithm, own in NAMES
        if own == env and "planner" not in presets.record(algorithm, env)["config"]
    }
    if reference["best"] is not None:
        best = reference["best"]
        assert presets.passes(env, best if isinstance(best, dict) else {"return": best})


def test_every_environment_of_a_preset_has_a_criterion() -> None:
    assert {env for _, env in NAMES} == presets.criteria().keys()


@pytest.mark.parametrize("name", NAMES, ids="-".join)
def test_every_preset_is_measured_on_five_other_seeds(name: tuple[str, str]) -> None:
    found = presets.found(*name, results.read_ledgers([LEDGER]))
    seeds = {line["seed"] for line in found}
    assert len(found) == len(seeds) >= 5
    assert presets.load(*name)["chosen_on"] in CHOSEN_ON
    assert min(seeds) > 4


def test_a_hyperparameter_that_a_run_did_not_have_yet_is_at_its_default() -> None:
    name = ("pets", "cartpole_swingup")
    line = presets.found(*name, results.read_ledgers([LEDGER]))[0]
    older = {key: x for key, x in line["config"].items() if key != "plan.horizon"}
    assert presets.found(*name, [{**line, "config": older}])
    for config in ({**older, "plan.horizon": 21}, {**older, "gone": 1}):
        assert not presets.found(*name, [{**line, "config": config}])
    again = {**line, "return": 7.0}  # the later one of a seed counts
    assert presets.found(*name, [line, again]) == [again]


def test_the_page_is_that_of_the_ledger() -> None:
    text = preset_page.markdown(results.read_ledgers([LEDGER]))
    assert text == (ROOT / "docs" / "presets.md").read_text()
    assert "not measured" not in text


def test_flags_go_before_the_preset_and_a_folder_before_both(tmp_path: Path) -> None:
    name = ("pets", "brax/reacher")
    values, config = parsed(*name, "--num_steps=3", "--plan.horizon=4")
    assert (values.num_steps, values.episode_length) == (3, 50)
    assert config.plan.horizon == 4
    record = run.record_of(values, config)
    run_folder.write_json(tmp_path / "config.json", record)
    values, config = parsed(*name, f"--run_dir={tmp_path}")
    assert (values.num_steps, config.plan.horizon) == (3, 4)


def test_a_preset_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(
        ValueError, match=r"no preset of pets for acrobot; .*brax/reach"
    ):
        parsed("pets", "acrobot")
    with pytest.raises(ValueError, match=r"no preset of petz .* none of it"):
        presets.load("petz", "acrobot")
