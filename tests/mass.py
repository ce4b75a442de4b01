"""The lightest environment with a belief."""

import jax.numpy as jnp

from mbrl_jax.envs import saturating, simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env


def make() -> Env:
    """A mass on a line, 15 steps of 0.1 s, that is to go 1 m to the right."""
    goal = saturating.Goal((), point=((1.0, 0.0),), place=(1.0,), width=0.5)

    def dynamics(state: Array, action: Array) -> Array:
        x, speed = state
        return jnp.stack([x + 0.1 * speed, speed + 0.3 * action[0]])

    return simulator.make_env(
        "mass",
        dynamics=dynamics,
        shapes=lambda state: [raster.disc(state[:1].repeat(2), 0.1, raster.INK)],
        view=raster.View((0.0, 0.0), half_height=1.0),
        action_size=1,
        action_limit=1.0,
        episode_length=15,
        **saturating.task(goal, (0.0, 0.0), (0.05, 0.05)),
    )
