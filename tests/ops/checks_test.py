import pytest

from mbrl_jax import envs
from mbrl_jax.ops import checks


def test_which_actions_an_algorithm_is_for():
    maze, pendulum = envs.make("maze"), envs.make("pendulum")
    checks.continuous(pendulum)
    checks.discrete(maze)
    with pytest.raises(ValueError, match="actions of maze are discrete, 4 of them"):
        checks.continuous(maze)
    with pytest.raises(ValueError, match="actions of pendulum are continuous, 1 of"):
        checks.discrete(pendulum)


def test_what_is_checked_under_a_name_is_called_by_it():
    def validate(config: str) -> None:
        raise ValueError(f"{config} is 0")

    with pytest.raises(ValueError, match=r"^outer\.inner\.size is 0$"):
        checks.under("outer", lambda x: checks.under("inner", validate, x), "size")
