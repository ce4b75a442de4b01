"""Presets: complete, possible, and as good as their page says."""

from pathlib import Path
from typing import Any

import pytest

from experiments import run
from experiments.reports import preset_page, results
from experiments.runs import presets, registry, run_folder

ROOT = Path(__file__).parents[3]
LEDGER = ROOT / "benchmarks" / "results" / "ledger.jsonl"
NAMES = presets.names()


def parsed(algorithm: str, env: str, *more: str) -> tuple[Any, Any]:
    argv = ["run", f"--algorithm={algorithm}", f"--env={env}", "--preset", *more]
    return run.parse(argv)


def test_there_are_presets() -> None:
    assert ("pets", "cartpole_swingup") in NAMES
    assert len(NAMES) == len([*presets.FOLDER.glob("*/*.json")])


@pytest.mark.parametrize("name", NAMES, ids="-".join)
def test_a_preset_is_a_run_that_can_be(name: tuple[str, str]) -> None:
    preset = presets.load(*name)
    assert presets.path(*name).exists()
    values, config = parsed(*name)
    record = run.record_of(values, config)
    assert (record["algorithm"], record["env"]) == name
    said = {**record, **record["config"]}
    assert {x: said[x] for x in preset["settings"]} == preset["settings"]
    assert registry.assemble(record).env.name
    line = {"return": 1e9, "curves": {"episode/return": {"return": [1e9] * 3}}}
    assert presets.passes(preset, line)
    line = {"return": -1e9, "curves": {"episode/return": {"return": [-1e9] * 3}}}
    assert not presets.passes(preset, line)


@pytest.mark.parametrize("name", NAMES, ids="-".join)
def test_every_preset_is_measured_on_five_other_seeds(name: tuple[str, str]) -> None:
    found = presets.found(*name, results.read_ledgers([LEDGER]))
    seeds = {line["seed"] for line in found}
    assert len(found) == len(seeds) >= 5
    assert presets.load(*name)["chosen_on"] == "seeds 0 to 4"
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
