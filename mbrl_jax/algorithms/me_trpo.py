"""ME-TRPO: model-free learning in an ensemble of models (Kurutach et al., 2018).

"Model-ensemble trust-region policy optimization", arXiv 1802.10592:

    repeat:
        run `num_episodes` episodes by the policy
        fit the ensemble to all the data
        repeat, at most `num_rounds` times:
            `num_updates` times: update the learner with rollouts in the ensemble, each
                step of them by a member drawn at random
            stop where the policy did not get better in enough members    Sec. 4.3

Any on-policy learner may take TRPO's place: PPO in a learned model from states seen is
the recipe of SimPLe (Kaiser et al., 2020).  Deviations: imagined rollouts begin in any
state that was seen, and a critic stands for what follows their last step; the round
after which the policy was no better is undone.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import replay
from mbrl_jax.models import by_name as models
from mbrl_jax.models import imagine, outcomes
from mbrl_jax.ops import checks, finite
from mbrl_jax.policy_gradient import a2c as a2c_learner
from mbrl_jax.policy_gradient import actor_critic, experience
from mbrl_jax.policy_gradient import natural_gradient as natural_gradient_learner
from mbrl_jax.policy_gradient import ppo as ppo_learner
from mbrl_jax.policy_gradient import reinforce as reinforce_learner
from mbrl_jax.policy_gradient import trpo as trpo_learner
from mbrl_jax.rollout import episode
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, Policy, PyTree

_LEARNERS: dict[str, Any] = {
    "a2c": a2c_learner,
    "natural_gradient": natural_gradient_learner,
    "ppo": ppo_learner,
    "reinforce": reinforce_learner,
    "trpo": trpo_learner,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 10_000  # transitions kept
    num_episodes: int = 1  # between two fits of the model
    num_rollouts: int = 100  # N, imagined, in an update of the learner
    horizon: int = 100  # H, steps of an imagined rollout
    num_updates: int = 5  # of the learner, between two validations
    num_rounds: int = 10  # of updates and a validation, at most
    min_improved: float = 0.7  # share of the members in which the policy must be better
    learner: str = "trpo"  # trpo, ppo, a2c, natural_gradient or reinforce
    net: actor_critic.Config = actor_critic.Config()
    a2c: a2c_learner.Config = a2c_learner.Config()
    natural_gradient: natural_gradient_learner.Config = (
        natural_gradient_learner.Config()
    )
    ppo: ppo_learner.Config = ppo_learner.Config()
    reinforce: reinforce_learner.Config = reinforce_learner.Config()
    trpo: trpo_learner.Config = trpo_learner.Config()
    model: models.Config = models.Config()


class State(NamedTuple):
    model: PyTree
    replay: replay.Replay
    learner: PyTree
    env_steps: Array  # [] int32


class _Search(NamedTuple):
    """The policy's way through the rounds."""

    learner: PyTree
    returns: Array  # [M] in each member
    metrics: Metrics  # of the last update, even if it is undone
    num_rounds: Array  # [] int32, good ones
    going: Array  # [] bool


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.continuous(env)
    _validate(env, config)
    model, decode = outcomes.learned(env, config.model)
    net = actor_critic.make(env, config.net)
    learner = _LEARNERS[config.learner].make(net, getattr(config, config.learner))

    def init(key: Key) -> State:
        model_key, learner_key = jax.random.split(key)
        data = replay.init(env.obs_size, env.action_size, config.capacity)
        return State(
            model.init(model_key),
            data,
            learner.init(learner_key),
            jnp.zeros((), jnp.int32),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        episode_key, fit_key, improve_key = jax.random.split(key, 3)
        keys = jax.random.split(episode_key, config.num_episodes)
        acting = learner.explore(state.learner)
        transitions, valid = jax.vmap(lambda key: episode(key, env, acting))(keys)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions)
        data = replay.insert(state.replay, flat, valid.ravel())
        good = finite.all_finite(transitions, num_batch_axes=2)
        fitted, metrics = model.fit(fit_key, state.model, data)
        env_steps = state.env_steps + valid.sum(dtype=jnp.int32)
        state = State(fitted, data, state.learner, env_steps)
        learned, seen = improve(improve_key, state)
        return state._replace(learner=learned), {
            **metrics,
            **seen,
            "env_steps": env_steps,
            "episode/return": transitions.reward.sum(axis=1).mean(),
            "episode/length": valid.sum(axis=1).mean(),
            "episode/non_finite": (valid & ~good).sum(),
        }

    def improve(key: Key, state: State) -> tuple[PyTree, Metrics]:
        """Rounds of updates, as long as each makes the policy better in the model."""
        update_key, starts_key, noise_key = jax.random.split(key, 3)
        members = model.members(state.model)
        fixed = replay.sample(starts_key, state.replay, config.num_rollouts).obs

        def in_each_member(learned: PyTree) -> Array:
            """The mean return [M], always from the same states with the same noise."""

            def one(member: PyTree) -> Array:
                policy = learner.explore(learned)
                alone = jax.tree.map(lambda x: x[None], member)
                steps, alive, _ = imagine.rollouts(
                    jax.random.clone(noise_key),
                    model,
                    alone,
                    decode,
                    policy,
                    fixed,
                    config.horizon,
                )
                return jnp.where(alive, steps.reward, 0).sum(axis=1).mean()

            return jax.vmap(one)(members)

        def update(learned: PyTree, key: Key) -> tuple[PyTree, Metrics]:
            starts_key, rollout_key, key = jax.random.split(key, 3)
            starts = replay.sample(starts_key, state.replay, config.num_rollouts).obs
            windows = imagine.rollouts(
                rollout_key,
                model,
                members,
                decode,
                learner.explore(learned),
                starts,
                config.horizon,
            )
            return learner.update(key, learned, windows)

        def advance(now: _Search, i: Array) -> _Search:
            keys = jax.random.split(
                jax.random.fold_in(update_key, i), config.num_updates
            )
            learned, seen = jax.lax.scan(update, now.learner, keys)
            returns = in_each_member(learned)
            better = (returns > now.returns).mean() >= config.min_improved
            keep = lambda new, old: jnp.where(better, new, old)
            return _Search(
                jax.tree.map(keep, learned, now.learner),
                keep(returns, now.returns),
                jax.tree.map(lambda x: x[-1], seen),
                now.num_rounds + better,
                better,
            )

        def go_on(now: _Search) -> Array:
            return now.going & (now.num_rounds < config.num_rounds)

        shapes = jax.eval_shape(update, state.learner, key)[1]
        start = _Search(
            state.learner,
            in_each_member(state.learner),
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
            jnp.zeros((), jnp.int32),
            jnp.ones((), bool),
        )
        end = jax.lax.while_loop(go_on, lambda now: advance(now, now.num_rounds), start)
        return end.learner, {
            **end.metrics,
            "imagined/return": end.returns.mean(),
            "imagined/rounds": end.num_rounds,
        }

    def policy(state: State) -> Policy:
        return learner.policy(state.learner)

    return Algorithm(init, step, policy, outcomes.of_every_member(model))


def _validate(env: Env, config: Config) -> None:
    checks.one_of(config, "learner", _LEARNERS)
    for name, learner in _LEARNERS.items():  # those that are not in use, too
        checks.under(name, learner.validate, getattr(config, name))
    counts = ("num_episodes", "num_rollouts", "horizon", "num_updates", "num_rounds")
    checks.at_least(config, 1, *counts)
    checks.within(config, 0, 1, "min_improved")
    models.validate(config.model, env.obs_size)
    checks.holds_an_episode(config, env)
    models.shares(config.model, "num_rollouts", config.num_rollouts)
    used = getattr(config, config.learner)
    experience.check_minibatches(used, config.num_rollouts * config.horizon)
