from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import imagine, replay
from mbrl_jax.envs import cartpole, grid, linear_quadratic, point_mass
from mbrl_jax.models import ensemble
from mbrl_jax.types import (
    Array,
    Env,
    EnvState,
    Gaussian,
    Key,
    Model,
    Policy,
    Transition,
)

RETURNS = np.random.default_rng(0).normal(size=7).astype(np.float32)


# --- Particles that grow, each at its own rate, and end beyond 5.

RATES, H = np.array([1.0, 1.5, 2.0, -1.0]), 4
ACTIONS = np.array([[0.5], [0.2], [-0.3], [1.0]])


def step(key: Key, obs: Array, action: Array) -> Array:
    return obs * RATES[:, None] + action[None]


def read(obs: Array, action: Array, y: Array) -> imagine.Outcome:
    return imagine.Outcome(y, obs[0] + 10 * action[0] + 100 * y[0], jnp.abs(y[0]) > 5)


def reference(start: float) -> np.ndarray:
    returns = []
    for rate in RATES:
        x, total = start, 0.0
        for action in ACTIONS[:, 0]:
            old, x = x, x * rate + action
            total += old + 10 * action + 100 * x
            if abs(x) > 5:
                break
        returns.append(total)
    return np.array(returns)


def particle_returns(
    start: float, read: Callable[..., imagine.Outcome] = read
) -> Array:
    return imagine.particle_returns(
        jax.random.key(0), step, read, jnp.array([start]), jnp.asarray(ACTIONS), 4
    )


@pytest.mark.parametrize("start", [0.1, 2.0, -3.0])
def test_returns_count_up_to_the_end_of_each_particle(start: float):
    """The reward of the step that ended it included."""
    np.testing.assert_allclose(particle_returns(start), reference(start), rtol=1e-5)


def test_what_follows_the_end_does_not_count_even_if_it_is_not_finite():
    def broken(obs: Array, action: Array, y: Array) -> imagine.Outcome:
        known = read(obs, action, y)
        return known._replace(
            reward=jnp.where(jnp.abs(obs[0]) > 5, jnp.nan, known.reward)
        )

    np.testing.assert_allclose(particle_returns(2.0, broken), reference(2.0), rtol=1e-5)
    assert (np.abs(reference(2.0)) > 0).all()


def test_steps_have_keys_of_their_own():
    draw = lambda key, obs, action: jax.random.normal(key, obs.shape)
    read = lambda obs, action, y: imagine.Outcome(y, y[0], jnp.zeros((), bool))
    start, actions = jnp.zeros(1), jnp.zeros((H, 1))
    one = partial(imagine.particle_returns, jax.random.key(0), draw, read, start)
    variance = one(actions, 5000).var()  # H if the steps differ, H^2 if they do not
    assert variance == pytest.approx(H, rel=5 * (2 / 5000) ** 0.5)


# --- What is read from a prediction.


def known(
    env: Env, learn_reward: bool, learn_terminal: bool, y: Array
) -> imagine.Outcome:
    obs, action = jnp.full(env.obs_size, 0.1), jnp.full(env.action_size, 0.2)
    return imagine.outcome(env, learn_reward, learn_terminal)(obs, action, y)


NEXT = jnp.array([0.1, 0.2, 0.3, 0.4])  # a pole this far off has fallen


@pytest.mark.parametrize("logit", [-0.1, 0.1])
def test_what_is_learned_is_read_and_what_is_known_is_computed(logit: float):
    env = cartpole.balance()
    both = known(env, True, True, jnp.append(NEXT, jnp.array([7.0, logit])))
    assert both.reward == 7
    assert both.terminal == (logit > 0)
    reward = known(env, True, False, jnp.append(NEXT, 7.0))
    assert reward.reward == 7
    assert reward.terminal
    terminal = known(env, False, True, jnp.append(NEXT, logit))
    assert terminal.reward == 1
    assert terminal.terminal == (logit > 0)
    neither = known(env, False, False, NEXT)
    assert neither.reward == 1
    assert neither.terminal
    for found in (both, reward, terminal, neither):
        np.testing.assert_array_equal(found.next_obs, NEXT)


def test_a_known_reward_is_of_the_obs_the_action_and_the_prediction():
    env, y = point_mass.make(), jnp.arange(6.0)
    obs, action = jnp.full(6, 0.1), jnp.full(2, 0.2)
    assert env.reward is not None
    assert known(env, False, False, y).reward == env.reward(obs, action, y)


# --- The true dynamics.


def test_the_simulated_return_of_the_optimal_actions():
    problem, env = linear_quadratic.TWO_MASSES, linear_quadratic.make()
    best = linear_quadratic.optimum(problem, 20)
    start = env.reset(jax.random.key(0))

    def act(x: Array, gain: Array) -> tuple[Array, Array]:
        u = -gain @ x
        return jnp.asarray(problem.A) @ x + jnp.asarray(problem.B) @ u, u

    actions = jax.lax.scan(act, start.obs, best.gains)[1]
    found = imagine.simulation(env, start)(actions)
    expected = linear_quadratic.optimal_return(best, start.obs)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_simulated_return_stops_at_the_end():
    """A pole that is pushed one way falls; every step before that pays 1."""
    env = cartpole.balance()
    start, push = env.reset(jax.random.key(0)), jnp.ones((50, 1))

    def step(state: EnvState, action: Array) -> tuple[EnvState, Array]:
        state = env.step(state, action)
        return state, state.terminal

    ended = np.asarray(jax.lax.scan(step, start, push)[1])
    length = int(np.argmax(ended)) + 1
    assert 2 < length < 50
    assert imagine.simulation(env, start)(push) == length


# --- Risk.


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 3.0])
def test_mean_minus_std(coefficient: float):
    found = imagine.mean_minus_std(coefficient)(jnp.asarray(RETURNS))
    np.testing.assert_allclose(
        found, RETURNS.mean() - coefficient * RETURNS.std(), rtol=1e-5
    )


def brute_force_cvar(returns: np.ndarray, fraction: float) -> float:
    """Rockafellar and Uryasev (2000): max over t of t - E[(t - return)+] / fraction.

    A concave, piecewise linear function of t; its corners are the returns.
    """
    below = np.maximum(returns[:, None] - returns[None], 0).mean(axis=1)
    return float((returns - below / fraction).max())


@pytest.mark.parametrize("fraction", [0.01, 1 / 7, 0.2, 0.5, 3 / 7, 0.93, 1.0])
def test_cvar(fraction: float):
    found = imagine.cvar(fraction)(jnp.asarray(RETURNS))
    np.testing.assert_allclose(
        found, brute_force_cvar(RETURNS, fraction), rtol=1e-4, atol=1e-5
    )


def test_cvar_between_the_worst_and_the_mean():
    returns = jnp.asarray(RETURNS)
    found = jax.vmap(lambda fraction: imagine.cvar(fraction)(returns))(
        jnp.array([1e-3, 1 / 7, 0.3, 0.6, 1.0])
    )
    np.testing.assert_allclose(found[:2], RETURNS.min(), rtol=1e-5)
    np.testing.assert_allclose(found[-1], RETURNS.mean(), rtol=1e-4)
    assert (np.diff(found)[1:] > 0).all()


@pytest.mark.parametrize(
    "risk", [jnp.mean, imagine.mean_minus_std(1.0), imagine.cvar(0.3)]
)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_particle_that_is_not_finite_is_not_forgotten(risk: Callable, bad: float):
    """Even where it would not be among the worst: its candidate has to lose."""
    assert not jnp.isfinite(risk(jnp.asarray(RETURNS).at[2].set(bad)))


# --- A model along real transitions.

WINDOW = Transition(
    obs=jnp.array([[0.3], [0.9], [-0.4]]),
    action=jnp.array([[0.2], [-0.7], [0.5]]),
    reward=jnp.array([1.0, -2.0, 0.5]),
    next_obs=jnp.array([[0.9], [-0.4], [1.3]]),
    terminal=jnp.zeros(3, bool),
    truncated=jnp.zeros(3, bool),
)


def gone_through(
    params: dict[str, Array], window: Transition, valid: Array, std: float = 0.3
) -> tuple[Array, Array, Array]:
    """The model: x' = sin(a x) + u; the policy: u = b x + noise; reward x' u + x."""

    def act(obs: Array, real: Array) -> Array:
        spread = jnp.exp(params["c"]) * jnp.ones(1)
        return imagine.as_it_was(Gaussian(params["b"] * obs, spread), real)

    def predict(obs: Array, action: Array) -> Gaussian:
        mean = jnp.sin(params["a"] * obs) + action
        return Gaussian(mean, std * (1 + obs**2))

    def read(obs: Array, action: Array, y: Array) -> imagine.Outcome:
        return imagine.Outcome(y, y[0] * action[0] + obs[0], jnp.zeros((), bool))

    return imagine.retrace(act, predict, read, window, valid, 0.9)


@pytest.mark.parametrize("std", [0.3, 0.0])
def test_a_model_along_the_data_gives_the_data(std: float):
    """And its gradient is that of the rollout with the inferred noise held fixed."""
    params = {"a": jnp.array(1.3), "b": jnp.array(-0.4), "c": jnp.array(-0.2)}
    with jax.enable_x64(True):
        params, window = jax.tree.map(
            lambda x: x if x.dtype == bool else jnp.asarray(x, float), (params, WINDOW)
        )
        valid = jnp.ones(3, bool)
        total, weight, obs = gone_through(params, window, valid, std)
        x, u, y = (x[:, 0] for x in (window.obs, window.action, window.next_obs))
        rewards = y * u + x
        np.testing.assert_allclose(total, rewards @ 0.9 ** np.arange(3), rtol=1e-12)
        np.testing.assert_allclose((weight, obs[0]), (0.9**3, y[-1]), rtol=1e-12)

        act_noise = (u - params["b"] * x) / jnp.exp(params["c"])
        rest = y - jnp.sin(params["a"] * x) - u  # of std noise, which depends on x
        noise = rest / (std * (1 + x**2)) if std else jnp.zeros(3)

        def simulated(params: dict[str, Array]) -> Array:
            state, result = x[0], 0.0
            for t in range(3):
                action = params["b"] * state + jnp.exp(params["c"]) * act_noise[t]
                after = jnp.sin(params["a"] * state) + action
                after += std * (1 + state**2) * noise[t] if std else rest[t]
                result += 0.9**t * (after * action + state)
                state = after
            return result

        expected = jax.grad(simulated)(params)
        found = jax.grad(lambda params: gone_through(params, window, valid, std)[0])
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-9), found(params), expected
        )


def test_a_window_stops_where_it_is_not_valid_and_nothing_follows_an_end():
    params = {"a": jnp.array(1.3), "b": jnp.array(-0.4), "c": jnp.array(-0.2)}
    valid = jnp.array([True, True, False])
    total, weight, obs = gone_through(params, WINDOW, valid)
    first = jax.tree.map(lambda x: x[:2], WINDOW)
    expected = gone_through(params, first, valid[:2])
    jax.tree.map(np.testing.assert_array_equal, (total, weight, obs), expected)
    ended = WINDOW._replace(terminal=jnp.array([False, True, False]))
    again = gone_through(params, ended, valid)
    assert (again[0], again[1]) == (total, 0)


# --- A policy in models that each add a constant of their own.

BIASES = jnp.array([1.0, 10.0, 100.0])
N = 30


def shifting(obs: Array, action: Array, y: Array) -> imagine.Outcome:
    return imagine.Outcome(y, y[0] - obs[0], y[0] > 150)


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
    sample = jax.jit(imagine.dealt(biased(), BIASES))
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
        imagine.dealt(biased(0.3), jnp.array([5.0, 5.0])),
        imagine.of_one(biased(0.3), jnp.array(5.0)),
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
            imagine.dealt(biased(), member),
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
        imagine.of_one(biased(), jnp.array(0.0)),
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
    sample = imagine.of_one(biased(), jnp.array(10.0))
    path = imagine.path(jax.random.key(0), sample, shifting, act, starts, H)
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
    sample = imagine.of_one(biased(), jnp.array(0.0))
    keys = jax.random.split(jax.random.key(0), 3)
    expected = jax.vmap(act)(keys, starts)[0]
    for horizon in (0, 2):
        path = imagine.path(jax.random.key(0), sample, shifting, act, starts, horizon)
        np.testing.assert_array_equal(path.action[0], expected)
    assert len(np.unique(path.action)) == 9


def test_numbers_of_actions_are_shown_to_the_model_as_ones_and_zeros():
    """A network learns a move that depends on the action in no linear way."""
    env = grid.make("hall", grid.parse("S..G"), episode_length=5)
    config = ensemble.Config(
        num_members=1,
        hidden_sizes=(16,),
        probabilistic=False,
        learning_rate=1e-2,
        batch_size=30,
    )
    model, read = imagine.learned(env, config)
    cells = jnp.arange(120) % 3
    move = (jnp.arange(120) * 7 // 3) % 4
    after = jnp.where(move == 3, cells + 1, jnp.where(move == 2, cells - 1, cells))
    eye = jnp.eye(4)
    after = after.clip(0)
    rows = Transition(
        eye[cells],
        move.astype(jnp.int32),
        (after == 3).astype(float),
        eye[after],
        after == 3,
        jnp.zeros(120, bool),
    )
    data = replay.init(4, 0, 120, discrete=True)
    data = replay.insert(data, rows, jnp.ones(120, bool))
    state, _ = jax.jit(model.fit)(
        jax.random.key(0), jax.jit(model.init)(jax.random.key(1)), data
    )
    member = jax.tree.map(lambda x: x[0], model.members(state))
    y = jax.vmap(lambda obs, action: model.predict(member, obs, action).mean)(
        rows.obs, rows.action
    )
    np.testing.assert_array_equal(y[:, :4].argmax(axis=1), after)
    found = jax.vmap(read)(rows.obs, rows.action, y)
    np.testing.assert_array_equal(found.terminal, after == 3)
    np.testing.assert_allclose(found.reward, after == 3, atol=0.2)
