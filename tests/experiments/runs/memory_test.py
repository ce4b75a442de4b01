"""What a run needs at least, before anything is compiled."""

from typing import Any

import jax
import pytest

from experiments import run
from experiments.runs import jax_settings, memory, registry

GB = 10**9


@pytest.fixture(autouse=True)
def _four_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_settings, "device_memory", lambda: 4 * GB)


def record(*argv: str) -> dict[str, Any]:
    return run.record_of(*run.parse(["run", "--env=pendulum", *argv]))


SAC, MPPI = "--algorithm=sac", ("--algorithm=mpc", "--planner=mppi")
LARGE = [
    ((SAC, "--collect.capacity=2000000000"), "--collect.capacity=2000000000", 60),
    ((SAC, "--learn.hidden_sizes=100000,100000"), "=100000,100000 is too large", 40),
    ((SAC, "--collect.batch_size=1000000000"), "--collect.batch_size=1000000000", 1000),
    ((*MPPI, "--plan.num_samples=1000000000"), "--plan.num_samples=1000000000", 80),
    ((*MPPI, "--eval_episodes=2000000000"), "--eval_episodes=2000000000", 1000),
    ((*MPPI, "--episode_length=2000000000"), "--episode_length=2000000000", 30),
    ((SAC, "--num_seeds=100000"), "--num_seeds=100000", 30),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "words", "gigabytes"), LARGE, ids=[x[1] for x in LARGE]
)
def test_what_is_too_large_is_named_with_what_it_would_take(
    argv: tuple[str, ...], words: str, gigabytes: float
) -> None:
    asked = record(*argv)
    with pytest.raises(ValueError, match=words) as error:
        memory.check(asked)
    assert "a device has 4.0 GB free" in str(error.value)
    assert memory.least(asked) > gigabytes * GB


@pytest.mark.slow
def test_of_two_large_settings_the_one_is_named_that_takes_the_memory() -> None:
    asked = record(SAC, "--collect.capacity=150000", "--collect.batch_size=1000000000")
    with pytest.raises(ValueError, match=r"^--collect.batch_size=1000000000 is too"):
        memory.check(asked)


@pytest.mark.slow
def test_a_default_that_does_not_go_with_the_rest_is_not_to_blame() -> None:
    """No more than the capacity can be waited for, so its default cannot be."""
    sizes = ("--collect.capacity=900000", "--collect.warmup=900000")
    asked = record(SAC, *sizes, "--collect.batch_size=1000000000")
    with pytest.raises(ValueError, match=r"^--collect.batch_size=1000000000 is too"):
        memory.check(asked)


def test_what_is_kept_is_counted() -> None:
    asked = record(SAC, "--collect.capacity=1000000")
    memory.check(asked)
    assembled = registry.assemble(asked)
    state = jax.eval_shape(assembled.loop().init, assembled.key)
    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert memory.least(asked) >= kept > 1000000 * 4 * 8


def test_usual_sizes_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "least", None)
    memory.check(record(SAC, "--learn.hidden_sizes=1024", "--num_seeds=9"))
