"""Run folders."""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runs import run_folder

RECORD: dict[str, Any] = {
    "algorithm": "pets",
    "env": "brax/ant",
    "episode_length": 0,
    "seed": 0,
    "num_seeds": 1,
    "precision": "fast",
    "num_steps": 10,
    "eval_every": 0,
    "eval_episodes": 5,
    "checkpoint_every": 1,
    "config": {"plan.horizon": 20, "layers": (3, 4)},
}


def test_a_new_folder_says_what_the_run_is_and_where_it_ran(tmp_path: Path) -> None:
    with run_folder.opened(str(tmp_path / "a" / "b"), RECORD) as folder:
        record = run_folder.read(folder)
    assert record["config"] == {"plan.horizon": 20, "layers": [3, 4]}
    assert record["versions"]["jax"]
    assert record["versions"]["orbax-checkpoint"]
    assert record["devices"]
    assert record["platform"]


def test_without_a_name_every_run_gets_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        with run_folder.opened("", RECORD) as folder:
            folders.append(folder)
    assert len(set(folders)) == 3
    assert all(str(x).startswith("runs/pets-brax-ant-") for x in folders)


def test_the_home_folder_has_a_short_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with run_folder.opened("~/a", RECORD) as folder:
        assert folder == tmp_path / "a"


def test_a_run_is_resumed_with_a_new_schedule_but_nothing_else(tmp_path: Path) -> None:
    with run_folder.opened(str(tmp_path), RECORD) as folder:
        started = run_folder.read(folder)["started"]
    with run_folder.opened(str(tmp_path), {**RECORD, "num_steps": 20}):
        record = run_folder.read(folder)
    assert record["num_steps"] == 20
    assert record["started"] == started
    other = {**RECORD, "seed": 1, "config": {"plan.horizon": 30, "layers": (3, 4)}}
    words = "plan.horizon is 20 there and 30 here, seed is 0 there and 1 here"
    with (
        pytest.raises(ValueError, match=words),
        run_folder.opened(str(tmp_path), other),
    ):
        pass


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with (
        pytest.raises(ValueError, match="not empty and holds no run"),
        run_folder.opened(str(tmp_path), RECORD),
    ):
        pass


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in (str(tmp_path / "file" / "run"), "/proc/run"):
        with (
            pytest.raises(OSError, match=f"cannot write to {name}"),
            run_folder.opened(name, RECORD),
        ):
            pass


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        run_folder.opened(str(tmp_path), RECORD),
        pytest.raises(OSError, match="in use"),
        run_folder.opened(str(tmp_path), RECORD),
    ):
        pass
    with run_folder.opened(str(tmp_path), RECORD):
        pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "config.json is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "algorithm is no str"),
        (json.dumps({**RECORD, "seed": "0"}), "seed is no int"),
    ],
)
def test_a_broken_config_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        run_folder.read(tmp_path)


def test_a_missing_folder_or_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no run folder"):
        run_folder.read(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"holds no config.json"):
        run_folder.read(tmp_path)


def test_json_says_arrays_as_lists_and_non_finite_as_null(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = {
        "z": jnp.array([1.0, jnp.nan]),
        "a": {"b": (np.float32(0.5), np.int32(3), float("inf"))},
        "c": [True, None, "text"],
    }
    run_folder.write_json(path, values)
    record = run_folder.read_json(path)
    assert record == {
        "z": [1.0, None],
        "a": {"b": [0.5, 3, None]},
        "c": [True, None, "text"],
    }
    assert list(record) == ["z", "a", "c"]
    assert [x.name for x in tmp_path.iterdir()] == ["a.json"]


def test_links_in_a_folder_of_somebody_else_lead_to_no_file_of_ours(
    tmp_path: Path,
) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("mine")
    folder.mkdir()
    for name in (".config.json.tmp", "status.json", "config.json"):
        (folder / name).symlink_to(victim)
    run_folder.write_status(folder, "running")
    run_folder.write_json(folder / "config.json", RECORD)
    assert victim.read_text() == "mine"
    (folder / ".lock").symlink_to(victim)
    with (
        pytest.raises(OSError, match="lock: it is a symbolic link"),
        run_folder.opened(str(folder), RECORD),
    ):
        pass
    assert victim.read_text() == "mine"


def test_settings_that_are_not_finite_are_text(tmp_path: Path) -> None:
    """JSON has no numbers for them; null would be lost."""
    config = {"endless": math.inf, "sizes": (1, 2), "none": math.nan}
    record = {**RECORD, "config": config, "varied": {"seed": [0, 1]}}
    record["varied"]["endless"] = [-math.inf, 1.0]
    run_folder.write(tmp_path, record)
    read = run_folder.read(tmp_path)
    assert read["config"] == {"endless": "inf", "sizes": [1, 2], "none": "nan"}
    assert run_folder.rows(read) == [
        {"seed": 0, "endless": -math.inf},
        {"seed": 1, "endless": 1.0},
    ]
    assert run_folder.identity(read) == run_folder.identity(record)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": True}, "seed is no int"),
        ({"seed": -1}, "seed is -1, must be from 0"),
        ({"num_seeds": 0}, "num_seeds is 0, must be from 1"),
        ({"num_seeds": 10**9}, "num_seeds is 1000000000, must be from 1 to 1000000"),
        ({"num_steps": 2**31}, "num_steps is 2147483648"),
        ({"config": []}, "config is no dict"),
        ({"devices": "cpu"}, "devices is no list"),
        ({"population": [1]}, "population is no dict"),
        ({"varied": [1]}, "varied is no dict"),
        ({"varied": {"a": [1.0]}}, "varied is no table of runs"),
        ({"varied": {"seed": 3}}, "varied is no table of runs|varied has bad seeds"),
        ({"varied": {"seed": [0, "1"]}}, "varied has bad seeds"),
        ({"varied": {"seed": [0], "a": [{}]}}, "varied is no table of runs"),
        ({"varied": {"seed": [0, 1], "a": [1.0]}}, "varied has columns of different"),
    ],
)
def test_a_config_of_the_wrong_shape_is_named(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RECORD | change))
    with pytest.raises(ValueError, match=rf"config.json: ({words})"):
        run_folder.read(tmp_path)


def test_json_that_is_too_deep_or_no_text_is_named(tmp_path: Path) -> None:
    for content, words in ((b"[" * 100_000, "nested too deeply"), (b"\xff", "UTF-8")):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=rf"config.json is .*{words}"):
            run_folder.read(tmp_path)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({}, "status is no str"),
        ({"status": "finished", "time": 3}, "time is no str"),
        ({"status": "finished", "time": "", "step": "4"}, "step is no int"),
        ({"status": "finished", "time": "", "missing": []}, "missing is no dict"),
    ],
)
def test_a_status_of_the_wrong_shape_is_named(
    tmp_path: Path, status: dict[str, Any], words: str
) -> None:
    (tmp_path / "status.json").write_text(json.dumps(status))
    with pytest.raises(ValueError, match=rf"status.json: {words}"):
        run_folder.finished(tmp_path)
