"""Densities, entropies and divergences against integrals, and against distrax."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import distributions, envs

LIMIT = 2.0
P, Q = np.array([0.3, -0.4]), np.array([-0.2, 0.1])  # mean, log-std of one action


pytestmark = pytest.mark.usefixtures("double")


def grid(family: str) -> np.ndarray:
    """Midpoints of actions, [N, 1], and the distance of two."""
    far = LIMIT if family == "squashed_gaussian" else 20 * LIMIT
    edges = np.linspace(-far, far, 200_001)
    return (edges[1:] + edges[:-1])[:, None] / 2, edges[1] - edges[0]


def density(family: str, outputs: np.ndarray) -> np.ndarray:
    known = getattr(distributions, family)(1, LIMIT)
    actions, width = grid(family)
    return np.exp(jax.vmap(known.log_prob, (None, 0))(outputs, actions)), width


@pytest.mark.parametrize("family", ["gaussian", "squashed_gaussian"])
@pytest.mark.parametrize("outputs", [P, Q, np.array([1.5, -1.0])])
def test_a_density_integrates_to_1_and_its_samples_follow_it(family, outputs):
    p, width = density(family, outputs)
    assert p.sum() * width == pytest.approx(1, abs=1e-6)
    known = getattr(distributions, family)(1, LIMIT)
    keys = jax.random.split(jax.random.key(0), 20_000)
    samples = np.sort(jax.vmap(known.sample, (0, None))(keys, outputs)[:, 0])
    expected = np.interp(samples, grid(family)[0][:, 0], np.cumsum(p) * width)
    uniform = (np.arange(len(samples)) + 0.5) / len(samples)
    assert np.abs(expected - uniform).max() < 1.95 / np.sqrt(len(samples))  # KS, 0.1 %


@pytest.mark.parametrize("family", ["gaussian", "squashed_gaussian"])
def test_entropy_and_divergence_are_the_integrals(family):
    (p, width), (q, _) = density(family, P), density(family, Q)
    known = getattr(distributions, family)(1, LIMIT)
    keys = jax.random.split(jax.random.key(0), 20_000)
    entropies = jax.vmap(known.entropy, (0, None))(keys, P)
    exact = -(p * np.log(np.maximum(p, 1e-300))).sum() * width
    error = float(entropies.std()) / np.sqrt(len(keys))
    assert float(entropies.mean()) == pytest.approx(exact, abs=4 * error + 1e-6)
    exact = (p * np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300))).sum() * width
    assert float(known.divergence(P, Q)) == pytest.approx(exact, abs=1e-6)


def test_against_distrax():
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 6))
    theirs = [distrax.MultivariateNormalDiag(x[:3], np.exp(x[3:])) for x in (p, q)]
    ours = distributions.gaussian(3, 1.0)
    action = rng.normal(size=3)
    pairs = [
        (ours.log_prob(p, action), theirs[0].log_prob(action)),
        (ours.entropy(jax.random.key(0), p), theirs[0].entropy()),
        (ours.divergence(p, q), theirs[0].kl_divergence(theirs[1])),
    ]
    theirs = [distrax.Categorical(x) for x in (p, q)]
    ours = distributions.categorical(6)
    pairs += [
        (ours.log_prob(p, 4), theirs[0].log_prob(4)),
        (ours.entropy(jax.random.key(0), p), theirs[0].entropy()),
        (ours.divergence(p, q), theirs[0].kl_divergence(theirs[1])),
        (ours.mode(p), theirs[0].mode()),
    ]
    for x, y in pairs:
        assert float(x) == pytest.approx(float(y), rel=1e-9)


def test_far_in_the_tails_all_is_finite():
    known = distributions.squashed_gaussian(1, LIMIT)
    for mean in (-40.0, 0.0, 40.0):
        outputs = jnp.array([mean, 2.0])
        action = known.sample(jax.random.key(0), outputs)
        for f in (known.log_prob, lambda x, _: known.entropy(jax.random.key(0), x)):
            assert np.isfinite(f(outputs, action))
            assert np.isfinite(jax.grad(f)(outputs, action)).all()
    assert np.isfinite(known.log_prob(P, jnp.array([LIMIT])))


def test_the_family_of_an_environment():
    assert distributions.of(envs.make("maze")).output_size == 4
    env = envs.make("pendulum")
    key, wide = jax.random.key(0), jnp.array([9.0, 2.0])
    assert abs(distributions.of(env).sample(key, wide)[0]) > env.action_limit
    assert abs(distributions.of(env, squash=True).sample(key, wide)[0]) <= 2.0


@pytest.mark.parametrize("outputs", [P, Q, np.array([1.5, -1.0, -0.3, 0.2])])
def test_a_squashed_draw_knows_its_density(outputs):
    """In [-1, 1]: that of the family with a limit of 1, and its samples."""
    known = distributions.squashed_gaussian(len(outputs) // 2, 1.0)
    keys = jax.random.split(jax.random.key(0), 1000)
    unit, log_prob = jax.vmap(distributions.squashed_draw, (0, None))(keys, outputs)
    sampled = jax.vmap(known.sample, (0, None))(keys, outputs)
    np.testing.assert_allclose(unit, sampled, rtol=1e-12)
    expected = jax.vmap(known.log_prob, (None, 0))(outputs, unit)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6, atol=1e-6)


def test_a_squashed_draw_has_a_density_that_integrates_to_1():
    """Importance sampling of the interval: the mean of 1 / density is its length."""
    keys = jax.random.split(jax.random.key(0), 100_000)
    wide = np.array([0.0, 0.0])  # heavy enough where the interval ends
    _, log_prob = jax.vmap(distributions.squashed_draw, (0, None))(keys, wide)
    inverse = np.exp(-np.asarray(log_prob))
    inside = inverse < 100  # all of it but where the density is below 1 %
    edges = np.linspace(-1, 1, 2_000_001)
    middle = (edges[1:] + edges[:-1]) / 2
    family = distributions.squashed_gaussian(1, 1.0)
    density = np.exp(jax.vmap(family.log_prob, (None, 0))(wide, middle[:, None]))
    length = 2 * (density > 0.01).mean()
    error = np.where(inside, inverse, 0).std() / np.sqrt(len(keys))
    assert np.where(inside, inverse, 0).mean() == pytest.approx(length, abs=4 * error)
    assert error < 0.01


@pytest.mark.parametrize("mean", [-50.0, 50.0])
def test_a_squashed_draw_is_finite_however_far(mean):
    """u = +-50: log(1 - tanh^2 u) = log 4 - 2 |u|, where tanh u is 1 in floats."""
    outputs = jnp.array([mean, -30.0], jnp.float32)
    draw = lambda x: distributions.squashed_draw(jax.random.key(0), x)
    unit, log_prob = draw(outputs)
    assert unit.dtype == jnp.float32
    assert abs(unit[0]) == 1
    z = jax.random.normal(jax.random.key(0), (1,), jnp.float32)[0]
    gaussian = -0.5 * float(z) ** 2 + 30 - 0.5 * np.log(2 * np.pi)
    far = outputs.at[1].set(0.0)
    u = mean + float(z)
    expected = gaussian - 30 - (np.log(4) - 2 * abs(u))
    assert float(draw(far)[1]) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(log_prob)
    assert np.isfinite(jax.grad(lambda x: draw(x)[1])(far)).all()
