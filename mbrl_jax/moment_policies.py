"""Deterministic policies that a Gaussian passes through in closed form (PILCO).

    action = action_limit squash(f(inputs)),   squash(u) = (9 sin u + sin 3u) / 8

f is linear, or a network of radial basis functions in PILCO's form: the mean of a
Gaussian process of unit signal and noise of 0.01, whose data are parameters.  The
inputs are the observation with sin and cos in place of its angles.

Deisenroth and Rasmussen, "PILCO: a model-based and data-efficient approach to policy
search", 2011, Sec. 2.2 and 3.1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import checks, definite, moments
from mbrl_jax.ops.moments import Kernels, Moments, Normal
from mbrl_jax.types import Array, Belief, Env, Key, Params, Policy, PyTree

NOISE_VAR = 0.01**2  # of the process whose mean the network is


class MomentPolicy(NamedTuple):
    init: Callable[[Key], Params]
    prepare: Callable[[Params], PyTree]  # once for many calls of the following
    action: Callable[[PyTree, Array], Array]  # (what is prepared, obs [O]) -> [A]
    inputs: Callable[[PyTree, Normal], Moments]
    # (what is prepared, belief over obs) -> of the model's inputs, the action last


class Linear(NamedTuple):
    matrix: Array  # [A, Z]
    offset: Array  # [A]


class Basis(NamedTuple):
    centres: Array  # [N, Z]
    targets: Array  # [A, N]
    log_lengthscales: Array  # [A, Z]


def make(
    env: Env,
    belief: Belief,
    kind: str = "rbf",
    num_basis: int = 10,
    spread: float | None = None,
) -> MomentPolicy:
    """`kind`: linear, or rbf of `num_basis` functions.

    Their centres are drawn around where episodes start, with a std of `spread` in each
    entry of the observation, or with that of the start if None.  ValueError for what
    cannot be.
    """
    see = partial(moments.with_angles, angles=belief.angles)
    std = jnp.array(belief.std) if spread is None else jnp.full(env.obs_size, spread)
    around = Normal(jnp.array(belief.mean), jnp.diag(std**2))
    size = env.obs_size + len(belief.angles)  # Z

    def init(key: Key) -> Linear | Basis:
        """Next to no action is taken."""
        centres_key, key = jax.random.split(key)
        if kind == "linear":
            matrix = 0.1 * jax.random.normal(key, (env.action_size, size))
            return Linear(matrix, jnp.zeros(env.action_size))
        start = see(around)
        root = jnp.linalg.cholesky(start.cov + 1e-9 * jnp.eye(size))
        noise = jax.random.normal(centres_key, (num_basis, size))
        targets = 0.1 * jax.random.normal(key, (env.action_size, num_basis))
        number = 2 * len(belief.angles)
        widths = jnp.array([1.0] * (size - number) + [0.7] * number)
        lengths = jnp.tile(jnp.log(widths), (env.action_size, 1))
        return Basis(start.mean[None] + noise @ root.T, targets, lengths)

    def prepare(params: Linear | Basis) -> Linear | Kernels:
        return params if isinstance(params, Linear) else network(params)

    def act(ready: Linear | Kernels, z: Normal) -> Moments:
        def unbounded(z: Normal) -> Moments:
            if isinstance(ready, Kernels):
                return moments.kernels(z, ready)
            return moments.linear(z, ready.matrix, ready.offset)

        squash = partial(moments.squash, limit=env.action_limit)
        return moments.chain(z, unbounded, squash)

    def action(ready: Linear | Kernels, obs: Array) -> Array:
        z = moments.features(obs, belief.angles)
        if isinstance(ready, Kernels):
            u = moments.kernel_mean(z, ready)
        else:
            u = ready.matrix @ z + ready.offset
        return env.action_limit * (9 * jnp.sin(u) + jnp.sin(3 * u)) / 8

    def inputs(ready: PyTree, x: Normal) -> Moments:
        seen = see(x)
        both = moments.beside(seen.normal, act(ready, seen.normal), jnp.arange(size))
        return both._replace(gain=seen.gain @ both.gain)

    return MomentPolicy(init, prepare, action, inputs)


def pulled_back(
    made: MomentPolicy,
    estimate: Callable[[Key, PyTree], tuple[PyTree, Array]],
    key: Key,
    params: Params,
) -> tuple[Params, Array]:
    """The gradient of a return, and the return, by an estimate of the gradient with
    respect to what is prepared."""
    ready, back = jax.vjp(made.prepare, params)
    gradient, total = estimate(key, ready)
    return back(gradient)[0], total


def validate(config: Any) -> None:
    """Of fields `policy` and `num_basis`."""
    checks.one_of(config, "policy", ("linear", "rbf"))
    checks.at_least(config, 1, "num_basis")


def network(params: Basis) -> Kernels:
    """The mean of the process whose data the parameters are, for each action."""

    def weights(targets: Array, log_lengths: Array) -> Array:
        scaled = params.centres * jnp.exp(-log_lengths)[None]
        away = jnp.square(scaled[:, None] - scaled[None]).sum(axis=-1)
        cov = jnp.exp(-away / 2) + NOISE_VAR * jnp.eye(len(scaled))
        return definite.inverse(cov)[0] @ targets

    return Kernels(
        params.centres,
        jax.vmap(weights)(params.targets, params.log_lengthscales),
        jnp.exp(params.log_lengthscales),
        jnp.ones(len(params.targets)),
    )


def as_policy(made: MomentPolicy, params: Params) -> Policy:
    ready = made.prepare(params)
    act = lambda key, obs, memory: (made.action(ready, obs), memory)
    return Policy(lambda: (), act)
