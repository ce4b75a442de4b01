"""The Gaussian process against its definition, and what it makes of bad data."""

import dataclasses
import decimal
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from mbrl_jax import replay
from mbrl_jax.models import gaussian_process as gp
from mbrl_jax.replay import Replay
from mbrl_jax.types import Transition

pytestmark = pytest.mark.usefixtures("double")

NUM_ROWS = 40
CONFIG = gp.Config(max_exact=48, num_restarts=1, max_evaluations=30)
NOISE = 0.02


def data(capacity: int = 48, number: int = NUM_ROWS, units: Any = 1.0) -> Replay:
    """x' = x + (sin(3 x0) u, 0.2 x1) with noise, in other units where given."""
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(number, 2)), rng.uniform(-1, 1, size=(number, 1))
    change = np.column_stack([np.sin(3 * obs[:, 0]) * action[:, 0], 0.2 * obs[:, 1]])
    change = change + NOISE * rng.normal(size=change.shape)
    obs, change = obs * units, change * units
    flags = jnp.zeros(number, bool)
    rows = Transition(
        jnp.array(obs), jnp.array(action), jnp.zeros(number), jnp.array(obs + change),
        flags, flags,
    )  # fmt: skip
    return replay.insert(replay.init(2, 1, capacity), rows, jnp.ones(number, bool))


fit = jax.jit(gp.make(2, 1, CONFIG).fit)


def fitted(data: Replay) -> tuple[gp.State, dict]:
    model = gp.make(2, 1, CONFIG)
    return fit(jax.random.key(1), model.init(jax.random.key(0)), data)


def definition(state: gp.State, data: Replay, x: np.ndarray) -> tuple:
    """Mean, variance and log-likelihood [G] by the normal distribution of all data."""
    rows = jax.tree.map(lambda a: np.asarray(a)[: int(data.size)], data.data)
    inputs = np.column_stack([rows.obs, rows.action])
    targets, found = rows.next_obs - rows.obs, []
    for e in range(targets.shape[1]):
        lengths, var = (
            np.asarray(state.kernels.lengthscales[e]),
            float(state.noise_var[e]),
        )
        signal = float(state.kernels.signal_var[e])

        def k(
            a: np.ndarray, b: np.ndarray, lengths=lengths, signal=signal
        ) -> np.ndarray:
            away = (a[:, None] - b[None]) / lengths
            return signal * np.exp(-(away**2).sum(axis=-1) / 2)

        cov = k(inputs, inputs) + var * np.eye(len(inputs))
        cross = k(x[None], inputs)[0]
        mean = cross @ np.linalg.solve(cov, targets[:, e])
        left = signal - cross @ np.linalg.solve(cov, cross)
        zero = np.zeros(len(inputs))
        likelihood = stats.multivariate_normal(zero, cov).logpdf(targets[:, e])
        found.append((mean, left + var, likelihood))
    return tuple(np.array(column) for column in zip(*found, strict=True))


def test_posterior_and_likelihood_are_those_of_the_definition() -> None:
    known = data()
    state, metrics = fitted(known)
    x = np.array([0.3, -0.4, 0.5])
    assert state.kernels.num_rows == NUM_ROWS
    mean, var, likelihood = definition(state, known, x)
    found = gp.make(2, 1, CONFIG).predict(state, jnp.array(x[:2]), jnp.array(x[2:]))
    np.testing.assert_allclose(found.mean, x[:2] + mean, rtol=1e-8)
    np.testing.assert_allclose(found.std**2, var, rtol=1e-8)
    seen = gp.in_own_units(partial(gp.inputs_of, ()), known, CONFIG)
    of_output = lambda hyper, y: gp.negative_log_likelihood(
        hyper, y, seen, "squared_exponential"
    )
    loss = jax.vmap(of_output)(state.hyper, seen.targets.T)
    # in units of the targets' own spread
    expected = -likelihood - NUM_ROWS * np.log(seen.target_std)
    np.testing.assert_allclose(loss, expected, rtol=1e-8)
    limit = np.log(CONFIG.max_snr)
    penalty = ((state.hyper.signal - state.hyper.noise) / limit) ** 30
    scales = np.column_stack([state.hyper.lengthscales, state.hyper.signal])
    penalty += ((scales / np.log(CONFIG.max_scale)) ** 30).sum(axis=1)
    np.testing.assert_allclose(metrics["model/loss"], np.mean(loss + penalty))


def regressors(kernel: str, hyper: gp.Hyper, seen: gp.Data) -> list:
    """scikit-learn's, one for each output, of the rows that count."""
    shape = {
        "squared_exponential": kernels.RBF,
        "matern52": partial(kernels.Matern, nu=2.5),
    }[kernel]
    rows, found = np.asarray(seen.valid), []
    for lengths, signal, noise, y in zip(
        *jax.tree.map(np.exp, hyper), seen.targets.T, strict=True
    ):
        k = signal**2 * shape(lengths) + kernels.WhiteKernel(noise**2)
        regressor = GaussianProcessRegressor(k, alpha=0, optimizer=None)
        found.append(regressor.fit(seen.inputs[rows], y[rows]))
    return found


HYPER = gp.Hyper(  # of two outputs
    np.array([[0.1, 0.3, -0.2], [0.9, -0.4, 0.6]]),
    np.array([0.2, -0.5]),
    np.array([-1.5, -2.5]),
)


@pytest.mark.parametrize("kernel", gp.KERNELS)
def test_all_is_as_in_scikit_learn(kernel: str) -> None:
    """Of several outputs, where the last rows do not count, whatever is in them."""
    known = data(number=48)._replace(size=jnp.array(NUM_ROWS))
    seen = gp.in_own_units(partial(gp.inputs_of, ()), known, CONFIG)
    peers = regressors(kernel, HYPER, seen)

    def likelihood(hyper: gp.Hyper, y: Any) -> Any:
        return -gp.negative_log_likelihood(hyper, y, seen, kernel)

    found = jax.vmap(jax.value_and_grad(likelihood))(HYPER, seen.targets.T)
    for e, peer in enumerate(peers):
        value, slopes = peer.log_marginal_likelihood(peer.kernel_.theta, True)
        np.testing.assert_allclose(found[0][e], value, rtol=1e-8)
        slope = jax.tree.map(lambda x, e=e: x[e], found[1])
        # theirs are slopes in the logarithms of variances, not of stds
        ours = [slope.signal / 2, *slope.lengthscales, slope.noise / 2]
        np.testing.assert_allclose(ours, slopes, rtol=1e-8)

    # in one evaluation the search stays where it starts: the model with HYPER
    config = dataclasses.replace(CONFIG, kernel=kernel, max_evaluations=1)
    model = gp.make(2, 1, config)
    start = model.init(jax.random.key(0))._replace(hyper=HYPER)
    state, _ = jax.jit(model.fit)(jax.random.key(1), start, known)
    points = np.random.default_rng(1).normal(size=(5, 3))
    at, std = jnp.array(points), np.asarray(seen.target_std)
    near = jax.vmap(partial(model.predict, state))(at[:, :2], at[:, 2:])
    for e, peer in enumerate(peers):
        mean, error = peer.predict(points / np.array(seen.input_std), return_std=True)
        expected = points[:, e] + mean * std[e]
        np.testing.assert_allclose(near.mean[:, e], expected, rtol=1e-8)
        expected = (error * std[e]) ** 2
        np.testing.assert_allclose(near.std[:, e] ** 2, expected, rtol=1e-8)


def test_the_noise_is_found_and_what_does_not_matter_has_long_scales() -> None:
    state, metrics = fitted(data())
    assert metrics["model/num_jitters"] == 0
    np.testing.assert_allclose(np.sqrt(state.noise_var), NOISE, rtol=0.4)
    first, second = np.asarray(state.kernels.lengthscales)
    assert first[1] > 5 * first[0]
    assert second[0] > 5
    assert second[2] > 5


def test_any_unit() -> None:
    units = np.array([1e6, 1e-6])
    model, at, action = gp.make(2, 1, CONFIG), jnp.array([0.3, -0.4]), jnp.array([0.5])
    one = model.predict(fitted(data())[0], at, action)
    other = model.predict(fitted(data(units=units))[0], at * units, action)
    np.testing.assert_allclose(other.mean / units, one.mean, rtol=1e-4)
    np.testing.assert_allclose(other.std / units, one.std, rtol=1e-3)


def test_the_gradient_of_the_likelihood() -> None:
    seen = gp.in_own_units(partial(gp.inputs_of, ()), data(), CONFIG)
    hyper = gp.Hyper(jnp.array([0.1, 0.3, -0.2]), jnp.array(0.2), jnp.array(-1.5))
    flat, unravel = jax.flatten_util.ravel_pytree(hyper)

    def value(flat: Any) -> Any:
        y = seen.targets[:, 0]
        return gp.negative_log_likelihood(unravel(flat), y, seen, "matern52")

    gradient = jax.grad(value)(flat)
    for i in range(len(flat)):
        nudge = 1e-5 * jnp.eye(len(flat))[i]
        slope = (value(flat + nudge) - value(flat - nudge)) / 2e-5
        assert abs(slope - gradient[i]) < 1e-5 * max(1, abs(slope))


def test_of_all_rows_inducing_the_posterior_is_nearly_exact() -> None:
    seen = gp.in_own_units(partial(gp.inputs_of, ()), data(), CONFIG)
    hyper = gp.Hyper(jnp.array([0.1, 0.3, -0.2]), jnp.array(0.2), jnp.array(-4.0))
    y = seen.targets[:, 0]
    exact = gp.condition(hyper, y, seen, seen, y, "squared_exponential")
    more = gp.farthest(seen, len(y) + 5)  # rows that do not count
    sparse = gp.condition(
        hyper, y, seen, more, more.targets[:, 0], "squared_exponential"
    )
    k = gp.squared_exponential(
        jnp.array([[0.3, -0.4, 0.5]]) / jnp.exp(hyper.lengthscales)[None],
        seen.inputs / jnp.exp(hyper.lengthscales)[None],
    )[0]
    np.testing.assert_allclose(k @ sparse[0], k @ exact[0], rtol=5e-3)
    np.testing.assert_allclose(k @ sparse[1] @ k, k @ exact[1] @ k, rtol=5e-3)


def test_rows_that_fit_give_the_exact_posterior() -> None:
    """Whatever the room for more, and one of them twice."""
    few = data(number=30)
    twice = jax.tree.map(lambda x: x.at[7].set(x[3]), few.data)
    more = replay.init(2, 1, 90)
    more = replay.insert(more, twice, jnp.arange(48) < 30)
    state, _ = fitted(more)
    x = np.array([0.3, -0.4, 0.5])
    found = gp.make(2, 1, CONFIG).predict(state, jnp.array(x[:2]), jnp.array(x[2:]))
    mean, var, _ = definition(state, more, x)
    np.testing.assert_allclose(found.mean, x[:2] + mean, rtol=1e-8)
    np.testing.assert_allclose(found.std**2, var, rtol=1e-6)


def test_the_sparse_posterior_is_that_of_many_digits() -> None:
    """Where the noise is a thousandth of the signal, PILCO's limit, and rows are close.

    There the inverse of cov + cross cross' / noise^2 has next to no digits left.
    """
    rng = np.random.default_rng(0)
    inputs, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    one, valid = jnp.ones(2), jnp.ones(40, bool)
    every = gp.Data(jnp.array(inputs), jnp.array(y)[:, None], valid, one, one[:1])
    rows = gp.farthest(every, 12)
    hyper = gp.Hyper(jnp.log(jnp.array([6.0, 9.0])), jnp.array(0.0), jnp.log(1e-3))
    args = hyper, rows.targets[:, 0], rows, every, every.targets[:, 0]
    weights, precision, number = gp.condition(*args, "squared_exponential")
    assert number == 0

    with decimal.localcontext(prec=60):
        exact = np.vectorize(lambda x: decimal.Decimal(float(x)), otypes=[object])
        lengths = exact(jnp.exp(hyper.lengthscales))

        def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            away = (exact(a)[:, None] - exact(b)[None]) / lengths
            return np.vectorize(lambda x: (-x / 2).exp())((away**2).sum(axis=-1))

        few, noise_var = np.asarray(rows.inputs), exact(jnp.exp(hyper.noise)) ** 2
        cov = k(few, few) + noise_var * np.eye(12, dtype=int)
        cross, at = k(few, inputs), k(few, np.array([[0.3, -0.4]]))
        given = eliminated(cov + cross @ cross.T / noise_var, at)
        mean = given.T @ cross @ exact(y)[:, None] / noise_var
        var = 1 - at.T @ (eliminated(cov, at) - given)
    near = at.astype(float)[:, 0]
    np.testing.assert_allclose(near @ weights, float(mean[0, 0]), rtol=1e-6)
    np.testing.assert_allclose(1 - near @ precision @ near, float(var[0, 0]), rtol=1e-3)


def eliminated(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """matrix^-1 right, of objects."""
    rows = np.concatenate([matrix, right], axis=1)
    for i in range(len(rows)):
        rows[i] /= rows[i, i]
        for j in set(range(len(rows))) - {i}:
            rows[j] -= rows[j, i] * rows[i]
    return rows[:, len(matrix) :]


@pytest.mark.slow
def test_few_inducing_inputs_predict_nearly_as_all_do() -> None:
    known, at, action = data(), jnp.array([0.3, -0.4]), jnp.array([0.5])
    exact = gp.make(2, 1, CONFIG).predict(fitted(known)[0], at, action)
    config = gp.Config(max_exact=30, num_restarts=1, max_evaluations=30)
    model = gp.make(2, 1, config)
    state, _ = model.fit(jax.random.key(1), model.init(jax.random.key(0)), known)
    sparse = model.predict(state, at, action)
    assert np.abs(sparse.mean - exact.mean).max() < 5 * NOISE


def test_inducing_inputs_are_far_from_each_other() -> None:
    seen = gp.in_own_units(partial(gp.inputs_of, ()), data(), CONFIG)
    rows = gp.farthest(seen, 8)
    assert rows.valid.all()
    centres = rows.inputs
    away = jnp.linalg.norm(centres[:, None] - centres[None], axis=-1) + 9 * jnp.eye(8)
    every = jnp.linalg.norm(seen.inputs[:8, None] - seen.inputs[None, :8], axis=-1)
    assert away.min() > 2 * (every + 9 * jnp.eye(8)).min()
    for row, target in zip(rows.inputs, rows.targets, strict=True):
        at = jnp.argmin(jnp.abs(seen.inputs - row[None]).sum(axis=1))
        np.testing.assert_array_equal(seen.targets[at], target)


@pytest.mark.parametrize(
    "case", ["constant", "duplicated", "single", "none", "float32"]
)
def test_bad_data_gives_a_finite_posterior(case: str) -> None:
    known = data()
    rows = known.data
    if case == "constant":
        known = known._replace(data=rows._replace(next_obs=rows.obs + 0 * rows.obs))
    if case == "duplicated":
        same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), rows)
        known = known._replace(data=same)
    if case in ("single", "none"):
        known = known._replace(size=jnp.array(case == "single", jnp.int32))
    if case == "float32":
        known = jax.tree.map(
            lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, known
        )
    state, metrics = fitted(known)
    found = gp.make(2, 1, CONFIG).predict(
        state, known.data.obs[0], known.data.action[0]
    )
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((state, metrics, found)))
    if case == "constant":
        np.testing.assert_allclose(found.mean, known.data.obs[0], atol=1e-6)


def test_noise_is_added_until_there_is_a_factor() -> None:
    singular = jnp.ones((4, 4)) - 1e-13 * jnp.eye(4)
    half, number = gp._safe_half_inverse(singular)
    assert number > 0
    assert jnp.isfinite(half).all()
    half, number = gp._safe_half_inverse(2 * jnp.eye(4))
    assert number == 0
    np.testing.assert_allclose(half.T @ half, jnp.eye(4) / 2)


def test_angles_are_seen_as_sin_and_cos() -> None:
    found = gp.inputs_of((1,), jnp.array([3.0, 0.5]), jnp.array([7.0]))
    np.testing.assert_allclose(found, [3, np.sin(0.5), np.cos(0.5), 7])
    with pytest.raises(ValueError, match="angles"):
        gp.make(2, 1, gp.Config(angles=(2,)))
    with pytest.raises(ValueError, match="kernel"):
        gp.make(2, 1, gp.Config(kernel="linear"))
