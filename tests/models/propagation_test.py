"""Each propagation against two oracles on a linear-Gaussian model.

The oracles: the moments by recursion, and plain Monte Carlo in numpy.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.models.propagation import PROPAGATIONS
from mbrl_jax.types import Array, Gaussian, Key, Model

H, M, P = 4, 3, 3 * 10_000
START = np.array([0.5, -0.3])
ACTIONS = np.array([[1.0], [-0.5], [0.3], [0.8]])
NAMES = tuple(PROPAGATIONS)


class Linear(NamedTuple):
    """Members y = A x + B u + b + std * noise."""

    A: Array  # [M, O, O]
    B: Array  # [M, O, A]
    b: Array  # [M, O]
    std: Array  # [M, O]


def predict(member: Linear, obs: Array, action: Array) -> Gaussian:
    mean = member.A @ obs + member.B @ action + member.b
    return Gaussian(mean, jnp.broadcast_to(member.std, mean.shape))


MODEL = Model(
    init=lambda key: MEMBERS,
    fit=lambda key, state, data: (state, {}),
    members=lambda state: state,
    predict=predict,
)
MEMBERS = Linear(  # the dimensions are coupled, so that their correlation counts
    A=np.array(
        [[[1.0, 0.6], [0.5, 1.0]], [[0.8, 0.4], [0.6, 0.9]], [[1.1, 0.5], [0.4, 0.8]]]
    ),
    B=np.array([[[0.5], [0.0]], [[0.2], [0.3]], [[0.0], [0.6]]]),
    b=np.array([[0.6, 0.0], [-0.4, -0.5], [0.0, 0.5]]),
    std=np.array([[0.9, 0.6], [0.5, 1.0], [0.7, 0.6]]),
)
# What a member adds without looking: y = x + u + b.
BIASES = np.array([-1.0, 0.5, 2.0])
SHIFTS = Linear(
    A=np.ones((M, 1, 1)), B=np.ones((M, 1, 1)), b=BIASES[:, None], std=np.zeros((M, 1))
)


def run(name: str, key: Key, members: Linear, start: Array, actions: Array) -> Array:
    """Particles [H, P, O] from `start` [P, O] under `actions` [H, A]."""
    members = jax.tree.map(jnp.asarray, members)
    step = PROPAGATIONS[name](MODEL, members)

    def advance(obs: Array, x: tuple[Key, Array]) -> tuple[Array, Array]:
        key, action = x
        obs = step(key, obs, action, jnp.ones(len(obs), bool))
        return obs, obs

    keys = jax.random.split(key, actions.shape[0])
    return jax.lax.scan(advance, start, (keys, actions))[1]


def simulate(name: str) -> np.ndarray:
    start = jnp.tile(jnp.asarray(START)[None], (P, 1))
    simulated = jax.jit(run, static_argnums=0)(
        name, jax.random.key(0), MEMBERS, start, jnp.asarray(ACTIONS)
    )
    return np.asarray(simulated, np.float64)


def inputs(m: int, t: int) -> np.ndarray:
    return MEMBERS.B[m] @ ACTIONS[t] + MEMBERS.b[m]


def mixture(means: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments of an equal mixture, means and variances [M, ..., O]."""
    return means.mean(axis=0), (variances + np.square(means - means.mean(axis=0))).mean(
        axis=0
    )


def moments(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [H, O] of a particle, by recursion."""
    recursion = {
        "expectation": _mean_only,
        "ts_inf": lambda: _per_member(keep_covariance=True),
        "distribution_sampling": lambda: _per_member(keep_covariance=False),
        "moment_matching": _moment_matching,
        "ts1": _member_per_step,
    }[name]
    mean, var = recursion()
    return np.array(mean), np.array(var)


def _mean_only() -> tuple[list, list]:
    mean, means = START, []
    for t in range(H):
        mean = np.mean([MEMBERS.A[m] @ mean + inputs(m, t) for m in range(M)], axis=0)
        means.append(mean)
    return means, np.zeros((H, 2)).tolist()


def _per_member(keep_covariance: bool) -> tuple[list, list]:
    mean, cov = np.tile(START, (M, 1)), np.zeros((M, 2, 2))
    means, variances = [], []
    for t in range(H):
        for m in range(M):
            A, noise = MEMBERS.A[m], np.diag(MEMBERS.std[m] ** 2)
            mean[m] = A @ mean[m] + inputs(m, t)
            cov[m] = A @ cov[m] @ A.T + noise
            if not keep_covariance:
                cov[m] = np.diag(np.diag(cov[m]))
        centre, var = mixture(mean, np.diagonal(cov, axis1=1, axis2=2))
        means.append(centre)
        variances.append(var)
    return means, variances


def _moment_matching() -> tuple[list, list]:
    mean, var, means, variances = START, np.zeros(2), [], []
    for t in range(H):
        mean, var = mixture(
            np.array([MEMBERS.A[m] @ mean + inputs(m, t) for m in range(M)]),
            np.array([MEMBERS.A[m] ** 2 @ var + MEMBERS.std[m] ** 2 for m in range(M)]),
        )
        means.append(mean)
        variances.append(var)
    return means, variances


def _member_per_step() -> tuple[list, list]:
    """First and second moments: the member of a step is independent of the past."""
    mean, second, means, variances = START, np.outer(START, START), [], []
    for t in range(H):
        seconds = []
        for m in range(M):
            A, c = MEMBERS.A[m], inputs(m, t)
            cross = np.outer(A @ mean, c)
            noise = np.diag(MEMBERS.std[m] ** 2)
            seconds.append(A @ second @ A.T + cross + cross.T + np.outer(c, c) + noise)
        mean = np.mean([MEMBERS.A[m] @ mean + inputs(m, t) for m in range(M)], axis=0)
        second = np.mean(seconds, axis=0)
        means.append(mean)
        variances.append(np.diag(second) - mean**2)
    return means, variances


def monte_carlo(name: str) -> np.ndarray:
    """Particles [H, P, O], written anew from the definitions."""
    rng = np.random.default_rng(0)
    x, history = np.tile(START, (P, 1)), []
    member = np.arange(P) % M  # any fixed binding will do
    for t in range(H):
        if name == "ts1":
            member = rng.integers(0, M, P)
        if name == "expectation":
            outcomes = [x @ MEMBERS.A[m].T + inputs(m, t) for m in range(M)]
            x = np.mean(outcomes, axis=0)
        else:
            new = np.empty_like(x)
            for m in range(M):
                mine = member == m
                new[mine] = x[mine] @ MEMBERS.A[m].T + inputs(m, t)
            x = new + MEMBERS.std[member] * rng.normal(size=x.shape)
        if name == "distribution_sampling":
            for m in range(M):
                x[member == m] = redrawn(rng, x[member == m])
        if name == "moment_matching":
            x = redrawn(rng, x)
        history.append(x)
    return np.array(history)


def redrawn(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    return rng.normal(x.mean(axis=0), x.std(axis=0), size=x.shape)


def assert_moments(
    name: str,
    particles: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    num_samples: int = 1,
) -> None:
    """Within 5 standard errors of H draws from P particles (the errors add up)."""
    centred = particles - particles.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(centred).var(axis=1))  # of one squared deviation
    scale = 5 * (H * num_samples / P) ** 0.5
    error = np.abs(particles.mean(axis=1) - mean)
    assert (error <= scale * centred.std(axis=1) + 1e-5).all(), name
    error = np.abs(particles.var(axis=1) - var)
    assert (error <= scale * spread + 1e-5).all(), name


@pytest.mark.parametrize("name", NAMES)
def test_moments(name: str):
    assert_moments(name, simulate(name), *moments(name))


@pytest.mark.parametrize("name", NAMES)
def test_monte_carlo(name: str):
    second = monte_carlo(name)
    assert_moments(name, second, *moments(name))
    found = simulate(name)
    assert_moments(name, found, second.mean(axis=1), second.var(axis=1), num_samples=2)


def test_no_propagation_passes_for_another():
    """At the last step they differ by more than the 10 % that the tests let pass."""
    last = {name: moments(name)[1][-1] for name in NAMES}
    for a, b in itertools.combinations(NAMES, 2):
        assert (np.abs(last[a] - last[b]) > 0.15 * last[b]).all(), (a, b)


def test_a_group_of_ts_inf_has_the_moments_of_its_member():
    groups = simulate("ts_inf").reshape(H, M, P // M, 2)
    for m in range(M):
        mean, cov = START, np.zeros((2, 2))
        for t in range(H):
            mean = MEMBERS.A[m] @ mean + inputs(m, t)
            cov = MEMBERS.A[m] @ cov @ MEMBERS.A[m].T + np.diag(MEMBERS.std[m] ** 2)
        tolerance = 5 * np.sqrt(np.diag(cov) / (P // M))
        np.testing.assert_array_less(
            np.abs(groups[-1, m].mean(axis=0) - mean), tolerance
        )
        np.testing.assert_allclose(np.cov(groups[-1, m].T), cov, rtol=0.1)


def shifted(name: str, num_particles: int, actions: Array) -> np.ndarray:
    """Where particles that start at 0 end, [P], when the members only add."""
    start = jnp.zeros((num_particles, 1))
    return np.asarray(run(name, jax.random.key(1), SHIFTS, start, actions)[-1, :, 0])


def test_doubt_adds_up_along_ts_inf_and_averages_out_along_ts1():
    """Chua et al. (2018), App. A.2: variances H^2 var(b) and H var(b)."""
    steps = 10
    bound = shifted("ts_inf", 300, jnp.zeros((steps, 1)))
    np.testing.assert_allclose(bound.var(), steps**2 * BIASES.var(), rtol=1e-5)
    dealt = shifted("ts1", 6000, jnp.zeros((steps, 1)))
    # 5 standard errors of a variance; near normal after ten steps
    tolerance = 5 * (2 / 6000) ** 0.5
    assert dealt.var() == pytest.approx(steps * BIASES.var(), rel=tolerance)


def test_candidates_keep_the_binding_of_particles_to_members():
    candidates = jax.random.normal(jax.random.key(0), (5, H, 1))
    ends = jax.vmap(
        lambda actions: run(
            "ts_inf", jax.random.key(1), SHIFTS, jnp.zeros((6, 1)), actions
        )
    )(candidates)
    expected = candidates.sum(axis=1) + H * jnp.repeat(jnp.asarray(BIASES), 2)[None]
    np.testing.assert_allclose(ends[:, -1, :, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_candidates_share_their_noise(name: str):
    """What separates two futures is the actions alone."""
    noisy = SHIFTS._replace(std=np.ones((M, 1)))
    actions = jnp.array([[0.1], [0.2], [0.3]])
    candidates = jnp.stack([0 * actions, actions])
    one = lambda actions: run(
        name, jax.random.key(0), noisy, jnp.zeros((6, 1)), actions
    )
    ends = jax.vmap(one)(candidates)[:, -1, :, 0]
    np.testing.assert_allclose(ends[1] - ends[0], 0.6, rtol=1e-5)
    assert name == "expectation" or ends[0].std() > 0.1


@pytest.mark.parametrize("name", ["ts1", "ts_inf"])
def test_a_particle_keeps_its_place(name: str):
    """Its return and its end are kept by place, too."""
    start = jnp.arange(6.0)[:, None]
    still = SHIFTS._replace(b=np.zeros((M, 1)))
    path = run(name, jax.random.key(0), still, start, jnp.zeros((2, 1)))
    np.testing.assert_array_equal(path, jnp.stack([start, start]))


def test_expectation_needs_but_one_particle():
    one = run(
        "expectation", jax.random.key(0), SHIFTS, jnp.zeros((1, 1)), jnp.zeros((2, 1))
    )
    np.testing.assert_allclose(
        one[:, 0, 0], BIASES.mean() * np.array([1, 2]), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["moment_matching", "distribution_sampling"])
def test_particles_that_have_ended_do_not_count(name: str):
    """Wherever they are, and if they are nowhere."""
    members = jax.tree.map(jnp.asarray, MEMBERS)
    step = jax.jit(PROPAGATIONS[name](MODEL, members))
    start = jnp.asarray(np.random.default_rng(0).normal(size=(3 * 8, 2)))
    alive, key, action = np.arange(24) % 8 < 5, jax.random.key(0), jnp.ones(1)
    without = step(key, start, action, alive)
    for place in (1e3, jnp.nan):
        moved = step(key, jnp.where(alive[:, None], start, place), action, alive)
        np.testing.assert_array_equal(moved, without)
    assert np.abs(step(key, start, action, alive | True) - without).max() > 0.01
    assert np.isfinite(step(key, start, action, alive & False)).all()
