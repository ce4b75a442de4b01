"""What `benchmarks.robustness` tries: a failure that is planted is counted as one."""

import multiprocessing.dummy
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.robustness import (
    bad_input,
    faults,
    faulty,
    kills,
    links,
    page,
    writers,
)
from benchmarks.robustness.__main__ import CLASSES
from experiments import run
from experiments.runs import files, registry, run_folder
from tests.experiments import run_test


def test_the_page_is_that_of_the_outcomes() -> None:
    text = page.PAGE.read_text()
    assert page.written(text, CLASSES) == text


def test_outcomes_are_kept_and_failures_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path / "robustness.json")
    monkeypatch.setattr(page, "LOCK", tmp_path / "cache" / "lock")
    page.keep("kills", "sac", {"tried": 5, "failures": ["it did not finish"]})
    page.keep("kills", "pets", {"tried": 4, "failures": []})
    assert [*page.found()["kills"]] == ["pets", "sac"]
    *_, row, _, note = page.lines(CLASSES)
    assert row.endswith(f"| 2 of {len(registry.names())} | 9 | 1 |")
    assert note == "- kills, sac: FAILED: it did not finish"


def test_every_algorithm_is_killed_and_given_bad_input() -> None:
    assert kills.names() == registry.names()
    assert {f"run --algorithm={x}" for x in registry.names()} < {*bad_input.names()}


@pytest.mark.parametrize(
    ("argument", "kind", "wrong"),
    [
        ("--plan.horizon=0", "refused", ""),
        ("--plan.init_std=nan", "refused", ""),
        ("--plan.horizon=3", "accepted", ""),
    ],
)
def test_bad_input_is_refused_or_meant(argument: str, kind: str, wrong: str) -> None:
    flag, _, value = argument.removeprefix("--").partition("=")
    found, told = bad_input.outcome("run", [*bad_input.MPC, argument])
    assert found == kind
    assert bad_input.complaint(flag, value, found, told, {flag: float}) == wrong


def test_a_traceback_a_second_line_and_a_nan_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any) -> None:
        raise KeyError("size")

    monkeypatch.setattr(registry, "assemble", fail)
    found, told = bad_input.outcome("run", bad_input.MPC)
    assert (found, told) == ("traceback", "KeyError('size')")
    complaint = lambda *outcome: bad_input.complaint(
        "a.size", *outcome, {"a.size": float}
    )
    assert complaint("0", found, told) == told
    assert complaint("nan", "accepted", "") == "accepted"
    assert complaint("0", "refused", "error: size\nis 0\n").startswith("2 lines")
    assert complaint("0", "refused", "error: it is bad\n").startswith("names nothing")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run.  Read only."""
    return links.made(tmp_path_factory.mktemp("robustness"), "--nopictures")


def test_a_run_that_ends_elsewhere_is_noticed(source: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(source, tmp_path / "other"))
    assert kills.differences(source, other) == []
    for name, old, new in [
        ("config.json", '"seed": 0', '"seed": 1'),
        ("metrics.jsonl", '"env_steps": 400', '"env_steps": 401'),
        ("checkpoints/4/record/metadata", '"sha256": "', '"sha256": "0'),
    ]:
        text = (other / name).read_text()
        assert old in text
        (other / name).write_text(text.replace(old, new))
    assert kills.differences(source, other) == [
        "config.json is another one",
        "the metrics are others",
        "the last checkpoint is another one",
    ]


def test_more_than_one_line_of_error_is_counted() -> None:
    good = "run folder a\nstep 3/6\nerror: it is broken\n"
    assert faults.one_line(1, good) == []
    assert faults.one_line(0, good) != []
    assert faults.one_line(1, "Traceback\n  line\nValueError: it is broken") != []
    assert faults.one_line(1, f"E0000 callback failed\n{good}") == [
        "also says E0000 callback failed"
    ]


def test_a_reason_that_is_not_on_record_is_counted(tmp_path: Path) -> None:
    run_folder.write_status(tmp_path, "failed", reason="no")
    assert faults.on_record(tmp_path, "run folder\nerror: no") == []
    assert faults.on_record(tmp_path, "error: yes") != []
    run_folder.write_status(tmp_path, "running")
    assert faults.on_record(tmp_path, "error: no") != []


def test_simulators_fail_when_they_are_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faulty.AFTER, "2")
    simulator = faulty.Simulator("step_raises")
    simulator.reset(seed=0)
    simulator.step(faulty.np.zeros(1))
    with pytest.raises(ZeroDivisionError):
        simulator.step(faulty.np.zeros(1))


def test_a_torn_file_and_a_failed_write_are_noticed(tmp_path: Path) -> None:
    def torn(path: Path, number: int, i: int) -> None:
        with path.open("w") as file:
            for _ in range(50):
                file.write(f"{number}" * 1000)
                file.flush()
        if (number, i) == (3, 1):
            raise OSError("no")

    path, check = tmp_path / "a", writers.check_text
    tried, failures = writers.compete(torn, check, path, 9, multiprocessing.dummy)
    assert tried == 9 * writers.NUM_PROCESSES
    assert any("a reader finds" in x for x in failures)
    assert "OSError('no')" in failures


def test_a_changed_victim_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(path: Path, text: str, **options: Any) -> None:
        path.with_name(f".{path.name}.tmp").write_text(text)
        path.write_text(text)

    monkeypatch.setattr(files, "write_text", follow)
    plant, where = links.KINDS["link to a file"], ".status.json.tmp"
    told = links.planted(plant, source, tmp_path, where)
    assert told.startswith("what it leads to has changed")


def test_who_waits_for_ever_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PATIENCE", 0.1)
    monkeypatch.setattr(run, "main", lambda argv: run_test.time.sleep(5))
    assert links.used(Path("nowhere")) == "run waits for ever"
