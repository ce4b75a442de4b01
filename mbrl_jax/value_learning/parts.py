"""Learning the values of actions, off policy: critics, their targets, one step.

A `ValueLearner` is a method (SAC, TD3, NAF, DQN) in parts, so that what its critics are
fitted to, and what its policy goes up, may be put in from outside:

    target = reward + discount next_value(state, key, next_obs)   `one_step`
    update(key, state, rows with such targets, obs, actor_objective)

Each method writes its `next_value` and `actor_objective` itself.  Whatever looks
further ahead than a step (MVE, STEVE, MAAC) is another way to targets or another
objective, made of `act` and `values`.  Nothing follows a terminal transition; the end
of the clock is none.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax import networks, optimizers
from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks, finite, raster
from mbrl_jax.types import (
    Act,
    Array,
    Env,
    Gaussian,
    Key,
    Learner,
    Metrics,
    Params,
    Policy,
    PyTree,
    Transition,
)

Value = Callable[[Array, Array], Array]  # (obs, action) -> []
ActorObjective = Callable[[Key, Array, Act, Value], Array]
# (key, obs [N, O], ...) -> [N], what the policy goes up


class Regression(NamedTuple):
    """What critics are fitted to; with a leading axis."""

    obs: Array  # [O]
    action: Array  # [A]
    target: Array  # []
    weight: Array  # [] of the row in the mean


class ValueLearner(NamedTuple):
    """Functions for one example, but for `update` and an `ActorObjective`.

    A bonus is what acting there is worth by itself, as the entropy of SAC; mostly 0.
    """

    init: Callable[[Key], PyTree]
    act: Callable[[PyTree, Key, Array], tuple[Array, Array]]
    # (state, key, obs) -> action that the critics' targets are about, bonus []
    values: Callable[[PyTree, Array, Array], Array]
    # (state, obs, action) -> [K], by each of the slowly moving critics
    next_value: Callable[[PyTree, Key, Array], Array]
    # (state, key, next_obs) -> [] of what follows, in the critics' targets
    actor_objective: ActorObjective | None
    # as published; None where the policy is part of the critic
    update: Callable[
        [Key, PyTree, Regression, Array, ActorObjective | None], tuple[PyTree, Metrics]
    ]
    # (key, state, rows [B, ...], obs [N, O] of the policy's step, its objective)
    explore: Callable[[PyTree], Policy]
    policy: Callable[[PyTree], Policy]
    discount: float | Array
    noise: Callable[[PyTree, Array], Gaussian] | None = None
    # (state, obs) of what exploration draws, before it is cut or squashed [A]


def one_step(
    learner: ValueLearner, state: PyTree, key: Key, batch: Transition
) -> Regression:
    """Rows [B] of a batch [B], with targets that look one step ahead."""
    keys = jax.random.split(key, len(batch.reward))
    follows = jax.vmap(partial(learner.next_value, state))(keys, batch.next_obs)
    target = batch.reward + learner.discount * jnp.where(batch.terminal, 0, follows)
    return Regression(batch.obs, batch.action, target, jnp.ones_like(target))


def learner(parts: ValueLearner, random_shift: int = 0) -> Learner:
    """The method as it was published: it learns from transitions [B].

    Pictures are moved by up to `random_shift` pixels, those before and after a step
    independently of each other."""

    def update(key: Key, state: PyTree, batch: Transition) -> tuple[PyTree, Metrics]:
        if batch.obs.ndim > 2 and random_shift:
            key, *keys = jax.random.split(key, 3)
            obs, next_obs = (
                shifted(own, x, random_shift)
                for own, x in zip(keys, (batch.obs, batch.next_obs), strict=True)
            )
            batch = batch._replace(obs=obs, next_obs=next_obs)
        target_key, key = jax.random.split(key)
        rows = one_step(parts, state, target_key, batch)
        return parts.update(key, state, rows, batch.obs, parts.actor_objective)

    return Learner(parts.init, update, parts.explore, parts.policy)


@dataclasses.dataclass(frozen=True)
class PixelsConfig(networks.EncoderConfig):
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    random_shift: int = 2  # pixels, by which pictures are moved before each update


class Critics(NamedTuple):
    """K networks Q(obs, action), the action in units of its limit.

    Of pictures all K share one encoder, which the policy uses as it is (Yarats et al.,
    2021, "Image augmentation is all you need", App. B): its own step leaves it alone.
    """

    seen_size: int  # of what `encode` gives: O, or the number of features
    init: Callable[[Key], Params]  # -> [K, ...], and an encoder
    apply: Callable[[Params, Array, Array], Array]  # (params, obs, action) -> [K]
    encode: Callable[[Params, Array], Array]  # (params, obs) -> what a policy sees


def critics(
    env: Env,
    hidden_sizes: tuple[int, ...],
    num_critics: int,
    pixels: PixelsConfig | None = None,
) -> Critics:
    """Raises ValueError for pictures, unless `pixels` says how they are seen."""
    if pixels is None:
        checks.vectors(env)
    else:
        checks.under("pixels", _validate, pixels)
    network: Any = MLP(hidden_sizes, 1, nn.relu)
    encoder: Any = networks.Encoder(pixels) if pixels and env.obs_shape else None
    seen_size = encoder.config.num_features if encoder else env.obs_size

    def heads(params: Params, seen: Array, action: Array) -> Array:
        inputs = jnp.concatenate([seen, action / env.action_limit])
        return jax.vmap(network.apply, in_axes=(0, None))(params, inputs)[:, 0]

    def init(key: Key) -> Params:
        inputs = jnp.zeros(seen_size + env.action_size)
        encoder_key, heads_key = jax.random.split(key) if encoder else (key, key)
        keys = jax.random.split(heads_key, num_critics)
        params = jax.vmap(network.init, in_axes=(0, None))(keys, inputs)
        if encoder is None:
            return params
        eyes = encoder.init(encoder_key, env.blank_obs())
        return {"encoder": eyes, "heads": params}

    def apply(params: Params, obs: Array, action: Array) -> Array:
        if encoder is None:
            return heads(params, obs, action)
        seen = encoder.apply(params["encoder"], obs)
        return heads(params["heads"], seen, action)

    def encode(params: Params, obs: Array) -> Array:
        if encoder is None:
            return obs
        return jax.lax.stop_gradient(encoder.apply(params["encoder"], obs))

    return Critics(seen_size, init, apply, encode)


def _validate(config: PixelsConfig) -> None:
    networks.validate(config)
    checks.at_least(config, 0, "random_shift")


def shifted(key: Key, pictures: Array, most: int) -> Array:
    """Pictures [B, height, width, channels], each moved by up to `most` pixels down or
    up, and to a side; the outermost pixels are repeated (Yarats et al., 2021, Sec. 3).
    """
    shifts = jax.random.randint(key, (len(pictures), 2), -most, most + 1)
    return jax.vmap(partial(raster.shifted, most=most))(pictures, shifts)


def error(apply: Callable[[Array, Array], Array], rows: Regression) -> Array:
    """The critics' squared errors, summed over the critics, mean over the rows; [].

    `apply` gives [K] for (obs, action).  Rows of weight 0 may hold anything.
    """
    # before the networks, or their gradient would be NaN where it is not finite
    rows = finite.zeroed(rows.weight == 0, rows)
    found = jax.vmap(apply)(rows.obs, rows.action)
    squares = jnp.square(found - rows.target[:, None]).sum(axis=1)
    return (rows.weight * squares).sum() / rows.weight.sum()


def update(
    apply: Callable[[Params, Array, Array], Array],
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    rows: Regression,
) -> tuple[Params, optax.OptState, Array]:
    """A step of critics towards the targets of the rows, and the `error` before it."""
    of = lambda params: error(partial(apply, params), rows)
    before, gradient = jax.value_and_grad(of)(params)
    return *optimizers.descend(optimizer, gradient, opt_state, params), before


def acting(act: Callable[[Key, Array], Array]) -> Policy:
    """A policy without a memory, which never sees what is not finite, but 0."""

    def step(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        return act(key, jnp.where(jnp.isfinite(obs), obs, 0)), memory

    return Policy(lambda: (), step)


def noisy(key: Key, unit: Array, std: float | Array, limit: float) -> Array:
    """An action in units of its limit [A], with normal noise, cut at the limit."""
    noise = jax.random.normal(key, unit.shape, unit.dtype)
    return limit * jnp.clip(unit + std * noise, -1, 1)


def exploring(policy: Policy, num_actions: int, share: float | Array) -> Policy:
    """A random action with probability `share`."""

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        coin_key, other_key, key = jax.random.split(key, 3)
        action, memory = policy.act(key, obs, memory)
        other = jax.random.randint(other_key, (), 0, num_actions, jnp.int32)
        return jnp.where(jax.random.bernoulli(coin_key, share), other, action), memory

    return Policy(policy.init, act)
