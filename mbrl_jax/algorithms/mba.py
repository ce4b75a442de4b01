"""MBA: NAF with imagination rollouts (Gu et al., 2016, arXiv 1603.00748, Sec. 5).

"Continuous deep Q-learning with model-based acceleration", Algorithm 2:

    repeat:
        fit the model to the latest episodes
        imagine `rollout_length` steps from states visited in them, by what explores,
            into a buffer of its own
        for each real step: act, and update NAF `updates_per_step` times with batches
            of which `real_share` is real
        imagine no more, and learn from what is real alone, after `imagine_until` steps

The models: "linear", local linear-Gaussian dynamics of each time step of an episode,
with the environment's own reward and termination; "network", an ensemble, or another of
`models/by_name.py`, fitted to all real data; "none", which is NAF, as is `real_share`
1.  Deviations: real and imagined rows share a batch instead of taking turns; the model
is refitted once an iteration; no exploration by iLQG; noise of the linear model is
drawn for each variable by itself.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import replay
from mbrl_jax.models import by_name as models
from mbrl_jax.models import imagine, linear_gaussian, outcomes
from mbrl_jax.models.imagine import Sampler
from mbrl_jax.models.linear_gaussian import Dynamics, Episodes
from mbrl_jax.models.outcomes import Decode
from mbrl_jax.ops import checks, loop
from mbrl_jax.replay import Replay
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Gaussian,
    Key,
    Learner,
    Metrics,
    PyTree,
)
from mbrl_jax.value_learning import naf, off_policy, parts
from mbrl_jax.value_learning.off_policy import OffPolicyHooks


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    model: str = "linear"  # linear, network or none
    collect: off_policy.Config = off_policy.Config(updates_per_step=5)
    learn: naf.Config = naf.Config()
    num_episodes: int = 5  # latest ones in each environment: fitted to, started from
    num_rollouts: int = 100  # imagined in an iteration
    rollout_length: int = 10  # their steps
    retain: int = 4  # iterations whose rollouts are kept
    real_share: float = 0.5  # of the rows of a batch
    imagine_until: int = 0  # real steps, after which all is real; 0: never
    strength: float = 1.0  # of the linear models' prior, in rows per time step
    network: models.Config = models.Config()


State = off_policy.State


class _World(NamedTuple):
    model: PyTree
    imagined: Replay
    real_share: Array  # [] of batches now


class _Model(NamedTuple):
    init: Callable[[Key], PyTree]
    fit: Callable[[Key, PyTree, Replay, Episodes], tuple[PyTree, Metrics]]
    # (key, state, real data, latest episodes) -> state
    at: Callable[[PyTree, Array], Sampler]  # (state, time steps [N]) -> what follows
    decode: Decode
    predict: Callable[[PyTree, Array, Array], Gaussian] | None  # see `Method`


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    _validate(env, config)
    learner = parts.learner(naf.make(env, config.learn))
    method = off_policy.model_free(learner, config.collect.batch_size)
    if config.model != "none":
        model = _MODELS[config.model](env, config)
        method = _with_imagination(env, config, learner, model)
    return off_policy.make(env, method, config.collect)


def _with_imagination(
    env: Env, config: Config, learner: Learner, model: _Model
) -> OffPolicyHooks:
    checks.holds_an_episode(config.collect, env)
    size, num_envs = config.collect.batch_size, config.collect.num_envs
    capacity = config.retain * config.num_rollouts * config.rollout_length

    def init(key: Key) -> tuple[PyTree, _World]:
        imagined = replay.init(env.obs_size, env.action_size, capacity)
        learner_key, model_key = jax.random.split(key)
        world = _World(model.init(model_key), imagined, jnp.ones(()))
        return learner.init(learner_key), world

    def dream(key: Key, learned: PyTree, model_state: _World, data: Replay) -> tuple:
        fit_key, start_key, key = jax.random.split(key, 3)
        episodes = linear_gaussian.latest(
            data, num_envs, config.num_episodes, env.episode_length
        )
        state, metrics = model.fit(fit_key, model_state.model, data, episodes)
        obs, time = _draw(start_key, episodes, config.num_rollouts)

        def step(now: tuple, key: Key) -> tuple[tuple, None]:
            (obs, time, alive, buffer), (act_key, key) = now, jax.random.split(key)
            keys = jax.random.split(act_key, len(obs))
            action = jax.vmap(lambda key, obs: act(key, obs, ())[0])(keys, obs)
            rows = imagine.advance(
                key, model.at(state, time), model.decode, obs, action
            )
            buffer = replay.insert(buffer, rows, alive)
            alive = alive & ~rows.terminal & (time + 1 < env.episode_length)
            return (rows.next_obs, time + 1, alive, buffer), None

        act = learner.explore(learned).act
        alive = jnp.full(len(obs), episodes.valid.any())
        keys = jax.random.split(key, config.rollout_length)
        now, _ = jax.lax.scan(step, (obs, time, alive, model_state.imagined), keys)
        return state, now[-1], metrics

    def prepare(
        key: Key, learned: PyTree, model_state: _World, data: Replay, env_steps: Array
    ) -> tuple[_World, Metrics]:
        go = lambda model_state: dream(key, learned, model_state, data)
        shapes = jax.eval_shape(go, model_state)[-1]
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        until = config.imagine_until
        on = (env_steps < until) | (until == 0)
        state, imagined, metrics = loop.when(
            on,
            lambda _: go(model_state),
            (model_state.model, model_state.imagined, blank),
        )
        used = on & (imagined.size > 0)
        share = jnp.where(used, config.real_share, jnp.ones(()))
        return _World(state, imagined, share), {
            **metrics,
            "imagined/transitions": imagined.size,
            "imagined/real_share": share,
        }

    def update(
        key: Key, learned: PyTree, model_state: _World, data: Replay
    ) -> tuple[PyTree, Metrics]:
        real_key, key, imagined_key = jax.random.split(key, 3)
        keys, share = (real_key, imagined_key), model_state.real_share
        batch = replay.mixed(keys, data, model_state.imagined, size, share)
        return learner.update(key, learned, batch)

    return OffPolicyHooks(
        init, prepare, update, learner.explore, learner.policy, model.predict
    )


def _linear(env: Env, config: Config) -> _Model:
    if env.reward is None or env.terminal is None:
        raise ValueError(
            f"only the simulator of {env.name} knows its rewards or terminations, and "
            "linear models do not learn them: model must be network or none"
        )
    last = env.episode_length - 1

    def init(key: Key) -> Dynamics:
        shape = env.episode_length, env.obs_size
        F = jnp.zeros((*shape, env.obs_size + env.action_size))
        return Dynamics(F, jnp.zeros(shape), jnp.zeros((*shape, env.obs_size)))

    def fit(
        key: Key, state: Dynamics, data: Replay, episodes: Episodes
    ) -> tuple[Dynamics, Metrics]:
        prior = linear_gaussian.pooled(episodes, config.strength)
        state = linear_gaussian.fit(episodes, prior)
        variances = jnp.diagonal(state.cov, axis1=1, axis2=2)
        return state, {"model/std": jnp.sqrt(variances).mean()}

    def at(state: Dynamics, time: Array) -> Sampler:
        predict = jax.vmap(partial(linear_gaussian.predict, state))

        def sample(key: Key, obs: Array, action: Array) -> Array:
            mean, std = predict(jnp.minimum(time, last), obs, action)
            return mean + std * jax.random.normal(key, mean.shape, mean.dtype)

        return sample

    decode = outcomes.decoder(env, learn_reward=False, learn_terminal=False)
    return _Model(init, fit, at, decode, None)


def _network(env: Env, config: Config) -> _Model:
    model, decode = outcomes.learned(env, config.network)
    return _Model(
        init=model.init,
        fit=lambda key, state, data, episodes: model.fit(key, state, data),
        at=lambda state, time: imagine.sample_ts1(model, model.members(state)),
        decode=decode,
        predict=outcomes.of_every_member(model),
    )


_MODELS: dict[str, Callable[[Env, Config], _Model]] = {
    "linear": _linear,
    "network": _network,
}


def _draw(key: Key, episodes: Episodes, number: int) -> tuple[Array, Array]:
    """States [number, O] among the episodes' and their time steps [number]."""
    count = jnp.cumsum(episodes.valid.ravel())
    drawn = jax.random.randint(key, (number,), 0, count[-1])
    place = jnp.searchsorted(count, drawn, side="right")
    obs = episodes.obs.reshape(-1, episodes.obs.shape[-1])
    return obs[place], place % episodes.valid.shape[1]


def _validate(env: Env, config: Config) -> None:
    checks.one_of(config, "model", (*_MODELS, "none"))
    counts = "num_episodes", "num_rollouts", "rollout_length", "retain"
    checks.at_least(config, 1, *counts)
    checks.at_least(config, 0, "imagine_until")
    checks.within(config, 0, 1, "real_share")
    checks.positive(config, "strength")
    of_network = partial(models.validate, obs_size=env.obs_size)
    checks.under("network", of_network, config.network)
