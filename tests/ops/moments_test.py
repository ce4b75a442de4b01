"""Moments against published values, Monte Carlo and finite differences."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import moments
from mbrl_jax.ops.moments import Kernels, Moments, Normal
from mbrl_jax.types import Array

pytestmark = pytest.mark.usefixtures("double")

NUM_SAMPLES = 400_000
SINES = {
    "m": [0.5488135039273248, 0.7151893663724195, 0.6027633760716439],
    "s": [
        [0.8935602774098798, 1.238661928202914, 0.8859590625107148],
        [1.238661928202914, 1.9153875683609995, 1.3835044562946417],
        [0.8859590625107148, 1.3835044562946417, 1.0535857704268472],
    ],
    "M": [2.3359535489406094, 1.7616600159147973, 2.343351096076276],
    "S": [
        [17.173854317725826, 15.828405974478036, 15.384991357211437],
        [15.828405974478036, 21.322170764341053, 17.530550181339912],
        [15.384991357211437, 17.530550181339912, 17.94469518288147],
    ],
    "C": [3.820201553459471, 2.0281780446055446, 3.4050375072453125],
}


def normal(seed: int, size: int, scale: float = 0.5) -> Normal:
    rng = np.random.default_rng(seed)
    root = scale * rng.normal(size=(size, size)) / np.sqrt(size)
    return Normal(jnp.array(rng.normal(size=size)), jnp.array(root @ root.T))


def process(seed: int, size: int, num_outputs: int, num_rows: int = 12) -> Kernels:
    """The posterior of a process, its precision by the definition."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num_rows, size))
    targets = rng.normal(size=(num_outputs, num_rows))
    lengths = rng.uniform(0.8, 2.0, size=(num_outputs, size))
    signal = rng.uniform(0.5, 2.0, size=num_outputs)
    scaled = inputs[None] / lengths[:, None]
    away = ((scaled[:, :, None] - scaled[:, None]) ** 2).sum(axis=-1)
    cov = signal[:, None, None] * np.exp(-away / 2) + 0.1 * np.eye(num_rows)
    precision = np.linalg.inv(cov)
    weights = np.einsum("eij,ej->ei", precision, targets)
    return Kernels(*map(jnp.array, (inputs, weights, lengths, signal, precision)))


def prediction(f: Kernels, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [N, E] at points x [N, D], by the definition."""
    means, variances = [], []
    for e in range(len(f.weights)):
        scaled = x[:, None] - np.asarray(f.inputs)[None]
        scaled = scaled / np.asarray(f.lengthscales[e])
        k = float(f.signal_var[e]) * np.exp(-(scaled**2).sum(axis=-1) / 2)
        means.append(k @ np.asarray(f.weights[e]))
        if f.precision is not None:
            quiet = np.einsum("ni,ij,nj->n", k, np.asarray(f.precision[e]), k)
            variances.append(float(f.signal_var[e]) - quiet)
    return np.stack(means, axis=1), np.stack(variances or means, axis=1)


def agree(x: Normal, found: Moments, y: np.ndarray, samples: np.ndarray) -> None:
    """With the mean, covariance and covariance with x of samples y [N, E]."""
    scale = np.sqrt(np.diag(np.cov(y.T).reshape(y.shape[1], -1)))
    assert np.abs((found.mean - y.mean(axis=0)) / scale).max() < 1e-2
    both = np.cov(np.concatenate([samples, y], axis=1).T)
    size, outer = samples.shape[1], scale[:, None] * scale[None]
    assert np.abs((found.cov - both[size:, size:]) / outer).max() < 2e-2
    cross = x.cov @ found.gain
    outer = np.sqrt(np.diag(x.cov))[:, None] * scale[None]
    assert np.abs((cross - both[:size, size:]) / outer).max() < 2e-2


def drawn(x: Normal) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.multivariate_normal(np.asarray(x.mean), np.asarray(x.cov), NUM_SAMPLES)


def squashed(x: np.ndarray) -> np.ndarray:
    return 3.0 * (9 * np.sin(x) + np.sin(3 * x)) / 8


FUNCTIONS: dict[str, tuple[Callable[[Normal], Moments], Callable]] = {
    "sines": (moments.sines, np.sin),
    "cosines": (moments.cosines, np.cos),
    "squash": (lambda x: moments.squash(x, 3.0), squashed),
    "linear": (
        lambda x: moments.linear(x, jnp.arange(6.0).reshape(2, 3), jnp.ones(2)),
        lambda x: x @ np.arange(6.0).reshape(2, 3).T + 1,
    ),
    "with_angles": (
        lambda x: moments.with_angles(x, (2, 0)),
        lambda x: np.stack(
            [
                x[:, 1],
                np.sin(x[:, 2]),
                np.cos(x[:, 2]),
                np.sin(x[:, 0]),
                np.cos(x[:, 0]),
            ],
            axis=1,
        ),
    ),
    "a network of radial basis functions": (
        lambda x: moments.kernels(x, process(1, 3, 2)._replace(precision=None)),
        lambda x: prediction(process(1, 3, 2)._replace(precision=None), x)[0],
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_monte_carlo(name: str) -> None:
    found, truth = FUNCTIONS[name]
    x = normal(0, 3)
    samples = drawn(x)
    agree(x, found(x), truth(samples), samples)


def test_monte_carlo_of_a_process_with_its_own_uncertainty() -> None:
    x, f = normal(0, 3), process(1, 3, 2)
    samples = drawn(x)
    mean, var = prediction(f, samples)
    noise = np.random.default_rng(1).normal(size=mean.shape)
    agree(x, moments.kernels(x, f), mean + np.sqrt(var) * noise, samples)


def test_the_published_values_of_sines() -> None:
    """PILCO's own test, seven times the sine of three uncertain numbers."""
    found = moments.sines(Normal(jnp.array(SINES["m"]), jnp.array(SINES["s"])))
    np.testing.assert_allclose(7 * found.mean, SINES["M"], rtol=1e-8)
    np.testing.assert_allclose(49 * found.cov, SINES["S"], rtol=1e-8)
    np.testing.assert_allclose(7 * np.diag(found.gain), SINES["C"], rtol=1e-8)


@pytest.mark.slow
def test_the_chain_of_one_step() -> None:
    """State, angles, policy, squashing, process: with the state's own covariance.

    Jointly, with the state and the action beside each other, as PILCO composes it; all
    but the last are so little uncertain that what is taken for Gaussian is nearly so.
    """
    x = normal(3, 3, scale=0.05)
    policy, model = process(4, 4, 1)._replace(precision=None), process(5, 5, 3)

    def act(x: Normal) -> Moments:
        return moments.chain(
            x,
            lambda x: moments.with_angles(x, (2,)),
            lambda x: moments.kernels(x, policy),
            lambda x: moments.squash(x, 2.0),
        )

    def step(x: Normal) -> Moments:
        seen = moments.with_angles(x, (2,))
        action = act(x)
        gain = jnp.concatenate([seen.gain, action.gain], axis=1)
        cross = seen.gain.T @ x.cov @ action.gain
        cov = jnp.block([[seen.cov, cross], [cross.T, action.cov]])
        inputs = Normal(jnp.concatenate([seen.mean, action.mean]), cov)
        change = moments.kernels(inputs, model)
        return change._replace(gain=gain @ change.gain)

    samples = drawn(x)
    seen = np.concatenate(
        [samples[:, :2], np.sin(samples[:, 2:]), np.cos(samples[:, 2:])], axis=1
    )
    action = prediction(policy, seen)[0]
    action = 2 * (9 * np.sin(action) + np.sin(3 * action)) / 8
    mean, var = prediction(model, np.concatenate([seen, action], axis=1))
    noise = np.random.default_rng(1).normal(size=mean.shape)
    agree(x, step(x), mean + np.sqrt(var) * noise, samples)


def test_the_saturating_cost() -> None:
    x, target = normal(0, 2), jnp.array([0.3, -0.2])
    precision = jnp.array([[4.0, 1.0], [1.0, 3.0]])
    away = drawn(x) - np.asarray(target)
    each = 1 - np.exp(-np.einsum("ni,ij,nj->n", away, precision, away) / 2)
    root = jnp.linalg.cholesky(precision)
    found = moments.saturating_cost(x, target, root)
    assert abs(found - each.mean()) < 1e-2 * each.mean()


@pytest.mark.parametrize(("theta", "cov", "cost"), [
    (0.0, 0.01, 0.9996807920798266),
    (0.0, 0.0, 0.9996645373720975),
    (np.pi, 0.01, 0.08711368734147085),
])  # fmt: skip
def test_the_cost_of_pilcos_cartpole(theta: float, cov: float, cost: float) -> None:
    """Of the tip's distance, width 0.25 m, pole 0.5 m, state [x, v, dth, th]."""
    x = Normal(jnp.array([0.0, 0.0, 0.0, theta]), cov * jnp.eye(4))
    seen = moments.with_angles(x, (3,)).normal
    tip = moments.linear(
        seen, jnp.array([[1.0, 0, 0, 0.5, 0], [0, 0, 0, 0, -0.5]]), jnp.zeros(2)
    ).normal
    found = moments.saturating_cost(tip, jnp.array([0.0, 0.5]), jnp.eye(2) / 0.25)
    assert abs(found - cost) < 1e-8


@pytest.mark.parametrize("name", ["kernels", "squash", "with_angles", "cost"])
def test_gradients(name: str) -> None:
    """Against central differences, by the mean and by the covariance's root."""
    x, f = normal(0, 3), process(1, 3, 2)
    probe = normal(7, 8).mean

    def value(flat: Array) -> Array:
        root = flat[3:].reshape(3, 3)
        x = Normal(flat[:3], root @ root.T)
        if name == "cost":
            return moments.saturating_cost(x, jnp.zeros(3), jnp.eye(3)[:, :2])
        function = {
            "kernels": lambda x: moments.kernels(x, f),
            "squash": lambda x: moments.squash(x, 2.0),
            "with_angles": lambda x: moments.with_angles(x, (1,)),
        }[name]
        y = function(x)
        parts = (
            y.mean.sum(),
            (y.cov * jnp.outer(probe, probe)[: len(y.cov), : len(y.cov)]).sum(),
            (y.gain**2).sum(),
        )
        return sum(parts)

    flat = jnp.concatenate([x.mean, jnp.linalg.cholesky(x.cov).ravel()])
    value = jax.jit(value)
    gradient, step = jax.jit(jax.grad(value))(flat), 1e-6
    for i in range(len(flat)):
        nudge = step * jnp.eye(len(flat))[i]
        slope = (value(flat + nudge) - value(flat - nudge)) / (2 * step)
        assert abs(slope - gradient[i]) < 1e-5 * max(1.0, abs(slope))


def test_without_uncertainty_it_is_the_function() -> None:
    """Also where the covariance is singular, of which no inverse is taken."""
    x, f = normal(0, 3), process(1, 3, 2)
    sure = Normal(x.mean, jnp.zeros((3, 3)))
    found = moments.kernels(sure, f)
    mean, var = prediction(f, np.asarray(x.mean)[None])
    np.testing.assert_allclose(found.mean, mean[0], rtol=1e-10)
    np.testing.assert_allclose(found.cov, np.diag(var[0]), rtol=1e-8, atol=1e-10)


def test_rows_without_weight_change_nothing() -> None:
    x, f = normal(0, 3), process(1, 3, 2)
    pad = lambda a, *axes: jnp.pad(
        a, [(0, 5 if i in axes else 0) for i in range(a.ndim)]
    )
    more = Kernels(pad(f.inputs, 0), pad(f.weights, 1), *f[2:4], pad(f.precision, 1, 2))
    for one, other in zip(moments.kernels(x, f), moments.kernels(x, more), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


@pytest.mark.parametrize("number", [64, 70, 128])
def test_blocks_of_rows_are_all_of_them(number: int) -> None:
    """In values and slopes; of blocks without a row that counts none is looked at."""
    x, f = normal(0, 3), process(1, 3, 2, num_rows=number)
    room = 3 * moments.BLOCK - number
    blocks = Kernels(
        jnp.pad(f.inputs, ((0, room), (0, 0))),
        jnp.pad(f.weights, ((0, 0), (0, room))),
        *f[2:4],
        jnp.pad(f.precision, ((0, 0), (0, room), (0, room))),
        jnp.array(number),
    )
    broken = blocks._replace(weights=blocks.weights.at[:, -1].set(jnp.nan))

    def value(mean: Array, f: Kernels) -> Array:
        found = moments.kernels(Normal(mean, x.cov), f)
        return jnp.sin(found.cov).sum()

    expected = jax.value_and_grad(value)(x.mean, f)
    found = jax.value_and_grad(value)(x.mean, blocks)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)
    sum_of = lambda f: moments._weighted_sum(
        f.num_rows, jnp.outer(f.weights[0], f.weights[1]),
        *jnp.zeros((2, 3 * moments.BLOCK)), *jnp.zeros((2, 3 * moments.BLOCK, 1)),
    )  # fmt: skip
    assert jnp.isfinite(sum_of(broken))


@pytest.mark.parametrize("var", [1e-12, 1.0, 500.0, 705.0, 2000.0])
def test_angles_that_are_known_well_or_not_at_all(var: float) -> None:
    """Of sin x, the variance by its formula, and its slopes; without overflow."""

    def found(mean: Array, var: Array) -> Array:
        return moments.sines(Normal(mean[None], var[None, None])).cov[0, 0]

    def formula(mean: float, var: float) -> np.longdouble:
        var = np.longdouble(var)
        shrunk = np.exp(-2 * var) * np.cos(2 * np.longdouble(mean))
        return (1 - np.exp(-var) - shrunk + np.exp(-var) * np.cos(2 * mean)) / 2

    at = jnp.array(0.3), jnp.array(var)
    by_hand = formula(0.3, var) if var > 1e-3 else var * np.cos(0.3) ** 2
    np.testing.assert_allclose(found(*at), by_hand, rtol=1e-7)
    slopes = jax.grad(found, (0, 1))(*at)
    assert all(jnp.isfinite(x) for x in slopes)
    if var > 100:
        np.testing.assert_allclose(slopes, 0, atol=1e-12)
    else:
        step = 1e-3 * var
        slope = (found(at[0], at[1] + step) - found(at[0], at[1] - step)) / (2 * step)
        np.testing.assert_allclose(slopes[1], slope, rtol=1e-4)
