"""Deep spatial autoencoder: controllers of points, and what they are taught by."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, rollout
from mbrl_jax.algorithms import deep_spatial_autoencoder
from mbrl_jax.envs import pixels, simulator, two_discs
from mbrl_jax.models import spatial_autoencoder
from mbrl_jax.models.spatial_autoencoder import Points, SpatialAutoencoder
from mbrl_jax.types import Array

SHORT = simulator.time_limit(two_discs.make(), 20)
SEEN = pixels.make(SHORT, pixels.Config(size=4, colour=True))
CONFIG = deep_spatial_autoencoder.Config(
    num_random=3,
    num_guided=2,
    capacity=8,
    num_updates=2,
    batch_size=2,
    num_kept=1,
    num_iterations=4,
    num_episodes=8,
    prior="none",
    model=spatial_autoencoder.Config(3, (3,), (3, 1), decoded_size=2),
)


def known(shape: Any, config: spatial_autoencoder.Config) -> SpatialAutoencoder:
    """What pictures show is told by their first pixels, in bytes; see `told`."""

    def encode(params: Array, pixels: Any, image: Array) -> Points:
        pushed, other = (2 * image[0, :2, i] - 1 for i in (0, 1))
        return Points(jnp.stack([other, -other, pushed]), jnp.ones(3))

    return SpatialAutoencoder(
        init=lambda key: jnp.zeros(()),
        encode=encode,
        decode=lambda params, pixels, place: jnp.zeros((2, 2)),
        loss=lambda params, pixels, images: (params**2, {"reconstruction": params**2}),
    )


def told() -> Any:
    """Pictures of two frames, the newest last, whose first pixels say where the discs
    are; the older frame is wrong."""

    def show(state: Any) -> Any:
        inner = state.obs
        places = jnp.stack([inner[:2], inner[4:6]], axis=1)  # [x or y, disc]
        frame = jnp.zeros((4, 4, 3)).at[0, :2, :2].set((places + 1) / 2)
        picture = jnp.concatenate([1 - frame, frame], axis=-1)
        return state._replace(obs=jnp.round(255 * picture).astype(jnp.uint8), sim=state)

    return SHORT._replace(
        name="told",
        reset=lambda key: show(SHORT.reset(key)),
        step=lambda state, action: show(SHORT.step(state.sim, action)),
        reward=None,
        obs_size=0,
        obs_shape=(4, 4, 6),
        num_frames=2,
        goal=lambda: show(SHORT.goal()),
    )


@pytest.mark.slow
def test_the_controller_brings_the_points_to_those_of_the_goal(monkeypatch):
    """Only the pushed disc is tied to the actions, and it comes to its place."""
    monkeypatch.setattr(spatial_autoencoder, "make", known)
    env = told()
    algorithm = deep_spatial_autoencoder.make(env, CONFIG)

    @jax.jit
    def go(key: Array) -> tuple[Any, Any, Array, Array]:
        state, metrics = algorithm.step(key, algorithm.init(key))
        policy = algorithm.policy(state)
        _, episodes = rollout.evaluate(key, env, policy, 20)
        last = episodes.transitions.next_obs[:, -1, 0, :2, 3] / 255 * 2 - 1
        return state, metrics, episodes.transitions.reward.sum(axis=1), last

    state, metrics, returns, last = go(jax.random.key(0))
    np.testing.assert_array_equal(state.kept, [2])
    assert metrics["points/tied"] > 0.5
    away = np.linalg.norm(np.asarray(last) - two_discs.GOAL, axis=1)
    assert np.median(away) < 0.1
    assert returns.mean() > -6  # idle: about -20


@pytest.mark.slow
def test_a_round_learns_from_pictures_at_random_and_of_the_last_controller():
    algorithm = deep_spatial_autoencoder.make(SEEN, CONFIG)
    first = jax.jit(algorithm.init)(jax.random.key(0))
    step = jax.jit(algorithm.step)
    state, metrics = step(jax.random.key(1), first)
    assert metrics["env_steps"] == (3 + 2 + 4 * 8) * 20
    assert metrics["episode/num_finished"] == 3 + 2 + 4 * 8
    changed = jax.tree.map(lambda x, y: bool((x != y).any()), first, state).params
    assert all(jax.tree.leaves(changed))
    pictures = jax.tree.map(np.asarray, state.pictures)
    np.testing.assert_array_equal(pictures.valid.all(axis=1), 5 * [True] + 3 * [False])
    assert pictures.image[:5].min() >= 0
    assert 0.9 < pictures.image[:5].max() <= 1
    # the newest are of a controller that is normal noise, the others are uniform
    guided, random = pictures.action[:2], pictures.action[2:5]
    assert (np.abs(guided) < 0.5).mean() > (np.abs(random) < 0.5).mean()
    again, metrics = step(jax.random.key(2), state)
    assert metrics["env_steps"] == 2 * (3 + 2 + 4 * 8) * 20
    np.testing.assert_array_equal(again.pictures.image[5:], pictures.image[:3])
    mean, std = state.pixels
    seen = pictures.image[:5].reshape(-1, 3)
    np.testing.assert_allclose(mean, seen.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(std, seen.std(axis=0), rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_updates": 0}, "num_updates is 0, must be at least 1"),
        ({"num_kept": 4}, "num_kept is 4, more than the 3 of model.num_points"),
        ({"capacity": 4}, "capacity is 4, less than the 5 episodes of a round"),
        ({"action_cost": -1.0}, "action_cost is -1.0, must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, must be positive"),
        ({"horizon": 21}, "horizon is 21, more than the 20 steps of an episode"),
        ({"controller": "lqr"}, "controller is 'lqr', must be one of"),
        ({"max_kl": 0}, "max_kl is 0, must be positive"),
        (
            {"model": dataclasses.replace(CONFIG.model, decoded_size=3)},
            "model.decoded_size is 3, must divide the 4 and 4 pixels",
        ),
        (
            {"filter": dataclasses.replace(CONFIG.filter, place_std=0.0)},
            "filter.place_std is 0.0, must be positive",
        ),
    ],
)
def test_what_cannot_be_is_an_early_error(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        deep_spatial_autoencoder.make(SEEN, dataclasses.replace(CONFIG, **change))


def test_it_needs_pictures_and_a_goal():
    with pytest.raises(ValueError, match="two_discs shows no pictures"):
        deep_spatial_autoencoder.make(SHORT, CONFIG)
    blind = envs.make("pixels/pendulum/size=4")
    with pytest.raises(ValueError, match="pixels/pendulum has no goal to be brought"):
        deep_spatial_autoencoder.make(blind, CONFIG)


def test_what_is_reconstructed_is_drawn_from_the_points_of_the_newest_frame(
    monkeypatch,
):
    def draws(shape: Any, config: Any) -> SpatialAutoencoder:
        decode = lambda params, pixels, place: jnp.broadcast_to(place[2:, :1], (2, 2))
        return known(shape, config)._replace(decode=decode)

    monkeypatch.setattr(spatial_autoencoder, "make", draws)
    env = told()
    algorithm = deep_spatial_autoencoder.make(env, CONFIG)
    states = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 5))
    state, action = algorithm.init(jax.random.key(1)), jnp.zeros((4, 2))
    found = algorithm.foresee(state, jax.random.key(0), states.obs, action)
    assert found["reconstructed"].shape == (5, 2, 2, 1)
    pushed = np.asarray(states.sim.obs[:, 0])
    drawn = np.asarray(found["reconstructed"])[:, 1, 0, 0]
    np.testing.assert_allclose(drawn, pushed, atol=0.01)
