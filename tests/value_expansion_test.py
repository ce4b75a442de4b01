"""Targets and worths that look ahead, against loops, closed forms and null settings."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import (
    branching,
    imagine,
    off_policy,
    simulator,
    value_expansion,
    value_learners,
    value_learning,
)
from mbrl_jax.algorithms import dyna, maac, mbpo, mve, sac, steve, td3
from mbrl_jax.envs import grid, linear_quadratic, point_mass
from mbrl_jax.imagine import Outcome, Path
from mbrl_jax.learners import sac as sac_learner
from mbrl_jax.learners import td3 as td3_learner
from mbrl_jax.models import ensemble
from mbrl_jax.types import Algorithm, Array, Env, Gaussian, Key, Model, Transition
from mbrl_jax.value_learning import Rows, ValueLearner

DISCOUNT = 0.9


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


# --- A line on which everything is known: members add their bias, beyond 3 all is over.

GAIN, BONUS, END = -0.2, 0.3, 3.0
CRITICS = np.array([2.0, -1.0])  # Q_k = k-th number * obs + action


def predict(bias: Array, obs: Array, action: Array) -> Gaussian:
    return Gaussian(obs + action + bias, jnp.zeros_like(obs))


def read(obs: Array, action: Array, y: Array) -> Outcome:
    return Outcome(y, 10 * obs[0] + action[0] + y[0], y[0] > END)


def known(critics: np.ndarray = CRITICS) -> ValueLearner:
    """Acts by GAIN * obs; a bonus of BONUS * obs."""
    unused: Any = None
    return ValueLearner(
        init=unused,
        act=lambda state, key, obs: (GAIN * obs, BONUS * obs[0]),
        values=lambda state, obs, action: jnp.asarray(critics) * obs + action,
        update=unused,
        explore=unused,
        policy=unused,
        discount=DISCOUNT,
    )


def model() -> Model:
    return Model(lambda key: (), lambda *_: ((), {}), lambda state: state, predict)


BATCH = Transition(
    obs=jnp.array([[0.5], [1.0], [-1.0], [2.0]]),
    action=jnp.array([[0.1], [0.2], [0.3], [0.4]]),
    reward=jnp.array([1.0, 2.0, 3.0, 4.0]),
    next_obs=jnp.array([[0.6], [1.2], [-0.7], [2.4]]),
    terminal=jnp.array([False, True, False, False]),
    truncated=jnp.array([False, False, True, False]),
)


def walk(x: float, bias: float, horizon: int) -> list[tuple[float, float, bool]]:
    """(obs, reward of acting there or 0, is it not over), of horizon + 1 states."""
    found, alive = [], True
    for _ in range(horizon + 1):
        after = x + GAIN * x + bias
        found.append((x, 10 * x + GAIN * x + after, alive))
        alive = alive and not after > END
        x = after
    return found


def follows(
    steps: list[tuple[float, float, bool]], critic: float | None = None
) -> float:
    """What follows the first of these states, by the last one's critic or the least."""
    (x, reward, alive), *rest = steps
    if not alive:
        return 0.0
    bonus = BONUS * x
    if not rest:
        judged = [c * x + GAIN * x for c in CRITICS]
        return (min(judged) if critic is None else critic * x + GAIN * x) + bonus
    return reward + bonus + DISCOUNT * follows(rest, critic)


def test_values_are_by_hand():
    """Two futures of two steps; the second is over after the first step."""
    path = Path(
        obs=jnp.zeros((3, 2, 1)),
        action=jnp.zeros((3, 2, 1)),
        bonus=jnp.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]),
        reward=jnp.array([[1.0, 2.0], [3.0, 4.0]]),
        alive=jnp.array([[True, True], [True, False], [True, False]]),
    )
    q_values = jnp.array([[10.0, 20.0], [30.0, 40.0], [50.0, jnp.nan]])
    found = value_expansion.values(path, q_values, 0.5)
    expected = [
        [10.1, 20.2],
        [1.1 + 0.5 * 30.3, 2.2],
        [1.1 + 0.5 * 3.3 + 0.25 * 50.5, 2.2],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def rows_of(horizon: int, td_k: bool, bias: float = 0.9) -> Rows:
    sample = imagine.dealt(model(), jnp.array([bias]))
    return value_expansion.mve(
        known(), (), jax.random.key(0), BATCH, sample, read, horizon, td_k
    )


@pytest.mark.parametrize("horizon", [0, 1, 2, 4])
def test_mve_targets_are_those_of_a_loop(horizon: int):
    """On the way, some futures are over."""
    rows = rows_of(horizon, td_k=False)
    walks = [walk(float(x), 0.9, horizon) for x in BATCH.next_obs[:, 0]]
    later = np.array([follows(steps) for steps in walks])
    later[1] = 0  # the real transition was the last
    np.testing.assert_allclose(
        rows.target, BATCH.reward + DISCOUNT * later, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(rows.obs, BATCH.obs)
    np.testing.assert_array_equal(rows.action, BATCH.action)
    np.testing.assert_array_equal(rows.weight, 1)


def test_td_k_learns_at_every_imagined_state():
    """Which has what follows as its target, and counts while it is not over."""
    horizon = 4
    rows, real = rows_of(horizon, td_k=True), rows_of(horizon, td_k=False)
    assert len(rows.target) == 4 * (1 + horizon)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:4], y), rows, real)
    weights = []
    for n, start in enumerate(BATCH.next_obs[:, 0]):
        steps = walk(float(start), 0.9, horizon)
        for t in range(horizon):
            row = jax.tree.map(lambda x, i=4 + 4 * t + n: x[i], rows)
            counts = steps[t][2] and not BATCH.terminal[n]
            assert row.weight == counts
            weights.append(counts)
            if counts:
                x = steps[t][0]
                assert float(row.obs[0]) == pytest.approx(x, rel=1e-5)
                assert float(row.action[0]) == pytest.approx(GAIN * x, rel=1e-5)
                expected = follows(steps[t:]) - BONUS * x  # Q is without the bonus
                assert float(row.target) == pytest.approx(expected, rel=1e-5)
    assert 0 < sum(weights) < len(weights) - horizon  # some besides the real ending


def test_a_perfect_model_gives_the_returns_of_the_environment():
    """On linear-quadratic, its rewards and its critics' value of the end."""
    env, horizon = linear_quadratic.make(), 3
    gain = jnp.array([[0.3, -0.1, 0.5, 0.1]])

    def value(obs: Array, action: Array) -> Array:
        return 2 * obs.sum() + action[0]

    parts = known()._replace(
        act=lambda state, key, obs: (-gain @ obs, jnp.zeros(())),
        values=lambda state, obs, action: value(obs, action)[None],
    )
    exact = model()._replace(
        predict=lambda member, obs, action: Gaussian(
            jnp.asarray(linear_quadratic.TWO_MASSES.A) @ obs
            + jnp.asarray(linear_quadratic.TWO_MASSES.B) @ action,
            jnp.zeros_like(obs),
        )
    )
    reset = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 5))
    action = jnp.linspace(-1, 1, 5)[:, None]
    first = jax.vmap(env.step)(reset, action)
    batch = Transition(
        reset.obs, action, first.reward, first.obs, first.terminal, first.truncated
    )
    sample = imagine.dealt(exact, jnp.zeros(1))
    rows = value_expansion.mve(
        parts,
        (),
        jax.random.key(0),
        batch,
        sample,
        imagine.outcome(env, False, False),
        horizon,
        False,
    )
    state, total = first, first.reward
    for t in range(1, horizon + 1):
        state = jax.vmap(env.step)(state, -state.obs @ gain.T)
        total += DISCOUNT**t * state.reward
    end = jax.vmap(value)(state.obs, -state.obs @ gain.T)
    total += DISCOUNT ** (horizon + 1) * end
    np.testing.assert_allclose(rows.target, total, rtol=1e-4)


# --- STEVE.


def expanded(
    biases: np.ndarray, horizon: int, critics: np.ndarray = CRITICS
) -> tuple[Rows, Array]:
    return value_expansion.steve(
        known(critics),
        (),
        jax.random.key(0),
        BATCH,
        model(),
        jnp.asarray(biases),
        read,
        horizon,
    )


def test_steve_weighs_the_candidates_of_every_member_and_critic():
    biases, horizon = np.array([0.2, 0.5, 0.9]), 3
    rows, weights = expanded(biases, horizon)
    for n, start in enumerate(BATCH.next_obs[:, 0]):
        means, variances = [], []
        for h in range(horizon + 1):
            found = [
                float(BATCH.reward[n]) + DISCOUNT * later * (not BATCH.terminal[n])
                for bias in biases
                for critic in CRITICS
                for later in [follows(walk(float(start), bias, h), critic)]
            ]
            means.append(np.mean(found))
            variances.append(np.var(found))
        expected = 1 / (np.array(variances) + value_expansion.EPS)
        expected /= expected.sum()
        np.testing.assert_allclose(weights[n], expected, rtol=1e-3)
        assert float(rows.target[n]) == pytest.approx(expected @ means, rel=1e-4)
    np.testing.assert_allclose(weights[1], 0.25)  # nothing follows, and that is sure


def learned_reward(obs: Array, action: Array, y: Array) -> Outcome:
    """A member's bias is its error of the reward; states do not change."""
    return Outcome(obs, y[0] - obs[0] - action[0], jnp.zeros((), bool))


def linear_gaussian(
    model_std: float, critic_std: float, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [H + 1], and their closed form, where errors are normal and add up.

    After h steps the error of a member is its own times 1 + discount + .., that of a
    critic is discounted h times; all pairs are taken, so variances add exactly.
    """
    rng = np.random.default_rng(0)
    errors = model_std * rng.normal(size=40)
    opinions = critic_std * rng.normal(size=30)
    parts = known()._replace(
        act=lambda state, key, obs: (jnp.zeros(1), jnp.zeros(())),
        values=lambda state, obs, action: jnp.asarray(opinions),
    )
    one = jax.tree.map(lambda x: x[:1], BATCH)
    _, weights = value_expansion.steve(
        parts,
        (),
        jax.random.key(0),
        one,
        model(),
        jnp.asarray(errors),
        learned_reward,
        horizon,
    )
    h = np.arange(horizon + 1)
    summed = (1 - DISCOUNT**h) / (1 - DISCOUNT)
    variance = summed**2 * errors.var() + DISCOUNT ** (2 * h) * opinions.var()
    inverse = 1 / variance
    return np.asarray(weights[0]), inverse / inverse.sum()


@pytest.mark.parametrize(
    ("model_std", "critic_std"), [(1.0, 1.0), (0.1, 1.0), (3.0, 1.0)]
)
def test_weights_on_a_linear_gaussian_problem_are_the_closed_form(
    double, model_std: float, critic_std: float
):
    found, expected = linear_gaussian(model_std, critic_std, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.sum() == pytest.approx(1)


def test_a_corrupted_model_weighs_little_and_a_sure_one_much(double):
    corrupted, _ = linear_gaussian(5.0, 1.0, 4)
    assert corrupted[1:].sum() < 0.2
    sure, _ = linear_gaussian(1e-3, 1.0, 4)
    assert sure.argmax() == 4
    assert (np.diff(sure) > 0).all()


def test_weights_of_samples_come_to_those_of_the_variances():
    stds, means = np.array([1.0, 0.5, 2.0]), np.array([3.0, 4.0, 5.0])
    samples = np.random.default_rng(0).normal(means, stds, size=(100_000, 3)).T
    target, weights = value_expansion.weighed(jnp.asarray(samples, jnp.float32))
    expected = stds**-2 / (stds**-2).sum()
    np.testing.assert_allclose(weights, expected, rtol=5 * (2 / 1e5) ** 0.5 * 2)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    assert float(target) == pytest.approx(expected @ means, rel=1e-2)


def test_candidates_that_agree_weigh_the_same():
    target, weights = value_expansion.weighed(jnp.full((4, 6), 7.0))
    np.testing.assert_allclose(weights, 0.25, rtol=1e-6)
    assert float(target) == pytest.approx(7)


# --- MAAC's worth.

A, B = (jnp.asarray(x) for x in linear_quadratic.TWO_MASSES[:2])
STARTS = np.random.default_rng(1).normal(size=(3, 4))
MOST = 4


def linear(member: Array, obs: Array, action: Array) -> Gaussian:
    return Gaussian(A @ obs + B @ action, jnp.zeros_like(obs))


def judge(obs: Array, action: Array) -> Array:
    return -3 * obs @ obs - 0.1 * action @ action


def acts(gain: Array, obs: Array) -> tuple[Array, Array]:
    action = -jnp.tanh(gain @ obs)
    return action, 0.2 * jnp.sin(action[0])


def worth(gain: Array, horizon: int | Array) -> Array:
    """The mean over the starts."""
    look = value_expansion.lookahead(
        imagine.dealt(model()._replace(predict=linear), jnp.zeros(1)),
        imagine.outcome(linear_quadratic.make(), False, False),
        DISCOUNT,
        horizon,
        MOST,
    )
    act = lambda key, obs: acts(gain, obs)
    return look(jax.random.key(0), jnp.asarray(STARTS), act, judge).mean()


def unrolled(gain: Array, horizon: int) -> Array:
    env, total = linear_quadratic.make(), 0.0
    assert env.reward is not None
    for obs in STARTS:
        x = jnp.asarray(obs)
        for t in range(horizon):
            action, bonus = acts(gain, x)
            total += DISCOUNT**t * (env.reward(x, action, x) + bonus)
            x = A @ x + B @ action
        action, bonus = acts(gain, x)
        total += DISCOUNT**horizon * (judge(x, action) + bonus)
    return total / len(STARTS)


@pytest.mark.parametrize("horizon", [0, 1, MOST])
def test_the_gradient_goes_through_the_model(double, horizon: int):
    gain = jnp.array([[0.3, -0.1, 0.5, 0.1]])
    found, slope = jax.jit(jax.value_and_grad(worth))(gain, jnp.asarray(horizon))
    expected, exact = jax.value_and_grad(unrolled)(gain, horizon)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    np.testing.assert_allclose(slope, exact, rtol=1e-6)
    for i in range(4):
        step = jnp.zeros((1, 4)).at[0, i].set(1e-5)
        along = (unrolled(gain + step, horizon) - unrolled(gain - step, horizon)) / 2e-5
        assert float(slope[0, i]) == pytest.approx(float(along), rel=1e-5)


def test_the_horizon_may_change_without_compiling():
    traces = []

    @jax.jit
    def look(horizon: Array) -> Array:
        traces.append(horizon)
        return worth(jnp.full((1, 4), 0.1), horizon)

    found = [float(look(jnp.asarray(h))) for h in range(MOST + 1)]
    assert len(set(found)) == MOST + 1
    assert len(traces) == 1


def test_nothing_is_earned_after_an_end_and_nothing_of_it_has_a_gradient():
    """From 2.4 with a bias of 0.9 the first step is beyond the end."""
    look = value_expansion.lookahead(
        imagine.of_one(model(), jnp.array(0.9)), read, DISCOUNT, 3, 3
    )
    value = lambda obs, action: 100 * obs[0]

    def at(gain: Array) -> Array:
        act = lambda key, obs: (gain * obs, jnp.zeros(()))
        return look(jax.random.key(0), jnp.array([[2.4]]), act, value)[0]

    after = 2.4 + 0.1 * 2.4 + 0.9
    found, slope = jax.value_and_grad(at)(jnp.array(0.1))
    assert float(found) == pytest.approx(24 + 0.24 + after, rel=1e-5)
    assert float(slope) == pytest.approx(2.4 + 2.4, rel=1e-5)


# --- Null settings are the base learners: the targets' ones bit for bit.

SHORT: Env = simulator.time_limit(point_mass.make(), 4)
COLLECT = off_policy.Config(
    capacity=20, warmup=4, interval=5, batch_size=8, updates_per_step=2
)
SAC = sac_learner.Config(hidden_sizes=(8,))
TD3 = td3_learner.Config(hidden_sizes=(8,))
MODEL = ensemble.Config(num_members=2, hidden_sizes=(8,), batch_size=4, num_epochs=2)
ALL_REAL = branching.Config(num_rollouts=4, last_length=2, real_share=1.0)


def learned(algorithm: Algorithm) -> Any:
    """The learner after three iterations, of which two learn."""
    keys = jax.random.split(jax.random.key(1), 3)
    step = lambda state, key: (algorithm.step(key, state)[0], None)
    run = lambda key: jax.lax.scan(step, algorithm.init(key), keys)[0].learner
    return jax.jit(run)(jax.random.key(0))


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("num_critics", [1, 2])
def test_mve_without_a_horizon_is_the_learner(num_critics: int):
    config = dataclasses.replace(TD3, num_critics=num_critics)
    learner = value_learners.Config(name="td3", td3=config)
    expected = learned(td3.make(SHORT, td3.Config(COLLECT, config)))
    assert expected.num_updates == 20
    null = mve.Config(horizon=0, collect=COLLECT, learner=learner, model=MODEL)
    assert_same(learned(mve.make(SHORT, null)), expected)


def test_steve_without_a_horizon_is_the_learner_of_one_critic():
    config = dataclasses.replace(TD3, num_critics=1)
    learner = value_learners.Config(name="td3", td3=config)
    null = steve.Config(horizon=0, collect=COLLECT, learner=learner, model=MODEL)
    expected = learned(td3.make(SHORT, td3.Config(COLLECT, config)))
    assert_same(learned(steve.make(SHORT, null)), expected)


@pytest.fixture(scope="module")
def plain_sac() -> Any:
    return learned(sac.make(SHORT, sac.Config(COLLECT, SAC)))


def test_mbpo_with_real_data_alone_is_sac(plain_sac: Any):
    null = mbpo.Config(COLLECT, SAC, ALL_REAL, MODEL, num_watched=3)
    assert_same(learned(mbpo.make(SHORT, null)), plain_sac)


def test_dyna_with_real_data_alone_is_its_learner(plain_sac: Any):
    null = dyna.Config(
        collect=COLLECT,
        learner=value_learners.Config(sac=SAC),
        imagine=ALL_REAL,
        model=MODEL,
    )
    assert_same(learned(dyna.make(SHORT, null)), plain_sac)


def test_maac_without_a_horizon_is_mbpo(plain_sac: Any):
    """With the same futures in its batches."""
    half = dataclasses.replace(ALL_REAL, real_share=0.5)
    expected = learned(
        mbpo.make(SHORT, mbpo.Config(COLLECT, SAC, half, MODEL, num_watched=3))
    )
    null = maac.Config(
        max_horizon=0,
        num_windows=3,
        collect=COLLECT,
        learn=SAC,
        imagine=half,
        model=MODEL,
    )
    assert_same(learned(maac.make(SHORT, null)), expected)
    with pytest.raises(AssertionError):  # which does make a difference
        assert_same(expected, plain_sac)


@pytest.mark.parametrize("kind", ["sac", "td3"])
def test_rows_without_a_horizon_are_those_of_one_step(kind: str):
    make = {"sac": sac_learner.make, "td3": td3_learner.make}[kind]
    config = {"sac": SAC, "td3": TD3}[kind]
    parts = make(SHORT, dataclasses.replace(config, num_critics=1))
    state, key = parts.init(jax.random.key(0)), jax.random.key(1)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    ends = jnp.arange(6) % 3 == 0
    batch = Transition(draw(6, 6), draw(6, 2), draw(6), draw(6, 6), ends, ~ends)
    expected = jax.jit(partial(value_learning.one_step, parts))(state, key, batch)
    expand = partial(value_expansion.mve, parts, horizon=0, td_k=True)
    sample = lambda key, obs, action: obs
    never = lambda obs, action, y: Outcome(y, y[0], jnp.zeros((), bool))
    run = jax.jit(lambda *x: expand(*x, sample, never))
    assert_same(run(state, key, batch), expected)
    still = model()._replace(
        predict=lambda member, obs, action: Gaussian(obs, jnp.zeros_like(obs))
    )
    run = jax.jit(
        lambda *x: value_expansion.steve(parts, *x, still, jnp.zeros(4), never, 0)
    )
    rows, weights = run(state, key, batch)
    assert_same(rows, expected)
    np.testing.assert_array_equal(weights, 1)


def test_two_keys_give_two_futures():
    """The actions on the way are drawn anew at each step of each row."""

    def act(state: Any, key: Key, obs: Array) -> tuple[Array, Array]:
        return jax.random.normal(key, (1,)), jnp.zeros(())

    path = imagine.path(
        jax.random.key(0),
        imagine.of_one(model(), jnp.array(0.0)),
        read,
        partial(act, ()),
        BATCH.next_obs,
        3,
    )
    assert path.action.shape == (4, 4, 1)
    assert len(np.unique(path.action)) == 16


# --- Any learner.


@pytest.mark.parametrize("name", ["sac", "td3", "naf", "dqn"])
@pytest.mark.parametrize("module", [mve, steve, dyna])
def test_any_learner_takes_part(module: Any, name: str):
    """DQN where actions are discrete; in STEVE those of one critic as they are."""
    hall = grid.make("hall", grid.parse("S.\nG."), episode_length=4)
    learner = value_learners.Config(name=name)
    config = module.Config(collect=COLLECT, learner=learner, model=MODEL)
    if module is steve and name in ("naf", "dqn"):
        with pytest.raises(ValueError, match=f"horizon is 3, and {name} has one"):
            module.make(hall if name == "dqn" else SHORT, config)
        config = dataclasses.replace(config, horizon=0)
    algorithm = module.make(hall if name == "dqn" else SHORT, config)
    key = jax.random.key(0)
    before = jax.eval_shape(algorithm.init, key)
    after, metrics = jax.eval_shape(algorithm.step, key, before)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), before
    )
    assert "critic/mse" in metrics
    other = "sac" if name == "dqn" else "dqn"
    wrong = dataclasses.replace(config, learner=value_learners.Config(name=other))
    with pytest.raises(ValueError, match=r"the actions of .* are "):
        module.make(hall if name == "dqn" else SHORT, wrong)


def test_an_unknown_learner_is_refused():
    with pytest.raises(ValueError, match="name is 'ppo', must be one of: sac, td3"):
        value_learners.make(SHORT, value_learners.Config(name="ppo"))
