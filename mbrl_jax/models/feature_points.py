"""An environment of pictures as one of points: what is seen is where points are.

obs [4 K]: the places (x, y) of K points, then their velocities per step, filtered; the
filter's memory is part of the simulator's state, or of a policy's memory.  Rewards and
ends stay those of the environment.  So whatever acts on vectors acts on pictures, with
`reward` in place of the one that only the simulator knows:

    points = make(env, Sight(look, kept))
    method = gps.make(points._replace(reward=toward(places, action_limit)))
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.models import footage, point_filter
from mbrl_jax.models.footage import Footage
from mbrl_jax.models.point_filter import Track
from mbrl_jax.models.spatial_autoencoder import Points
from mbrl_jax.ops import spatial
from mbrl_jax.types import Array, Env, EnvState, Key, Policy, PyTree

RIDGE = 1e-6  # of the variance of actions in units of their limit


class Sight(NamedTuple):
    """What is made of a picture."""

    look: Callable[[Array], Points]  # obs of the environment -> points [P]
    kept: Array  # [K] int32, those that are shown
    filter: point_filter.Config = point_filter.Config()


class Sim(NamedTuple):
    """What `EnvState.sim` is."""

    inner: EnvState  # of the environment that is seen
    track: Track  # of all points


def make(env: Env, sight: Sight) -> Env:
    """The environment of points; `sight` may be traced."""

    def seen(inner: EnvState, track: Track) -> EnvState:
        return inner._replace(obs=shown(sight, track), sim=Sim(inner, track))

    def first(inner: EnvState) -> EnvState:
        return seen(inner, point_filter.start(sight.look(inner.obs), sight.filter))

    def step(env_state: EnvState, action: Array) -> EnvState:
        inner, track = env_state.sim
        inner = env.step(inner, action)
        points = sight.look(inner.obs)
        return seen(inner, point_filter.follow(track, points, sight.filter))

    draw, paint, goal = env.render, env.picture, env.goal
    return env._replace(
        name=f"points/{env.name}",
        reset=lambda key: first(env.reset(key)),
        step=step,
        obs_size=4 * len(sight.kept),
        obs_shape=(),
        num_frames=1,
        reward=None,
        terminal=None,
        belief=None,
        render=draw and (lambda env_states: draw(env_states.sim.inner)),
        picture=paint and (lambda state, *size: paint(state.sim.inner, *size)),
        goal=goal and (lambda: first(goal())),
    )


def policy(sight: Sight, num_points: int, acting: Policy) -> Policy:
    """What acts on points, as a policy in the environment of pictures.

    Its memory: the track, whether there is one yet, and the memory of `acting`.
    """

    def init() -> PyTree:
        nothing = jnp.zeros((num_points, 2, 2))
        return Track(nothing, nothing), jnp.zeros((), bool), acting.init()

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        track, begun, memory = memory
        points = sight.look(obs)
        first = point_filter.start(points, sight.filter)
        later = point_filter.follow(track, points, sight.filter)
        track = jax.tree.map(lambda x, y: jnp.where(begun, x, y), later, first)
        action, memory = acting.act(key, shown(sight, track), memory)
        return action, (track, jnp.ones((), bool), memory)

    return Policy(init, act)


def shown(sight: Sight, track: Track) -> Array:
    """The kept points of a track, [4 K]."""
    place, velocity = track.place[sight.kept], track.velocity[sight.kept]
    return jnp.concatenate([place.ravel(), velocity.ravel()])


def toward(
    places: Array, action_limit: float, action_cost: float | Array = 0.01
) -> Callable[[Array, Array, Array], Array]:
    """The reward of bringing the points to `places` [K, 2]: minus the mean square of
    their distances, and of the action in units of its limit."""
    size = places.size

    def reward(obs: Array, action: Array, next_obs: Array) -> Array:
        away = jnp.square(next_obs[:size] - places.ravel()).sum() / len(places)
        return -away - action_cost * jnp.square(action / action_limit).sum()

    return reward


def tied(places: Array, pictures: Footage) -> Array:
    """How far each point's acceleration follows from the actions, [P] in [0, 1].

    places [E, T, P, 2].  The share of its variance that a linear function of the action
    before it and the one before that explains.  What drifts about by itself, or jumps,
    is near 0: a controller has no use for it.
    """
    weight = footage.in_a_row(pictures).ravel().astype(places.dtype)[:, None]  # [N, 1]
    rows = lambda x: x.reshape(len(weight), -1)
    middle = lambda x, i: x[:, i : x.shape[1] - 2 + i]
    bent = rows(spatial.acceleration(jnp.stack([middle(places, i) for i in range(3)])))
    action = jnp.concatenate([rows(middle(pictures.action, i)) for i in (0, 1)], axis=1)
    number = jnp.maximum(weight.sum(), 1)
    centred = lambda x: weight * (x - (weight * x).sum(axis=0, keepdims=True) / number)
    x, y = centred(action), centred(bent)
    some = RIDGE * number * jnp.eye(x.shape[1], dtype=x.dtype)
    left = y - x @ jnp.linalg.solve(x.T @ x + some, x.T @ y)
    of_points = lambda x: jnp.square(x).sum(axis=0).reshape(-1, 2).sum(axis=1)  # [P]
    whole = of_points(y)
    share = of_points(left) / jnp.where(whole > 0, whole, 1)
    return jnp.where(whole > 0, 1 - share, 0)
