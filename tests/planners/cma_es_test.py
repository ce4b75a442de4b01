"""CMA-ES: another implementation's evaluations, its equations again, invariances."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.cma_es import ellipsoid, rastrigin, rosenbrock, sphere
from mbrl_jax.planners import cma_es
from mbrl_jax.types import Array, Key


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


FUNCTIONS = {  # spread of the starts, std, and evaluations of pycma 4, not active
    sphere: (3.0, 1.0, 1543),
    ellipsoid: (3.0, 1.0, 5747),
    rosenbrock: (0.0, 0.1, 5747),
}


@pytest.fixture(scope="module")
def runs() -> tuple[cma_es.Result, Array]:
    """Of each function and 15 keys, in 10 dimensions; and the values found again."""

    def run(which: Array, spread: Array, std: Array, key: Key):
        objective = lambda x: jax.lax.switch(which, list(FUNCTIONS), x)
        start_key, search_key = jax.random.split(key)
        mean = spread * jax.random.uniform(start_key, (10,), minval=-1)
        found = cma_es.minimise(search_key, objective, mean, std, target=1e-9)
        return found, objective(found.x)

    with jax.enable_x64(True):
        spreads, stds, _ = map(np.array, zip(*FUNCTIONS.values(), strict=True))
        each = jax.vmap(jax.vmap(run, (None, None, None, 0)), (0, 0, 0, None))
        keys = jax.random.split(jax.random.key(0), 15)
        found = jax.jit(each)(np.arange(3), spreads, stds.astype(float), keys)
        return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("which", range(3), ids=[f.__name__ for f in FUNCTIONS])
def test_evaluations_to_1e_9(which: int, runs: tuple[cma_es.Result, Array]):
    found, value = jax.tree.map(lambda x: x[which], runs)
    *_, evaluations = list(FUNCTIONS.values())[which]
    assert (found.status == cma_es.REACHED).sum() >= 14
    assert np.median(found.num_evaluations) <= 1.1 * evaluations
    np.testing.assert_allclose(found.value, value)


@pytest.mark.slow
def test_restarts_find_the_best_of_many_minima():
    start = lambda key: jax.random.uniform(key, (5,), minval=-5, maxval=5)
    find = lambda key: cma_es.restarted(
        key, rastrigin, start, 2.0, num_restarts=4, target=1e-9
    )
    found = jax.jit(jax.vmap(find))(jax.random.split(jax.random.key(0), 4))
    assert (found.status == cma_es.REACHED).all()
    assert (found.num_evaluations > 5000).any()  # a single run takes 2000
    np.testing.assert_allclose(found.x, 0, atol=1e-5)


def test_one_update_against_the_equations_sample_by_sample():
    """From a state with paths and a turned covariance."""
    size, num_samples, rng = 3, 8, np.random.default_rng(0)
    root = rng.normal(size=(size, size))
    cov = root @ root.T + np.eye(size)
    values, vectors = np.linalg.eigh(cov)
    path, step_path = rng.normal(size=(2, size))
    state = cma_es.State(
        *map(jnp.asarray, (rng.normal(size=size), 0.7, cov, vectors, values**0.5)),
        *map(jnp.asarray, (path, step_path, np.int32(5))),
    )
    samples = rng.normal(size=(num_samples, size))
    worth = rng.normal(size=num_samples)
    new = jax.jit(cma_es.tell)(state, jnp.asarray(samples), jnp.asarray(worth))
    state, new = jax.tree.map(np.asarray, (state, new))

    rates = cma_es._rates(size, num_samples)
    w = rates.weights
    assert w[:4].sum() == pytest.approx(1)
    assert rates.mu_eff == pytest.approx(1 / (w[:4] ** 2).sum())
    y = (samples[np.argsort(worth)] - state.mean) / 0.7
    step = sum(w[i] * y[i] for i in range(4))
    np.testing.assert_allclose(new.mean, state.mean + 0.7 * step)
    white = vectors @ np.diag(values**-0.5) @ vectors.T
    c = rates.step_path
    s = (1 - c) * step_path + np.sqrt(c * (2 - c) * rates.mu_eff) * white @ step
    np.testing.assert_allclose(new.step_path, s)
    grown = np.exp(c / rates.damping * (np.linalg.norm(s) / rates.norm - 1))
    np.testing.assert_allclose(new.step_size, 0.7 * grown)
    calm = np.linalg.norm(s) / np.sqrt(1 - (1 - c) ** 12) < (1.4 + 0.5) * rates.norm
    c = rates.path
    p = (1 - c) * path + calm * np.sqrt(c * (2 - c) * rates.mu_eff) * step
    np.testing.assert_allclose(new.path, p)
    again = (1 + rates.rank_one * (1 - calm) * c * (2 - c)) * cov
    again += rates.rank_one * (np.outer(p, p) - cov)
    for weight, row in zip(w, y, strict=True):
        share = weight if weight > 0 else weight * size / (white @ row @ white @ row)
        again += rates.rank_mu * (share * np.outer(row, row) - weight * cov)
    np.testing.assert_allclose(new.cov, again)
    np.testing.assert_allclose(
        new.basis @ np.diag(new.axes**2) @ new.basis.T, new.cov, rtol=1e-9
    )


TABLE_1: dict[tuple[int, int], dict[str, float | list[float]]] = {
    # (D, N), by hand from Eqs. (49) to (58) of the paper, with mu = N / 2, mu_eff and
    # mu_eff^- from w'_i = ln((N + 1) / 2) - ln i, and alpha_cov = 2.  The negative
    # weights sum up to the least of Eqs. (50), (51) and (52): here it is (50) ..
    (3, 8): {
        "mu_eff": 2.60017883,
        "step_path": 0.43397181,  # 4.60017883 / 10.60017883
        "damping": 1.43397181,
        "path": 0.55725113,  # (4 + 0.86672628) / (7 + 1.73345255)
        "rank_one": 0.09483087,  # 2 / (4.3^2 + 2.60017883)
        "rank_mu": 0.08947534,  # 2 (0.85017883 + 0.38458893) / (25 + 2.60017883)
        "norm": 1.59687753,  # 3^0.5 (1 - 1 / 12 + 1 / 189)
        "weights": [
            *(0.52993018, 0.28571429, 0.14285714, 0.04149839),
            *(-0.15389397, -0.42020046, -0.64535939, -0.84040093),
        ],
    },
    (2, 6): {  # .. here (51), 1 + 2 * 2.43191896 / (2.02861146 + 2)
        "mu_eff": 2.02861146,
        "step_path": 0.44620499,
        "damping": 1.44620499,
        "path": 0.62455454,
        "rank_one": 0.15481540,
        "rank_mu": 0.08559278,
        "norm": 1.25427274,
        "weights": [
            *(0.63704257, 0.28457026, 0.07838717),
            *(-0.28638378, -0.76495809, -1.15598178),
        ],
    },
    (2, 30): {  # .. and here (52), (1 - 0.10239040 - 0.56882336) / (2 * 0.56882336)
        "mu_eff": 8.64308047,
        "step_path": 0.68036986,
        "damping": 2.87266903,  # 1 + 2 ((7.64308047 / 3)^0.5 - 1) + 0.68036986
        "path": 0.56829164,
        "rank_one": 0.10239040,
        "rank_mu": 0.56882336,
        "norm": 1.25427274,
        "negative": -0.28900556,
    },
    (1, 100): {  # where c_mu is all that c_1 leaves, and nothing is for bad samples
        "mu_eff": 26.96665506,
        "rank_one": 0.06200271,
        "rank_mu": 0.93799729,
        "negative": 0.0,
    },
}


@pytest.mark.parametrize("case", TABLE_1, ids=str)
def test_the_constants_are_those_of_table_1(case: tuple[int, int]):
    expected, rates = dict(TABLE_1[case]), cma_es._rates(*case)
    negative = expected.pop("negative", None)
    for name, x in expected.items():
        np.testing.assert_allclose(getattr(rates, name), x, rtol=1e-6, err_msg=name)
    half = case[1] // 2
    assert rates.weights[:half].sum() == pytest.approx(1)
    if negative is not None:
        assert rates.weights[half:].sum() == pytest.approx(negative, rel=1e-6)


def test_the_default_number_of_samples_is_that_of_table_1():
    found = [cma_es.default_num_samples(size) for size in (1, 2, 3, 10, 100)]
    assert found == [4, 6, 7, 10, 17]


class Case(NamedTuple):
    objective: Callable[[Array], Array]
    mean: tuple[float, ...]
    std: float
    target: float = -np.inf
    max_evaluations: int = 100_000
    tolerance: float = 1e-12
    seed: int = 0


def minimise(cases: dict[str, Case]) -> dict[str, cma_es.Result]:
    """All of them, of one number of dimensions, in one program."""
    objectives, *others = zip(*cases.values(), strict=True)

    def run(which: Array, mean: Array, std: Array, *rest: Array) -> cma_es.Result:
        target, max_evaluations, tolerance, seed = rest
        return cma_es.minimise(
            jax.random.key(seed),
            lambda x: jax.lax.switch(which, objectives, x),
            mean,
            std,
            target=target,
            max_evaluations=max_evaluations,
            tolerance=tolerance,
        )

    found = jax.jit(jax.vmap(run))(np.arange(len(cases)), *map(np.array, others))
    each = (jax.tree.map(lambda x, i=i: np.asarray(x[i]), found) for i in range(99))
    return dict(zip(cases, each, strict=False))


def in_the_corner(x: Array) -> Array:
    return cma_es.mirrored(x, LOW, HIGH).sum()


LOW, HIGH = np.array([-1.0, 0.5]), np.array([2.0, 0.75])
MEAN = np.array([1.0, -2.0, 0.5, 0.0])
PART = {"max_evaluations": 300, "tolerance": 0.0}  # of a search
IN_FOUR_DIMENSIONS = {
    "plain": Case(ellipsoid, MEAN, 1.0, **PART),
    "bent": Case(lambda x: jnp.log1p(ellipsoid(x)), MEAN, 1.0, **PART),
    "here": Case(sphere, MEAN, 1.0, **PART),
    "moved": Case(lambda x: sphere(x - 100), MEAN + 100, 1.0, **PART),
    "long": Case(ellipsoid, np.ones(4), 1.0, target=1e-9, seed=1),
    # Half of the space is forbidden, the minimum lies at its border.
    "forbidden": Case(
        lambda x: jnp.where(x[0] > 0, sphere(x), jnp.nan),
        np.full(4, 2.0),
        1.0,
        target=1e-6,
    ),
}
TARGET = {"mean": np.ones(2), "std": 0.5, "target": 1e-9, "max_evaluations": 2000}
IN_TWO_DIMENSIONS = {
    "constant": Case(lambda x: jnp.ones(()), **TARGET),
    "nan": Case(lambda x: jnp.nan * x[0], **TARGET),
    "above the target": Case(lambda x: x[0] ** 2 + 1.0, **TARGET),
    "parabola": Case(lambda x: x[0] ** 2, **TARGET),
    "slope": Case(
        lambda x: -x[0] + 0 * x[1], np.ones(2), 0.5, target=-1e9, max_evaluations=60
    ),
    "corner": Case(in_the_corner, np.full(2, 0.6), 0.3),
}


@pytest.fixture(scope="module")
def found() -> dict[str, cma_es.Result]:
    with jax.enable_x64(True):
        return minimise(IN_FOUR_DIMENSIONS) | minimise(IN_TWO_DIMENSIONS)


def test_only_the_order_of_the_values_counts_and_no_place_does(found):
    np.testing.assert_allclose(found["bent"].x, found["plain"].x)
    np.testing.assert_allclose(found["moved"].x - 100, found["here"].x, atol=1e-9)


def test_the_covariance_becomes_the_inverse_hessian(found):
    scales = 1e6 ** (np.arange(4) / 3)
    relative = found["long"].state.cov * np.sqrt(np.outer(scales, scales))
    relative = relative / np.trace(relative) * 4
    np.testing.assert_allclose(relative, np.eye(4), atol=0.6)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("constant", cma_es.FLAT),
        ("nan", cma_es.BROKEN),
        ("above the target", cma_es.FLAT),
        ("parabola", cma_es.REACHED),
        ("slope", cma_es.BUDGET),
    ],
)
def test_why_it_stops(name: str, status: int, found):
    assert found[name].status == status


def test_values_that_are_not_finite_lose(found):
    assert found["forbidden"].status == cma_es.REACHED
    assert found["forbidden"].x[0] > 0


def test_bounds(found):
    """The minimum of a slope is in the corner, and mirroring changes nothing inside."""
    mirrored = jax.jit(jax.vmap(cma_es.mirrored, (0, None, None)))
    x = np.array([found["corner"].x, [0.3, 0.6], [-1.5, 0.8], [2.25, 1.01]])
    corner, *others = mirrored(x, LOW, HIGH)
    np.testing.assert_allclose(corner, LOW, atol=1e-6)
    expected = np.array([[0.3, 0.6], [-0.5, 0.7], [1.75, 0.51]])
    np.testing.assert_allclose(others, expected, atol=1e-12)


def test_too_few_samples():
    with pytest.raises(ValueError, match="num_samples is 3"):
        cma_es.minimise(jax.random.key(0), sphere, jnp.ones(2), 1.0, num_samples=3)


def test_what_begins_without_a_spread_stays():
    """And the others are found as if it were not there."""
    mean, std = np.array([1.0, 2.0, 0.5]), np.array([0.5, 0.0, 0.2])
    objective = lambda x: ((x - np.array([0.0, 1.0, 3.0])) ** 2).sum()
    search = jax.jit(
        lambda std: cma_es.minimise(jax.random.key(0), objective, mean, std)
    )
    found = search(std)
    np.testing.assert_allclose(found.x, [0, 2, 3], atol=1e-4)
    assert found.x[1] == 2
    still = search(0 * std)
    np.testing.assert_array_equal(still.x, mean)
