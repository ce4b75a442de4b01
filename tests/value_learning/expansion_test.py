"""Targets and objectives that look ahead: loops, closed forms and null settings."""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.algorithms import dyna, maac, mbpo, mve, sac, steve, td3
from mbrl_jax.envs import grid, linear_quadratic, point_mass, simulator
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble, imagine, outcomes
from mbrl_jax.models.imagine import ImaginedPath
from mbrl_jax.models.outcomes import Outcome
from mbrl_jax.types import Array, Env, Gaussian, Key, Model, Transition
from mbrl_jax.value_learning import (
    branching,
    by_name,
    expansion,
    off_policy,
    parts,
    validity,
)
from mbrl_jax.value_learning import sac as sac_learner
from mbrl_jax.value_learning import td3 as td3_learner
from mbrl_jax.value_learning.parts import Regression, ValueLearner

DISCOUNT = 0.9


# --- A line on which everything is known: members add their bias, beyond 3 all is over.

GAIN, BONUS, END = -0.2, 0.3, 3.0
CRITICS = np.array([2.0, -1.0])  # Q_k = k-th number * obs + action


def predict(bias: Array, obs: Array, action: Array) -> Gaussian:
    return Gaussian(obs + action + bias, jnp.zeros_like(obs))


def decode(obs: Array, action: Array, y: Array) -> Outcome:
    return Outcome(y, 10 * obs[0] + action[0] + y[0], y[0] > END)


def known(critics: np.ndarray = CRITICS) -> ValueLearner:
    """Acts by GAIN * obs; a bonus of BONUS * obs."""
    unused: Any = None
    return ValueLearner(
        init=unused,
        act=lambda state, key, obs: (GAIN * obs, BONUS * obs[0]),
        values=lambda state, obs, action: jnp.asarray(critics) * obs + action,
        next_value=unused,
        actor_objective=unused,
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
    path = ImaginedPath(
        obs=jnp.zeros((3, 2, 1)),
        action=jnp.zeros((3, 2, 1)),
        bonus=jnp.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]),
        reward=jnp.array([[1.0, 2.0], [3.0, 4.0]]),
        alive=jnp.array([[True, True], [True, False], [True, False]]),
    )
    q_values = jnp.array([[10.0, 20.0], [30.0, 40.0], [50.0, jnp.nan]])
    found = expansion.values(path, q_values, 0.5)
    expected = [
        [10.1, 20.2],
        [1.1 + 0.5 * 30.3, 2.2],
        [1.1 + 0.5 * 3.3 + 0.25 * 50.5, 2.2],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@partial(jax.jit, static_argnums=(0, 1))
def rows_of(horizon: int, td_k: bool) -> Regression:
    """Of a member that adds 0.9."""
    bias = 0.9
    sample = imagine.sample_ts1(model(), jnp.array([bias]))
    return expansion.mve(
        known(), (), jax.random.key(0), BATCH, sample, decode, horizon, td_k
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

    method = known()._replace(
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

    @jax.jit
    def both(key: Key) -> tuple[Array, Array]:
        """The targets, and what the environment gives."""
        reset = jax.vmap(env.reset)(jax.random.split(key, 5))
        action = jnp.linspace(-1, 1, 5)[:, None]
        state = first = jax.vmap(env.step)(reset, action)
        batch = Transition(
            reset.obs, action, first.reward, first.obs, first.terminal, first.truncated
        )
        sample = imagine.sample_ts1(exact, jnp.zeros(1))
        decode = outcomes.decoder(env, False, False)
        rows = expansion.mve(method, (), key, batch, sample, decode, horizon, False)
        total = first.reward
        for t in range(1, horizon + 1):
            state = jax.vmap(env.step)(state, -state.obs @ gain.T)
            total += DISCOUNT**t * state.reward
        end = jax.vmap(value)(state.obs, -state.obs @ gain.T)
        return rows.target, total + DISCOUNT ** (horizon + 1) * end

    np.testing.assert_allclose(*both(jax.random.key(0)), rtol=1e-4)


# --- STEVE.


def test_steve_weighs_the_candidates_of_every_member_and_critic():
    biases, horizon = np.array([0.2, 0.5, 0.9]), 3
    expand = lambda: expansion.steve(
        known(), (), jax.random.key(0), BATCH, model(), biases, decode, horizon
    )
    rows, weights = jax.tree.map(np.asarray, jax.jit(expand)())
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
        expected = 1 / (np.array(variances) + expansion.EPS)
        expected /= expected.sum()
        np.testing.assert_allclose(weights[n], expected, rtol=1e-3)
        assert float(rows.target[n]) == pytest.approx(expected @ means, rel=1e-4)
    np.testing.assert_allclose(weights[1], 0.25)  # nothing follows, and that is sure


HORIZON = 4


def learned_reward(obs: Array, action: Array, y: Array) -> Outcome:
    """A member's bias is its error of the reward; states do not change."""
    return Outcome(obs, y[0] - obs[0] - action[0], jnp.zeros((), bool))


@jax.jit
def weights_of(errors: np.ndarray, opinions: np.ndarray) -> Array:
    """Of members that are off by `errors` in the reward, and of critics, [H + 1]."""
    method = known()._replace(
        act=lambda state, key, obs: (jnp.zeros(1), jnp.zeros(())),
        values=lambda state, obs, action: opinions,
    )
    one, key = jax.tree.map(lambda x: x[:1], BATCH), jax.random.key(0)
    _, weights = expansion.steve(
        method, (), key, one, model(), errors, learned_reward, HORIZON
    )
    return weights[0]


def linear_gaussian(
    model_std: float, critic_std: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [H + 1], and their closed form, where errors are normal and add up.

    After h steps the error of a member is its own times 1 + discount + .., that of a
    critic is discounted h times; all pairs are taken, so variances add exactly.
    """
    rng = np.random.default_rng(0)
    errors = model_std * rng.normal(size=40)
    opinions = critic_std * rng.normal(size=30)
    h = np.arange(HORIZON + 1)
    summed = (1 - DISCOUNT**h) / (1 - DISCOUNT)
    variance = summed**2 * errors.var() + DISCOUNT ** (2 * h) * opinions.var()
    inverse = 1 / variance
    return np.asarray(weights_of(errors, opinions)), inverse / inverse.sum()


@pytest.mark.parametrize(
    ("model_std", "critic_std"), [(1.0, 1.0), (0.1, 1.0), (3.0, 1.0)]
)
def test_weights_on_a_linear_gaussian_problem_are_the_closed_form(
    double, model_std: float, critic_std: float
):
    found, expected = linear_gaussian(model_std, critic_std)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.sum() == pytest.approx(1)


def test_a_corrupted_model_weighs_little_and_a_sure_one_much(double):
    corrupted, _ = linear_gaussian(5.0, 1.0)
    assert corrupted[1:].sum() < 0.2
    sure, _ = linear_gaussian(1e-3, 1.0)
    assert sure.argmax() == 4
    assert (np.diff(sure) > 0).all()


def test_weights_of_samples_come_to_those_of_the_variances():
    stds, means = np.array([1.0, 0.5, 2.0]), np.array([3.0, 4.0, 5.0])
    samples = np.random.default_rng(0).normal(means, stds, size=(100_000, 3)).T
    target, weights = jax.jit(expansion.weighed)(samples.astype(np.float32))
    expected = stds**-2 / (stds**-2).sum()
    np.testing.assert_allclose(weights, expected, rtol=5 * (2 / 1e5) ** 0.5 * 2)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    assert float(target) == pytest.approx(expected @ means, rel=1e-2)


def test_candidates_that_agree_weigh_the_same():
    target, weights = jax.jit(expansion.weighed)(jnp.full((4, 6), 7.0))
    np.testing.assert_allclose(weights, 0.25, rtol=1e-6)
    assert float(target) == pytest.approx(7)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_horizon_that_is_not_finite_weighs_nothing(bad: float):
    candidates = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    spoiled = candidates.copy()
    spoiled[3, 2] = bad
    target, weights = jax.jit(expansion.weighed)(spoiled)
    expected, others = expansion.weighed(candidates[:3])
    assert float(target) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(weights, [*others, 0], rtol=1e-5)
    spoiled[:, 0] = bad
    target, weights = jax.jit(expansion.weighed)(spoiled)
    assert target == 0
    assert (weights == 0).all()


# --- MAAC's objective.

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


def objective(gain: Array, horizon: int | Array) -> Array:
    """The mean over the starts."""
    look = expansion.lookahead(
        imagine.sample_ts1(model()._replace(predict=linear), jnp.zeros(1)),
        outcomes.decoder(linear_quadratic.make(), False, False),
        DISCOUNT,
        horizon,
        MOST,
    )
    act = lambda key, obs: acts(gain, obs)
    return look(jax.random.key(0), jnp.asarray(STARTS), act, judge).mean()


with_slope = jax.jit(jax.value_and_grad(objective))


def unrolled(horizon: int, gain: Array) -> Array:
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
    gain, steps = np.array([[0.3, -0.1, 0.5, 0.1]]), 1e-5 * np.eye(4)[:, None]
    found, slope = with_slope(gain, np.asarray(horizon))
    both = jax.jit(jax.vmap(jax.value_and_grad(partial(unrolled, horizon))))
    values, slopes = both(np.concatenate([gain[None], gain + steps, gain - steps]))
    np.testing.assert_allclose(found, values[0], rtol=1e-7)
    np.testing.assert_allclose(slope, slopes[0], rtol=1e-6)
    along = (np.asarray(values[1:5]) - np.asarray(values[5:])) / 2e-5
    np.testing.assert_allclose(slope[0], along, rtol=1e-5)


def test_the_horizon_may_change_without_compiling(double):
    traces = []

    @jax.jit
    def look(horizon: Array) -> Array:
        traces.append(horizon)
        return objective(jnp.full((1, 4), 0.1), horizon)

    found = [float(look(jnp.asarray(h))) for h in range(MOST + 1)]
    assert len(set(found)) == MOST + 1
    assert len(traces) == 1


def test_nothing_is_earned_after_an_end_and_nothing_of_it_has_a_gradient():
    """From 2.4 with a bias of 0.9 the first step is beyond the end."""
    look = expansion.lookahead(
        imagine.sample_member(model(), jnp.array(0.9)), decode, DISCOUNT, 3, 3
    )
    value = lambda obs, action: 100 * obs[0]

    def at(gain: Array) -> Array:
        act = lambda key, obs: (gain * obs, jnp.zeros(()))
        return look(jax.random.key(0), jnp.array([[2.4]]), act, value)[0]

    after = 2.4 + 0.1 * 2.4 + 0.9
    found, slope = jax.jit(jax.value_and_grad(at))(jnp.array(0.1))
    assert float(found) == pytest.approx(24 + 0.24 + after, rel=1e-5)
    assert float(slope) == pytest.approx(2.4 + 2.4, rel=1e-5)


# --- Null settings are the base learners, bit for bit: the loop around what an
# algorithm hands to it is one and the same, and so is what the learner makes of rows.

SHORT: Env = simulator.time_limit(point_mass.make(), 4)
COLLECT = off_policy.Config(
    capacity=20, warmup=4, interval=5, batch_size=8, updates_per_step=2
)
SAC = sac_learner.Config(hidden_sizes=(8,))
TD3 = td3_learner.Config(hidden_sizes=(8,))
ONE = dataclasses.replace(TD3, num_critics=1)
MODEL = models.Config(
    ensemble=ensemble.Config(
        num_members=2, hidden_sizes=(8,), batch_size=4, num_epochs=2
    )
)
ALL_REAL = branching.Config(num_rollouts=4, last_length=2, real_share=1.0)
HALF = dataclasses.replace(ALL_REAL, real_share=0.5)


def drifting(*args: Any) -> Model:
    """In place of an ensemble: each fit moves what the two members add."""

    def predict(member: Array, obs: Array, action: Array) -> Gaussian:
        return Gaussian(obs + member, jnp.full_like(obs, 0.1))

    fit = lambda key, state, data: (state + 1, {})
    return Model(lambda key: jnp.arange(2.0), fit, lambda state: state, predict)


def random_rows(number: int) -> Transition:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    ends = np.arange(number) % 3 == 0
    obs, next_obs = draw(2, number, 6)
    return Transition(obs, draw(number, 2), draw(number), next_obs, ends, ~ends)


def spied(
    seen: list,
    made: list,
    make: Callable[..., ValueLearner],
    env: Env,
    config: Any,
    pixels: Any = None,
) -> ValueLearner:
    """A learner whose update tells what it is given: of the objective, what that says
    of a policy, and its slope.  It goes to `made`, keys of its `init` to `seen`."""
    learner = make(env, config, pixels)
    shapes = jax.eval_shape(learner.init, jax.random.key(0))

    def init(key: Key) -> Any:
        """Nothing that takes long; the slow networks are not the fast ones."""
        seen.append(key)
        rng = np.random.default_rng(0)
        draw = lambda x: (0.4 * rng.normal(size=x.shape)).astype(x.dtype)
        return jax.tree.map(draw, shapes)

    def update(key: Key, state: Any, rows: Regression, obs: Array, objective: Any):
        def worth(gain: Array) -> Array:
            act = lambda key, x: (gain @ x + jax.random.normal(key, (2,)), x.sum())
            value = lambda x, action: x @ x + jnp.sin(action).sum()
            return objective(key, obs, act, value).sum()

        told = jax.value_and_grad(worth)(jnp.full((2, 6), 0.1))
        return state, {"told": (jax.random.key_data(key), rows, obs, told)}

    made.append(learner._replace(init=init, update=update))
    return made[-1]


@cache
def given(module: Any, config: Any) -> Any:
    """What the learner is given, to begin with and to learn from."""
    seen: list[Key] = []
    made: list[ValueLearner] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(off_policy, "make", lambda *given: given)
        patch.setattr(ensemble, "make", drifting)
        for learner in (sac_learner, td3_learner):
            patch.setattr(learner, "make", partial(spied, seen, made, learner.make))
        env, hooks, collect = module.make(SHORT, config)
    assert (env, collect) == (SHORT, COLLECT)
    assert (hooks.explore, hooks.policy) == (made[0].explore, made[0].policy)
    data = replay.insert(replay.init(6, 2, 20), random_rows(20), jnp.ones(20, bool))
    state, model_state = hooks.init(jax.random.key(0))

    @jax.jit
    def run(key: Key, state: Any, model_state: Any) -> Any:
        steps = jnp.zeros((), jnp.int32)
        model_state, _ = hooks.prepare(key, state, model_state, data, steps)
        return hooks.update(key, state, model_state, data)[1]["told"]

    began = jax.random.key_data(seen[-1])
    return began, run(jax.random.key(1), state, model_state)


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_mve_without_a_horizon_is_the_learner():
    learner = by_name.Config(name="td3", td3=TD3)
    expected = given(td3, td3.Config(COLLECT, TD3))
    null = mve.Config(horizon=0, collect=COLLECT, learner=learner, model=MODEL)
    assert_same(given(mve, null), expected)


def test_steve_without_a_horizon_is_the_learner_of_one_critic():
    learner = by_name.Config(name="td3", td3=ONE)
    null = steve.Config(horizon=0, collect=COLLECT, learner=learner, model=MODEL)
    assert_same(given(steve, null), given(td3, td3.Config(COLLECT, ONE)))


def test_mbpo_with_real_data_alone_is_sac():
    null = mbpo.Config(COLLECT, SAC, ALL_REAL, MODEL, num_watched=3)
    assert_same(given(mbpo, null), given(sac, sac.Config(COLLECT, SAC)))


def test_dyna_with_real_data_alone_is_its_learner():
    learner = by_name.Config(sac=SAC)
    null = dyna.Config(collect=COLLECT, learner=learner, imagine=ALL_REAL, model=MODEL)
    assert_same(given(dyna, null), given(sac, sac.Config(COLLECT, SAC)))


@pytest.mark.slow
def test_maac_without_a_horizon_is_mbpo():
    """With the same futures in its batches."""
    expected = given(mbpo, mbpo.Config(COLLECT, SAC, HALF, MODEL, num_watched=3))
    null = maac.Config(
        max_horizon=0,
        num_windows=3,
        collect=COLLECT,
        learn=SAC,
        imagine=HALF,
        model=MODEL,
    )
    assert_same(given(maac, null), expected)
    with pytest.raises(AssertionError):  # which does make a difference
        assert_same(expected, given(sac, sac.Config(COLLECT, SAC)))


# --- Other settings reach the learner.


def all_differ(*arrays: Array) -> bool:
    return len({np.asarray(x).tobytes() for x in arrays}) == len(arrays)


def rows_given(module: Any, horizon: int, **changes: Any) -> Regression:
    learner = by_name.Config(name="td3", td3=TD3)
    common = {"collect": COLLECT, "learner": learner, "model": MODEL}
    _, told = given(module, module.Config(horizon, **changes, **common))
    return told[1]


@pytest.mark.slow
@pytest.mark.parametrize("module", [mve, steve])
def test_targets_look_as_far_ahead_as_the_configuration_says(module: Any):
    """Unless nothing follows the real step."""
    ends = {"td_k": False} if module is mve else {}
    found = [rows_given(module, horizon, **ends) for horizon in (0, 1, 2)]
    for rows in found[1:]:
        assert_same(rows.obs, found[0].obs)
        assert_same(rows.action, found[0].action)
    goes_on = ~batch_given().terminal
    assert 0 < goes_on.sum() < len(goes_on)
    for i in range(COLLECT.batch_size):
        assert all_differ(*(rows.target[i] for rows in found)) == goes_on[i]


def batch_given() -> Transition:
    """The real transitions behind the rows, by their obs."""
    rows, known = rows_given(mve, 0, td_k=False), random_rows(20)
    at = [known.obs.tolist().index(x) for x in np.asarray(rows.obs).tolist()]
    return jax.tree.map(lambda x: x[at], known)


def test_mve_learns_at_imagined_states_if_the_configuration_says_so():
    """First where the real step led, then on the model's way."""
    plain, rows = (rows_given(mve, 2, td_k=x) for x in (False, True))
    size = COLLECT.batch_size
    assert (len(plain.target), len(rows.target)) == (size, size * (1 + 2))
    assert_same(jax.tree.map(lambda x: x[:size], rows), plain)
    assert_same(rows.obs[size : 2 * size], batch_given().next_obs)
    later = np.asarray(rows.obs[2 * size :])
    away = np.abs(later - np.asarray(rows.obs[size : 2 * size])).max(axis=1)
    assert (away > 0.01).all()
    goes_on = ~batch_given().terminal
    np.testing.assert_array_equal(rows.weight[size:], np.tile(goes_on, 2))


def maac_of(most: int, **changes: Any) -> Any:
    common = {"collect": COLLECT, "learn": SAC, "imagine": HALF, "model": MODEL}
    return maac.Config(most, **{"num_windows": 3, **common, **changes})


@pytest.mark.slow
def test_maac_looks_as_far_ahead_as_the_configuration_says():
    """Its policy; its critics do not."""
    near, far = (given(maac, maac_of(h, cross_validate=False))[1] for h in (1, 2))
    assert_same(near[:3], far[:3])
    for x, y in zip(near[3], far[3], strict=True):
        assert all_differ(x, y)


@pytest.mark.parametrize("chosen", [1, 2])
def test_maac_looks_as_far_ahead_as_was_chosen(
    chosen: int, monkeypatch: pytest.MonkeyPatch
):
    """Of 2 at most: 2 is what it is without a choice."""

    def best_horizon(setting: Any, *given: Any) -> branching.Choose:
        assert given == (COLLECT, 3, 2)
        return lambda *_: jnp.full((), chosen, jnp.int32)

    monkeypatch.setattr(validity, "best_horizon", best_horizon)
    *_, found = given.__wrapped__(maac, maac_of(2))[1]
    *_, most = given(maac, maac_of(2, cross_validate=False))[1]
    assert all_differ(found[0], most[0]) == (chosen < 2)


@pytest.mark.parametrize("kind", ["sac", "td3"])
def test_rows_without_a_horizon_are_those_of_one_step(kind: str):
    make = {"sac": sac_learner.make, "td3": td3_learner.make}[kind]
    config = {"sac": SAC, "td3": TD3}[kind]
    method = make(SHORT, dataclasses.replace(config, num_critics=1))
    state, key = jax.jit(method.init)(jax.random.key(0)), jax.random.key(1)
    batch = random_rows(6)
    expected = jax.jit(partial(parts.one_step, method))(state, key, batch)
    expand = partial(expansion.mve, method, horizon=0, td_k=True)
    sample = lambda key, obs, action: obs
    never = lambda obs, action, y: Outcome(y, y[0], jnp.zeros((), bool))
    run = jax.jit(lambda *x: expand(*x, sample, never))
    assert_same(run(state, key, batch), expected)
    still = model()._replace(
        predict=lambda member, obs, action: Gaussian(obs, jnp.zeros_like(obs))
    )
    run = jax.jit(lambda *x: expansion.steve(method, *x, still, jnp.zeros(4), never, 0))
    rows, weights = run(state, key, batch)
    assert_same(rows, expected)
    np.testing.assert_array_equal(weights, 1)


def test_two_keys_give_two_futures():
    """The actions on the way are drawn anew at each step of each row."""

    def act(state: Any, key: Key, obs: Array) -> tuple[Array, Array]:
        return jax.random.normal(key, (1,)), jnp.zeros(())

    path = imagine.imagined_path(
        jax.random.key(0),
        imagine.sample_member(model(), jnp.array(0.0)),
        decode,
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
    learner = by_name.Config(name=name)
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
    wrong = dataclasses.replace(config, learner=by_name.Config(name=other))
    with pytest.raises(ValueError, match=r"the actions of .* are "):
        module.make(hall if name == "dqn" else SHORT, wrong)


def test_an_unknown_learner_is_refused():
    with pytest.raises(ValueError, match="name is 'ppo', must be one of: sac, td3"):
        by_name.make(SHORT, by_name.Config(name="ppo"))
