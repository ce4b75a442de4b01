"""Pictures of runs."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from experiments import plot
from experiments.reports import plots
from experiments.runs import run_folder


def make_run(folder: Path, num_seeds: int) -> Path:
    """A run folder without a run."""
    folder.mkdir()
    record = {"algorithm": "pets", "env": "pendulum", "num_seeds": num_seeds}
    record |= {"seed": 0, "precision": "fast", "episode_length": 0, "config": {}}
    record |= dict.fromkeys(run_folder.SCHEDULE, 1)
    (folder / "config.json").write_text(json.dumps(record))
    rng = np.random.default_rng(num_seeds)

    def values(*shape: int) -> Any:
        return rng.normal(size=(num_seeds, *shape) if num_seeds > 1 else shape).tolist()

    lines = [
        {
            "step": step,
            "env_steps": [100 * step] * num_seeds if num_seeds > 1 else 100 * step,
            "episode/return": values(),
            **({"eval/return_mean": values()} if step % 2 else {}),
        }
        for step in range(1, 6)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    names = ("open_loop_rmse", "open_loop_disagreement", "predicted_minus_real_return")
    diagnosis = {f"model/{name}": values(25) for name in names}
    diagnosis |= {f"model/{x}": values(6) for x in ("coverage", "coverage_level")}
    diagnosis |= {f"model/{x}": values() for x in ("nll", "one_step_rmse")}
    (folder / "diagnostics.json").write_text(json.dumps(diagnosis))
    return folder


def num_colours(path: Path) -> int:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))


def test_a_seed_that_is_not_finite_leaves_the_curve_of_the_others(
    tmp_path: Path,
) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5))
    spoiled = values.copy()
    spoiled[1:, 2] = np.nan, np.inf
    spoiled[2, 1:] = np.nan
    expected = plots.interval(np.delete(values[:2], 2, axis=1))[1]
    np.testing.assert_allclose(plots.interval(spoiled)[1:], [expected, np.nan])
    folder = make_run(tmp_path / "run", 3)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines[2:]:
        line["episode/return"][0] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    _, (axis,) = plots.new_figure(1, width=6.4)
    plots._draw(axis, plots._curve(lines, plots.TRAINING), "k")
    drawn = axis.lines[0].get_ydata()
    np.testing.assert_allclose(drawn[-1], np.mean(lines[-1]["episode/return"][1:]))
    assert np.isfinite(drawn).all()
    assert plots._num_lost(lines) == 1
    plots.learning_curve([folder], tmp_path / "curve.png")


def test_the_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5))
    low, high = scipy.stats.t.interval(
        0.95, 4, loc=values.mean(axis=1), scale=scipy.stats.sem(values, axis=1)
    )
    np.testing.assert_allclose(plots.interval(values), (high - low) / 2)


def test_the_curve_has_a_value_wherever_there_was_one() -> None:
    lines = [
        {"step": 1, "env_steps": [100, 100], "r": [1.0, 2.0]},
        {"step": 2, "env_steps": [200, 250]},
        {"step": 3, "env_steps": [300, 350], "r": [3.0, None]},
    ]
    steps, values = plots._curve(lines, "r")
    np.testing.assert_array_equal(steps, [100, 325])
    np.testing.assert_array_equal(values, [[1, 2], [3, np.nan]])


@pytest.mark.slow
def test_runs_of_one_and_several_seeds_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, several = make_run(tmp_path / "one", 1), make_run(tmp_path / "several", 3)
    plot.main(["plot", f"--run_dir={several}"])
    plot.main(["plot", f"--run_dir={one},{several}", f"--output={tmp_path}/both.png"])
    pictures = [several / "learning_curve.png", several / "diagnostics.png"]
    pictures.append(tmp_path / "both.png")
    assert capsys.readouterr().out.split() == [str(path) for path in pictures]
    assert all(num_colours(path) > 50 for path in pictures)


def test_overlaid_runs_differ_in_colour(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(n), n) for n in (1, 2)]
    plots.learning_curve(folders, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in plots.COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(axis=1).sum() > 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--run_dir is needed"),
        (["--run_dir=/nowhere"], "no run folder /nowhere"),
        (["--run_dir={0},{0}"], "need an --output"),
        (["--run_dir={0}", "--output=/nowhere/a.png"], "cannot write /nowhere/a.png"),
    ],
)
def test_bad_arguments_are_named(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    folder = make_run(tmp_path / "run", 1)
    with pytest.raises(Exception, match=words):
        plot.main(["plot", *(x.format(folder) for x in arguments)])


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 1)
    (folder / "diagnostics.json").write_text('{"model/nll": 1.0}')
    with pytest.raises(ValueError, match=r"diagnostics.json is not what was expected"):
        plots.diagnostics(folder, tmp_path / "a.png")
    (folder / "metrics.jsonl").write_text('{"step": 1, "env_steps": 3}\n')
    with pytest.raises(ValueError, match="no returns yet"):
        plots.learning_curve([folder], tmp_path / "a.png")
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(OSError, match=r"no metrics.jsonl"):
        plots.learning_curve([folder], tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a"])
def test_a_link_in_place_of_a_picture_is_not_followed(
    tmp_path: Path, name: str
) -> None:
    victim, path = tmp_path / "victim", tmp_path / name
    victim.write_text("mine")
    path.symlink_to(victim)
    figure, _ = plots.new_figure(1, width=1)
    plots.save(figure, path)
    assert victim.read_text() == "mine"
    assert num_colours(path) > 1


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    figure, _ = plots.new_figure(1, width=1)
    with pytest.raises(OSError, match=r"cannot write .*a.png: No space left"):
        plots.save(figure, path)
    assert path.read_text() == "old"
