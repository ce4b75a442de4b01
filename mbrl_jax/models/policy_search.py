"""The loop of policy search in a model: run, fit to all there is, improve, repeat.

repeat:
    run one episode (a trial): the first ones at random, later by the policy
    fit the model to all the data
    improve the policy in the model, from what it was
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import moment_policies, optimizers, policies, replay
from mbrl_jax.models import aggregation, outcomes
from mbrl_jax.moment_policies import MomentPolicy
from mbrl_jax.ops import checks, estimate
from mbrl_jax.types import (
    Algorithm,
    Array,
    Belief,
    Env,
    Key,
    Metrics,
    Model,
    Params,
    PyTree,
)


class State(NamedTuple):
    model: PyTree
    replay: replay.Replay
    params: Params  # of the policy
    env_steps: Array  # [] int32
    num_episodes: Array  # [] int32


Improve = Callable[[Key, PyTree, Params], tuple[Params, Metrics]]
# (key, the model's state, the policy's params)


def make(
    env: Env, config: Any, model: Model, made: MomentPolicy, improve: Improve
) -> Algorithm:
    """The loop.  `improve` is first called after `num_random_episodes` of `config`,
    which has a `capacity`, too."""
    policy = partial(moment_policies.as_policy, made)

    def init(key: Key) -> State:
        model_key, params_key = jax.random.split(key)
        data = replay.init(env.obs_size, env.action_size, config.capacity)
        zero = jnp.zeros((), jnp.int32)
        return State(model.init(model_key), data, made.init(params_key), zero, zero)

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        episode_key, fit_key, improve_key = jax.random.split(key, 3)
        at_random = state.num_episodes < config.num_random_episodes
        acting = policies.switch(at_random, policies.uniform(env), policy(state.params))
        keys = episode_key, fit_key
        state, metrics = aggregation.trial(keys, env, acting, model, state)
        args = improve_key, state.model, state.params
        blank = jax.eval_shape(improve, *args)[1]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank)
        params, found = jax.lax.cond(
            state.num_episodes >= config.num_random_episodes,
            lambda: improve(*args),
            lambda: (state.params, nothing),
        )
        return state._replace(params=params), {**metrics, **found}

    predict = outcomes.of_every_member(model)
    return Algorithm(init, step, lambda state: policy(state.params), predict)


def of_particles(
    env: Env,
    config: Any,
    model: Model,
    made: MomentPolicy,
    gradient: Callable[[Key, PyTree, PyTree], tuple[PyTree, Array]],
    # (key, the model's state, what is prepared of the policy) -> of the return with
    # respect to that, and the return
) -> Algorithm:
    """The loop, improving by Adam, begun anew after each trial, on gradients scaled
    down to `max_norm`; the learning rate falls linearly, to a hundredth."""
    optimizer = optimizers.clipped_adam(
        config.learning_rate, config.max_norm, decay_steps=config.num_updates
    )

    def improve(key: Key, state: PyTree, params: Params) -> tuple[Params, Metrics]:
        def update(carry: tuple, key: Key) -> tuple[tuple, tuple[Array, Array]]:
            params, opt_state = carry
            estimator = lambda key, ready: gradient(key, state, ready)
            found, total = moment_policies.pulled_back(made, estimator, key, params)
            carry = optimizers.ascend(optimizer, found, opt_state, params)
            return carry, (total, estimate.norm(found))

        keys = jax.random.split(key, config.num_updates)
        start = params, optimizer.init(params)
        (params, opt_state), (totals, norms) = jax.lax.scan(update, start, keys)
        return params, {
            "imagined/return": totals[-max(1, config.num_updates // 10) :].mean(),
            "gradient/norm": norms.mean(),
            "gradient/skipped_updates": opt_state.num_skipped,
        }

    return make(env, config, model, made, improve)


def validate(model_config: Any, method: str) -> None:
    """Raises ValueError for what the environment says, and not the model."""
    for field, why in (
        ("angles", "those are the environment's"),
        ("learn_reward", "the reward is known"),
        ("learn_terminal", "its tasks have no end"),
    ):
        if value := getattr(model_config, field, None):
            raise ValueError(f"model.{field} is {value} for {method}, but {why}")


def validate_particles(config: Any, env: Env) -> None:
    """Of what Deep PILCO and PIPPS have in common."""
    checks.continuous(env)
    checks.at_least(config, 1, "num_random_episodes", "num_updates")
    checks.at_least(config, 0, "horizon", "segment")
    checks.positive(config, "learning_rate", "max_norm", "spread")
    checks.holds_an_episode(config, env)
    moment_policies.validate(config)
    if config.num_particles <= env.obs_size:
        raise ValueError(
            f"num_particles is {config.num_particles}, must be above {env.obs_size}, "
            "the size of an observation, to have a covariance"
        )


def belief_of(env: Env, method: str) -> Belief:
    """What the method needs of `env`; ValueError for one that does not have it."""
    if env.belief is None or env.reward is None:
        raise ValueError(
            f"{env.name} has no `belief`, the first observation's distribution and the "
            f"expected reward, which {method} needs: take cartpole_pilco, or give "
            "simulator.make_env one"
        )
    return env.belief
