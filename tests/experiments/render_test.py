"""Rendered episodes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import render
from experiments.reports import animation
from experiments.runs import registry
from mbrl_jax import policies
from mbrl_jax.envs import pendulum, pixels, simulator
from mbrl_jax.types import Algorithm


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


def fortune_teller(foresees: bool = True) -> Any:
    """A run of one whose model says that pictures stay as they are, but darker."""
    env = pixels.make(
        simulator.time_limit(pendulum.make(), 5),
        pixels.Config(size=8, num_frames=2, colour=True),
    )

    def foresee(state: Any, key: Any, obs: Any, action: Any) -> dict[str, Any]:
        assert obs.shape[0] == action.shape[0] + 1 == 6
        frames = pixels.newest(env, obs)
        half = frames[:, ::2, ::2]  # as of an autoencoder that draws in small
        return {"reconstructed": half, "predicted": 0.5 * frames[..., :1]}

    algorithm = Algorithm(
        lambda key: (),
        lambda key, state: (state, {}),
        lambda state: policies.uniform(env),
        foresee=foresee if foresees else None,
    )
    return SimpleNamespace(
        env=env,
        algorithm=lambda varied: algorithm,
        hyperparameters={},
        state=(),
        key=jax.random.key(0),
        record={"algorithm": "teller"},
    )


def test_what_was_foreseen_is_beside_what_was_seen(tmp_path: Path) -> None:
    run = fortune_teller()
    assert animation.is_foreseen(run)
    animation.foreseen(run, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 6
        assert image.size == (3 * 120 + 2 * 4, 120)
        image.seek(5)
        shown = np.asarray(image.convert("RGB"), int)
    seen, again, darker = (shown[:, 124 * i :][:, :120] for i in range(3))
    assert np.abs(seen[::30, ::30] - again[::30, ::30]).max() < 8
    assert np.abs(again[::30, ::30] - again[29::30, 29::30]).max() < 8
    assert np.abs(seen[..., :1] // 2 - darker).max() < 8
    assert len(np.unique(seen[7::15, 7::15].reshape(-1, 3), axis=0)) > 3


def test_without_a_model_of_pictures_nothing_is_foreseen(tmp_path: Path) -> None:
    run = fortune_teller(foresees=False)
    assert not animation.is_foreseen(run)
    with pytest.raises(ValueError, match="teller has no model of pictures"):
        animation.foreseen(run, tmp_path / "a.gif")
