"""Distances against integrals, MBPO's bound by hand, and a line where errors are known.

On the line the real dynamics are x' = x + action; members of the model add a bias.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.models.outcomes import Outcome
from mbrl_jax.replay import Replay
from mbrl_jax.types import Array, Gaussian, Metrics, Model, Transition
from mbrl_jax.value_learning import branching, off_policy, validity
from mbrl_jax.value_learning.branching import ModelState, Setting
from mbrl_jax.value_learning.parts import ValueLearner

GRID = np.linspace(-40, 40, 400_001)


def density(mean: float, std: float) -> np.ndarray:
    return np.exp(-0.5 * ((GRID - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.abs(p - q).sum() / 2 * (GRID[1] - GRID[0]))


@pytest.mark.parametrize("z", [0.0, 0.1, 1.0, 3.0, 20.0])
def test_the_overlap_lost_is_an_integral(z: float):
    expected = total_variation(density(0, 1.0), density(z, 1.0))
    assert float(validity.overlap_lost(jnp.array(z))) == pytest.approx(
        expected, abs=1e-5
    )


def test_the_overlap_lost_in_three_dimensions():
    """By samples of p, E max(1 - q / p, 0); stds of 0.1, 1 and 10."""
    std, far = np.array([0.1, 1.0, 10.0]), np.array([0.08, -0.7, 5.0])
    x = std * np.random.default_rng(0).normal(size=(100_000, 3))
    log_ratio = 0.5 * ((x / std) ** 2 - ((x - far) / std) ** 2).sum(axis=1)
    lost = np.maximum(1 - np.exp(log_ratio), 0)
    z = jnp.array(np.linalg.norm(far / std))
    error = 5 * lost.std() / 100_000**0.5
    assert float(validity.overlap_lost(z)) == pytest.approx(lost.mean(), abs=error)


@pytest.mark.parametrize("mean", [0.0, 0.1, 1.0, -4.0])
@pytest.mark.parametrize("std", [0.2, 0.9, 1.0, 3.0])
def test_the_shift_is_at_least_the_total_variation(mean: float, std: float):
    """And near it where both are small."""
    old = Gaussian(jnp.array([0.5]), jnp.array([1.0]))
    new = Gaussian(jnp.array([0.5 + mean]), jnp.array([std]))
    found = float(validity.shift(old, new))
    exact = total_variation(density(0.5, 1.0), density(0.5 + mean, std))
    assert exact - 1e-6 <= found <= 1
    if mean == 0.1 and std == 1.0:
        assert found == pytest.approx(0.05)  # sqrt(0.01 / 4)
        assert exact == pytest.approx(0.04, abs=1e-3)


def test_policies_that_are_the_same_have_not_shifted():
    same = Gaussian(jnp.array([0.5, -3.0]), jnp.array([1.0, 0.01]))
    assert validity.shift(same, same) == 0
    other = Gaussian(jnp.array([50.0, -3.0]), jnp.array([1.0, 0.01]))
    assert validity.shift(same, other) == 1


def test_divergences_of_dimensions_add_up():
    old = Gaussian(jnp.zeros(2), jnp.ones(2))
    new = Gaussian(jnp.array([0.1, 0.2]), jnp.ones(2))
    expected = ((0.1**2 + 0.2**2) / 2 / 2) ** 0.5
    assert float(validity.shift(old, new)) == pytest.approx(expected, rel=1e-4)


# --- The bound.


def bounds(
    model_error: float, policy_shift: float, discount: float = 0.9
) -> np.ndarray:
    """For lengths of 0 to 20, at a greatest reward of 3."""
    lengths = jnp.arange(21)
    return np.asarray(
        validity.bound(
            jnp.array(model_error),
            jnp.array(policy_shift),
            jnp.array(3.0),
            discount,
            lengths,
        )
    )


def test_the_bound_is_that_of_the_theorem():
    """2 r (d^(k + 1) e_p / (1 - d)^2 + d^k e_p / (1 - d) + k e_m / (1 - d)), with
    r = 3, d = 0.9, e_p = 0.1 and e_m = 0.02."""
    found = bounds(0.02, 0.1)
    np.testing.assert_allclose(found[0], 6 * (9 + 1), rtol=1e-4)
    np.testing.assert_allclose(found[1], 6 * (8.1 + 0.9 + 0.2), rtol=1e-4)
    np.testing.assert_allclose(found[2], 6 * (7.29 + 0.81 + 0.4), rtol=1e-4)


def test_without_an_error_of_the_model_longer_is_better():
    assert (np.diff(bounds(0.0, 0.1)) < 0).all()


def test_without_a_shift_of_the_policy_the_model_is_best_not_used():
    found = bounds(0.02, 0.0)
    assert found[0] == 0
    assert (np.diff(found) > 0).all()


def test_in_between_the_best_length_is_where_a_step_more_costs_what_it_gains():
    """That is e_m / (1 - d) = 0.2, and d^k e_p / (1 - d) = 0.9^k."""
    assert 0.9**15 > 0.2 > 0.9**16
    assert bounds(0.02, 0.1).argmin() == 16


def test_a_shift_is_that_of_the_divergence_by_quadrature():
    """KL(new || old), of stds that differ, summed over the dimensions."""
    old = Gaussian(np.array([0.0, 1.0]), np.array([1.0, 0.5]))
    new = Gaussian(np.array([0.3, 0.9]), np.array([1.2, 0.4]))
    x = np.linspace(-12, 12, 20_001)[:, None]
    density = lambda g: np.exp(-(((x - g.mean) / g.std) ** 2) / 2) / g.std
    p, q = (density(g) / np.sqrt(2 * np.pi) for g in (new, old))
    p, q = np.maximum(p, 1e-300), np.maximum(q, 1e-300)
    divergence = (p * np.log(p / q)).sum() * (x[1, 0] - x[0, 0])
    found = validity.shift(*(Gaussian(*map(jnp.asarray, g)) for g in (old, new)))
    assert found == pytest.approx(np.sqrt(divergence / 2), rel=1e-4)


# --- A line.

STD, GAMMA, NUM, HORIZON = 0.5, 0.9, 40, 4
LATEST = off_policy.Config(capacity=50, interval=NUM)


def decode(obs: Array, action: Array, y: Array) -> Outcome:
    return Outcome(y, 100 * obs[0], jnp.zeros((), bool))


def setting(critic: Any = None) -> Setting:
    """The policy's mean is its state, the model's state the members' biases."""

    def predict(bias: Array, obs: Array, action: Array) -> Gaussian:
        return Gaussian(obs + action + bias, jnp.full_like(obs, STD))

    unused: Any = None
    model = Model(unused, unused, lambda state: state, predict)
    learner = ValueLearner(
        init=unused,
        act=unused,
        values=critic,
        next_value=unused,
        actor_objective=unused,
        update=unused,
        explore=unused,
        policy=unused,
        discount=GAMMA,
        noise=lambda state, obs: Gaussian(state[None], jnp.ones(1)),
    )
    return Setting(learner, model, decode, branching.Config(), 1)


def replayed(rows: Transition) -> Replay:
    """Of NUM transitions, with room for ten more."""
    pad = lambda x: np.concatenate([x, np.zeros((10, *x.shape[1:]), x.dtype)])
    size, number = np.int32(NUM), np.arange(1, NUM + 11, dtype=np.int32)
    return Replay(jax.tree.map(pad, rows), size, size, number, size)


def line(ends: int = 0, terminal: bool = False) -> Replay:
    """Forty steps; every `ends` of them an episode ends and the next begins at 0."""
    x, rows = 0.0, []
    actions = np.random.default_rng(0).normal(0.1, 0.3, size=NUM)
    for i, action in enumerate(actions):
        over = ends > 0 and (i + 1) % ends == 0
        rows.append((x, action, 100 * x, x + action, over))
        x = 0.0 if over else x + action
    obs, action, reward, after, over = (
        np.array(x, np.float32) for x in zip(*rows, strict=True)
    )
    after[:-1] = np.where(over[:-1] > 0, after[:-1], obs[1:])  # float32 sums
    flags = over > 0
    data = Transition(
        obs[:, None],
        action[:, None],
        reward,
        after[:, None],
        flags & terminal,
        flags & (not terminal),
    )
    return replayed(data)


def watched(
    biases: list[float],
    length: int,
    data: Replay,
    moved: float,
    collect: off_policy.Config = LATEST,
) -> Metrics:
    """Compiled once, as all have four members."""
    zero = np.int32(0)
    model_state = ModelState(
        np.array(biases, np.float32), data, zero + length, np.float32(0), zero
    )
    found = seen(collect, np.float32(moved), model_state, data)
    return {name.split("/")[1]: float(x) for name, x in found.items()}


@partial(jax.jit, static_argnums=0)
def seen(
    collect: off_policy.Config, moved: Array, model_state: ModelState, data: Replay
) -> Metrics:
    watch = validity.watcher(setting(), collect, 60, HORIZON)
    return watch(jax.random.key(0), moved, model_state, data)


def test_a_perfect_model_has_no_errors():
    found = watched([0.0] * 4, 3, line(), 0.0)
    for name in ("error_1", "error_last", "return_gap", "model_error"):
        assert found[name] == pytest.approx(0, abs=1e-4)
    assert found["disagreement_1"] == found["disagreement_last"] == 0
    assert found["policy_shift"] == 0
    assert found["bound"] == pytest.approx(0, abs=1)  # rounding, times 2 k r / (1 - d)


@pytest.mark.parametrize("length", [1, 3, 4])
@pytest.mark.parametrize("ends", [0, 10])
def test_the_errors_of_biased_members_are_known(length: int, ends: int):
    """They grow by the bias at every step; windows stop at the end of an episode."""
    biases, data = [0.1, 0.3, -0.1, 0.1], line(ends)
    found = watched(biases, length, data, 0.3)
    mean, std, scale = 0.1, np.std(biases), np.asarray(data.data.obs)[:NUM].std()
    assert found["error_1"] == pytest.approx(mean / scale, rel=1e-3)
    assert found["error_last"] == pytest.approx(length * mean / scale, rel=1e-3)
    assert found["disagreement_1"] == pytest.approx(std / scale, rel=1e-3)
    last = length * std / scale
    assert found["disagreement_last"] == pytest.approx(last, rel=1e-3)
    lost = float(validity.overlap_lost(jnp.abs(jnp.array(biases)) / STD).mean())
    assert found["model_error"] == pytest.approx(lost, rel=1e-3)
    if not ends:  # rewards of 100 x are off by 100 t mean after t steps
        gap = 100 * mean * length * (length - 1) / 2
        assert found["return_gap"] == pytest.approx(gap, rel=1e-3, abs=1e-2)
    assert found["policy_shift"] == pytest.approx(0.15, rel=1e-3)  # sqrt(0.09 / 4)
    most = np.abs(np.asarray(data.data.reward)).max()
    every = validity.bound(
        jnp.array(lost), jnp.array(0.15), jnp.array(most), GAMMA, jnp.arange(5)
    )
    assert found["bound"] == pytest.approx(float(every[length]), rel=1e-3)
    assert found["best_length"] == every.argmin()


def test_errors_are_also_of_steps_that_do_not_follow_each_other():
    """As of several environments in one buffer: of their first steps."""
    whole = line()
    index = np.append(np.arange(NUM).reshape(2, -1).T.ravel(), np.arange(NUM, 50))
    mixed = whole._replace(data=jax.tree.map(lambda x: x[index], whole.data))
    found = watched([0.2] * 4, 1, mixed, 0.0)
    scale = np.asarray(whole.data.obs)[:NUM].std()
    assert found["error_1"] == pytest.approx(0.2 / scale, rel=1e-3)
    lost = float(validity.overlap_lost(jnp.array(0.2 / STD)))
    assert found["model_error"] == pytest.approx(lost, rel=1e-3)
    assert found["error_last"] == found["error_1"]  # of length 1


def test_environments_that_take_turns_in_the_buffer_are_told_apart():
    whole = line()
    index = np.append(np.arange(NUM).reshape(2, -1).T.ravel(), np.arange(NUM, 50))
    mixed = whole._replace(data=jax.tree.map(lambda x: x[index], whole.data))
    two = dataclasses.replace(LATEST, interval=NUM // 2, num_envs=2)
    found = watched([0.2] * 4, 3, mixed, 0.0, two)
    scale = np.asarray(whole.data.obs)[:NUM].std()
    assert found["error_last"] == pytest.approx(3 * 0.2 / scale, rel=1e-3)


# --- How far to look ahead, where every action is 0.1 and x is paid.

MOST = 3


def climb(ends: int = 0) -> Replay:
    """x = 0, 0.1, 0.2 ...; every `ends` steps the task is over."""
    i = np.arange(NUM)
    i = i % ends if ends else i
    obs = (0.1 * i).astype(np.float32)
    after = (0.1 * (i + 1)).astype(np.float32)
    over = (i == ends - 1) if ends else np.zeros(NUM, bool)
    action = np.full((NUM, 1), 0.1, np.float32)
    data = Transition(
        obs[:, None], action, 100 * obs, after[:, None], over, np.zeros(NUM, bool)
    )
    return replayed(data)


def exact(obs: Array) -> Array:
    """sum_t d^t 100 (x + t / 10)"""
    left = 1 - GAMMA
    return 100 * (obs[0] / left + 0.1 * GAMMA / left**2)


def chosen(bias: float, error: float, data: Replay) -> int:
    """With a model and critics that are off by these."""
    zero = np.int32(0)
    biases = np.array([bias, bias / 2], np.float32)
    found = choice(error, ModelState(biases, data, zero, zero, zero), data)
    assert found.dtype == jnp.int32
    return int(found)


@jax.jit
def choice(error: Array, model_state: ModelState, data: Replay) -> Array:
    critic = lambda state, obs, action: jnp.stack([exact(obs) + error, 1e9 + obs[0]])
    choose = validity.best_horizon(setting(critic), LATEST, 50, MOST)
    return choose(jax.random.key(0), jnp.zeros(()), model_state, data)


def test_a_good_model_is_trusted_as_far_as_possible():
    assert chosen(0.0, -500.0, climb()) == MOST
    assert chosen(0.0, 500.0, climb()) == MOST


def test_good_critics_are_trusted_at_once():
    assert chosen(1.0, 0.0, climb()) == 0
    assert chosen(-1.0, 1.0, climb()) == 0


@pytest.mark.parametrize("bias", [0.01, 0.02, -0.01])
def test_in_between_the_errors_decide(bias: float):
    """Of the critics, the error at h steps is e (d^h - d^6); of the model, of bias b,
    100 b (h d^h / (1 - d) + sum_{t<h} t d^t), in the mean of the squares over two
    members, of b and b / 2."""
    error = -60.0 if bias > 0 else 60.0
    h = np.arange(MOST + 1)
    critics = error * (GAMMA**h - GAMMA ** (2 * MOST))
    summed = np.array([sum(t * GAMMA**t for t in range(k)) for k in h])
    model = 100 * (h * GAMMA**h / (1 - GAMMA) + summed)
    squares = [np.square(critics + b * model) for b in (bias, bias / 2)]
    expected = np.mean(squares, axis=0).argmin()
    assert expected == (1 if bias == 0.02 else 2)
    assert chosen(bias, error, climb()) == expected


def test_what_comes_after_a_terminal_counts_for_nothing():
    """Episodes of four steps, windows of seven: of a good model all rewards are known
    in three, and critics that are far off matter less the later they come."""
    assert chosen(0.0, 500.0, climb(ends=4)) == MOST


def test_nothing_to_compare_by_is_no_reason_to_trust():
    """No window of seven steps is whole."""
    data = climb(ends=4)
    data = data._replace(
        data=data.data._replace(
            terminal=data.data.truncated, truncated=data.data.terminal
        )
    )
    assert chosen(0.0, 500.0, data) == 0
