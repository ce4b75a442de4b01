"""The ledger: one line for each run, however many processes write."""

import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from experiments.reports import results
from experiments.runs import ledger, run_folder

RECORD: dict[str, Any] = {
    "algorithm": "pets",
    "env": "pendulum",
    "episode_length": 0,
    "precision": "fast",
    "seed": 3,
    "num_seeds": 2,
    "num_steps": 4,
    "eval_every": 2,
    "eval_episodes": 4,
    "checkpoint_every": 1,
    "config": {"plan.horizon": 7, "model.ensemble.learning_rate": 1e-3},
    "devices": ["cpu", "cpu"],
    "commit": "abc",
    "versions": {"jax": "1"},
}
STATUS = {"status": "finished", "time": "now"}


def step(number: int, **more: Any) -> dict[str, Any]:
    return {
        "step": number,
        "env_steps": 100 * number,
        "episode/return": float(number),
        "state/non_finite": 0,
        "time/step": 2.0,
        "compile/seconds": 0.5,
        **more,
    }


def make_line(number: int, **more: Any) -> ledger.Line:
    line = ledger.line(RECORD, {"seed": number}, [step(1)], STATUS, Path("a"))
    return {**line, **more}


def add_many(path: Path, worker: int) -> None:
    for i in range(20):
        ledger.add(path, [make_line(100 * worker + i), make_line(10_000 + i)])


def test_many_processes_add_at_once(tmp_path: Path) -> None:
    """Each its own runs, and all of them the same twenty more."""
    path = tmp_path / "ledger.jsonl"
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([ledger.__name__])  # once for all four
    workers = [server.Process(target=add_many, args=(path, i)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    seeds = [line["seed"] for line in ledger.read(path)]
    own = [100 * worker + i for worker in range(4) for i in range(20)]
    assert sorted(seeds) == [*own, *range(10_000, 10_020)]


def test_the_latest_line_of_a_run_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.jsonl"
    ledger.add(path, [make_line(1, status="failed"), make_line(2)])
    ledger.add(path, [make_line(1, status="finished")])
    found = {line["seed"]: line["status"] for line in ledger.read(path)}
    assert found == {1: "finished", 2: "finished"}


def test_outdated_lines_go_and_new_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.add(path, [make_line(1), make_line(2), make_line(3)])
    ledger.add(path, [make_line(1), make_line(4)], lambda old: old["seed"] < 3)
    assert [line["seed"] for line in ledger.read(path)] == [3, 1, 4]


def test_a_line_says_what_the_run_was() -> None:
    steps = [
        step(1),
        step(2, **{"eval/return_mean": 20.0, "time/evaluate": 1.0}),
        step(3, **{"episode/length": 7.0}),
        step(
            4,
            **{
                "eval/return_mean": 40.0,
                "eval/length_mean": 8.5,
                "eval/return_std": 6.0,
            },
        ),
    ]
    row = {"seed": 5, "model.ensemble.learning_rate": 0.25}
    line = ledger.line(RECORD, row, steps, STATUS, Path("a"))
    assert line["seed"] == 5
    assert line["status"] == "finished"
    assert line["hyperparameters"] == {
        "plan.horizon": 7,
        "model.ensemble.learning_rate": 0.25,
    }
    assert (line["return"], line["steps"], line["env_steps"]) == (40.0, 8.5, 400)
    assert line["error"] == pytest.approx(6 / 3**0.5)  # of four episodes
    trained = ledger.line(RECORD, row, [steps[0], steps[2]], STATUS, Path("a"))
    assert (trained["return"], trained["steps"]) == (3.0, 7.0)
    assert trained["error"] is None
    assert (line["wall_seconds"], line["compile_seconds"]) == (9.0, 2.0)
    assert (line["num_runs"], line["device"], line["commit"]) == (2, "cpu", "abc")
    assert line["curves"] == {
        "episode/return": {
            "env_steps": [100, 200, 300, 400],
            "return": [1.0, 2.0, 3.0, 4.0],
        },
        "eval/return_mean": {"env_steps": [200, 400], "return": [20.0, 40.0]},
    }
    assert json.loads(json.dumps(line)) == line


def test_the_key_is_that_of_the_run_and_not_of_its_company() -> None:
    def name(row: dict[str, Any], **more: Any) -> str:
        return ledger.run_id({**RECORD, **more}, row)

    row = {"seed": 5, "model.ensemble.learning_rate": 0.25}
    same = name(row)
    assert same == name(dict(reversed(row.items())), num_seeds=9, num_steps=99)
    config = {**RECORD["config"], "model.ensemble.learning_rate": 0.25}
    assert same == name({"seed": 5}, config=config)
    others = [
        name({**row, "seed": 6}),
        name({**row, "model.ensemble.learning_rate": 0.5}),
        name(row, env="acrobot"),
        name(row, precision="x64"),
        name(row, episode_length=9),
        name(row, population={"ranges": {}}),
    ]
    assert len({same, *others}) == 7
    digests = {ledger.config_digest(RECORD, {**row, "seed": i}) for i in range(3)}
    assert len(digests) == 1


@pytest.mark.parametrize("num", [0, 1, 99, 100, 101, 250, 1000])
def test_long_curves_are_thinned_and_keep_their_end(num: int) -> None:
    steps = [step(i) for i in range(1, num + 1)]
    line = ledger.line(RECORD, {"seed": 0}, steps, STATUS, Path("a"))
    curve = line["curves"]["episode/return"]
    assert len(curve["return"]) == len(curve["env_steps"]) <= 100
    if num <= 100:
        assert curve["return"] == [*range(1, num + 1)]
    if num:
        assert curve["return"][-1] == num
        assert curve["env_steps"] == [100 * x for x in curve["return"]]
    changed = [*steps[:-1], step(num, **{"episode/return": 0.5})] if num else []
    other = ledger.line(RECORD, {"seed": 0}, changed, STATUS, Path("a"))
    assert (other["curve_digest"] != line["curve_digest"]) == bool(num)


def test_a_run_that_is_not_finite_has_failed_and_others_have_not(
    tmp_path: Path,
) -> None:
    run_folder.write_json(tmp_path / "config.json", RECORD)
    run_folder.write_json(tmp_path / "status.json", STATUS)
    values = {"env_steps": [100, 100], "episode/return": [1.0, math.nan]}
    text = json.dumps(
        run_folder.plain({**step(2), **values, "state/non_finite": [0, 3]})
    )
    (tmp_path / "metrics.jsonl").write_text(text + "\n")
    good, bad = ledger.lines(tmp_path)
    assert (good["seed"], good["status"], good["return"]) == (3, "finished", 1.0)
    assert (bad["seed"], bad["status"], bad["return"]) == (4, "failed", None)
    assert bad["reason"] == "the state is not finite from step 2 on"


def test_a_run_that_failed_before_its_first_step(tmp_path: Path) -> None:
    run_folder.write_json(tmp_path / "config.json", {**RECORD, "num_seeds": 1})
    run_folder.write_status(tmp_path, "failed", reason="no room")
    (line,) = ledger.lines(tmp_path)
    assert (line["status"], line["reason"]) == ("failed", "no room")
    assert (line["return"], line["env_steps"]) == (None, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1 is no run"),
        ("[]", "line 1 is no run"),
        ("{}", "line 1 is no run: 'run'"),
        (json.dumps({**make_line(1), "seed": "1"}), "line 1: seed is no int"),
        (json.dumps({**make_line(1), "seed": True}), "line 1: seed is no int"),
        (json.dumps({**make_line(1), "return": []}), "line 1: return is no int or fl"),
        (json.dumps({**make_line(1), "config": [1]}), "line 1: config is no dict"),
        (json.dumps({**make_line(1), "curves": [1]}), "line 1: curves is no dict"),
        (json.dumps({**make_line(1), "folder": 3}), "line 1: folder is no str"),
        (
            json.dumps({**make_line(1), "population": {"a": 1}}),
            "line 1, population: ranges is no dict",
        ),
        ("[" * 100_000, "line 1 is no run: it is nested too deeply"),
    ],
)
def test_what_is_no_ledger_is_named_and_kept(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        ledger.read(path)
    with pytest.raises(ValueError, match=words):
        ledger.add(path, [make_line(1)])
    assert path.read_text() == text


def test_a_binary_file_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"\x89PNG\r\n\xff")
    with pytest.raises(ValueError, match=r"ledger.jsonl is not UTF-8 text"):
        ledger.read(path)
    with pytest.raises(ValueError, match=r"ledger.jsonl is not UTF-8 text"):
        ledger.add(path, [make_line(1)])
    assert path.read_bytes() == b"\x89PNG\r\n\xff"


def test_what_may_be_missing_may_be_null(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    line = make_line(1) | dict.fromkeys(ledger.MORE_KEYS)
    path.write_text(json.dumps(line) + "\n")
    (read,) = ledger.read(path)
    assert results.curve(read).steps.size == 0
    assert results.labels([read]) == ["pets"]
    path.write_text("")
    assert ledger.read(path) == []


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot read the ledger .*nowhere"):
        ledger.read(tmp_path / "nowhere")
    with pytest.raises(OSError, match="cannot write /proc/a/ledger"):
        ledger.add(Path("/proc/a/ledger.jsonl"), [])


def test_a_link_to_a_ledger_stays_one_and_takes_turns_with_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "real.jsonl", tmp_path / "ledger.jsonl"
    link.symlink_to(real)
    ledger.add(link, [make_line(1)])
    ledger.add(real, [make_line(2)])
    assert link.is_symlink()
    assert [line["seed"] for line in ledger.read(link)] == [1, 2]
    names = {x.name for x in tmp_path.rglob("*") if x.is_file()}
    assert names == {"real.jsonl", "ledger.jsonl", ".real.jsonl.lock"}


def test_no_link_in_place_of_a_lock_is_followed(tmp_path: Path) -> None:
    path, victim = tmp_path / "ledger.jsonl", tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".ledger.jsonl.lock").symlink_to(victim)
    with pytest.raises(OSError, match="lock: it is a symbolic link"):
        ledger.add(path, [make_line(1)])
    assert victim.read_text() == "mine"


def test_a_pipe_is_no_ledger(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"cannot write .*pipe: it is no regular file"):
        ledger.add(tmp_path / "pipe", [make_line(1)])
    assert [x.name for x in tmp_path.iterdir()] == ["pipe"]
