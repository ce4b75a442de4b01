import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from mbrl_jax.ops import distillation

STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)


def gradient(temperature: float, student: np.ndarray = STUDENT) -> np.ndarray:
    loss = jax.grad(distillation.soft_cross_entropy)
    return np.asarray(loss(jnp.asarray(student), jnp.asarray(TEACHER), temperature))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_cross_entropy(temperature: float):
    p, q = (scipy.special.softmax(x / temperature) for x in (TEACHER, STUDENT))
    expected = scipy.stats.entropy(p) + scipy.stats.entropy(p, q)
    found = distillation.soft_cross_entropy(STUDENT, jnp.asarray(TEACHER), temperature)
    np.testing.assert_allclose(found, temperature**2 * expected, rtol=1e-5)


def test_its_gradient_does_not_depend_on_the_temperature():
    """By a factor of 100 it would, from 2 to 20, without one of T^2."""
    sizes = [np.linalg.norm(gradient(t)) for t in (2.0, 5.0, 20.0)]
    assert max(sizes) < 1.2 * min(sizes)


def test_a_high_temperature_matches_logits():
    """(z - v) / K, each without its mean (Hinton et al., 2015, Eq. (4))."""
    difference = STUDENT - TEACHER
    expected = (difference - difference.mean()) / len(difference)
    np.testing.assert_allclose(gradient(1e3), expected, rtol=0.02, atol=2e-3)
    cosine = scipy.spatial.distance.cosine
    assert cosine(gradient(20.0), expected) < 0.01 < cosine(gradient(0.2), expected)


def test_it_is_least_where_the_student_is_the_teacher():
    np.testing.assert_allclose(gradient(3.0, TEACHER + 7), 0, atol=1e-5)
    best = distillation.soft_cross_entropy(jnp.asarray(TEACHER), TEACHER, 3.0)
    other = distillation.soft_cross_entropy(jnp.asarray(STUDENT), TEACHER, 3.0)
    assert best < other


def test_soft_and_hard():
    """The label, at the temperature 1, by its share."""
    soft = distillation.soft_cross_entropy(jnp.asarray(STUDENT), TEACHER, 3.0)
    hard = -scipy.special.log_softmax(STUDENT)[2]
    found = distillation.soft_and_hard(jnp.asarray(STUDENT), TEACHER, 2, 3.0, 0.2)
    np.testing.assert_allclose(found, 0.8 * soft + 0.2 * hard, rtol=1e-5)


def test_most_likely():
    found = distillation.most_likely(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    expected = -scipy.special.log_softmax(STUDENT)[TEACHER.argmax()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 3.0])
def test_sharpened_divergence(temperature: float):
    """The temperature is the teacher's alone."""
    p, q = scipy.special.softmax(TEACHER / temperature), scipy.special.softmax(STUDENT)
    found = distillation.sharpened_divergence(
        jnp.asarray(STUDENT), TEACHER, temperature
    )
    np.testing.assert_allclose(found, scipy.stats.entropy(p, q), rtol=1e-5)


def test_it_is_sharp():
    """At 0.01 values that differ by a tenth are a choice, so it is that of the best."""
    values = jnp.array([1.0, 1.1, 0.9])
    found = distillation.sharpened_divergence(STUDENT[:3], values, 0.01)
    expected = distillation.most_likely(STUDENT[:3], values)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_squares():
    squares = ((STUDENT - TEACHER) ** 2).sum()
    found = distillation.squared_error(jnp.asarray(STUDENT), TEACHER)
    np.testing.assert_allclose(found, squares, rtol=1e-6)


def test_nothing_goes_into_the_teacher():
    student = jnp.asarray(STUDENT)
    for loss in (
        lambda teacher: distillation.soft_and_hard(student, teacher, 2, 3.0, 0.2),
        lambda teacher: distillation.sharpened_divergence(student, teacher, 0.5),
        lambda teacher: distillation.squared_error(student, teacher),
    ):
        assert (jax.grad(loss)(jnp.asarray(TEACHER)) == 0).all()
