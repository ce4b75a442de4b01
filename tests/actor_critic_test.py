"""Policy and critic: how they act, with and without a memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import actor_critic, envs, experience, on_policy
from mbrl_jax.actor_critic import ActorCritic, Agent, Config
from mbrl_jax.ops import normalize

SMALL = Config(hidden_sizes=(8,))
RECURRENT = Config(hidden_sizes=(8,), memory_size=5)
BOTH = pytest.mark.parametrize("config", [SMALL, RECURRENT], ids=["plain", "recurrent"])


def make(name: str, config: Config) -> tuple[ActorCritic, Agent]:
    """Of an environment of the project, with weights and statistics that matter."""
    net = actor_critic.make(envs.make(name), config)

    @jax.jit
    def init() -> Agent:
        agent = actor_critic.init(jax.random.key(0), net)
        noise = lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape)
        agent = jax.tree.map(noise, agent)
        seen = 0.1 + jax.random.normal(jax.random.key(1), (9, net.obs_size))
        all_valid = jnp.ones(9, bool)
        stats = normalize.update(normalize.running(net.obs_size), seen, all_valid)
        return agent._replace(obs=stats, returns=normalize.running(1))

    return net, init()


@BOTH
@pytest.mark.parametrize("name", ["cartpole", "point_mass"])
def test_looking_back_sees_what_the_policy_did(name: str, config: Config):
    """Log-probs, step by step by hand, in two windows, of which the second begins where
    the first ended; memories are those the policy had."""
    (net, agent), env = make(name, config), envs.make(name)
    policy = actor_critic.policy(net, agent, explore=True)
    gatherer = on_policy.of_windows(env, 1, 40)
    start = jax.jit(lambda key: gatherer.init(key, policy))(jax.random.key(5))

    @jax.jit
    def gather(key, running):
        found = gatherer.gather(key, policy, running)
        rows, _ = experience.look_back(net, agent, found.windows, 0.9, 0.9)
        return found, rows

    @jax.jit
    def by_hand(memory, obs, action):
        seen = (obs - agent.obs.mean) / jnp.sqrt(agent.obs.squares / 9)
        memory, outputs = net.act(agent.actor, memory, seen)
        return memory, net.family.log_prob(outputs, action)

    memory, running, num_ended = net.start(), start, 0
    for i in range(2):
        found, rows = gather(jax.random.key(i), running)
        running, data = found.running, found.windows.transitions
        for t in range(40):
            memory, expected = by_hand(memory, data.obs[0, t], data.action[0, t])
            np.testing.assert_allclose(rows.log_prob[0, t], expected, atol=1e-4)
            if found.ended[0, t]:
                memory, num_ended = net.start(), num_ended + 1
        had = running.place.memory[0]
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x[0], y, atol=1e-5), had, memory
        )
    assert num_ended > 1 or name == "point_mass"


@BOTH
@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_acts_on_what_is_finite_only(config: Config, explore: bool, bad: float):
    """As if the sensor that fails showed its mean; the memory stays finite."""
    net, agent = make("point_mass", config)
    policy = actor_critic.policy(net, agent, explore)
    obs = jnp.ones(net.obs_size)
    act, key = jax.jit(policy.act), jax.random.key(0)
    found = act(key, obs.at[0].set(bad), policy.init())
    mean = normalize.so_far(agent.obs).mean[0]
    expected = act(key, obs.at[0].set(mean), policy.init())
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_policy_samples_or_takes_the_most_likely():
    net, agent = make("point_mass", SMALL)
    obs, keys = jnp.ones(net.obs_size), jax.random.split(jax.random.key(0), 5000)
    stats = normalize.so_far(agent.obs)
    _, outputs = net.act(agent.actor, (), actor_critic.look(stats, obs))
    limit = envs.make("point_mass").action_limit
    mean, std = limit * outputs[:2], limit * jnp.exp(outputs[2:])

    def many(explore: bool) -> jax.Array:
        policy = actor_critic.policy(net, agent, explore)
        act = jax.jit(lambda key: policy.act(key, obs, policy.init())[0])
        return jax.vmap(act)(keys)

    sampled = many(explore=True)
    error = 4 * std / np.sqrt(len(keys))
    assert (abs(sampled.mean(axis=0) - mean) < error).all()
    np.testing.assert_allclose(sampled.std(axis=0), std, rtol=0.05)
    np.testing.assert_allclose(
        many(explore=False), jnp.tile(mean, (5000, 1)), rtol=1e-5
    )


def test_it_starts_with_small_actions_of_the_std_that_was_asked_for():
    env = envs.make("point_mass")
    net = actor_critic.make(env, Config(init_std=0.3))
    agent = jax.jit(lambda: actor_critic.init(jax.random.key(0), net))()
    obs = jax.random.normal(jax.random.key(1), (50, net.obs_size))
    outputs = jax.vmap(lambda obs: net.act(agent.actor, (), obs)[1])(obs)
    mean, log_std = jnp.split(outputs, 2, axis=1)
    assert abs(mean).max() < 0.05
    np.testing.assert_allclose(jnp.exp(log_std), 0.3, rtol=1e-5)


def test_squashed_actions_stay_within_the_limits():
    net, agent = make("point_mass", Config(hidden_sizes=(), squash=True, init_std=9.0))
    policy = actor_critic.policy(net, agent, explore=True)
    keys = jax.random.split(jax.random.key(0), 100)
    obs = jnp.ones(net.obs_size)
    actions = jax.vmap(lambda key: policy.act(key, obs, policy.init())[0])(keys)
    limit = envs.make("point_mass").action_limit
    assert 0.99 * limit < abs(actions).max() <= limit


@BOTH
def test_actor_and_critic_share_nothing(config: Config):
    net, agent = make("cartpole", config)
    obs = jnp.ones(net.obs_size)
    memory, value = net.value(agent.critic, net.start(), obs)
    assert value.shape == ()
    ours, logits = net.act(agent.actor, net.start(), obs)
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
