"""The digits' benchmark: a bias that is raised, pictures that are jittered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import digits


def pictures(gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels: of a 3 its own is `gap` below the best; others are right."""
    label = np.array([3, 3, 5, 7])
    logits = 10.0 * np.eye(10)[label]
    logits[:2] = 0.0
    logits[:2, 8] = gap
    return logits, label


def test_a_bias_is_raised_by_what_is_best_in_the_validation_set():
    found = digits.judged(3, pictures(2.1), pictures(2.2))
    assert found == (1.0, 0.0, 0.5, 0.0, 2.25)
    found = digits.judged(3, pictures(2.1), pictures(2.4))  # of the test set it is not
    assert found == (1.0, 1.0, 0.5, 0.5, 2.25)


def test_a_jittered_picture_is_moved_between_pixels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(digits, "NOISE", 0.0)
    ramp = jnp.tile(jnp.arange(8.0), (8, 1))  # grows to the right
    moved = jax.vmap(digits.jittered, (0, None))(
        jax.random.split(jax.random.key(0), 20), ramp.ravel()
    ).reshape(20, 8, 8)
    shift = np.asarray(moved - ramp[None])[:, 1:-1, 1:-1]  # inside
    np.testing.assert_allclose(
        shift, np.broadcast_to(shift[:, :1, :1], shift.shape), atol=1e-5
    )
    assert 0.3 < np.abs(shift).max() <= digits.SHIFT
    assert shift.min() < 0 < shift.max()
