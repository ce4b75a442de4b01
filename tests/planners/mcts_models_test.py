"""Environments as models of a search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.envs import grid
from mbrl_jax.planners import mcts_models

KEY = jax.random.key(0)


def test_steps_of_an_environment():
    """Keys are drawn afresh, and repeats are summed up to an end."""
    env = envs.make("gridworld")
    shown = env.reset(KEY)
    step = mcts_models.of_env(env, shown, 0.5, num_repeats=3)
    state, none = mcts_models.bare(shown), jnp.array(0)
    assert not any(
        jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state)
    )
    keys = jax.random.split(KEY, 400)
    run = jax.jit(jax.vmap(step, (0, None, None, None)))
    states, rewards, discounts = run(keys, state, none, none)  # three times up
    cells = np.asarray(states.obs).argmax(axis=1)
    # 0.8^2 0.2 and so on: two steps up and aside, in any order; five deviations
    assert abs((cells == 0).mean() - expected_share(0)) < 0.125
    np.testing.assert_allclose(rewards, -0.04 * 1.75, rtol=1e-5)
    np.testing.assert_allclose(discounts, 0.125)
    near = state._replace(obs=jnp.eye(12)[7], terminal=jnp.array(True))
    _, reward, discount = step(KEY, near, none, none)
    assert reward == 0
    assert discount == 0


def expected_share(cell: int) -> float:
    """Of three steps up from the start of the gridworld."""
    tables = grid.tables(grid.parse(grid.GRIDWORLD, slip=0.2))
    up = np.asarray(tables.transition[:, 0])
    return float(np.linalg.matrix_power(up, 3)[8, cell])


def test_what_cannot_plan():
    env = envs.make("pendulum")._replace(host=True)
    with pytest.raises(ValueError, match="pendulum steps outside jax"):
        mcts_models.make(env)
