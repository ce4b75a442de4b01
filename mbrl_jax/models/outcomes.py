"""What a model predicts, decoded into an outcome: next obs, reward, termination.

A model's prediction is one vector [D]: the next obs, then the reward and the logit of a
termination where these are learned.  What is not learned is computed by the
environment's own functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.models import by_name
from mbrl_jax.ops import checks
from mbrl_jax.types import Array, Env, Gaussian, Key, Metrics, Model, PyTree


class Outcome(NamedTuple):
    """What one imagined step led to."""

    next_obs: Array  # [O]
    reward: Array  # []
    terminal: Array  # [] bool


def decoder(
    env: Env, learn_reward: bool, learn_terminal: bool
) -> Callable[[Array, Array, Array], Outcome]:
    """Decodes a model's prediction: (obs [O], action [A], y [D]) -> Outcome.

    What is not learned is computed by the environment's own functions.
    """
    size = env.obs_size
    reward_of = None if learn_reward else env.reward
    terminal_of = None if learn_terminal else env.terminal

    def decode(obs: Array, action: Array, y: Array) -> Outcome:
        next_obs = y[:size]
        return Outcome(
            next_obs,
            reward_of(obs, action, next_obs) if reward_of else y[size],
            terminal_of(obs, action, next_obs) if terminal_of else y[-1] > 0,
        )

    return decode


def learned(
    env: Env, config: by_name.Config
) -> tuple[Model, Callable[[Array, Array, Array], Outcome]]:
    """A model for `env`, and its `outcome`.  It also learns reward and termination
    where `config` says so, or where only the simulator knows them.

    It sees discrete actions one-hot, and others within their limits, as the environment
    does: a Gaussian policy, and a replay of what it did, goes beyond them.
    """
    checks.vectors(env)
    learned = by_name.learns(config, env)
    action_size = env.num_actions or env.action_size
    model = by_name.make(env.obs_size, action_size, by_name.learning(config, *learned))

    def see(action: Array) -> Array:
        if env.num_actions:
            return jax.nn.one_hot(action, env.num_actions)
        return jnp.clip(action, -env.action_limit, env.action_limit)

    def fit(key: Key, state: PyTree, data: PyTree) -> tuple[PyTree, Metrics]:
        seen = data.data._replace(action=see(data.data.action))
        return model.fit(key, state, data._replace(data=seen))

    def predict(member: PyTree, obs: Array, action: Array) -> Gaussian:
        return model.predict(member, obs, see(action))

    seeing = model._replace(fit=fit, predict=predict)
    return seeing, decoder(env, *learned)


def of_every_member(model: Model) -> Callable[[Any, Array, Array], Gaussian]:
    """The `predict` of an algorithm whose state has the model's as `model`."""
    every = jax.vmap(model.predict, in_axes=(0, None, None))
    return lambda state, obs, action: every(model.members(state.model), obs, action)


Decode = Callable[
    [Array, Array, Array], Outcome
]  # (obs, action, outcome [D]), `outcome`
