"""One computation on several devices, which a CPU only has in a process of its own."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import sharding

CODE = """
import contextlib, json
import jax, jax.numpy as jnp
from mbrl_jax import envs, policies, rollout
from mbrl_jax.ops import sharding
from mbrl_jax.planners import mpc

env = envs.make("pendulum")
key = jax.random.key(0)
obs = env.reset(key)

def plan(planner):
    objective = lambda key, state: rollout.simulation(env, state)
    config = mpc.Config(horizon=4, num_samples=30, num_elites=6)
    policy = mpc.make(planner, config, 1, env.action_limit, objective)
    action, (plan, _) = policy.act(key, obs, policy.init())
    return jnp.concatenate([action, plan.mean.ravel()])

def found():
    episodes = rollout.evaluate(key, env, policies.uniform(env), 7)[1]
    returns = episodes.transitions.reward.sum(axis=1)
    return {"returns": returns, **{name: plan(name) for name in mpc.PLANNERS}}

several = jax.jit(sharding.vmap(lambda x: 2 * x))
results = {}
for shared in (False, True):
    with jax.set_mesh(sharding.mesh()) if shared else contextlib.nullcontext():
        numbers = jax.jit(lambda: found())()
        results[shared] = {name: x.tolist() for name, x in numbers.items()}
        results[shared]["devices"] = len(several(jnp.arange(8.0)).devices())
        results[shared]["odd"] = several(jnp.arange(5.0)).tolist()
print(json.dumps(results))
"""


@pytest.mark.slow
def test_the_numbers_do_not_depend_on_the_devices() -> None:
    output = subprocess.run(
        [sys.executable, "-c", CODE],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": os.environ["XLA_FLAGS"]
            + " --xla_force_host_platform_device_count=4",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    results = json.loads(output.stdout)
    alone, shared = results["false"], results["true"]
    assert (alone.pop("devices"), shared.pop("devices")) == (1, 4)
    assert alone.pop("odd") == shared.pop("odd") == [0.0, 2.0, 4.0, 6.0, 8.0]
    for name, values in alone.items():
        np.testing.assert_allclose(shared[name], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num", [1, 3])
def test_without_a_mesh_it_is_vmap(num: int) -> None:
    x = {"a": jnp.arange(2.0 * num).reshape(num, 2), "b": jnp.arange(num)}
    function = lambda x: x["a"] * x["b"]
    np.testing.assert_array_equal(sharding.vmap(function)(x), jax.vmap(function)(x))
    keys = jax.random.split(jax.random.key(0), num)
    with jax.set_mesh(sharding.mesh()):
        found = jax.jit(sharding.vmap(jax.random.normal))(keys)
    np.testing.assert_array_equal(found, jax.vmap(jax.random.normal)(keys))
