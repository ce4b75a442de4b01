"""An environment of pictures as one of points: the same from inside and outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import rollout
from mbrl_jax.algorithms import gps
from mbrl_jax.envs import simulator, two_discs
from mbrl_jax.models import feature_points
from mbrl_jax.models.feature_points import Sight
from mbrl_jax.models.footage import Footage
from mbrl_jax.models.spatial_autoencoder import Points
from mbrl_jax.types import Array, Key, Policy, PyTree

pytestmark = pytest.mark.usefixtures("double")

PLAIN = simulator.time_limit(two_discs.make(), 12)
KEPT = jnp.array([2, 0])
GAINS = 0.3 * np.random.default_rng(0).normal(size=(2, 8))


def look(obs: Array) -> Points:
    """Three points: the pushed disc, the other one, and the middle between them; the
    last is hidden on the left."""
    places = jnp.stack([obs[:2], obs[4:6], (obs[:2] + obs[4:6]) / 2])
    seen = jnp.array([1.0, 1.0, 0.0]).at[2].set(jnp.where(places[2, 0] < 0, 0.0, 1.0))
    return Points(places, seen)


SIGHT = Sight(look, KEPT)


def linear() -> Policy:
    """Of the points, and of how often it was asked."""

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        return jnp.tanh(GAINS @ obs + 0.1 * memory), memory + 1

    return Policy(lambda: jnp.zeros((), jnp.int32), act)


def test_a_policy_on_pictures_does_what_it_does_on_points():
    points = feature_points.make(PLAIN, SIGHT)
    assert points.obs_size == 8
    assert points.obs_shape == ()
    inside = feature_points.policy(SIGHT, 3, linear())

    @jax.jit
    def both(key: Key) -> tuple[rollout.Episode, rollout.Episode]:
        return (
            rollout.episode(key, points, linear()),
            rollout.episode(key, PLAIN, inside),
        )

    a, b = jax.tree.map(np.asarray, both(jax.random.key(1)))
    np.testing.assert_allclose(a.transitions.action, b.transitions.action, atol=1e-12)
    np.testing.assert_allclose(a.transitions.reward, b.transitions.reward, atol=1e-12)
    assert np.ptp(a.transitions.action, axis=0).min() > 0.1
    obs, true = a.transitions.next_obs, b.transitions.next_obs
    # the pushed disc, second of those kept; the velocity lags behind
    np.testing.assert_allclose(obs[:, 2:4], true[:, :2], atol=0.02)
    assert np.corrcoef(obs[:, 6], true[:, 2])[0, 1] > 0.9


def test_the_goal_is_seen_as_points_at_rest():
    points = feature_points.make(PLAIN, SIGHT)
    assert points.goal is not None
    obs = points.goal().obs
    np.testing.assert_allclose(obs[2:4], two_discs.GOAL)
    np.testing.assert_allclose(obs[4:], 0)


def test_the_reward_is_the_distance_from_the_places():
    places = jnp.array([[0.1, 0.2], [0.3, -0.4]])
    reward = feature_points.toward(places, 2.0, 0.5)
    there = jnp.concatenate([places.ravel(), jnp.array([5.0, 5.0, 5.0, 5.0])])
    nothing, obs = jnp.zeros(2), jnp.full(8, 9.0)
    np.testing.assert_allclose(reward(obs, nothing, there), 0)
    away = there.at[0].add(0.2).at[3].add(0.4)
    np.testing.assert_allclose(reward(obs, nothing, away), -(0.04 + 0.16) / 2)
    push = jnp.array([1.0, -2.0])
    np.testing.assert_allclose(reward(obs, push, there), -0.5 * (0.25 + 1.0))


def test_what_actions_push_is_tied_and_what_drifts_or_jumps_is_not():
    """Of four points: pushed, pushed a step later, drifting, jumping; and one fixed."""
    rng = np.random.default_rng(1)
    E, T = 30, 20
    action = rng.uniform(-1, 1, (E, T, 2))
    pushed = np.cumsum(np.cumsum(action, axis=1), axis=1) * 0.01
    pushed = np.concatenate([np.zeros((E, 1, 2)), pushed[:, :-1]], axis=1)
    late = np.concatenate([np.zeros((E, 1, 2)), pushed[:, :-1]], axis=1)
    drift = np.cumsum(np.cumsum(rng.normal(size=(E, T, 2)), axis=1), axis=1)
    jumps, still = rng.normal(size=(E, T, 2)), np.full((E, T, 2), 0.3)
    places = np.stack([pushed, late, drift, jumps, still], axis=2)
    valid = rng.uniform(size=(E, T)) < 0.95
    places[~valid] = 1e3  # does not count
    pictures = Footage(jnp.zeros((E, T)), jnp.asarray(action), jnp.asarray(valid))
    found = feature_points.tied(jnp.asarray(places), pictures)
    assert (np.asarray(found[:2]) > 0.999).all()
    assert (np.abs(np.asarray(found[2:4])) < 0.05).all()
    assert found[4] == 0


def test_guided_policy_search_takes_it():
    points = feature_points.make(PLAIN, SIGHT)
    places = jnp.array([two_discs.GOAL, two_discs.GOAL])
    points = points._replace(reward=feature_points.toward(places, 1.0))
    algorithm, key = gps.make(points, gps.Config(num_conditions=2)), jax.random.key(0)
    before = jax.eval_shape(algorithm.init, key)
    after, _ = jax.eval_shape(algorithm.step, key, before)
    assert jax.tree.structure(after) == jax.tree.structure(before)
