import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import estimate

RNG = np.random.default_rng(0)
SAMPLES = {
    "w": RNG.normal(size=(6, 2, 3)).astype(np.float32),
    "b": RNG.normal(size=(6, 2)).astype(np.float32),
}
RETURNS = RNG.normal(size=6).astype(np.float32)


def test_statistics_of_the_finite_samples():
    samples = {name: jnp.array(x) for name, x in SAMPLES.items()}
    samples["b"] = samples["b"].at[1, 0].set(jnp.inf)
    found = estimate.summarise(samples, jnp.array(RETURNS).at[4].set(jnp.nan))
    good = [0, 2, 3, 5]
    assert (found.num_samples, found.num_non_finite) == (4, 2)
    np.testing.assert_allclose(found.mean_return, RETURNS[good].mean(), rtol=1e-5)
    for name, x in SAMPLES.items():
        mean, var = x[good].mean(axis=0), x[good].var(axis=0, ddof=1)
        np.testing.assert_allclose(found.gradient[name], mean, rtol=1e-5)
        np.testing.assert_allclose(found.variance[name], var, rtol=1e-5)
        error = estimate.standard_error(found)[name]
        np.testing.assert_allclose(error, np.sqrt(var / 4), rtol=1e-5)
    flat = np.concatenate([x[good].reshape(4, -1) for x in SAMPLES.values()], axis=1)
    trace = flat.var(axis=0, ddof=1).sum()
    np.testing.assert_allclose(estimate.total_variance(found), trace, rtol=1e-5)
    ratio = np.linalg.norm(flat.mean(axis=0)) / np.sqrt(trace)
    np.testing.assert_allclose(estimate.signal_to_noise(found), ratio, rtol=1e-5)


def test_a_norm_does_not_overflow():
    tree = {"a": jnp.array([3e30, 0.0]), "b": jnp.array(-4e30)}
    np.testing.assert_allclose(estimate.norm(tree), 5e30, rtol=1e-6)
    assert estimate.norm({"a": jnp.zeros(3)}) == 0
    assert jnp.isnan(estimate.norm({"a": jnp.array([jnp.nan, 1.0])}))


def test_cosine_and_bias():
    a = {"x": jnp.array([1.0, 2.0]), "y": jnp.array(2.0)}
    b = {"x": jnp.array([2.0, 4.0]), "y": jnp.array(4.0)}
    c = {"x": jnp.array([2.0, -1.0]), "y": jnp.array(0.0)}
    np.testing.assert_allclose(estimate.cosine(a, b), 1.0, rtol=1e-6)
    np.testing.assert_allclose(estimate.cosine(a, c), 0.0, atol=1e-6)
    np.testing.assert_allclose(estimate.bias(a, b), 0.5, rtol=1e-6)


def test_returns_to_go_and_leave_one_out_by_hand():
    np.testing.assert_allclose(
        estimate.to_go(jnp.array([[1.0, 2.0, 4.0]])), [[7, 6, 4]]
    )
    returns = jnp.array([[1.0, 0.0], [3.0, 2.0], [jnp.nan, 9.0], [8.0, 1.0]])
    found = estimate.leave_one_out(returns)
    expected = [[1 - 5.5, -1.5], [3 - 4.5, 1.5], [np.nan] * 2, [8 - 2.0, 0.0]]
    np.testing.assert_allclose(found, expected)


def test_shares_are_those_of_the_inverse_variances():
    valid = jnp.array([True, True, True, False])
    score = jnp.array([1.0, 2.0, 3.0, jnp.nan])  # variance 1
    pathwise = jnp.array([0.0, 2.0, 4.0, 99.0])  # variance 4
    share = estimate.inverse_variance_share(score, pathwise, valid)
    np.testing.assert_allclose(share, 0.8, rtol=1e-6)
    np.testing.assert_allclose(estimate.mix(share, 1.0, 2.0), 1.2, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_has_an_infinite_variance_gets_no_share(bad):
    valid, good = jnp.ones(3, bool), jnp.array([1.0, 2.0, 4.0])
    broken = good.at[0].set(bad)
    for share, a, b in ((1, good, broken), (0, broken, good)):
        assert estimate.inverse_variance_share(a, b, valid) == share
        np.testing.assert_array_equal(estimate.mix(jnp.array(share), a, b), good)
    assert jnp.isfinite(estimate.inverse_variance_share(good * 0, good * 0, valid))
