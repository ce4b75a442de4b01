"""Imitation: a teacher with a memory is asked, and least squares have closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax import imitation, replay
from mbrl_jax.types import Policy, Transition

pytestmark = pytest.mark.usefixtures("double")

LIMIT = 4.0
RNG = np.random.default_rng(0)
OBS = RNG.normal(size=(20, 3))
ACTIONS = OBS @ RNG.normal(size=(3, 2)) + 0.5 * RNG.normal(size=(20, 2))
WEIGHTS = np.where(np.arange(20) < 10, 1.0, 3.0)


def answers(capacity: int = 30) -> replay.Replay:
    """The rows above, and room for more, which is never drawn from."""
    zeros, flags = np.zeros(20), np.zeros(20, bool)
    rows = Transition(OBS, ACTIONS, zeros, OBS, flags, flags)
    data = replay.init(3, 2, capacity)
    return replay.insert(data, jax.tree.map(jnp.asarray, rows), jnp.ones(20, bool))


def fit(weights: np.ndarray | None, num_updates: int = 1500) -> tuple[Any, Any]:
    """Of a linear policy, by gradient descent whose steps become small."""
    optimizer = optax.sgd(optax.exponential_decay(20.0, num_updates, 1e-3))
    params = jnp.zeros((3, 2))
    params, _, losses = jax.jit(
        lambda weights: imitation.fit(
            jax.random.key(0),
            lambda params, obs: obs @ params,
            optimizer,
            params,
            optimizer.init(params),
            answers(),
            action_limit=LIMIT,
            num_updates=num_updates,
            batch_size=64,
            weights=weights,
        )
    )(None if weights is None else jnp.asarray(weights))
    return np.asarray(params), np.asarray(losses)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_linear_policy_becomes_the_weighted_least_squares(weights):
    room = None if weights is None else np.append(weights, np.full(10, 1e6))
    found, losses = fit(room)
    root = np.sqrt(np.ones(20) if weights is None else weights)[:, None]
    best = np.linalg.lstsq(root * OBS, root * ACTIONS, rcond=None)[0]
    other = np.linalg.lstsq(OBS / root, ACTIONS / root, rcond=None)[0]
    np.testing.assert_allclose(found, best, atol=0.03)
    if weights is not None:
        assert np.abs(other - best).max() > 0.1  # so that weights are seen to count
    mean = (root**2 * ((OBS @ best - ACTIONS) / LIMIT) ** 2).mean()
    assert losses[-500:].mean() == pytest.approx(mean, rel=0.05)


def test_a_matrix_weighs_one_action_against_the_other():
    """Generalised least squares, each row in its own metric."""
    root = np.random.default_rng(1).normal(size=(20, 2, 2)) + np.eye(2)
    metric = root @ root.transpose(0, 2, 1)
    metric *= 2 / np.trace(metric, axis1=1, axis2=2).mean()
    found, losses = fit(np.append(metric, np.full((10, 2, 2), 1e6), axis=0))
    left = np.einsum("nac,ni,nj->iajc", metric, OBS, OBS).reshape(6, 6)
    right = np.einsum("nac,ni,nc->ia", metric, OBS, ACTIONS).ravel()
    best = np.linalg.solve(left, right).reshape(3, 2)
    np.testing.assert_allclose(found, best, atol=0.03)
    plain = np.linalg.lstsq(OBS, ACTIONS, rcond=None)[0]
    assert np.abs(plain - best).max() > 0.1
    error = (OBS @ best - ACTIONS) / LIMIT
    mean = np.einsum("na,nac,nc->n", error, metric, error).mean() / 2
    assert losses[-500:].mean() == pytest.approx(mean, rel=0.1)


def test_the_first_loss_is_that_before_the_first_update():
    _, losses = fit(None, num_updates=1)
    rows = replay.sample(jax.random.split(jax.random.key(0), 1)[0], answers(), 64)
    assert losses == pytest.approx(np.square(rows.action / LIMIT).mean())


def test_a_teacher_is_asked_on_its_own_way():
    """Its memory goes from step to step, and its keys differ."""

    def act(key: Any, obs: Any, memory: Any) -> tuple[Any, Any]:
        return jnp.stack([obs[0] + memory, jax.random.uniform(key)]), memory + 1

    teacher = Policy(lambda: jnp.zeros(()), act)
    found = imitation.ask(jax.random.key(0), teacher, jnp.asarray(OBS))
    np.testing.assert_allclose(found[:, 0], OBS[:, 0] + np.arange(20))
    assert len(np.unique(found[:, 1])) == 20
