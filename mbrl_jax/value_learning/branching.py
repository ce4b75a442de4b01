"""Learning from real data and from short futures imagined from it (Dyna, MBPO).

    once an iteration:
        fit the model to all real data
        imagine `num_rollouts` futures from real states on, of a length that may grow,
            into a buffer that forgets what was imagined `retain` iterations ago
    update the learner with batches of which `real_share` is real

All shapes are fixed: the buffer has room for the longest futures, and while they are
short only its newest part is drawn from, as much as futures of the length in use would
fill: somewhat older ones, too, right after a growth, or where futures ended early.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import replay
from mbrl_jax.models import by_name, imagine, outcomes
from mbrl_jax.models.outcomes import Decode
from mbrl_jax.ops import checks
from mbrl_jax.replay import Replay
from mbrl_jax.types import Array, Env, Key, Metrics, Model, Policy, PyTree, Transition
from mbrl_jax.value_learning import parts
from mbrl_jax.value_learning.off_policy import OffPolicyHooks
from mbrl_jax.value_learning.parts import ValueLearner


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    num_rollouts: int = 10_000  # imagined in an iteration
    first_length: int = 1  # their steps, at first
    last_length: int = 1  # and in the end
    grow_from: int = 0  # real steps, before which the length is the first
    grow_until: int = 1  # and from which on it is the last; linear between
    retain: int = 4  # iterations whose futures are kept
    real_share: float = 0.05  # of the rows of a batch


class ModelState(NamedTuple):
    model: PyTree
    imagined: Replay
    length: Array  # [] int32, of the futures imagined last
    before: PyTree  # the learner's state an iteration ago: it gathered the latest data
    horizon: Array  # [] int32, how far `learn` is to look ahead


class Setting(NamedTuple):
    """What there is to learn and to imagine with."""

    learner: ValueLearner
    model: Model
    decode: Decode
    config: Config
    batch_size: int


Draw = Callable[[Key, Replay, int, Policy], tuple[Array, Array | None]]
# (key, real data, N, policy) -> states [N, O], and actions [N, A] if not the policy's
Learn = Callable[[Key, PyTree, ModelState, Transition], tuple[PyTree, Metrics]]
# (key, learner's state, model state, batch) -> learner's state
Watch = Callable[[Key, PyTree, ModelState, Replay], Metrics]
# (key, learner's state, model state, real data), before the model has seen the latest
Choose = Callable[[Key, PyTree, ModelState, Replay], Array]
# with the same arguments, at the same time -> horizon [] int32


def seen(key: Key, data: Replay, number: int, policy: Policy) -> tuple[Array, None]:
    """Real states, and the policy's own actions: what MBPO starts from."""
    return replay.sample(key, data, number).obs, None


def length(config: Config, env_steps: Array) -> Array:
    """Of the futures, [] int32 (MBPO, App. C)."""
    span = max(config.grow_until - config.grow_from, 1)
    share = jnp.clip((env_steps - config.grow_from) / span, 0, 1)
    grown = share * (config.last_length - config.first_length)
    return config.first_length + jnp.floor(grown + 1e-6).astype(jnp.int32)


def make(
    env: Env,
    setting: Setting,
    *,
    learn: Learn | None = None,
    draw: Draw = seen,
    watch: Watch = lambda key, learned, model_state, data: {},
    choose: Choose = lambda key, learned, model_state, data: jnp.zeros((), jnp.int32),
) -> OffPolicyHooks:
    """The method.  Raises ValueError for a configuration that cannot be."""
    learner, model, decode, config, batch_size = setting
    _validate(config)
    capacity = config.retain * config.last_length * config.num_rollouts
    if learn is None:
        plain = parts.learner(learner).update
        learn = lambda key, learned, model_state, batch: plain(key, learned, batch)

    def init(key: Key) -> tuple[PyTree, ModelState]:
        learner_key, model_key = jax.random.split(key)
        learned = learner.init(learner_key)
        imagined = replay.of(env, capacity)
        one = jnp.full((), config.first_length, jnp.int32)
        return learned, ModelState(
            model.init(model_key), imagined, one, learned, jnp.zeros((), jnp.int32)
        )

    def prepare(
        key: Key,
        learned: PyTree,
        model_state: ModelState,
        data: Replay,
        env_steps: Array,
    ) -> tuple[ModelState, Metrics]:
        watch_key, choose_key, fit_key, draw_key, key = jax.random.split(key, 5)
        watched = watch(watch_key, learned, model_state, data)
        horizon = choose(choose_key, learned, model_state, data)
        fitted, metrics = model.fit(fit_key, model_state.model, data)
        now = length(config, env_steps)
        policy = learner.explore(learned)
        starts, first = draw(draw_key, data, config.num_rollouts, policy)
        imagined = imagine.branches(
            key,
            imagine.sample_ts1(model, model.members(fitted)),
            decode,
            policy,
            starts,
            now,
            model_state.imagined,
            first,
        )
        return ModelState(fitted, imagined, now, learned, horizon), {
            **metrics,
            **watched,
            "imagined/length": now,
            "imagined/transitions": imagined.size,
        }

    def update(
        key: Key, learned: PyTree, model_state: ModelState, data: Replay
    ) -> tuple[PyTree, Metrics]:
        real_key, key, imagined_key = jax.random.split(key, 3)
        newest = config.retain * config.num_rollouts * model_state.length
        batch = replay.mixed(
            (real_key, imagined_key),
            data,
            model_state.imagined,
            batch_size,
            config.real_share,
            newest,
        )
        return learn(key, learned, model_state, batch)

    return OffPolicyHooks(
        init,
        prepare,
        update,
        learner.explore,
        learner.policy,
        outcomes.of_every_member(model),
    )


def learned(
    env: Env,
    learner: ValueLearner,
    model_config: by_name.Config,
    config: Config,
    batch_size: int,
) -> Setting:
    model, decode = outcomes.learned(env, model_config)
    return Setting(learner, model, decode, config, batch_size)


def _validate(config: Config) -> None:
    checks.at_least(config, 1, "num_rollouts", "first_length", "retain")
    checks.at_least(config, 0, "grow_from", "grow_until")
    checks.at_most(config, "first_length", "last_length")
    checks.at_most(config, "grow_from", "grow_until")
    checks.within(config, 0, 1, "real_share")
