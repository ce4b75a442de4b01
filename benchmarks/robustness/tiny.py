"""Every algorithm at the size of the contract's tests, from the command line."""

from experiments.runs import command_flags
from tests.contract_test import DOUBLE, ROWS


def arguments(name: str) -> list[str]:
    """The flags that make a run of this algorithm tiny."""
    env, config = ROWS[name]
    light = "gridworld" if env.num_actions else "point_mass"
    return [
        f"--algorithm={name}",
        f"--env={'pendulum_pilco' if env.belief else light}",
        f"--episode_length={env.episode_length}",
        *(["--precision=x64"] if name in DOUBLE else []),
        *(f"--{flag}={text(x)}" for flag, x in command_flags.flat(config).items()),
    ]


def text(value: object) -> str:
    """A value as its flag takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
