"""Particles in a closed loop that move as one state, and may be redrawn as a Gaussian.

A state is all the particles [P, O].  With `resample` they are replaced after each step
by as many from the Gaussian with their mean and covariance, through both of which the
gradient passes: Gal, McAllister and Rasmussen, "Improving PILCO with Bayesian neural
network dynamics models", 2016, Alg. 1; "Gaussian resampling" of Parmas et al., "PIPPS:
flexible model-based policy search robust to the curse of chaos", 2018.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.gradients import closed_loop
from mbrl_jax.gradients.closed_loop import DynamicalSystem, ExpectedReturn
from mbrl_jax.types import Array, Gaussian, Key, Params, PyTree

JITTER = 1e-6  # of the correlations


def system(
    first: Callable[[Key], Array],  # -> [O]
    draw: Callable[[Key, Array, Array, Array], Array],
    # (key, number of the particle, obs [O], action [A]) -> next obs [O]
    reward: Callable[[Array, Array, Array], Array],
    num_particles: int,
    resample: bool,
) -> DynamicalSystem:
    """Of `num_particles`, without an end; a reward is the mean of theirs."""
    each = jnp.arange(num_particles)

    def reset(key: Key) -> Array:
        return jax.vmap(first)(jax.random.split(key, num_particles))

    def step(key: Key, obs: Array, action: Array) -> Array:
        key, gaussian_key = jax.random.split(key)
        keys = jax.random.split(key, num_particles)
        moved = jax.vmap(draw)(keys, each, obs, action)
        return gaussian(gaussian_key, moved) if resample else moved

    return DynamicalSystem(
        reset=reset,
        step=step,
        observe=lambda obs: obs,
        reward=lambda *moved: jax.vmap(reward)(*moved).mean(),
        terminal=lambda *moved: jnp.zeros((), bool),
    )


def of_members(
    predict: Callable[[PyTree, Array, Array], Gaussian],
    members: PyTree,  # [P, ...]
    first: Callable[[Key], Array],
    reward: Callable[[Array, Array, Array], Array],
    num_particles: int,
    resample: bool,
) -> DynamicalSystem:
    """Of particles each of which asks its own member of a model all along."""

    def draw(key: Key, number: Array, obs: Array, action: Array) -> Array:
        own = jax.tree.map(lambda x: x[number], members)
        mean, std = predict(own, obs, action)
        return mean + std * jax.random.normal(key, mean.shape, mean.dtype)

    return system(first, draw, reward, num_particles, resample)


def moments(particles: Array) -> tuple[Array, Array]:
    """The mean [O] and the covariance [O, O] of particles [P, O]."""
    mean = particles.mean(axis=0)
    away = particles - mean[None]
    return mean, away.T @ away / (len(particles) - 1)


def gaussian(key: Key, particles: Array) -> Array:
    """As many from the Gaussian with the mean and covariance of `particles` [P, O]."""
    mean = particles.mean(axis=0)
    away = particles - mean[None]
    # of correlations, whose jitter is none to an entry that hardly varies, beside an
    # angle that has turned over and over
    var = jnp.square(away).mean(axis=0)
    std = jnp.sqrt(jnp.maximum(var, jnp.finfo(var.dtype).tiny))
    _, correlation = moments(away / std[None])
    eye = jnp.eye(len(correlation), dtype=correlation.dtype)
    root = std[:, None] * jnp.linalg.cholesky(correlation + JITTER * eye)
    noise = jax.random.normal(key, particles.shape, particles.dtype)
    return mean[None] + noise @ root.T


def pathwise(problem: ExpectedReturn, key: Key, params: Params) -> tuple[Params, Array]:
    """The gradient of the mean return of a swarm, and that return."""
    start_key, key = jax.random.split(key)
    start = problem.system.reset(start_key)
    objective = lambda params: closed_loop.rollout(key, params, problem, start)[0]
    total, gradient = jax.value_and_grad(objective)(params)
    return gradient, total
