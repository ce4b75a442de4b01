"""The known rules of Brax's tasks against Brax's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import base, kinematics

from mbrl_jax.envs import brax, brax_tasks

OPTIONS = {"xla_backend_optimization_level": 0}  # compiled for one call only


def outcomes(name: str, num: int) -> tuple[Any, Any]:
    """(reward, terminal) and the known rules of them, after Brax's own `step`.

    In place of its physics stands a random state, so both sides of every threshold are
    seen, as a simulation would hardly do, and next to nothing is compiled.
    """
    brax_env = brax.build(name, "generalized")
    task, size = brax_tasks.TASKS[name], brax_env.action_size

    def physics(q, qd):
        x, xd = kinematics.forward(brax_env.sys, q, qd)
        return base.State(q=q, qd=qd, x=x, xd=xd, contact=None)

    def one(key):
        keys = jax.random.split(key, 5)
        spread = jax.random.choice(keys[0], jnp.array([0.01, 0.1, 0.3, 1.0]))
        q, num_speeds = brax_env.sys.init_q, brax_env.sys.qd_size()
        q = q[None] + spread * jax.random.normal(keys[1], (2, *q.shape))
        qd = jax.random.uniform(keys[2], (2, num_speeds), minval=-9, maxval=9)
        action = jax.random.uniform(keys[3], (size,), minval=-1)
        states = jax.vmap(physics)(q, qd)
        brax_env.pipeline_init = lambda *_: jax.tree.map(lambda x: x[0], states)
        brax_env.pipeline_step = lambda *_: jax.tree.map(lambda x: x[1], states)
        env = brax.adapt(brax_env, name=name)
        state = env.reset(keys[4])
        after = env.step(state, action)
        rules = [
            rule and rule(state.obs, action, after.obs)
            for rule in (task.reward, task.terminal)
        ]
        return (after.reward, after.terminal), rules

    keys = jax.random.split(jax.random.key(0), num)
    return jax.device_get(jax.jit(jax.vmap(one), compiler_options=OPTIONS)(keys))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ant",
        "hopper",
        "humanoid",
        "inverted_double_pendulum",
        "inverted_pendulum",
        "pusher",
        "reacher",
        "walker2d",
    ],
)
def test_rules_are_those_of_brax(name):
    (true_reward, true_terminal), (reward, terminal) = outcomes(name, 5000)
    np.testing.assert_array_equal(terminal, true_terminal)
    if name not in ("pusher", "reacher"):
        assert 0.05 < true_terminal.mean() < 0.95
    if reward is not None:
        np.testing.assert_allclose(reward, true_reward, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rule", [task.terminal for task in brax_tasks.TASKS.values()])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_an_observation_that_is_not_finite_is_terminal(rule, bad):
    obs = jnp.full(17, 1.0)
    for index in (0, 1, 16):
        assert rule(obs, jnp.zeros(1), obs.at[index].set(bad))
