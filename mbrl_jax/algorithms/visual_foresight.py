"""Visual foresight: plans in predicted video, for where a pixel goes.

    repeat:
        run `num_episodes` episodes at random, and remember them
        `num_updates` times: a step down the loss of `models/video.py`, on sequences
    policy: P = where the object is, by its colour while it is in sight; at every step
        plan: maximise -sum_t E[distance of a pixel of P_t to the goal], where the flow
            that predicts the picture of time t moves P, too
        act; out of sight, P is moved by the flow of what was done

(Finn and Levine, 2017, arXiv 1610.00696, Sec. 4 and 5; SNA: Ebert et al., 2017, arXiv
1710.05268.)  The environment has to have a goal, and to show pictures in the channels
of `colour`: `--env=pixels/NAME/colour=1`.  Of several frames the newest is looked at.

In the paper a user points at a pixel and at its goal.  Here the object is named by its
`colour`: the pixels of that are the designated ones, and the goal is their middle in
the picture of the environment's goal.  Nothing else is known of either.  Deviations: it
is found anew in each picture in which there is half as much of it as in the first, in
place of another program's optical flow from that one.  The skip of SNA
leads to the last picture in which the object was in sight, at planning the present one
mostly.  P is not made to add up to 1 after each step: what is missing is out of sight,
and taken to be as far from the goal as it was when the plan was begun, or a plan that
hides the object would be as good as what is left of it.  The search is iCEM by default,
whose actions are smooth; the paper's are held for three steps each.  Actions are in
units of their limit.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import gathering, optimizers, replay
from mbrl_jax.envs.pixels import newest as newest_frame
from mbrl_jax.gathering import Counters
from mbrl_jax.models import video
from mbrl_jax.models.video import Scene
from mbrl_jax.ops import checks, flow
from mbrl_jax.planners import mpc
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Key,
    Metrics,
    Params,
    Policy,
    PyTree,
    Simulation,
)

_SLIP = 1e-2  # probability that flow, or likeness, says nothing
_IN_SIGHT = 0.5  # of its pixels in the first picture: then the object is


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 10_000  # transitions kept
    num_episodes: int = 50  # at random, in an iteration
    persistence: float = 0.6  # how likely a random action is to be held for a step more
    num_updates: int = 250
    batch_size: int = 32  # sequences
    length: int = 3  # steps of a sequence
    learning_rate: float = 3e-3  # of Adam
    max_norm: float = 1.0  # of a gradient, above which it is scaled down
    colour: tuple[float, ...] = (0.91, 0.47, 0.2)  # of the object, one number a channel
    colour_std: float = 0.2  # how far from that a pixel may be
    planner: str = "icem"  # or any other of MPC's
    plan: mpc.Config = mpc.Config(
        horizon=8, interval=2, num_samples=40, num_elites=6, init_std=0.8
    )
    model: video.Config = video.Config()


class State(NamedTuple):
    params: Params
    opt_state: optax.OptState
    replay: replay.Replay
    counters: Counters


class _Sight(NamedTuple):
    """Where the object is, by what has been seen and done."""

    picture: Scene  # [H, W, C]
    pixels: Scene  # [H, W, 1] P
    action: Array  # [A] the last one, in units of its limit
    amount: Array  # [] of likeness in the first picture
    time: Array  # [] int32


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be, and for an
    environment without a goal or without pictures."""
    shape = _validate(env, config)
    assert env.goal is not None
    goal, limit = env.goal, env.action_limit
    model = video.make(shape, env.action_size, config.model)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    gatherer = gathering.episode_gatherer(env, config.num_episodes)

    as_pictures = partial(newest_frame, env)  # [..., H, W, F C] -> [..., H, W, C]

    def likeness(picture: Array) -> Array:
        """Of each pixel with the object, [H, W, 1] in [0, 1]."""
        away = (picture - jnp.array(config.colour)[None, None]) / config.colour_std
        return jnp.exp(-0.5 * jnp.square(away).sum(axis=-1, keepdims=True))

    def init(key: Key) -> State:
        params = model.init(key)
        data = replay.of(env, config.capacity)
        counters = gathering.zero_counters()
        return State(params, optimizer.init(params), data, counters)

    def loss(params: Params, key: Key, data: replay.Replay) -> Array:
        rows, valid = replay.sample_sequences(
            key, data, config.batch_size, config.length
        )
        obs = jnp.concatenate([rows.obs[:, :1], rows.next_obs], axis=1)
        each = jax.vmap(model.loss, in_axes=(None, 0, 0, 0))
        return each(params, as_pictures(obs), rows.action / limit, valid).mean()

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        act_key, key = jax.random.split(key)
        gathered = gatherer.gather(act_key, _wandering(env, config.persistence), ())
        rows, valid = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]),
            (gathered.windows.transitions, gathered.windows.valid),
        )
        data = replay.insert(state.replay, rows, valid)

        def update(
            carry: tuple[Params, PyTree], key: Key
        ) -> tuple[tuple[Params, PyTree], Array]:
            value, gradient = jax.value_and_grad(loss)(carry[0], key, data)
            return optimizers.descend(optimizer, gradient, carry[1], carry[0]), value

        keys = jax.random.split(key, config.num_updates)
        start = (state.params, state.opt_state)
        (params, opt_state), losses = jax.lax.scan(update, start, keys)
        counters = gathering.count(state.counters, gathered)
        return State(params, opt_state, data, counters), {
            "video/loss": losses[-max(1, config.num_updates // 10) :].mean(),
            "gradient/skipped_updates": opt_state.num_skipped,
            **gathering.report(counters, gathered.returns[:, -1].mean()),
        }

    def policy(state: State) -> Policy:
        aim = flow.centre(flow.normalised(likeness(as_pictures(goal().obs))[..., 0]))

        def future(key: Key, sight: Any) -> Simulation:  # a _Sight
            so_far = flow.expected_distance(sight.pixels.now[..., 0], aim)

            def ahead(
                scenes: tuple[Scene, Scene], action: Array
            ) -> tuple[tuple[Scene, Scene], Array]:
                picture, pixels = scenes
                by = model.flow(state.params, picture, action / limit)
                pixels = video.track(by, pixels)
                away = flow.expected_distance(pixels.now[..., 0], aim, so_far)
                return (video.moved(by, picture), pixels), -away

            return Simulation((sight.picture, sight.pixels), ahead)

        plans = mpc.make(config.planner, config.plan, env.action_size, limit, future)

        def look(picture: Array, last: _Sight) -> _Sight:
            alike = likeness(picture)
            amount = jnp.where(last.time == 0, alike.sum(), last.amount)
            seen = alike.sum() >= _IN_SIGHT * amount  # so it is where it begins
            # one step from the last picture: what a skip leads to is that, too
            before = Scene(last.picture.now, last.picture.now)
            by = model.flow(state.params, before, last.action)
            moved = video.track(by, Scene(last.pixels.now, last.pixels.now)).now
            moved = (moved + _SLIP / moved.size) * (alike + _SLIP)
            now = flow.normalised(jnp.where(seen, alike, moved))
            newest = lambda x, old: Scene(x, jnp.where(seen, x, old.first))
            return _Sight(
                newest(picture, last.picture),
                newest(now, last.pixels),
                last.action,
                amount,
                last.time + 1,
            )

        def first() -> tuple[_Sight, PyTree]:
            blank, nothing = jnp.zeros(shape), jnp.zeros((*shape[:2], 1))
            return _Sight(
                Scene(blank, blank),
                Scene(nothing, nothing),
                jnp.zeros(env.action_size),
                jnp.zeros(()),
                jnp.zeros((), jnp.int32),
            ), plans.init()

        def act(
            key: Key, obs: Array, memory: tuple[_Sight, PyTree]
        ) -> tuple[Array, tuple[_Sight, PyTree]]:
            sight = look(as_pictures(obs), memory[0])
            seen: Any = sight  # an observation, for a planner
            action, plan = plans.act(key, seen, memory[1])
            return action, (sight._replace(action=action / limit), plan)

        return Policy(first, act)

    def foresee(state: State, key: Key, obs: Array, action: Array) -> dict[str, Array]:
        first = as_pictures(obs[0])

        def ahead(scene: Scene, action: Array) -> tuple[Scene, Array]:
            scene = video.moved(model.flow(state.params, scene, action / limit), scene)
            return scene, scene.now

        _, pictures = jax.lax.scan(ahead, Scene(first, first), action)
        return {"predicted": jnp.concatenate([first[None], pictures])}

    return Algorithm(init, step, policy, foresee=foresee)


def _wandering(env: Env, persistence: float | Array) -> Policy:
    """Uniform actions, each of which is held for a while."""

    def act(key: Key, obs: Array, memory: Array) -> tuple[Array, Array]:
        new_key, hold_key = jax.random.split(key)
        new = jax.random.uniform(new_key, memory.shape, minval=-1.0)
        unit = jnp.where(jax.random.uniform(hold_key) < persistence, memory, new)
        return env.action_limit * unit, unit

    return Policy(lambda: jnp.zeros(env.action_size), act)


def _validate(env: Env, config: Config) -> tuple[int, int, int]:
    """The shape of the pictures [H, W, C].  Raises ValueError for what cannot be."""
    checks.continuous(env)
    if not env.obs_shape:
        raise ValueError(f"{env.name} shows no pictures, as pixels/NAME/colour=1 does")
    if env.goal is None:
        raise ValueError(f"{env.name} has no goal: visual foresight plans for one")
    counts = ("num_episodes", "num_updates", "batch_size", "length")
    checks.at_least(config, 1, *counts)
    checks.within(config, 0, 1, "persistence")
    checks.positive(config, "learning_rate", "max_norm", "colour_std")
    checks.holds_an_episode(config, env)
    if config.length > config.num_episodes * env.episode_length:
        raise ValueError(
            f"length is {config.length}, more than the {config.num_episodes} x "
            f"{env.episode_length} steps of an iteration's episodes"
        )
    mpc.validate(config.planner, config.plan)
    checks.under("model", video.validate, config.model)
    height, width, channels = env.obs_shape
    if channels != len(config.colour) * env.num_frames:
        raise ValueError(
            f"colour has {len(config.colour)} channels, a picture of {env.name} "
            f"{channels // env.num_frames}"
        )
    return height, width, len(config.colour)
