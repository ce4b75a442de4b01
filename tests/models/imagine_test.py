"""A policy in models that each add a constant of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.models import imagine, outcomes
from mbrl_jax.types import Array, Gaussian, Key, Model, Policy

H = 4
BIASES = jnp.array([1.0, 10.0, 100.0])
N = 30


def shifting(obs: Array, action: Array, y: Array) -> outcomes.Outcome:
    return outcomes.Outcome(y, y[0] - obs[0], y[0] > 150)


@pytest.fixture(scope="module")
def imagined() -> tuple:
    """Transitions [N, H, ...], which are valid, and the memory that they begin with."""

    def predict(bias: Array, obs: Array, action: Array) -> Gaussian:
        return Gaussian(obs + bias + action, jnp.zeros_like(obs))

    def act(key: Key, obs: Array, memory: Array) -> tuple[Array, Array]:
        return -memory[None], memory + 1.0

    model = Model(lambda key: (), lambda *_: ((), {}), lambda state: state, predict)
    policy = Policy(lambda: jnp.zeros(()), act)
    starts = jnp.arange(N, dtype=float)[:, None] / N
    return imagine.rollouts(
        jax.random.key(0), model, BIASES, shifting, policy, starts, H
    )


def test_every_member_takes_its_share_of_the_rollouts_at_every_step(imagined):
    data, _, _ = imagined
    bias = data.next_obs - data.obs - data.action  # [N, H, 1]
    for t in range(H):
        _, counts = np.unique(np.round(bias[:, t, 0]), return_counts=True)
        np.testing.assert_array_equal(counts, [N // 3] * 3)
    follows_one = (np.ptp(np.round(bias[..., 0]), axis=1) == 0).mean()
    assert follows_one < 0.3  # dealt anew at every step, 1 in 27 by chance


def test_imagined_steps_follow_each_other_up_to_a_termination(imagined):
    data, valid, memory = imagined
    np.testing.assert_array_equal(memory, np.zeros(N))
    np.testing.assert_allclose(data.obs[:, 0, 0], np.arange(N) / N, rtol=1e-6)
    np.testing.assert_array_equal(data.obs[:, 1:], data.next_obs[:, :-1])
    np.testing.assert_array_equal(data.action[..., 0], np.tile(-np.arange(H), (N, 1)))
    change = (data.next_obs - data.obs)[..., 0]
    np.testing.assert_allclose(data.reward, change, rtol=1e-5)
    np.testing.assert_array_equal(data.terminal, data.next_obs[..., 0] > 150)
    before = np.cumsum(data.terminal, axis=1) - data.terminal
    np.testing.assert_array_equal(valid, before == 0)
    assert 0 < (~valid).sum() < valid.size
    assert not data.truncated.any()


# --- Samplers, and futures that go into a buffer.


@pytest.mark.parametrize("number", [1, 2, 7, 30])
def test_each_row_is_dealt_to_one_member(number: int):
    """Also where their number does not divide: then some have fewer, by chance."""
    sample = jax.jit(imagine.sample_ts1(biased(), BIASES))
    obs = jnp.arange(number, dtype=float)[:, None]
    shares, dealings = [], set()
    for i in range(30):
        y = sample(jax.random.key(i), obs, 1000 + obs)
        bias = np.round(np.asarray(y - obs - (1000 + obs))[:, 0])
        assert set(bias) <= {1, 10, 100}
        counts = [(bias == x).sum() for x in (1, 10, 100)]
        assert max(counts) <= -(-number // 3)
        shares.append(counts)
        dealings.add(tuple(bias))
    assert len(dealings) > 1  # dealt anew
    mean = np.mean(shares, axis=0)  # no member has the smaller share each time
    np.testing.assert_allclose(mean, number / 3, atol=5 * 0.5 / 30**0.5)


def biased(std: float = 0.0) -> Model:
    def predict(bias: Array, obs: Array, action: Array) -> Gaussian:
        return Gaussian(obs + bias + action, jnp.full_like(obs, std))

    return Model(lambda key: (), lambda *_: ((), {}), lambda state: state, predict)


def test_samples_are_as_noisy_as_the_model_says():
    obs = jnp.zeros((3001, 1))
    for sample in (
        imagine.sample_ts1(biased(0.3), jnp.array([5.0, 5.0])),
        imagine.sample_member(biased(0.3), jnp.array(5.0)),
    ):
        y = np.asarray(sample(jax.random.key(0), obs, obs))
        assert len(np.unique(y)) > 2990  # but for a chance of floats
        assert y.mean() == pytest.approx(5, abs=5 * 0.3 / 3001**0.5)
        assert y.std() == pytest.approx(0.3, rel=5 * (0.5 / 3001) ** 0.5)


def counting() -> Policy:
    """Takes -1 times the steps so far."""
    act = lambda key, obs, memory: (-memory[None], memory + 1.0)
    return Policy(lambda: jnp.zeros(()), act)


@pytest.mark.parametrize("length", [1, 3, H])
def test_branches_are_rollouts_in_a_buffer(length: int):
    """Of one member, where there is nothing random: all steps up to the ends."""
    member = jnp.array([60.0])
    starts = jnp.linspace(0, 60, 5)[:, None]
    args = (jax.random.key(0), biased(), member, shifting, counting(), starts, length)
    data, alive, _ = imagine.rollouts(*args)
    buffer = replay.init(1, 1, 50)
    run = jax.jit(
        lambda length: imagine.branches(
            jax.random.key(1),
            imagine.sample_ts1(biased(), member),
            shifting,
            counting(),
            starts,
            length,
            buffer,
        )
    )
    found = run(length)
    assert found.size == alive.sum() <= 5 * length
    in_time = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (data, alive))
    expected = jax.tree.map(lambda x: x[in_time[1]], in_time[0])
    size = int(found.size)
    stored = jax.tree.map(lambda x: x[:size], found.data)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stored, expected
    )
    assert alive.all() == (length == 1)


def test_the_first_actions_may_be_given():
    first = jnp.array([[7.0], [8.0]])
    found = imagine.branches(
        jax.random.key(0),
        imagine.sample_member(biased(), jnp.array(0.0)),
        shifting,
        counting(),
        jnp.zeros((2, 1)),
        3,
        replay.init(1, 1, 6),
        first,
    )
    np.testing.assert_array_equal(found.data.action[:, 0], [7, 8, -1, -1, -2, -2])
    np.testing.assert_array_equal(found.data.next_obs[:, 0], [7, 8, 6, 7, 4, 5])


def test_a_path_is_a_loop():
    """Its states, rewards and bonuses; the actions of the last states as well."""
    starts = jnp.array([[0.0], [100.0], [149.0]])
    act = lambda key, obs: (0.1 * obs, obs[0] / 2)
    sample = imagine.sample_member(biased(), jnp.array(10.0))
    path = imagine.imagined_path(jax.random.key(0), sample, shifting, act, starts, H)
    assert path.obs.shape == path.action.shape == (H + 1, 3, 1)
    assert path.reward.shape == (H, 3)
    obs, alive = np.asarray(starts)[:, 0], np.ones(3, bool)
    for t in range(H + 1):
        np.testing.assert_allclose(path.obs[t, :, 0], obs, rtol=1e-5)
        np.testing.assert_allclose(path.action[t, :, 0], 0.1 * obs, rtol=1e-5)
        np.testing.assert_allclose(path.bonus[t], obs / 2, rtol=1e-5)
        np.testing.assert_array_equal(path.alive[t], alive)
        if t < H:
            np.testing.assert_allclose(path.reward[t], 0.1 * obs + 10, rtol=1e-4)
        obs = 1.1 * obs + 10
        alive = alive & (obs <= 150)
    assert 0 < path.alive.sum() < 3 * (H + 1)


def test_a_path_begins_with_the_actions_of_its_own_keys():
    """Whatever the horizon is."""
    starts = jnp.zeros((3, 1))
    act = lambda key, obs: (jax.random.normal(key, (1,)), jnp.zeros(()))
    sample = imagine.sample_member(biased(), jnp.array(0.0))
    keys = jax.random.split(jax.random.key(0), 3)
    expected = jax.vmap(act)(keys, starts)[0]
    for horizon in (0, 2):
        path = imagine.imagined_path(
            jax.random.key(0), sample, shifting, act, starts, horizon
        )
        np.testing.assert_array_equal(path.action[0], expected)
    assert len(np.unique(path.action)) == 9
