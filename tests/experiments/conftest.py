"""Runs small enough that only the commands are tested."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import run
from mbrl_jax import policies
from mbrl_jax.algorithms import mpc
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics

# The method that compiles quickest: it learns nothing, but its state has a history.
FLAGS = """
--algorithm=mpc
--env=point_mass
--planner=mppi
--plan.num_iterations=1
--plan.horizon=2
--plan.num_samples=5
--num_steps=4
--eval_every=2
--eval_episodes=2
"""
MODEL_FLAGS = """
--algorithm=pets
--env=point_mass
--planner=random_shooting
--propagation=expectation
--num_particles=1
--plan.horizon=2
--plan.num_samples=5
--plan.num_elites=2
--model.ensemble.num_members=2
--model.ensemble.num_elites=1
--model.ensemble.hidden_sizes=8
--model.ensemble.num_epochs=2
--num_steps=2
--eval_every=2
--eval_episodes=2
"""


@pytest.fixture(scope="session", autouse=True)
def _one_device() -> None:
    """The commands would make a device of each core, if nothing has been computed."""
    jax.devices()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The flag that makes a run tiny."""
    path = tmp_path_factory.mktemp("flags") / "tiny.flags"
    path.write_text(FLAGS)
    return f"--flagfile={path}"


def light_mpc(env: Env, config: mpc.Config) -> Algorithm:
    """What compiles at once in place of MPC, where it only matters what runs."""

    def step(key: Key, env_steps: Array) -> tuple[Array, Metrics]:
        returned = config.plan.init_std * jax.random.normal(key)
        env_steps = env_steps + 100
        return env_steps, {"env_steps": env_steps, "episode/return": returned}

    policy = lambda state: policies.uniform(env)
    return Algorithm(lambda key: jnp.int32(0), step, policy)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpc, "make", light_mpc)


@pytest.fixture(scope="session")
def whole(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run.  Read only."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run.main(["run", tiny, f"--run_dir={folder}"])
    return folder


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A finished run to be spoiled."""
    return Path(shutil.copytree(whole, tmp_path / "finished"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The flag that makes a run tiny, of a method that learns a model."""
    path = tmp_path_factory.mktemp("flags") / "tiny_model.flags"
    path.write_text(MODEL_FLAGS)
    return f"--flagfile={path}"


@pytest.fixture(scope="session")
def modelled(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a model.  Read only."""
    folder = tmp_path_factory.mktemp("runs") / "modelled"
    run.main(["run", tiny_model, f"--run_dir={folder}"])
    return folder
