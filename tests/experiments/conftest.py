"""A run small enough that only the commands are tested."""

import shutil
from pathlib import Path

import pytest

from experiments import run

FLAGS = """
--env=point_mass
--planner=random_shooting
--propagation=expectation
--num_particles=1
--plan.horizon=2
--plan.num_samples=5
--plan.num_elites=2
--model.num_members=2
--model.num_elites=1
--model.hidden_sizes=8
--model.num_epochs=2
--num_steps=4
--eval_every=2
--eval_episodes=2
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The flag that makes a run tiny."""
    path = tmp_path_factory.mktemp("flags") / "tiny.flags"
    path.write_text(FLAGS)
    return f"--flagfile={path}"


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
