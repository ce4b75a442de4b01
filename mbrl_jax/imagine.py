"""Model x actions -> imagined returns; a model along real transitions."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.models import ensemble
from mbrl_jax.models.propagation import Step
from mbrl_jax.types import Array, Env, EnvState, Gaussian, Key, Model, Transition


class Outcome(NamedTuple):
    """What one imagined step led to."""

    next_obs: Array  # [O]
    reward: Array  # []
    terminal: Array  # [] bool


def outcome(
    env: Env, learn_reward: bool, learn_terminal: bool
) -> Callable[[Array, Array, Array], Outcome]:
    """Reads a model's prediction: (obs [O], action [A], y [D]) -> Outcome.

    What is not learned is computed by the environment's own functions.
    """
    size = env.obs_size
    reward_of = None if learn_reward else env.reward
    terminal_of = None if learn_terminal else env.terminal

    def read(obs: Array, action: Array, y: Array) -> Outcome:
        next_obs = y[:size]
        return Outcome(
            next_obs,
            reward_of(obs, action, next_obs) if reward_of else y[size],
            terminal_of(obs, action, next_obs) if terminal_of else y[-1] > 0,
        )

    return read


def learned(
    env: Env, config: ensemble.Config
) -> tuple[Model, Callable[[Array, Array, Array], Outcome]]:
    """An ensemble for `env`, and its `outcome`.  It also learns reward and termination
    where `config` says so, or where only the simulator knows them."""
    learn_reward = config.learn_reward or env.reward is None
    learn_terminal = config.learn_terminal or env.terminal is None
    config = dataclasses.replace(
        config, learn_reward=learn_reward, learn_terminal=learn_terminal
    )
    model = ensemble.make(env.obs_size, env.action_size, config)
    return model, outcome(env, learn_reward, learn_terminal)


def particle_returns(
    key: Key,
    step: Step,
    read: Callable[[Array, Array, Array], Outcome],
    obs: Array,
    actions: Array,
    num_particles: int,
) -> Array:
    """The returns [P] of the actions [H, A] from `obs` [O], each up to its own end."""

    def advance(
        carry: tuple[Array, Array, Array], x: tuple[Key, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        particles, alive, total = carry
        key, action = x
        y = step(key, particles, action)  # [P, D]
        result = jax.vmap(read, in_axes=(0, None, 0))(particles, action, y)
        total = total + jnp.where(alive, result.reward, 0)
        return (result.next_obs, alive & ~result.terminal, total), None

    particles = jnp.broadcast_to(obs, (num_particles, *obs.shape))
    alive = jnp.ones(num_particles, bool)
    start = (particles, alive, jnp.zeros(num_particles, obs.dtype))
    keys = jax.random.split(key, actions.shape[0])
    (_, _, total), _ = jax.lax.scan(advance, start, (keys, actions))
    return total


def as_it_was(gaussian: Gaussian, x: Array) -> Array:
    """The sample `x` as mean + std noise, with the noise that makes it `x` [D].

    Where there is no std, `x` is the mean and a rest.  Its value is `x`, its gradient
    that of mean and std (SVG, Heess et al., 2015, Sec. 4.1).
    """
    mean, std = gaussian
    safe = jnp.where(std > 0, std, 1)
    noise = jax.lax.stop_gradient(jnp.where(std > 0, (x - mean) / safe, 0))
    again = mean + std * noise
    return again + jax.lax.stop_gradient(x - again)


def retrace(
    act: Callable[[Array, Array], Array],
    predict: Callable[[Array, Array], Gaussian],
    read: Callable[[Array, Array, Array], Outcome],
    window: Transition,
    valid: Array,
    discount: float | Array,
) -> tuple[Array, Array, Array]:
    """Goes through a real window [H, ...] again, with policy and model, noise inferred.

    `act` makes of (obs, the real action) the same action, `predict` and `read` are the
    model's.  All values are those of what happened, up to what `valid` [H] leaves out;
    their gradients go through policy and model.  Returns the discounted return [], the
    weight [] of what follows (0 after an end), and the obs [O] where it follows.
    """

    def advance(
        carry: tuple[Array, Array, Array], x: tuple[Transition, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        (total, weight, obs), (real, valid) = carry, x
        action = act(obs, real.action)
        prediction = predict(obs, action)
        happened = jnp.append(real.next_obs, real.reward)[: prediction.mean.size]
        result = read(obs, action, as_it_was(prediction, happened))
        total = total + jnp.where(valid, weight * result.reward, 0)
        later = jnp.where(real.terminal, 0, weight * discount)
        weight = jnp.where(valid, later, weight)
        return (total, weight, jnp.where(valid, result.next_obs, obs)), None

    one = jnp.ones((), window.obs.dtype)
    start = (jnp.zeros_like(one), one, window.obs[0])
    return jax.lax.scan(advance, start, (window, valid))[0]


def simulated_return(env: Env, env_state: EnvState, actions: Array) -> Array:
    """The return [] of the actions [H, A] on the true dynamics."""

    def advance(
        carry: tuple[EnvState, Array], action: Array
    ) -> tuple[tuple[EnvState, Array], Array]:
        state, alive = carry
        state = env.step(state, action)
        reward = jnp.where(alive, state.reward, 0)
        return (state, alive & ~state.terminal), reward

    _, rewards = jax.lax.scan(advance, (env_state, jnp.ones((), bool)), actions)
    return rewards.sum()


def mean_minus_std(coefficient: float | Array) -> Callable[[Array], Array]:
    """Risk aversion: mean - coefficient * std over the particles."""
    return lambda returns: returns.mean() - coefficient * returns.std()


def cvar(fraction: float | Array) -> Callable[[Array], Array]:
    """Conditional value at risk: the mean of the worst `fraction` of the particles.

    Rockafellar and Uryasev (2000): the particle on the border counts in part.
    """

    def risk(returns: Array) -> Array:
        ordered = jnp.sort(returns)
        share = fraction * returns.shape[0] - jnp.arange(returns.shape[0])
        weight = jnp.clip(share, 0.0, 1.0)
        return (weight * ordered).sum() / weight.sum()

    return risk


# the worth of an action sequence, from its particles' returns: level -> [P] -> []
RISKS: dict[str, Callable[[float | Array], Callable[[Array], Array]]] = {
    "mean": lambda level: jnp.mean,
    "mean_minus_std": mean_minus_std,
    "cvar": cvar,
}
