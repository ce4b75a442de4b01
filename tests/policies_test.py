import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import policies
from mbrl_jax.envs import grid, point_mass
from mbrl_jax.ops import normalize
from mbrl_jax.types import Array, Key, Policy, PyTree


def test_uniform_covers_the_limits_and_no_more():
    env = point_mass.make()._replace(action_limit=3.0)
    policy = policies.uniform(env)
    act = lambda key: policy.act(key, jnp.zeros(env.obs_size), policy.init())[0]
    actions = jax.vmap(act)(jax.random.split(jax.random.key(0), 2000))
    assert actions.shape == (2000, 2)
    assert jnp.abs(actions).max() <= 3
    for column in np.asarray(actions).T:
        counts, _ = np.histogram(column, 6, range=(-3, 3))
        np.testing.assert_allclose(counts, 2000 / 6, atol=5 * (2000 / 6) ** 0.5)
    assert abs(np.corrcoef(actions.T)[0, 1]) < 5 / 2000**0.5


def test_uniform_among_discrete_actions():
    policy = policies.uniform(grid.gridworld())
    act = lambda key: policy.act(key, jnp.zeros(12), policy.init())[0]
    actions = jax.vmap(act)(jax.random.split(jax.random.key(0), 2000))
    assert actions.dtype == jnp.int32
    counts = np.bincount(actions, minlength=4)
    np.testing.assert_allclose(counts, 500, atol=5 * 500**0.5)


def test_who_does_nothing_does_it_in_the_shape_of_an_action():
    for env, shape, kind in [
        (point_mass.make(), (2,), jnp.float32),
        (grid.gridworld(), (), jnp.int32),
    ]:
        policy = policies.constant(env)
        action, _ = policy.act(jax.random.key(0), jnp.ones(env.obs_size), policy.init())
        assert (action.shape, action.dtype, action.any()) == (shape, kind, False)


def counting(step: int) -> Policy:
    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        return memory.astype(float)[None], memory + step

    return Policy(lambda: jnp.zeros((), jnp.int32), act)


@pytest.mark.parametrize("first", [True, False])
def test_switch_asks_one_and_leaves_the_memory_of_the_other(first: bool):
    policy = policies.switch(jnp.array(first), counting(1), counting(10))
    memory, actions = policy.init(), []
    for _ in range(3):
        action, memory = policy.act(jax.random.key(0), jnp.zeros(1), memory)
        actions.append(float(action[0]))
    assert actions == ([0, 1, 2] if first else [0, 10, 20])
    assert [int(x) for x in memory] == ([3, 0] if first else [0, 30])


def test_switch_under_vmap():
    def run(first: Array) -> tuple[Array, PyTree]:
        policy = policies.switch(first, counting(1), counting(10))
        return policy.act(jax.random.key(0), jnp.zeros(1), policy.init())[1]

    memory = jax.vmap(run)(jnp.array([True, False]))
    np.testing.assert_array_equal(jnp.stack(memory), [[1, 0], [0, 10]])


# --- The squashed Gaussian.

ENV = point_mass.make()._replace(action_limit=3.0)
STATS = normalize.Statistics(jnp.full(ENV.obs_size, 2.0), jnp.full(ENV.obs_size, 0.5))


@pytest.mark.slow
def test_a_squashed_policy_acts_within_the_limits_and_starts_near_0():
    network = policies.squashed(ENV, (8, 8), 0.3)
    params, obs = network.init(jax.random.key(0)), jnp.full(ENV.obs_size, 2.5)
    sample = policies.sampler(network, STATS)
    keys = jax.random.split(jax.random.key(1), 4000)
    actions = jax.vmap(sample, (None, 0, None))(params, keys, obs)
    greedy = policies.greedy(network, STATS, params)
    mean, _ = greedy.act(keys[0], obs, greedy.init())
    assert jnp.abs(mean).max() < 0.2
    assert jnp.abs(actions).max() < 3
    u = network.unsquash(actions)
    np.testing.assert_allclose(network.squash(u), actions, rtol=1e-5)
    centre, std = network.gaussian(params, jnp.ones(ENV.obs_size))  # (2.5 - 2) / 0.5
    np.testing.assert_allclose(network.squash(centre), mean, rtol=1e-6)
    np.testing.assert_allclose(std, 0.3, rtol=1e-6)
    np.testing.assert_allclose(u.std(axis=0), 0.3, rtol=0.05)
    np.testing.assert_allclose(u.mean(axis=0), centre, atol=0.02)
    noisy = policies.noisy(network, STATS, params)
    action, _ = noisy.act(keys[0], obs, noisy.init())
    np.testing.assert_allclose(action, actions[0], rtol=1e-6)


def test_an_action_at_its_limit_can_be_unsquashed():
    network = policies.squashed(ENV, (8,), 0.3)
    u = network.unsquash(jnp.array([-3.0, 3.0]))
    assert np.isfinite(u).all()
    np.testing.assert_allclose(network.squash(u), [-3, 3], rtol=1e-5)
