"""BPTT: back-propagation through a learned model into the policy.

Version 2.0 of model-based reinforcement learning in the lectures (Levine, CS 285):

    repeat:
        run one episode: the first ones at random, later by the policy
        fit the ensemble to all the data
        `num_updates` times: step the policy along the gradient of its mean return over
            `horizon` imagined steps from states that have been seen

The noise of policy and model is reparameterised.  Each imagined rollout stays with one
member of the ensemble (TS-infinity of PETS), all members count alike.  The lectures'
warning holds: with long horizons the gradient explodes or vanishes, which shows in
`gradient/norm`; it is scaled down to `max_norm`, and rollouts that are not finite are
left out and counted.  `discount` shortens the sight, `init_std` starts the exploring.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers, policies, replay
from mbrl_jax.gradients import closed_loop, pathwise
from mbrl_jax.gradients.closed_loop import ExpectedReturn
from mbrl_jax.models import by_name as models
from mbrl_jax.models import outcomes
from mbrl_jax.ops import checks, estimate, finite, normalize
from mbrl_jax.rollout import episode
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Key,
    Metrics,
    Params,
    Policy,
    PyTree,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 10_000  # transitions kept
    num_random_episodes: int = 1  # acted at random, before the first policy
    num_updates: int = 200  # of the policy, after each episode
    num_rollouts: int = 100  # N, imagined rollouts in an update
    horizon: int = 40  # H, steps of an imagined rollout
    discount: float = 1.0
    learning_rate: float = 3e-3  # of Adam
    max_norm: float = 1.0  # of the gradient, above which it is scaled down
    hidden_sizes: tuple[int, ...] = (64, 64)  # of the policy
    init_std: float = 0.2  # of the action before squashing, in units of its limit
    segment: int = 0  # rematerialise, keeping every so many-th state; 0: keep all
    model: models.Config = models.Config()


class State(NamedTuple):
    model: PyTree
    replay: replay.Replay
    params: Params  # of the policy
    opt_state: optax.OptState
    obs: normalize.Statistics
    env_steps: Array  # [] int32
    num_episodes: Array  # [] int32
    num_broken: Array  # [] int32, imagined rollouts left out since they were not finite


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.continuous(env)
    _validate(env, config)
    model, decode = outcomes.learned(env, config.model)
    network = policies.squashed(env, config.hidden_sizes, config.init_std)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    num_members = models.num_members(config.model)

    def init(key: Key) -> State:
        model_key, params_key = jax.random.split(key)
        data = replay.init(env.obs_size, env.action_size, config.capacity)
        params, nothing = network.init(params_key), jnp.zeros((), jnp.int32)
        return State(
            model.init(model_key),
            data,
            params,
            optimizer.init(params),
            normalize.identity(env.obs_size),
            nothing,
            nothing,
            nothing,
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        episode_key, fit_key, update_key = jax.random.split(key, 3)
        at_random = state.num_episodes < config.num_random_episodes
        noisy = policies.noisy(network, state.obs, state.params)
        acting = policies.switch(at_random, policies.uniform(env), noisy)
        transitions, valid = episode(episode_key, env, acting)
        data = replay.insert(state.replay, transitions, valid)
        good = finite.all_finite(transitions, num_batch_axes=1)
        fitted, metrics = model.fit(fit_key, state.model, data)
        state = state._replace(
            model=fitted,
            replay=data,
            obs=normalize.statistics(data.data.obs, replay.valid(data)),
            env_steps=state.env_steps + valid.sum(dtype=jnp.int32),
            num_episodes=state.num_episodes + 1,
        )
        keys = jax.random.split(update_key, config.num_updates)
        state, (norms, returns) = jax.lax.scan(update, state, keys)
        return state, {
            **metrics,
            "env_steps": state.env_steps,
            "episode/return": transitions.reward.sum(),
            "episode/length": valid.sum(),
            "episode/non_finite": (valid & ~good).sum(),
            "gradient/norm": norms.mean(),
            "gradient/num_non_finite": state.num_broken,
            "gradient/skipped_updates": state.opt_state.num_skipped,
            "imagined/return": returns[-1],
        }

    def update(state: State, key: Key) -> tuple[State, tuple[Array, Array]]:
        """One step of the policy; the norm of the gradient, the return imagined."""
        starts_key, key = jax.random.split(key)
        starts = replay.sample(starts_key, state.replay, config.num_rollouts).obs
        starts = starts.reshape(num_members, -1, env.obs_size)
        actor = closed_loop.Actor(policies.sampler(network, state.obs))

        def imagined(key: Key, member: Array, starts: Array) -> tuple:
            predict = lambda obs, action: model.predict(member, obs, action)
            system = closed_loop.from_member(predict, decode, starts, env.action_size)
            problem = ExpectedReturn(
                system._replace(log_prob=None),
                actor,
                config.horizon,
                config.discount,
                segment=config.segment,
            )
            states = closed_loop.states_at(system, starts)
            return pathwise.pathwise_mean(key, state.params, problem, states)

        keys = jax.random.split(key, num_members)
        members = model.members(state.model)
        found, samples, valid = jax.vmap(imagined)(keys, members, starts)
        # of members with no finite rollout the gradient is 0
        gradient = jax.tree.map(lambda x: x.mean(axis=0), found)
        params, opt_state = optimizers.ascend(
            optimizer, gradient, state.opt_state, state.params
        )
        broken = (~valid).sum(dtype=jnp.int32)
        returns = jnp.where(valid, samples.steps.weighted.sum(axis=-1), 0).sum()
        return state._replace(
            params=params,
            opt_state=opt_state,
            num_broken=state.num_broken + broken,
        ), (estimate.norm(gradient), returns / jnp.maximum(valid.sum(), 1))

    def policy(state: State) -> Policy:
        return policies.greedy(network, state.obs, state.params)

    predict = outcomes.of_every_member(model)
    return Algorithm(init, step, policy, predict)


def _validate(env: Env, config: Config) -> None:
    models.validate(config.model, env.obs_size)
    counts = ("num_random_episodes", "num_updates", "num_rollouts", "horizon")
    checks.at_least(config, 1, *counts)
    checks.at_least(config, 0, "segment")
    checks.positive(config, "learning_rate", "max_norm", "init_std")
    checks.within(config, 0, 1, "discount")
    checks.divides(config, "segment", "horizon")
    checks.holds_an_episode(config, env)
    models.shares(config.model, "num_rollouts", config.num_rollouts)
