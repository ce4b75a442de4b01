"""Guided policy search: closed forms of one step, and what the network comes to."""

import dataclasses
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, rollout
from mbrl_jax.algorithms import gps
from mbrl_jax.envs import linear_quadratic, simulator
from mbrl_jax.local_policies import kl_lqr
from mbrl_jax.local_policies.controllers import Controller
from mbrl_jax.models.linear_gaussian import Episodes
from mbrl_jax.types import Algorithm, Array, Env, Key, PyTree

pytestmark = pytest.mark.usefixtures("double")

LINEAR = gps.Config(
    hidden_sizes=(),
    num_clusters=1,
    num_remembered=5,
    learning_rate=0.02,
    num_updates=1500,
)

# --- One time step, in which a linear network can answer every condition exactly.

R = np.array([[0.5, 0.1], [0.1, 0.3]])
PROBLEM = linear_quadratic.LinearQuadratic(
    A=((1.0, 0.1), (0.0, 1.0)),
    B=((0.1, 0.0), (0.2, 0.3)),
    Q=((1.0, 0.0), (0.0, 1.0)),
    R=((0.5, 0.1), (0.1, 0.3)),
)
ONE_STEP = linear_quadratic.make(PROBLEM)
WEIGHT, DUALS = 0.7, np.array([[0.3, -0.2], [-0.4, 0.1], [0.2, 0.5]])
RATE = 0.25


class Steps(NamedTuple):
    """Two, [M, ...]; the pulls were set between them."""

    before: gps.State
    after: gps.State
    old_mean: np.ndarray  # [M, A] of the network at the starts, before
    new_mean: np.ndarray  # and after


@cache
def two_steps(
    variant: str, weights: tuple[float, ...] = (WEIGHT,) * 3, **floats: float
) -> Steps:
    floats = {"max_deviation": 1.0, "learning_rate": 0.02, **floats}
    init, step, see = programs(variant)
    keys = jax.random.split(jax.random.key(5), 3)
    state = step(floats, keys[1], init(floats, keys[0]))
    duals = DUALS[:, None] * (variant == "badmm")
    pulls = state.pulls._replace(duals=jnp.asarray(duals))
    pulls = pulls._replace(weights=jnp.array(weights)[:, None])
    state = state._replace(pulls=pulls)
    after = step(floats, keys[2], state)
    means = see(floats, state), see(floats, after)
    return jax.tree.map(
        np.asarray, Steps(without_keys(state), without_keys(after), *means)
    )


@cache
def programs(variant: str) -> tuple[Any, Any, Any]:
    def made(floats: dict[str, Any]) -> Algorithm:
        config = dataclasses.replace(
            LINEAR,
            variant=variant,
            num_conditions=3,
            horizon=1,
            num_inner=1,
            max_kl=0.2 if variant == "mdgps" else 1e4,
            init_weight=WEIGHT,
            dual_rate=RATE,
            **floats,
        )
        return gps.make(ONE_STEP, config)

    return (
        jax.jit(lambda floats, key: made(floats).init(key)),
        jax.jit(lambda floats, key, state: made(floats).step(key, state)[0]),
        jax.jit(lambda floats, state: answers(made(floats), state)),
    )


def without_keys(state: gps.State) -> gps.State:
    """Of the noise to come, which numpy does not know."""
    return state._replace(starts=state.starts._replace(sim=()))


def answers(algorithm: Algorithm, state: gps.State) -> Array:
    policy = algorithm.policy(state)
    return jax.vmap(lambda obs: policy.act(jax.random.key(0), obs, ())[0])(
        state.starts.obs
    )


def local_mean(state: gps.State) -> np.ndarray:
    """Of the controllers at their starts, [M, A]."""
    K, k = state.controllers.K[:, 0], state.controllers.k[:, 0]
    return np.einsum("mao,mo->ma", K, state.starts.obs) + k


slow = pytest.mark.slow


@pytest.mark.parametrize("variant", ["badmm", pytest.param("lagrangian", marks=slow)])
def test_the_c_step_is_the_optimum_that_is_held_by_the_network(variant: str):
    """Of u'R u - lambda'u + nu KL(p || pi)."""
    before, after, old_mean, _ = two_steps(variant)
    precision = WEIGHT * np.linalg.inv(before.network.cov)
    H = 2 * R + precision
    duals = DUALS * (variant == "badmm")
    expected = np.linalg.solve(H, (duals + old_mean @ precision).T).T
    np.testing.assert_allclose(local_mean(after), expected, rtol=1e-5)
    cov = WEIGHT * np.linalg.inv(H)
    np.testing.assert_allclose(after.controllers.cov[:, 0], [cov] * 3, rtol=1e-5)


def test_the_targets_of_badmm_are_shifted_by_the_duals():
    _, after, _, new_mean = two_steps("badmm")
    shift = np.einsum("mab,mb->ma", after.controllers.cov[:, 0], DUALS) / WEIGHT
    assert np.abs(shift).max() > 0.1
    np.testing.assert_allclose(new_mean, local_mean(after) - shift, atol=1e-3)


def test_the_duals_of_badmm_rise_with_what_the_network_does_more():
    _, after, _, new_mean = two_steps("badmm")
    gap = new_mean - local_mean(after)
    pushed = np.linalg.solve(after.controllers.cov[:, 0], gap[..., None])[..., 0]
    expected = DUALS + RATE * WEIGHT * pushed
    np.testing.assert_allclose(after.pulls.duals[:, 0], expected, rtol=1e-6)
    # the network having met its targets, that is
    np.testing.assert_allclose(expected, (1 - RATE) * DUALS, atol=1e-2)
    np.testing.assert_allclose(after.pulls.weights, WEIGHT)


def test_the_violation_is_the_mean_kl_of_what_the_means_differ_by():
    """At the mean observation of what counts, of gains and offsets that both differ."""
    rng = np.random.default_rng(0)
    T, N, A, O = 3, 4, 2, 3
    seen = rng.normal(size=(N, T, O))
    valid = np.ones((N, T), bool)
    valid[0, 1:] = False
    root = rng.normal(size=(2, T, A, A))
    cov = root @ root.transpose(0, 1, 3, 2) + 0.1 * np.eye(A)
    local, linear = (
        Controller(rng.normal(size=(T, A, O)), rng.normal(size=(T, A)), x) for x in cov
    )
    nothing = np.zeros((N, T, A))
    episodes = Episodes(seen * valid[..., None], nothing, seen, valid)
    expected = 0.0
    for t in range(T):
        x = seen[valid[:, t], t].mean(axis=0)
        gap = linear.K[t] @ x + linear.k[t] - local.K[t] @ x - local.k[t]
        expected += 0.5 * gap @ np.linalg.solve(local.cov[t], gap) / T
    found = jax.jit(gps._violation)(local, linear, episodes)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@slow
@pytest.mark.parametrize(("bound", "sign"), [(1e-9, 1), (1e9, -1)])
def test_the_weight_of_the_lagrangian_rises_beyond_the_bound(bound: float, sign: int):
    """Of a network that does not learn."""
    after = two_steps("lagrangian", max_deviation=bound, learning_rate=0.0).after
    expected = WEIGHT * np.exp(sign * RATE)
    np.testing.assert_allclose(after.pulls.weights, expected, rtol=1e-6)
    assert not after.pulls.duals.any()


@pytest.mark.slow
def test_a_step_of_mdgps_goes_as_far_from_the_network_as_it_may():
    # which does not learn here, or it would be where the controllers are
    before, after, old_mean, _ = two_steps("mdgps", learning_rate=0.0)
    assert np.abs(local_mean(before) - old_mean).max() > 0.1
    precision, cov = np.linalg.inv(before.network.cov), after.controllers.cov[:, 0]
    gap = local_mean(after) - old_mean
    kl = (
        np.trace(precision @ cov, axis1=1, axis2=2)
        + np.einsum("ma,ab,mb->m", gap, precision, gap)
        - 2
        - np.linalg.slogdet(precision @ cov)[1]
    ) / 2
    np.testing.assert_allclose(kl, 0.2 * after.size, rtol=0.1)
    # one size for all, from what became of the network's cost
    actual = before.cost.mean() - after.cost.mean()
    size = kl_lqr.adapted(before.size[0], before.predicted.mean(), actual)
    np.testing.assert_allclose(after.size, float(size), rtol=1e-6)
    assert before.size[0] != after.size[0]
    # the network's own, of R alone
    own = np.einsum("ma,ab,mb->m", old_mean, R, old_mean) + np.trace(
        R @ before.network.cov
    )
    state_cost = (before.starts.obs**2).sum(axis=1)
    np.testing.assert_allclose(after.cost, own + state_cost, rtol=1e-5)


@pytest.mark.parametrize("variant", ["badmm", "mdgps"])
def test_the_network_has_the_inverse_of_the_mean_precision(variant: str):
    after = two_steps(variant, weights=(0.3, 0.7, 1.5)).after
    mean = np.linalg.inv(after.controllers.cov[:, 0]).mean(axis=0)
    np.testing.assert_allclose(after.network.cov, np.linalg.inv(mean), rtol=1e-6)


# --- Whole episodes.

T, M, SEEDS = 25, 5, 2
LINEAR_ENV = simulator.time_limit(linear_quadratic.make(), T)


@cache
def runs(variant: str) -> tuple[gps.State, dict, np.ndarray, np.ndarray]:
    """States and metrics after each of the steps, [SEEDS, STEPS, ...], and the mean
    returns of the network from its starts, at the end and before."""
    config = dataclasses.replace(LINEAR, variant=variant, num_conditions=M)
    algorithm = gps.make(LINEAR_ENV, config)

    def network_return(state: gps.State) -> Array:
        def one(start: PyTree) -> Array:
            env = LINEAR_ENV._replace(reset=lambda key: start)
            steps, _ = rollout.episode(jax.random.key(0), env, algorithm.policy(state))
            return steps.reward.sum()

        return jax.vmap(one)(state.starts).mean()

    def one(key: Key) -> tuple:
        init_key, key = jax.random.split(key)

        def step(state: gps.State, key: Key) -> tuple[gps.State, tuple]:
            state, metrics = algorithm.step(key, state)
            return state, (without_keys(state), metrics)

        first = algorithm.init(init_key)
        last, (states, metrics) = jax.lax.scan(step, first, jax.random.split(key, 6))
        return states, metrics, network_return(last), network_return(first)

    every = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), SEEDS))
    return jax.tree.map(np.asarray, every)


@pytest.mark.parametrize(
    "variant",
    [
        "mdgps",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("badmm", "lagrangian")),
    ],
)
def test_a_linear_network_comes_to_the_cost_of_riccati(variant: str):
    """Within 5 %, from the same starts, of gains that may change with time."""
    states, metrics, found, first = runs(variant)
    best = linear_quadratic.optimum(linear_quadratic.TWO_MASSES, T)
    starts = states.starts.obs[:, -1]
    optimal = np.array(
        [
            np.mean([linear_quadratic.optimal_return(best, x) for x in one])
            for one in starts
        ]
    )
    assert (found > 1.05 * optimal).all()
    assert (found <= optimal).all()
    assert (first < 1.5 * optimal).all()
    assert not states.num_kept.any()
    if variant == "badmm":
        assert (metrics["constraint/violation"][:, -1] < 0.1).all()


def test_every_condition_keeps_its_start():
    states, metrics, *_ = runs("mdgps")
    starts = states.starts.obs  # [SEEDS, STEPS, M, O]
    assert (starts == starts[:, :1]).all()
    assert (np.diff(starts[:, 0], axis=1) != 0).all()
    seen = states.episodes.obs[:, -1, :, :, 0]  # [SEEDS, M, N, O]
    np.testing.assert_array_equal(seen, np.stack([starts[:, 0]] * 5, axis=2))
    steps = M * 5 * T * np.arange(1, 7)
    np.testing.assert_array_equal(metrics["env_steps"], [steps] * SEEDS)


def test_refusals():
    def refused(words: str, env: Env = LINEAR_ENV, **settings: Any) -> None:
        with pytest.raises(ValueError, match=words):
            gps.make(env, dataclasses.replace(LINEAR, **settings))

    refused("variant is 'gps', must be one of: lagrangian, badmm, mdgps", variant="gps")
    refused("num_conditions is 0, must be at least 1", num_conditions=0)
    refused("num_inner is 0, must be at least 1", num_inner=0)
    refused("max_kl is 0, must be positive", max_kl=0)
    refused("init_weight is 0, must be positive", init_weight=0)
    refused("dual_rate is -1, must be positive", dual_rate=-1)
    refused("num_episodes is 5, must be at least 6 for prior 'none'", prior="none")
    refused("horizon is 26, more than the 25 steps of an episode", horizon=26)
    same = LINEAR_ENV._replace(reset=lambda key: LINEAR_ENV.reset(jax.random.key(0)))
    refused("num_conditions is 4, but linear_quadratic always starts the same", same)
    gps.make(same, dataclasses.replace(LINEAR, num_conditions=1))  # that is fine
    refused("steps outside jax, one at a time", LINEAR_ENV._replace(host=True))
    blind = envs.make("pendulum_no_velocity")
    refused("simulator of pendulum_no_velocity knows its reward, which gps", blind)
