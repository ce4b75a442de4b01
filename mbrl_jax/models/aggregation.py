"""The loop of model-based reinforcement learning: collect, fit to all there is, repeat.

    repeat:
        run one episode: the first ones at random, later by planning in the model
        fit the model to all the data

Data from where the policy goes is what makes the model right there (Ross and Bagnell,
2012, "Agnostic system identification for model-based reinforcement learning").
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import policies, replay
from mbrl_jax.models import outcomes, particles, propagation
from mbrl_jax.ops import checks, finite
from mbrl_jax.planners import mpc
from mbrl_jax.rollout import episode
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Key,
    Metrics,
    Model,
    Policy,
    PyTree,
    Simulation,
)


class State(NamedTuple):
    model: PyTree
    replay: replay.Replay
    env_steps: Array  # [] int32
    num_episodes: Array  # [] int32


def make(
    env: Env,
    model: Model,
    policy: Callable[[PyTree], Policy],
    *,
    capacity: int,
    num_random_episodes: int | None,
) -> Algorithm:
    """The loop with `policy(the model's state)`; at random for ever if None."""

    def init(key: Key) -> State:
        data = replay.init(env.obs_size, env.action_size, capacity)
        nothing = jnp.zeros((), jnp.int32)
        return State(model.init(key), data, nothing, nothing)

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        episode_key, fit_key = jax.random.split(key)
        acting = policies.uniform(env)
        if num_random_episodes is not None:
            at_random = state.num_episodes < num_random_episodes
            acting = policies.switch(at_random, acting, policy(state.model))
        return trial((episode_key, fit_key), env, acting, model, state)

    predict = outcomes.of_every_member(model)
    return Algorithm(init, step, lambda state: policy(state.model), predict)


def trial(
    keys: tuple[Key, Key], env: Env, acting: Policy, model: Model, state: Any
) -> tuple[Any, Metrics]:
    """One episode, and the model fitted to all the data with it.

    `state` has the fields of `State`, and may have others.
    """
    transitions, valid = episode(keys[0], env, acting)
    data = replay.insert(state.replay, transitions, valid)
    good = finite.usable(transitions, num_batch_axes=1)
    fitted, metrics = model.fit(keys[1], state.model, data)
    env_steps = state.env_steps + valid.sum(dtype=jnp.int32)
    state = state._replace(
        model=fitted,
        replay=data,
        env_steps=env_steps,
        num_episodes=state.num_episodes + 1,
    )
    return state, {
        **metrics,
        "env_steps": env_steps,
        "episode/return": transitions.reward.sum(),
        "episode/length": valid.sum(),
        "episode/non_finite": (valid & ~good).sum(),
    }


def planning(env: Env, config: Any) -> tuple[Model, Callable[..., Policy]]:
    """A model, and of its state the policy that plans in the mean of its members.

    A second argument of that is what the first action of each plan costs besides:
    action [A] -> [].  `config` has `capacity`, `planner`, `plan` and `model`.  Raises
    ValueError for what cannot be.
    """
    checks.continuous(env)
    checks.holds_an_episode(config, env)
    mpc.validate(config.planner, config.plan)
    model, decode = outcomes.learned(env, config.model)

    def policy(
        state: PyTree, first_cost: Callable[[Array], Array] | None = None
    ) -> Policy:
        step = propagation.expectation(model, state)

        def future(key: Key, obs: Array) -> Simulation:
            ahead = particles.particle_mean(key, step, decode, obs)
            return _costlier(ahead, first_cost) if first_cost else ahead

        return mpc.make(
            config.planner, config.plan, env.action_size, env.action_limit, future
        )

    return model, policy


def _costlier(ahead: Simulation, first_cost: Callable[[Array], Array]) -> Simulation:
    """The same future, but for what its first action costs."""

    def step(state: PyTree, action: Array) -> tuple[PyTree, Array]:
        first, inner = state
        inner, reward = ahead.step(inner, action)
        cost = jnp.where(first, first_cost(action), 0)
        return (jnp.zeros_like(first), inner), reward - cost

    return Simulation((jnp.ones((), bool), ahead.start), step)
