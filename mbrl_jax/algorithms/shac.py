"""SHAC: short-horizon actor-critic (Xu et al., 2022, arXiv 2204.07137).

Back-propagate through the simulator for a short window only, and let a critic stand for
all that follows, so that gradients neither explode nor look no further:

    repeat:
        in all environments at once, act for one window of `horizon` steps
        step the policy along the gradient of                              Eq. (5)
            sum_t discount^t r_t + discount^horizon target_critic(obs_horizon)
        fit the critic to the TD(lambda) returns of the window             Eq. (7)
        target critic = target_decay target critic + (1 - target_decay) critic

Gradients stop where a window begins.  Terminal states have the value 0; where a time
limit ends an episode, the critic stands for the rest.  Deviations: an episode ends with
its window (no reset inside, the policy is not asked after its end); a window that is
not finite is left out and counted; values are fitted in units of the std of the returns
seen so far, which both critics follow; the steps of a window are shuffled once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers, policies
from mbrl_jax.gradients import closed_loop, pathwise, windows
from mbrl_jax.gradients.closed_loop import ExpectedReturn, Rollout
from mbrl_jax.gradients.windows import Parallel
from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks, estimate, normalize
from mbrl_jax.ops.returns import td_lambda
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, Params, Policy


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    num_envs: int = 64  # N, environments side by side
    horizon: int = 32  # H, steps of a window
    num_updates: int = 25  # windows, with an update each, in a step of the algorithm
    discount: float = 0.99
    learning_rate: float = 3e-3  # of Adam, for the policy
    b1: float = 0.7  # Adam's averages are short, as gradients change quickly
    b2: float = 0.95
    max_norm: float = 1.0  # of a gradient, above which it is scaled down
    decay_steps: int = 0  # updates until learning rates have fallen to 1 %; 0: never
    hidden_sizes: tuple[int, ...] = (64, 64)  # of the policy
    init_std: float = 0.2  # of the action before squashing, in units of its limit
    critic_sizes: tuple[int, ...] = (64, 64)
    critic_learning_rate: float = 1e-3
    td_lambda: float = 0.95  # lambda of TD(lambda)
    target_decay: float = 0.2  # weight of the OLD target critic
    num_epochs: int = 16  # passes of the critic over a window
    num_minibatches: int = 4  # in a pass
    segment: int = 0  # rematerialise, keeping every so many-th state; 0: keep all


class State(NamedTuple):
    params: Params  # of the policy
    opt_state: optax.OptState
    critic: Params
    target: Params
    critic_opt_state: optax.OptState
    scale: normalize.RunningStats  # of returns
    envs: Parallel


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be, and for an
    environment without a gradient."""
    checks.continuous(env)
    checks.vectors(env)
    _validate(config)
    pathwise.check(env)
    network = policies.squashed(env, config.hidden_sizes, config.init_std)
    critic: Any = MLP(config.critic_sizes, 1, nn.elu)
    last_layer = ("params", f"Dense_{len(config.critic_sizes)}")
    system = closed_loop.from_env(env)
    optimizer, critic_optimizer = (
        optimizers.clipped_adam(
            rate,
            config.max_norm,
            b1=config.b1,
            b2=config.b2,
            decay_steps=config.decay_steps,
        )
        for rate in (config.learning_rate, config.critic_learning_rate)
    )

    def init(key: Key) -> State:
        params_key, critic_key, envs_key = jax.random.split(key, 3)
        params = network.init(params_key)
        critic_params = critic.init(critic_key, jnp.zeros(env.obs_size))
        return State(
            params,
            optimizer.init(params),
            critic_params,
            critic_params,
            critic_optimizer.init(critic_params),
            normalize.running_stats(1),
            windows.init(envs_key, env, config.num_envs),
        )

    def update(state: State, key: Key) -> tuple[State, Metrics]:
        window_key, fit_key = jax.random.split(key)
        stats = normalize.so_far(state.envs.obs)
        scale = normalize.so_far(state.scale)

        def value(obs: Array) -> Array:
            found = critic.apply(state.target, normalize.normalise(stats, obs))
            return (found * scale.std + scale.mean)[0]

        problem = ExpectedReturn(
            system,
            closed_loop.Actor(policies.sampler(network, stats)),
            config.horizon,
            config.discount,
            value,
            config.segment,
        )
        gradient, samples, valid, envs = windows.window(
            window_key, state.params, env, problem, state.envs
        )
        params, opt_state = optimizers.ascend(
            optimizer, gradient, state.opt_state, state.params
        )
        obs, returns, good = lambda_returns(samples, valid, value)
        seen = normalize.update(state.scale, returns[:, None], good)
        old_scale, new_scale = normalize.units(state.scale, seen)
        old, target = (
            normalize.outputs_folded(params, last_layer, old_scale, new_scale)
            for params in (state.critic, state.target)
        )
        fitted, critic_opt_state, error = fit(
            fit_key,
            (old, state.critic_opt_state),
            jax.vmap(normalize.normalise, (None, 0))(stats, obs),
            jax.vmap(normalize.normalise, (None, 0))(new_scale, returns[:, None]),
            good,
        )
        target = optax.incremental_update(fitted, target, 1 - config.target_decay)
        return State(params, opt_state, fitted, target, critic_opt_state, seen, envs), {
            "gradient/norm": estimate.norm(gradient),
            "critic/mse": error,
        }

    def lambda_returns(
        samples: Rollout, valid: Array, value: Callable[[Array], Array]
    ) -> tuple[Array, Array, Array]:
        """Of all N H steps: obs, return, and whether both mean something."""

        def one(sample: Rollout) -> Array:
            steps, last = sample.steps, system.observe(sample.final)
            next_obs = jnp.concatenate([steps.obs[1:], last[None]])
            nowhere = jnp.zeros_like(steps.terminal)
            return td_lambda(
                steps.reward,
                jax.vmap(value)(next_obs),
                steps.terminal,
                nowhere,
                config.discount,
                config.td_lambda,
            )

        returns, steps = jax.vmap(one)(samples), samples.steps
        good = steps.alive & valid[:, None] & jnp.isfinite(returns)
        obs = jnp.where(good[:, :, None], steps.obs, 0)
        rows = (obs, jnp.where(good, returns, 0), good)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    def fit(
        key: Key,
        critic_state: tuple[Params, optax.OptState],
        obs: Array,
        returns: Array,
        good: Array,
    ) -> tuple[Params, optax.OptState, Array]:
        """Least squares, in minibatches shuffled once; the last one's mean square."""
        order = jax.random.permutation(key, good.size)
        order = order.reshape(config.num_minibatches, -1)

        def loss(params: Params, rows: Array) -> Array:
            errors = (critic.apply(params, obs[rows]) - returns[rows])[:, 0]
            squares = jnp.where(good[rows], errors**2, 0)
            return squares.sum() / jnp.maximum(good[rows].sum(), 1)

        def descend(
            carry: tuple[Params, optax.OptState], i: Array
        ) -> tuple[tuple[Params, optax.OptState], Array]:
            params, opt_state = carry
            rows = order[i % config.num_minibatches]
            error, gradient = jax.value_and_grad(loss)(params, rows)
            return optimizers.descend(
                critic_optimizer, gradient, opt_state, params
            ), error

        number = jnp.arange(config.num_epochs * config.num_minibatches)
        (params, opt_state), errors = jax.lax.scan(descend, critic_state, number)
        return params, opt_state, errors[-1]

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        keys = jax.random.split(key, config.num_updates)
        state, seen = jax.lax.scan(update, state, keys)
        skipped = state.opt_state.num_skipped + state.critic_opt_state.num_skipped
        return state, {
            **windows.metrics(state.envs),
            **jax.tree.map(jnp.mean, seen),
            "gradient/skipped_updates": skipped,
        }

    def policy(state: State) -> Policy:
        return policies.greedy(network, normalize.so_far(state.envs.obs), state.params)

    return Algorithm(init, step, policy)


def _validate(config: Config) -> None:
    counts = ("num_envs", "horizon", "num_updates", "num_epochs", "num_minibatches")
    checks.at_least(config, 1, *counts)
    checks.at_least(config, 0, "decay_steps", "segment")
    rates = ("learning_rate", "critic_learning_rate")
    checks.positive(config, *rates, "max_norm", "init_std")
    checks.within(config, 0, 1, "discount", "b1", "b2", "td_lambda", "target_decay")
    checks.divides(config, "segment", "horizon")
    if config.num_envs * config.horizon % config.num_minibatches:
        raise ValueError(
            f"num_minibatches is {config.num_minibatches}, must divide num_envs x "
            f"horizon, {config.num_envs * config.horizon}"
        )
