"""Policy and critic: how they act, with and without a memory."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, gathering
from mbrl_jax.ops import normalize
from mbrl_jax.policy_gradient import actor_critic, experience
from mbrl_jax.policy_gradient.actor_critic import ActorCritic, Agent, Config
from mbrl_jax.types import Array, Key

SMALL = Config(hidden_sizes=(8,))
RECURRENT = Config(hidden_sizes=(8,), memory_size=5)
BOTH = pytest.mark.parametrize("config", [SMALL, RECURRENT], ids=["plain", "recurrent"])


class State(NamedTuple):
    agent: Agent


def make(name: str, config: Config) -> tuple[ActorCritic, Agent]:
    """Of an environment of the project, with weights and statistics that matter."""
    net = actor_critic.make(envs.make(name), config)
    shapes = jax.eval_shape(lambda: actor_critic.init(jax.random.key(0), net))
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    agent = jax.tree.map(lambda x: 0.5 * draw(*x.shape), shapes)
    seen = 0.1 + draw(9, net.obs_size)
    squares = 9 * seen.var(axis=0)
    stats = normalize.RunningStats(np.float32(9), seen.mean(axis=0), squares)
    none = normalize.RunningStats(*(np.zeros_like(x) for x in agent.returns))
    return net, agent._replace(obs=stats, returns=none)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"), [("cartpole", RECURRENT), ("point_mass", SMALL)]
)
def test_looking_back_sees_what_the_policy_did(name: str, config: Config):
    """Log-probs, step by step by hand, in two windows, of which the second begins where
    the first ended; memories are those the policy had."""
    (net, agent), env = make(name, config), envs.make(name)
    policy = actor_critic.policy(net, agent, explore=True)
    gatherer = gathering.window_gatherer(env, 1, 40)

    @jax.jit
    def gather(key):
        def window(running, key):
            found = gatherer.gather(key, policy, running)
            rows, _ = experience.gae_samples(net, agent, found.windows, 0.9, 0.9)
            return found.parallel, (found, rows)

        start = gatherer.init(key, policy)
        return jax.lax.scan(window, start, jax.random.split(key, 2))[1]

    @jax.jit
    def by_hand(memory, obs, action):
        seen = (obs - agent.obs.mean) / jnp.sqrt(agent.obs.squares / 9)
        memory, outputs = net.act(agent.actor, memory, seen)
        return memory, net.family.log_prob(outputs, action)

    memory, num_ended = net.start(), 0
    both = jax.device_get(gather(jax.random.key(5)))
    for i in range(2):
        found, rows = jax.tree.map(lambda x, i=i: x[i], both)
        data = found.windows.transitions
        for t in range(40):
            memory, expected = by_hand(memory, data.obs[0, t], data.action[0, t])
            np.testing.assert_allclose(rows.log_prob[0, t], expected, atol=1e-4)
            if found.ended[0, t]:
                memory, num_ended = net.start(), num_ended + 1
        had = found.parallel.place.memory[0]
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x[0], y, atol=1e-5), had, memory
        )
    assert num_ended > 1 or name == "point_mass"


@BOTH
@pytest.mark.parametrize("explore", [True, False])
def test_one_acts_on_what_is_finite_only(config: Config, explore: bool):
    """As if the sensor that fails showed its mean; the memory stays finite."""
    net, agent = make("point_mass", config)
    policy = actor_critic.policy(net, agent, explore)
    obs = np.ones(net.obs_size, np.float32)
    act = jax.jit(lambda obs: policy.act(jax.random.key(0), obs, policy.init()))
    obs[0] = agent.obs.mean[0]
    expected = act(obs)
    for bad in (np.nan, np.inf):
        obs[0] = bad
        for x, y in zip(*map(jax.tree.leaves, (act(obs), expected)), strict=True):
            assert np.isfinite(x).all()
            np.testing.assert_allclose(x, y, atol=1e-5)


def test_what_is_too_large_to_be_seen_is_0():
    """In itself, or in units in which the data hardly varied."""
    stats = normalize.Statistics(jnp.zeros(4), jnp.array([1.0, 1.0, 1e-30, 2.0]))
    seen = actor_critic.normalise_obs(stats, jnp.array([1e30, jnp.nan, 1e10, 3.0]))
    np.testing.assert_allclose(seen, [0, 0, 0, 1.5])


def test_a_policy_samples_or_takes_the_most_likely():
    net, agent = make("point_mass", SMALL)
    obs, limit = jnp.ones(net.obs_size), envs.make("point_mass").action_limit

    @jax.jit
    def acts(key: Key) -> tuple[Array, Array, Array]:
        """The outputs, and many actions, with and without exploration."""
        stats, keys = normalize.so_far(agent.obs), jax.random.split(key, 5000)
        seen = actor_critic.normalise_obs(stats, obs)
        policies = (actor_critic.policy(net, agent, x) for x in (True, False))
        act = lambda policy, key: policy.act(key, obs, policy.init())[0]
        many = [jax.vmap(partial(act, x))(keys) for x in policies]
        return net.act(agent.actor, (), seen)[1], *many

    outputs, sampled, likely = map(np.asarray, acts(jax.random.key(0)))
    mean, std = limit * outputs[:2], limit * np.exp(outputs[2:])
    error = 4 * std / np.sqrt(5000)
    assert (abs(sampled.mean(axis=0) - mean) < error).all()
    np.testing.assert_allclose(sampled.std(axis=0), std, rtol=0.05)
    np.testing.assert_allclose(likely, np.tile(mean, (5000, 1)), rtol=1e-5)


def test_it_starts_with_small_actions_of_the_std_that_was_asked_for():
    env = envs.make("point_mass")
    net = actor_critic.make(env, Config(init_std=0.3))
    obs = np.random.default_rng(1).normal(size=(50, net.obs_size)).astype(np.float32)

    @jax.jit
    def start(key: Key) -> Array:
        agent = actor_critic.init(key, net)
        return jax.vmap(lambda obs: net.act(agent.actor, (), obs)[1])(obs)

    mean, log_std = np.split(np.asarray(start(jax.random.key(0))), 2, axis=1)
    assert abs(mean).max() < 0.05
    np.testing.assert_allclose(np.exp(log_std), 0.3, rtol=1e-5)


def test_squashed_actions_stay_within_the_limits():
    env = envs.make("point_mass")
    net = actor_critic.make(env, Config(hidden_sizes=(), squash=True, init_std=9.0))

    @jax.jit
    def acts(key: Key) -> Array:
        policy = actor_critic.policy(net, actor_critic.init(key, net), explore=True)
        obs, keys = jnp.ones(net.obs_size), jax.random.split(key, 100)
        return jax.vmap(lambda key: policy.act(key, obs, policy.init())[0])(keys)

    actions = np.abs(acts(jax.random.key(0)))
    assert 0.99 * env.action_limit < actions.max() <= env.action_limit


@BOTH
def test_actor_and_critic_share_nothing(config: Config):
    net, agent = make("cartpole", config)
    obs = jnp.ones(net.obs_size)
    both = jax.jit(
        lambda: (
            net.value(agent.critic, net.start(), obs),
            net.act(agent.actor, net.start(), obs),
        )
    )
    (memory, value), (ours, logits) = both()
    assert value.shape == ()
    assert logits.shape == (2,)
    both = jax.tree.leaves(memory), jax.tree.leaves(ours)
    assert len(both[0]) == len(both[1]) == bool(config.memory_size)
    for x, y in zip(*both, strict=True):
        assert x.shape == (5,)
        assert not np.allclose(x, y)


def test_a_memory_is_of_what_came_before():
    """The same observation twice: another output, unless it is first again."""
    net, agent = make("cartpole", RECURRENT)
    obs = jnp.ones((3, net.obs_size))
    first = jnp.array([False, False, True])
    unroll = jax.jit(
        lambda memory: actor_critic.unroll(
            net.start, net.act, agent.actor, memory, first, obs
        )
    )
    memories, outputs = unroll(net.start())
    assert not np.allclose(outputs[0], outputs[1], atol=1e-3)
    np.testing.assert_allclose(outputs[2], outputs[0], atol=1e-6)
    np.testing.assert_allclose(memories[2], memories[0], atol=1e-6)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (Config(memory_size=-1), "memory_size is -1"),
        (Config(init_std=0.0), "init_std is 0.0, must be positive"),
    ],
)
def test_a_configuration_that_cannot_be(config: Config, fault: str):
    with pytest.raises(ValueError, match=fault):
        actor_critic.make(envs.make("point_mass"), config)


@pytest.mark.parametrize("sizes", [(), (5,)])
@pytest.mark.parametrize("memory_size", [0, 3])
def test_the_networks_follow_the_statistics(sizes: tuple[int, ...], memory_size: int):
    """What the agent does and values stays, but where the first choose the units."""
    net, agent = make("point_mass", Config(sizes, memory_size))
    rng, no_keys = np.random.default_rng(1), jax.random.key(0)
    rows = jnp.asarray(3 + 2 * rng.normal(size=(40, 6)))

    def update(key: Key, state: State, rows: Array) -> tuple[State, dict]:
        stats = normalize.update(state.agent.obs, rows, jnp.ones(len(rows), bool))
        return State(state.agent._replace(obs=stats)), {}

    def outputs(agent: Agent) -> Array:
        stats, memory, found = normalize.so_far(agent.obs), net.start(), []
        for obs in np.random.default_rng(2).normal(size=(3, 6)):
            seen = (obs - stats.mean) / stats.std
            memory, output = net.act(agent.actor, memory, seen)
            found += [output, net.value(agent.critic, net.start(), seen)[1][None]]
        return jnp.concatenate(found)

    learner = actor_critic.learner(net, lambda key: State(agent), update)
    later = learner.update(no_keys, State(agent), rows)[0].agent
    assert np.abs(later.obs.mean - agent.obs.mean).max() > 1
    np.testing.assert_allclose(outputs(later), outputs(agent), atol=1e-5)
    blank = agent._replace(obs=normalize.running_stats(6))
    first = learner.update(no_keys, State(blank), rows)[0].agent
    assert np.abs(outputs(first) - outputs(blank)).max() > 0.1
