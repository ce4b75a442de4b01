"""Old names: of settings, in folders and ledgers, on the command line, in states."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from experiments import run
from experiments.runs import (
    command_flags,
    ledger,
    presets,
    registry,
    renamed,
    run_folder,
)
from experiments.sweeps import domains
from mbrl_jax import envs
from mbrl_jax.training import checkpoints

LEDGER = Path(__file__).parents[3] / "benchmarks" / "results" / "ledger.jsonl"
OLD = [(name, old) for name, names in renamed.SETTINGS.items() for old in names]


@pytest.mark.parametrize(("algorithm", "old"), OLD)
def test_the_table_leads_from_what_was_to_what_is(algorithm: str, old: str) -> None:
    known = command_flags.flat(registry.module(algorithm).Config())
    assert old not in known
    assert renamed.SETTINGS[algorithm][old] in known


def old_record() -> dict[str, Any]:
    values, config = run.parse(["run", "--algorithm=trpo", "--env=pendulum"])
    record = run.record_of(values, config)
    config = dict(record["config"])
    config["learn.trace_decay"] = 0.5
    del config["learn.gae_lambda"]
    return {**record, "config": config}


def test_an_old_run_folder_is_read(tmp_path: Path) -> None:
    record = old_record()
    record["varied"] = {"seed": [0, 1], "learn.trace_decay": [0.5, 0.75]}
    record["population"] = {"ranges": {"learn.divergence": [0.1, 1.0, True]}}
    run_folder.write_json(tmp_path / "config.json", record)
    found = run_folder.read(tmp_path)
    assert found["config"]["learn.gae_lambda"] == 0.5
    assert found["config"].keys() == dict(registry_config("trpo")).keys()
    assert found["varied"] == {"seed": [0, 1], "learn.gae_lambda": [0.5, 0.75]}
    assert found["population"]["ranges"] == {"learn.max_kl": [0.1, 1.0, True]}
    assert len(run_folder.rows(found)) == 2


MODELS = dict.fromkeys(("pets", "mbpo", "svg"), "model") | {"mba": "network"}


@pytest.mark.parametrize(("algorithm", "field"), MODELS.items())
def test_an_old_run_is_of_an_ensemble(
    algorithm: str, field: str, tmp_path: Path
) -> None:
    """What it says of models that it does not use is what a run of today says, so that
    it can be resumed; its checkpoint is told the same."""
    argv = ["run", f"--algorithm={algorithm}", f"--{field}.ensemble.num_epochs=7"]
    values, config = run.parse(argv)
    today = run.record_of(values, config)
    others = f"{field}.bnn.", f"{field}.gaussian_process.", f"{field}.name"
    before = {
        name.replace(f"{field}.ensemble.", f"{field}."): x
        for name, x in today["config"].items()
        if not name.startswith(others)
    }
    assert before[f"{field}.num_epochs"] == 7
    varied = {"seed": [0, 1], f"{field}.learning_rate": [0.5, 0.75]}
    old = {**today, "config": before, "varied": varied}
    run_folder.write_json(tmp_path / "config.json", old)
    found = run_folder.read(tmp_path)
    assert found["config"] == run_folder.spelled(today["config"])
    assert found["varied"][f"{field}.ensemble.learning_rate"] == [0.5, 0.75]
    identity = run_folder.identity({**today, "config": before})
    told = renamed.checkpoint({"config": identity, "leaves": []})["config"]
    assert told == run_folder.identity(today)


def test_a_run_of_before_is_one_without_what_came_later(tmp_path: Path) -> None:
    values, config = run.parse(["run", "--algorithm=pets", "--model.bnn.dropout=0.3"])
    today = run.record_of(values, config)
    before = {
        name: x for name, x in today["config"].items() if not name.startswith("distil.")
    }
    assert today["config"].keys() - before.keys() >= {"distil.num_updates"}
    old = {**today, "config": before}
    run_folder.write_json(tmp_path / "config.json", old)
    assert run_folder.read(tmp_path)["config"] == run_folder.spelled(today["config"])
    told = renamed.checkpoint({"config": run_folder.identity(old), "leaves": []})
    assert told["config"] == run_folder.identity(today)
    changed = {**today, "config": {**today["config"], "distil.num_updates": 7}}
    run_folder.write_json(tmp_path / "config.json", changed)
    assert run_folder.read(tmp_path)["config"]["distil.num_updates"] == 7


def registry_config(algorithm: str) -> dict[str, Any]:
    return command_flags.flat(registry.module(algorithm).Config())


def test_old_lines_of_a_ledger_are_those_of_todays_runs(tmp_path: Path) -> None:
    """And count as the same runs: their digests are what they would be today."""
    values, config = run.parse(["run", "--algorithm=trpo", "--env=pendulum"])
    today = run.record_of(values, config)
    today["config"] = {**today["config"], "learn.gae_lambda": 0.5}
    lines = []
    for record in (old_record(), today):
        about = {name: record[name] for name in ledger.ABOUT}
        about["config"] = run_folder.plain(record["config"])
        line = {
            **about,
            "run": ledger.digest({**about, "seed": 3}),
            "config_digest": ledger.digest(about),
            "status": "finished",
            "seed": 3,
            "num_steps": 1,
            "hyperparameters": {},
        }
        lines.append(line)
    assert lines[0]["run"] != lines[1]["run"]
    book = tmp_path / "ledger.jsonl"
    book.write_text("".join(json.dumps(line) + "\n" for line in lines))
    old, new = ledger.read(book)
    assert old == new
    row = {"seed": 3}
    assert new["run"] == ledger.run_id(today, row)
    assert new["config_digest"] == ledger.config_digest(today, row)


def test_the_projects_own_old_lines_belong_to_its_presets() -> None:
    raw = [json.loads(line) for line in LEDGER.read_text().splitlines()]
    lines = ledger.read(LEDGER)
    for algorithm in ("trpo", "nagabandi"):
        assert len(presets.found(algorithm, "pendulum", lines)) >= 5
    for before, line in zip(raw, lines, strict=True):
        old = before["config"].keys() & renamed.SETTINGS.get(before["algorithm"], {})
        old |= line["config"].keys() - before["config"].keys()  # that came later
        assert (line["run"] == before["run"]) == (not old)
        assert not line["config"].keys() & renamed.SETTINGS.get(line["algorithm"], {})


@pytest.mark.parametrize(
    ("algorithm", "old", "new"),
    [
        ("trpo", "learn.trace_decay", "--learn.gae_lambda now"),
        ("trpo", "learn.divergence", "--learn.max_kl now"),
        ("shac", "trace_decay", "--td_lambda now"),
        ("nagabandi", "trpo.shrink", "--trpo.backtrack_ratio now"),
        ("ppo", "learn.target_divergence", "--learn.target_kl now"),
        ("pets", "trace_decay", "unknown flag"),
        ("pets", "model.num_members", "--model.ensemble.num_members now"),
        ("mba", "network.num_members", "--network.ensemble.num_members now"),
    ],
)
def test_an_old_flag_is_an_error_that_says_the_new_one(
    algorithm: str, old: str, new: str
) -> None:
    with pytest.raises(flags.Error, match=f"unknown flag --{old}") as error:
        run.parse(["run", f"--algorithm={algorithm}", f"--{old}=0.5"])
    assert new in str(error.value)


def test_an_old_name_in_a_sweep_is_an_error_that_says_the_new_one() -> None:
    config = registry.module("trpo").Config()
    with pytest.raises(
        ValueError, match=r"'trace_decay'; it is called learn.gae_lambd"
    ):
        domains.full_name(config, "trace_decay")


@pytest.mark.parametrize("algorithm", ["sac", "maac", "pets", "reinforce"])
def test_nothing_of_today_is_taken_for_old(algorithm: str) -> None:
    made = registry.module(algorithm).make(envs.make("point_mass"))
    paths = jax.tree.leaves_with_path(jax.eval_shape(made.init, jax.random.key(0)))
    leaves = [[jax.tree_util.keystr(x, simple=True, separator=".")] for x, _ in paths]
    record = {"config": {}, "leaves": leaves}
    assert renamed.checkpoint(record)["leaves"] == leaves


class Old(NamedTuple):
    learner: Any
    running: Any
    tally: Any


class New(NamedTuple):
    learner: Any
    parallel: Any
    counters: Any


def test_an_old_checkpoint_is_restored(tmp_path: Path) -> None:
    """And one that does not fit stays an error."""
    config = {**run_folder.identity(old_record()), "seed": 0}
    x = jnp.arange(3.0)
    checkpoints.save(tmp_path, 1, Old({"targets": x}, 2 * x, 3 * x), config)
    today = renamed.checkpoint({"config": config, "leaves": []})["config"]
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    template = New({"target_critics": like}, like, like)
    with pytest.raises(ValueError, match="another run"):
        checkpoints.restore(tmp_path, template, today, pytest.fail)
    found = checkpoints.restore(
        tmp_path, template, today, pytest.fail, renamed.checkpoint
    )
    assert found is not None
    assert found[0] == 1
    np.testing.assert_array_equal(found[1].learner["target_critics"], x)
    np.testing.assert_array_equal(found[1].parallel, 2 * x)
    np.testing.assert_array_equal(found[1].counters, 3 * x)
    with pytest.raises(ValueError, match="does not fit"):
        checkpoints.restore(
            tmp_path,
            template._replace(learner={"critics": like}),
            today,
            pytest.fail,
            renamed.checkpoint,
        )


def test_an_infinite_setting_was_null_on_disk_and_a_number_in_checkpoints() -> None:
    name = "search.widening_factor"
    assert renamed.settings("mpc", {name: None, "x": 0.0}) == {name: "inf", "x": 0.0}
    config = {"algorithm": "mpc", name: math.inf}
    found = renamed.checkpoint({"config": config, "leaves": []})
    assert found["config"] == {"algorithm": "mpc", name: "inf"}
