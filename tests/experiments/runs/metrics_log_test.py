"""Metrics on disk."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.runs import metrics_log


def write(folder: Path, steps: range, offset: float = 0.0) -> None:
    with metrics_log.writer(folder) as log:
        for step in steps:
            log(
                step,
                {"env_steps": np.int32(10 * step), "a/b": np.float32(step + offset)},
            )


def test_lines_are_read_back(tmp_path: Path) -> None:
    with metrics_log.writer(tmp_path) as log:
        log(1, {"x": np.array([0.1, np.nan, 3]), "time/step": 0.5})
    assert metrics_log.read(tmp_path) == [
        {"step": 1, "x": [0.1, None, 3.0], "time/step": 0.5}
    ]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    with metrics_log.writer(tmp_path) as log:
        for step in (1, 2):
            log(step, {"x": step})
            assert len(metrics_log.read(tmp_path)) == step


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    write(tmp_path / "whole", range(1, 8))
    parts = tmp_path / "parts"
    write(parts, range(1, 6), offset=0.0)
    with open(parts / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "env_st')  # cut by a kill
    write(parts, range(4, 8))  # resumed from the checkpoint of step 3
    text = (parts / "metrics.jsonl").read_text()
    assert text == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_nothing_is_cut_until_there_is_something_to_log(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    before = (tmp_path / "metrics.jsonl").read_text()
    write(tmp_path, range(0))
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_only_the_last_line_may_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    assert metrics_log.read(tmp_path) == [{"step": 1}]
    for bad in ('{"step": 1', "[1]", '{"x": 1}', '{"step": "a"}'):
        path.write_text(f'{bad}\n{{"step": 2}}\n')
        with pytest.raises(ValueError, match="line 1 is no record"):
            metrics_log.read(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match=r"no metrics.jsonl"):
        metrics_log.read(tmp_path)


def test_tensorboard_gets_the_mean_over_seeds(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with metrics_log.writer(tmp_path) as log:
        log(3, {"x": np.array([1.0, 2.0, 6.0]), "bad": np.nan})
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, found = path.read_bytes(), {}
    while content:  # records: length, checksum of it, event, checksum of it
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
        content = content[12 + length + 4 :]
    assert found == {(3, "x"): 3.0, (3, "bad"): pytest.approx(np.nan, nan_ok=True)}


def test_lines_are_json_for_any_reader(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_link_in_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "victim")
    write(tmp_path, range(1, 3))  # the lines from step 1 on are replaced, and the link
    assert (tmp_path / "victim").read_text() == ""
    assert len(metrics_log.read(tmp_path)) == 2


def test_a_link_in_place_of_the_folder_for_tensorboard_is_not_followed(
    tmp_path: Path,
) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="tensorboard is a symbolic link"):
        write(tmp_path / "run", range(1, 2))
    assert [*(tmp_path / "victim").iterdir()] == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"step": True}, "step is no int"),
        ({"step": 1.5}, "step is no int"),
        ({"step": 1, "x": "3"}, "x is '3', which is no number"),
        ({"step": 1, "x": {"y": 3}}, "x is {'y': 3}, which is no number"),
        ({"step": 1, "x": [[3]]}, r"x is \[3\], which is no number"),
        ({"step": 1, "env_steps": None}, "env_steps is None, which is no number"),
        ({"step": 1, "env_steps": 3}, "there is no state/non_finite"),
        ({"step": 1, "env_steps": [3], "state/non_finite": 0}, "1 values for 2 runs"),
    ],
)
def test_a_line_of_the_wrong_shape_is_named(
    tmp_path: Path, line: dict[str, Any], words: str
) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=rf"metrics.jsonl, line 1.*{words}"):
        metrics_log.read(tmp_path, 2, ("env_steps", "state/non_finite"))


def test_a_line_that_is_too_deep_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match="line 1 is no record of a step: it is nested"):
        metrics_log.read(tmp_path)
