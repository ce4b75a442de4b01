"""Deep spatial autoencoder: local controllers of the points of pictures.

    repeat:
        run `num_random` episodes at random, and `num_guided` with the last controller
        fit the autoencoder to the pictures of the latest episodes: points f(I)
        keep the `num_kept` points whose acceleration the actions explain best
        x = (their places, their velocities), filtered: what is not present goes on
        begin LQR-FLM anew on x, `num_iterations` steps of it, for the reward
            -mean |f - f(picture of the goal)|^2 - action_cost |u|^2
    policy: the controller, without noise, on what is seen

(Finn, Tan, Duan, Darrell, Levine and Abbeel, 2016, "Deep spatial autoencoders for
visuomotor learning", arXiv 1509.06113.)  The parts: `models/spatial_autoencoder.py`,
`models/point_filter.py`, `models/feature_points.py`, `local_policies/lqr_flm.py`.

The environment has to have a goal, and to show pictures, of which the newest frame
counts: `--env=pixels/...`.  Deviations: no other state than points, the paper has also
the robot's own; nothing is known before the first pictures but random actions, there a
controller without sight; rounds may be repeated; points are kept by what the actions
explain; the distance has no logarithm of its own.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import gathering, optimizers, policies
from mbrl_jax.envs import simulator
from mbrl_jax.envs.pixels import newest as newest_frame
from mbrl_jax.gathering import Counters
from mbrl_jax.local_policies import controllers, experience, lqr_flm
from mbrl_jax.models import feature_points, footage, point_filter, spatial_autoencoder
from mbrl_jax.models.feature_points import Sight
from mbrl_jax.models.footage import Footage
from mbrl_jax.models.spatial_autoencoder import Points
from mbrl_jax.ops import checks, finite, normalize
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, Params, Policy, Window


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    num_random: int = 50  # episodes at random, in a round
    num_guided: int = 10  # with the last controller, which is noise at first
    capacity: int = 120  # episodes of pictures kept
    num_updates: int = 500  # of the autoencoder
    batch_size: int = 16  # of three pictures in a row
    learning_rate: float = 5e-3  # of Adam
    max_norm: float = 1e3  # of a gradient, above which it is scaled down
    num_kept: int = 2  # K, points that controllers see
    action_cost: float = 0.01
    num_iterations: int = 10  # of LQR-FLM, in a round
    controller: str = "maximum_entropy"  # or feedback, open_loop
    prior: str = "mixture"  # or none
    num_episodes: int = 10  # N, in an iteration
    horizon: int = 0  # T, their steps; 0: of an episode
    max_kl: float = 0.5  # nats per time step, before it is adapted
    temperature: float = 0.0  # of maximum_entropy: a nat's worth in units of reward
    init_std: float = 0.5  # of the first controller, in units of the action limit
    strength: float = 1.0  # of the prior, in rows per time step
    num_clusters: int = 10  # of the mixture, at most
    rows_per_cluster: int = 40  # at least
    num_remembered: int = 20  # latest episodes: what the mixture, and the start, are of
    model: spatial_autoencoder.Config = spatial_autoencoder.Config()
    filter: point_filter.Config = point_filter.Config()


class State(NamedTuple):
    params: Params  # of the autoencoder
    opt_state: optax.OptState
    pixels: normalize.Statistics  # [C]
    kept: Array  # [K] int32, points that controllers see
    pictures: Footage
    local: lqr_flm.State  # of the last round
    counters: Counters


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be, and for an
    environment without a goal or without pictures."""
    _validate(env, config)
    assert env.goal is not None
    goal = env.goal
    if config.horizon:
        env = simulator.time_limit(env, config.horizon)
    image_shape = _image_shape(env)
    channels = image_shape[2]
    model = spatial_autoencoder.make(image_shape, config.model)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    at_random = gathering.episode_gatherer(env, config.num_random)
    guided = gathering.episode_gatherer(env, config.num_guided)

    newest = partial(newest_frame, env)  # in [0, 1]: [..., H, W, C]

    def sight(params: Params, pixels: normalize.Statistics, kept: Array) -> Sight:
        def look(obs: Array) -> Points:
            return model.encode(params, pixels, newest(obs))

        return Sight(look, kept, config.filter)

    def controlling(sight: Sight) -> Algorithm:
        """LQR-FLM on the points of the picture."""
        points = feature_points.make(env, sight)
        places = sight.look(goal().obs).place[sight.kept]
        reward = feature_points.toward(places, env.action_limit, config.action_cost)
        return lqr_flm.make(points, reward, config)

    def init(key: Key) -> State:
        model_key, local_key = jax.random.split(key)
        params = model.init(model_key)
        pixels, kept = normalize.identity(channels), jnp.arange(config.num_kept)
        return State(
            params=params,
            opt_state=optimizer.init(params),
            pixels=pixels,
            kept=kept.astype(jnp.int32),
            pictures=footage.none(
                config.capacity, env.episode_length, image_shape, env.action_size
            ),
            local=controlling(sight(params, pixels, kept)).init(local_key),
            counters=gathering.zero_counters(),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        random_key, guided_key, fit_key, init_key, key = jax.random.split(key, 5)
        counters, pictures = state.counters, state.pictures
        for gathered in (
            at_random.gather(random_key, policies.uniform(env), ()),
            guided.gather(guided_key, acting(state, noisy=True), ()),
        ):
            counters = gathering.count(counters, gathered)
            pictures = footage.append(pictures, filmed(gathered.windows))
        params, opt_state, terms = spatial_autoencoder.fit(
            fit_key,
            model,
            optimizer,
            state.params,
            state.opt_state,
            pictures,
            num_updates=config.num_updates,
            batch_size=config.batch_size,
        )
        pixels = footage.statistics(pictures)
        encode = partial(model.encode, params, pixels)
        seen = jax.lax.map(jax.vmap(encode), pictures.image)
        tied = feature_points.tied(seen.place, pictures)
        tied, kept = jax.lax.top_k(finite.losing(tied), config.num_kept)
        loop = controlling(sight(params, pixels, kept))
        local, metrics = jax.lax.scan(
            lambda local, key: loop.step(key, local),
            loop.init(init_key),
            jax.random.split(key, config.num_iterations),
        )
        counters = _both(counters, local.counters)
        state = State(params, opt_state, pixels, kept, pictures, local, counters)
        return state, {
            **jax.tree.map(lambda x: x[-1], metrics),
            **gathering.report(counters, local.counters.last_return),
            **{f"autoencoder/{name}": x for name, x in terms.items()},
            "gradient/skipped_updates": opt_state.num_skipped,
            "points/tied": tied.mean(),
            "points/presence": seen.presence[..., kept].mean(),
        }

    def filmed(windows: Window) -> Footage:
        steps = windows.transitions
        valid = windows.valid & finite.usable(steps.action, num_batch_axes=2)
        action = jnp.where(valid[..., None], steps.action / env.action_limit, 0)
        return Footage(newest(steps.obs), jnp.clip(action, -1, 1), valid)

    def acting(state: State, noisy: bool) -> Policy:
        return feature_points.policy(
            sight(state.params, state.pixels, state.kept),
            config.model.num_points,
            controllers.policy(state.local.controller, noisy=noisy),
        )

    def foresee(state: State, key: Key, obs: Array, action: Array) -> dict[str, Array]:
        """The small grey pictures of the points that are seen; nothing is predicted."""

        def drawn(obs: Array) -> Array:
            place = model.encode(state.params, state.pixels, newest(obs)).place
            return model.decode(state.params, state.pixels, place)

        return {"reconstructed": jax.lax.map(drawn, obs)[..., None]}

    return Algorithm(
        init, step, lambda state: acting(state, noisy=False), foresee=foresee
    )


def _both(pictures: Counters, control: Counters) -> Counters:
    """Of the episodes of pictures, and of those of a round's controllers."""
    return Counters(
        pictures.env_steps + control.env_steps,
        control.last_return,
        pictures.num_episodes + control.num_episodes,
        pictures.num_non_finite + control.num_non_finite,
    )


def _image_shape(env: Env) -> tuple[int, int, int]:
    """Of a single frame."""
    height, width, channels = env.obs_shape
    return height, width, channels // env.num_frames


def _validate(env: Env, config: Config) -> None:
    checks.continuous(env)
    if not env.obs_shape:
        raise ValueError(
            f"{env.name} shows no pictures: deep_spatial_autoencoder needs an "
            "environment such as pixels/NAME"
        )
    if env.goal is None:
        raise ValueError(
            f"{env.name} has no goal to be brought to: deep_spatial_autoencoder needs "
            "the picture of one"
        )
    counts = ("num_random", "num_guided", "num_updates", "batch_size")
    checks.at_least(config, 1, *counts, "num_kept", "num_iterations")
    checks.positive(config, "learning_rate", "max_norm")
    checks.at_least(config, 0, "action_cost")
    newest = config.num_random + config.num_guided
    if config.capacity < newest:
        raise ValueError(
            f"capacity is {config.capacity}, less than the {newest} episodes of a round"
        )
    if config.num_kept > config.model.num_points:
        raise ValueError(
            f"num_kept is {config.num_kept}, more than the "
            f"{config.model.num_points} of model.num_points"
        )
    validate = partial(spatial_autoencoder.validate, _image_shape(env))
    checks.under("model", validate, config.model)
    checks.under("filter", point_filter.validate, config.filter)
    seen = env._replace(obs_size=4 * config.num_kept)
    experience.check_settings(seen, config)
    lqr_flm.validate(config)
