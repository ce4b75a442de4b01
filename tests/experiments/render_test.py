"""Rendered episodes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import render
from experiments.reports import animation
from experiments.runs import registry


def test_a_gif_plays_at_the_right_speed_for_ever(tmp_path: Path) -> None:
    frames = np.full((12, 20, 30, 3), 240, np.uint8)
    for time in range(12):
        frames[time, :, 2 * time : 2 * time + 4] = (200, 10, 30)
    animation.write_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 12
        assert image.size == (30, 20)
        assert image.info["loop"] == 0
        for time in range(12):
            image.seek(time)
            assert image.info["duration"] == animation.FRAME_TIME
            shown = np.asarray(image.convert("RGB"), int)
            assert np.abs(shown - frames[time]).max() < 8


def test_a_link_in_place_of_a_gif_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "a.gif").symlink_to(tmp_path / "victim")
    animation.write_gif(tmp_path / "a.gif", np.zeros((2, 3, 3, 3), np.uint8))
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.slow
def test_an_episode_is_rendered_from_the_folder_alone(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "episode.gif").read_bytes()
    (finished / "episode.gif").unlink()
    (finished / "metrics.jsonl").unlink()
    render.main(["render", f"--run_dir={finished}"])
    assert (finished / "episode.gif").read_bytes() == before
    other = finished / "other.gif"
    render.main(["render", f"--run_dir={finished}", "--seed=1", f"--output={other}"])
    assert other.read_bytes() != before
    assert capsys.readouterr().out.split() == [
        str(finished / "episode.gif"),
        str(other),
    ]
    with Image.open(other) as image:
        assert image.n_frames == 101  # all states of an episode of 100 steps


def test_what_cannot_be_rendered_is_named(whole: Path, tmp_path: Path) -> None:
    run = registry.load(whole, print)
    with pytest.raises(ValueError, match="run is 1, but there are 1"):
        animation.episode(run, tmp_path / "a.gif", which=1)
    blind = run._replace(env=run.env._replace(render=None))
    with pytest.raises(ValueError, match="point_mass has no picture"):
        animation.episode(blind, tmp_path / "a.gif")
    with pytest.raises(OSError, match="no run folder"):
        render.main(["render", "--run_dir=/nowhere"])
