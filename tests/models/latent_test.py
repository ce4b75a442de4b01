"""Embed to Control: its divergences against matrices, its loss by hand, its wiring."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.models import latent
from mbrl_jax.ops import normalize
from mbrl_jax.ops.normalize import Statistics
from mbrl_jax.types import Array, Gaussian

pytestmark = pytest.mark.usefixtures("double")

Z, A, O = 3, 2, 12
CONFIG = latent.Config(Z, (8,), (8,), (8,), transition_weight=0.3)


def drawn(seed: int = 0) -> dict[str, Any]:
    """Parameters far from 0, and one transition."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(latent.make(O, A, CONFIG).init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape), shapes)
    obs, next_obs = rng.uniform(size=(2, O))
    return {
        "params": params,
        "pixels": Statistics(rng.uniform(size=O), rng.uniform(0.2, 0.4, O)),
        "obs": obs,
        "action": rng.uniform(-1, 1, A),
        "next_obs": next_obs,
    }


def test_the_divergence_from_the_unit_normal_is_that_of_the_formula():
    """mean (1, 1, 1), variances 0.1, 0.3 and 0.5: 0.5 (0.9 + 3 - 3 + 4.1997)."""
    code = Gaussian(jnp.ones(3), jnp.sqrt(jnp.array([0.1, 0.3, 0.5])))
    np.testing.assert_allclose(latent.prior(code), 2.5498525389399633, rtol=1e-9)
    assert latent.prior(Gaussian(jnp.zeros(3), jnp.ones(3))) == 0


def matrices(step: latent.Step) -> np.ndarray:
    return np.eye(len(step.v)) + np.outer(step.v, step.r)


@pytest.mark.parametrize("seed", range(4))
def test_the_divergence_of_a_step_is_that_of_the_matrices(seed: int):
    rng = np.random.default_rng(seed)
    v, r, o, mean, aim = rng.normal(size=(5, Z))
    std, std_after = np.exp(rng.normal(size=(2, Z)))
    step = latent.Step(v, r, rng.normal(size=(Z, A)), o)
    cov = matrices(step) @ np.diag(std**2) @ matrices(step).T
    inverse, away = np.diag(std_after**-2.0), aim - mean
    logs = 2 * np.log(std_after).sum() - np.linalg.slogdet(cov)[1]
    expected = 0.5 * (np.trace(inverse @ cov) + away @ inverse @ away - Z + logs)
    found = latent.divergence(mean, std, step, Gaussian(aim, std_after))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_step_is_affine():
    step = latent.Step(
        *np.random.default_rng(0).normal(size=(2, Z)), np.ones((Z, A)), 0
    )
    step = step._replace(o=np.arange(3.0), B=np.arange(6.0).reshape(Z, A))
    z, u = np.array([0.3, -0.2, 0.5]), np.array([1.0, -2.0])
    expected = matrices(step) @ z + step.B @ u + step.o
    np.testing.assert_allclose(step(z, u), expected, rtol=1e-12)


def test_the_likelihood_is_that_of_independent_pixels():
    logits, pixels = np.array([-1.0, 0.5, 3.0]), np.array([0.0, 0.4, 1.0])
    p = 1 / (1 + np.exp(-logits))
    expected = -(pixels * np.log(p) + (1 - pixels) * np.log(1 - p)).sum()
    np.testing.assert_allclose(latent.nll(logits, pixels), expected, rtol=1e-9)


def test_the_loss_by_hand():
    """z is drawn once; the mean and the spread of q_hat are of the mean, the next
    picture's decoding of z itself; z' is encoded by the same network."""
    given, key = drawn(), jax.random.key(4)
    model = latent.make(O, A, CONFIG)
    total, terms = jax.jit(model.loss)(key=key, **given)
    params = given["params"]
    seen = lambda x: (given[x] - given["pixels"].mean) / given["pixels"].std
    plain = normalize.identity(O)
    now, after = (model.encode(params, plain, seen(x)) for x in ("obs", "next_obs"))
    z = np.asarray(now.mean) + np.asarray(now.std) * jax.random.normal(key, (Z,))
    step = model.transition(params, z)
    logit = lambda p: np.log(p / (1 - p))
    decoded = lambda z: logit(np.asarray(model.decode(params, z)))
    expected = {
        "reconstruction": latent.nll(decoded(z), given["obs"]),
        "prediction": latent.nll(decoded(step(z, given["action"])), given["next_obs"]),
        "prior": latent.prior(now),
        "transition": 0.3
        * latent.divergence(step(now.mean, given["action"]), now.std, step, after),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-7)
    np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-7)


@pytest.mark.parametrize("joint", [True, False])
def test_apart_the_transition_changes_no_code(joint: bool):
    """Of the terms of the transition, only its own network has a gradient then."""
    model = latent.make(O, A, dataclasses.replace(CONFIG, joint=joint))
    given = drawn()

    @jax.jit
    def gradient(params: Any) -> Any:
        def moved(params: Any) -> Array:
            rest = given["obs"], given["action"], given["next_obs"]
            _, terms = model.loss(params, given["pixels"], jax.random.key(0), *rest)
            return terms["prediction"] + terms["transition"]

        return jax.grad(moved)(params)

    found = gradient(given["params"])
    some = {
        name: max(np.abs(x).max() for x in jax.tree.leaves(found[name]))
        for name in found
    }
    assert some["transition"] > 1e-3
    assert (some["encoder"] > 1e-3) == joint
    assert (some["decoder"] > 1e-3) == joint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_size": 0}, "latent_size is 0, must be at least 1"),
        ({"transition_weight": -1.0}, "transition_weight is -1.0, must be at least 0"),
    ],
)
def test_what_cannot_be_is_an_early_error(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        latent.make(O, A, latent.Config(**change))
