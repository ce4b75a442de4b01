"""Advantages by hand, what is not finite, statistics, and the shuffling of rows."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import distributions, envs
from mbrl_jax.ops import normalize
from mbrl_jax.policy_gradient import actor_critic, experience
from mbrl_jax.policy_gradient.actor_critic import ActorCritic, Agent
from mbrl_jax.policy_gradient.experience import Samples
from mbrl_jax.types import Transition, Window

DISCOUNT, TRACE = 0.9, 0.5


pytestmark = pytest.mark.usefixtures("double")


def stub() -> tuple[ActorCritic, Agent]:
    """Logits (actor x obs, 0); the value is that of critic x obs."""
    outputs = lambda actor, memory, obs: (memory, jnp.stack([actor * obs[0], 0.0]))
    value = lambda critic, memory, obs: (memory, critic * obs[0])
    net = ActorCritic(
        family=distributions.categorical(2),
        obs_size=1,
        init=lambda key: (jnp.array(0.5), jnp.array(2.0)),
        start=lambda: (),
        act=outputs,
        value=value,
        renormalise=lambda params, old, new: params,
    )
    return net, actor_critic.init(jax.random.key(0), net)


def window(rewards: list, obs: list, ends: dict[int, str] | None = None) -> Window:
    """Of one environment, [1, T]; `obs` has one more, and one more for each end: what
    was seen last in an episode comes before what the next one begins with."""
    num_steps, ends = len(rewards), ends or {}
    seen, places, i = np.array(obs, float), [], 0
    for t in range(num_steps):
        places.append(i)
        i += 2 if t in ends else 1
    at = np.array(places)
    kinds = np.array([ends.get(t, "") for t in range(num_steps)])
    transitions = Transition(
        obs=seen[at][:, None],
        action=np.arange(num_steps) % 2,
        reward=np.array(rewards, float),
        next_obs=seen[at + 1][:, None],
        terminal=kinds == "terminal",
        truncated=kinds == "truncated",
    )
    one = Window(transitions, np.ones(num_steps, bool), ((), ()))
    return jax.tree.map(lambda x: np.asarray(x)[None], one)


gae_samples = partial(jax.jit, static_argnums=0)(
    lambda net, agent, windows: experience.gae_samples(
        net, agent, windows, DISCOUNT, TRACE
    )
)


def advantages(windows: Window, agent: Agent | None = None) -> np.ndarray:
    net, fresh = stub()
    return np.asarray(gae_samples(net, agent or fresh, windows)[0].advantage[0])


def test_advantages_by_hand():
    """delta + 0.45 x the next one; a value is twice the obs, the discount 0.9."""
    last = 3 + 0.9 * 8 - 6
    middle = 2 + 0.9 * 6 - 4 + 0.45 * last
    first = 1 + 0.9 * 4 - 2 + 0.45 * middle
    found = advantages(window([1, 2, 3], [1, 2, 3, 4]))
    np.testing.assert_allclose(found, [first, middle, last])


def test_after_an_end_comes_nothing_and_after_a_time_limit_the_value():
    ended = {1: "terminal"}
    found = advantages(window([1, 2, 3], [1, 2, 9, 3, 4], ended))
    middle = 2 - 4  # the value of what was seen last, 18, does not count
    expected = [1 + 0.9 * 4 - 2 + 0.45 * middle, middle, 3 + 0.9 * 8 - 6]
    np.testing.assert_allclose(found, expected)
    found = advantages(window([1, 2, 3], [1, 2, 9, 3, 4], {1: "truncated"}))
    middle = 2 + 0.9 * 18 - 4
    expected = [1 + 0.9 * 4 - 2 + 0.45 * middle, middle, 3 + 0.9 * 8 - 6]
    np.testing.assert_allclose(found, expected)


def test_a_later_episode_does_not_matter():
    for kind in ("terminal", "truncated"):
        a = advantages(window([1, 2, 3], [1, 2, 9, 3, 4], {1: kind}))
        b = advantages(window([1, 2, -7], [1, 2, 9, 5, -4], {1: kind}))
        np.testing.assert_allclose(a[:2], b[:2])
        assert a[2] != b[2]


def test_values_are_in_units_of_the_returns():
    """A critic of 2 obs, with returns of mean 5 and std 3, says 6 obs + 5."""
    net, agent = stub()
    agent = agent._replace(
        returns=normalize.RunningStats(
            jnp.array(4.0), jnp.array([5.0]), jnp.array([36.0])
        )
    )
    windows = window([1, 2], [1, 2, 3])
    last = 2 + 0.9 * 23 - 17
    expected = [1 + 0.9 * 17 - 11 + 0.45 * last, last]
    np.testing.assert_allclose(advantages(windows, agent), expected)
    rows, after = gae_samples(net, agent, windows)
    targets = np.array([11, 17]) + expected  # lambda-returns: value and advantage
    all_of = np.array([2, 2, 8, 8, *targets])  # such were the four before
    scaled = (targets - all_of.mean()) / all_of.std()
    np.testing.assert_allclose(rows.target[0], scaled)
    np.testing.assert_allclose(normalize.so_far(after.returns).mean, all_of.mean())


def test_without_a_critic_values_are_0():
    net, agent = stub()
    windows = window([1, 2, 3], [1, 2, 3, 4])
    look = partial(experience.gae_samples, net, with_critic=False)
    rows, _ = jax.jit(look)(agent, windows, 0.5, 1.0)
    np.testing.assert_allclose(rows.advantage[0], [1 + 0.5 * 3.5, 3.5, 3])


@pytest.mark.parametrize("what", ["obs", "reward"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_masked_and_does_not_spread(what, bad):
    """The steps before are as if the window had ended there, those after as they are.
    A step that came to what cannot be seen is not learned from either."""
    net, agent = stub()
    rewards, obs = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    whole = window(rewards, obs)
    data, lost = jax.tree.map(np.copy, whole.transitions), 2
    if what == "obs":
        data.obs[0, 2] = data.next_obs[0, 1] = bad
        lost = 1
    else:
        data.reward[0, 2] = bad
    rows, later = gae_samples(net, agent, whole._replace(transitions=data))
    valid = np.array([t < lost or t > 2 for t in range(5)])
    np.testing.assert_array_equal(rows.valid[0], valid)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((rows, later)))
    found = np.asarray(rows.advantage[0])
    np.testing.assert_allclose(found[3:], advantages(whole)[3:])
    before = window(rewards[:lost], obs[: lost + 1])
    np.testing.assert_allclose(found[:lost], advantages(before))
    good, stats = np.array(obs[:-1])[valid], normalize.so_far(later.obs)
    np.testing.assert_allclose([stats.mean[0], stats.std[0]], [good.mean(), good.std()])


def test_an_action_that_is_not_finite_is_masked():
    env = envs.make("point_mass")
    net = actor_critic.make(env, actor_critic.Config(hidden_sizes=()))
    agent = jax.jit(lambda: actor_critic.init(jax.random.key(0), net))()
    never, (O, A) = np.zeros((1, 3), bool), (env.obs_size, env.action_size)
    obs, action = jnp.ones((1, 3, O)), jnp.zeros((1, 3, A)).at[0, 1, 0].set(jnp.nan)
    data = Transition(obs, action, jnp.ones((1, 3)), obs, never, never)
    rows, _ = gae_samples(net, agent, Window(data, ~never, ((), ())))
    np.testing.assert_array_equal(rows.valid, [[True, False, True]])
    gain = lambda actor: experience.surrogate(net, rows).gain(actor)
    slopes = jax.jit(jax.grad(gain))(agent.actor)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((rows, slopes)))


def test_statistics_are_those_of_all_observations_so_far():
    """The rows are in units of the statistics before; the first are as they came."""
    net, agent = stub()
    first, second = [1.0, 2.0, 4.0, 0.0], [3.0, -1.0, 7.0, 0.0]
    rows, agent = gae_samples(net, agent, window([0, 0, 0], first))
    np.testing.assert_allclose(rows.obs[0, :, 0], first[:3])
    rows, agent = gae_samples(net, agent, window([0, 0, 0], second))
    scaled = (np.array(second[:3]) - np.mean(first[:3])) / np.std(first[:3])
    np.testing.assert_allclose(rows.obs[0, :, 0], scaled)
    stats, seen = normalize.so_far(agent.obs), np.array(first[:3] + second[:3])
    np.testing.assert_allclose([stats.mean[0], stats.std[0]], [seen.mean(), seen.std()])


def rows_of(values: np.ndarray, memory: Any = ((), ())) -> Samples:
    """Rows [N, T] whose every field is made of `values` [N, T]."""
    x = np.asarray(values, float)
    fields = dict.fromkeys(Samples._fields, x) | {"memory": memory}
    wide = dict.fromkeys(("obs", "outputs"), x[..., None])
    return Samples(**(fields | wide | {"valid": x >= 0, "first": x < 0}))


def test_rows_fall_apart_where_no_memory_ties_them():
    rows = rows_of(np.arange(6).reshape(2, 3))
    apart = experience.flatten_time(rows)
    np.testing.assert_array_equal(apart.advantage, np.arange(6)[:, None])
    np.testing.assert_array_equal(apart.obs, np.arange(6)[:, None, None])
    tied = rows_of(np.arange(6).reshape(2, 3), (jnp.zeros((2, 4)), jnp.zeros((2, 4))))
    jax.tree.map(np.testing.assert_array_equal, experience.flatten_time(tied), tied)


@pytest.mark.parametrize(
    ("total", "number", "size"), [(12, 3, 4), (11, 3, 3), (2, 5, 1)]
)
def test_minibatches_hold_each_row_once(total, number, size):
    """A rest is left out, another one for another key; no more parts than rows."""
    rows = rows_of(np.arange(total)[:, None])
    split = jax.jit(experience.minibatches, static_argnums=2)
    parts = split(jax.random.key(0), rows, number)
    assert parts.advantage.shape == (min(number, total), size, 1)
    seen = np.asarray(parts.advantage).ravel()
    assert len(set(seen)) == len(seen) == min(number, total) * size
    assert set(seen) <= set(range(total))
    np.testing.assert_array_equal(parts.obs[..., 0], parts.advantage)  # together
    others = split(jax.random.key(1), rows, number).advantage
    assert total < 3 or (np.asarray(others).ravel() != seen).any()


def test_standardised_advantages_are_those_of_valid_steps():
    values = np.array([[1.0, 2.0, -1e6], [4.0, -1e6, 9.0]])
    found = np.asarray(experience.standardised(rows_of(values)))[values >= 0]
    good = values[values >= 0]
    np.testing.assert_allclose(found, (good - good.mean()) / good.std(), atol=1e-6)
    equal = experience.standardised(rows_of(np.ones((2, 3))))
    np.testing.assert_array_equal(equal, 0)  # not NaN
    none = experience.standardised(rows_of(-np.ones((2, 3))))
    assert np.isfinite(none).all()


def test_a_mean_of_nothing_is_0():
    x, some = jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True])
    assert experience.masked_mean(x, some) == 2
    assert experience.masked_mean(x, jnp.zeros(3, bool)) == 0


def test_the_fitter_finds_the_least_squares_of_valid_steps():
    """Of critic x obs; steps that are not valid would pull it elsewhere."""
    net, agent = stub()
    obs = np.random.default_rng(0).normal(size=(8, 16))
    valid = np.random.default_rng(1).random((8, 16)) < 0.7
    rows = rows_of(obs)._replace(
        target=jnp.asarray(np.where(valid, 3 * obs + 1, 1e3)), valid=jnp.asarray(valid)
    )
    config = experience.CriticConfig(learning_rate=0.05, num_epochs=200)
    fitter = experience.fitter(net, config)
    critic, opt_state, error = jax.jit(fitter.fit)(
        jax.random.key(0), agent.critic, fitter.init(agent.critic), rows
    )
    x, y = obs[valid], 3 * obs[valid] + 1
    best = (x @ y) / (x @ x)
    assert float(critic) == pytest.approx(best, abs=0.1)
    assert float(error) == pytest.approx(((y - best * x) ** 2).mean(), rel=0.05)
    assert opt_state.num_skipped == 0


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"num_minibatches": 0}, "num_minibatches is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
    ],
)
def test_a_critic_that_cannot_be_fitted(changes: dict, fault: str):
    with pytest.raises(ValueError, match=fault):
        experience.fitter(stub()[0], experience.CriticConfig(**changes))


def test_entropy_is_a_mean_over_valid_steps():
    net, _ = stub()
    outputs = jnp.array([[[0.0, 0.0], [50.0, 0.0], [0.0, 0.0]]])
    key = jax.random.key(0)
    valid = jnp.array([[True, True, False]])
    found = experience.entropy(net, key, outputs, valid)
    assert float(found) == pytest.approx(np.log(2) / 2)


def recurrent() -> tuple[ActorCritic, Agent]:
    config = actor_critic.Config(hidden_sizes=(4,), memory_size=3)
    net = actor_critic.make(envs.make("cartpole"), config)

    @jax.jit
    def init() -> Agent:
        agent = actor_critic.init(jax.random.key(3), net)
        spread = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
        networks = agent.actor, agent.critic
        actor, critic = jax.tree.map(spread, networks)
        return agent._replace(actor=actor, critic=critic)

    return net, init()


@pytest.mark.slow
def test_a_memory_starts_afresh_after_an_end_within_a_window():
    """Outputs, log-probs and values are those of steps by hand."""
    net, agent = recurrent()
    rng = np.random.default_rng(0)
    obs, memory = rng.normal(size=(6, 4)), jnp.asarray(rng.normal(size=(2, 3)))
    ended = np.array([False, False, True, False, True, False])
    data = Transition(
        obs, rng.integers(2, size=6), np.ones(6), obs + 1, ended, np.zeros(6, bool)
    )
    one = Window(data, np.ones(6, bool), (memory[0], memory[1]))
    rows, _ = gae_samples(net, agent, jax.tree.map(lambda x: jnp.asarray(x)[None], one))
    act, value = jax.jit(net.act), jax.jit(net.value)
    actors, critics = memory
    for t in range(6):
        actors, outputs = act(agent.actor, actors, obs[t])
        critics, worth = value(agent.critic, critics, obs[t])
        np.testing.assert_allclose(rows.outputs[0, t], outputs, atol=1e-12)
        np.testing.assert_allclose(rows.value[0, t], worth, atol=1e-12)
        expected = jax.nn.log_softmax(outputs)[data.action[t]]
        assert float(rows.log_prob[0, t]) == pytest.approx(float(expected))
        if ended[t]:
            actors = critics = net.start()
    again = jax.jit(lambda rows: experience.outputs_of(net, agent.actor, rows))(rows)
    np.testing.assert_allclose(again, rows.outputs, atol=1e-12)
    again = jax.jit(lambda rows: experience.values_of(net, agent.critic, rows))(rows)
    np.testing.assert_allclose(again, rows.value, atol=1e-12)


def test_the_value_of_what_comes_next_is_seen_with_the_memory():
    """The last step's advantage, by hand, two steps into an episode."""
    net, agent = recurrent()
    obs = np.random.default_rng(1).normal(size=(3, 4))
    never, reward = np.zeros(2, bool), np.array([1.0, 2.0])
    data = Transition(obs[:2], np.zeros(2, int), reward, obs[1:], never, never)
    one = Window(data, ~never, (net.start(), net.start()))
    rows, _ = gae_samples(net, agent, jax.tree.map(lambda x: jnp.asarray(x)[None], one))
    memory, values, step = net.start(), [], jax.jit(net.value)
    for seen in obs:
        memory, value = step(agent.critic, memory, seen)
        values.append(float(value))
    expected = 2 + DISCOUNT * values[2] - values[1]
    assert float(rows.advantage[0, 1]) == pytest.approx(expected)
