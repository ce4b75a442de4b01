"""Targets and objectives that look several steps ahead in a model.

From states on, H steps by the policy, and the critics from there on:

    value_h = sum_{t<h} discount^t (r_t + bonus_t)
                  + discount^h (Q(s_h, a_h) + bonus_h)               for h = 0 .. H

MVE takes value_H (Feinberg et al., 2018), STEVE weighs all of them by how sure they are
(Buckman et al., 2018), MAAC goes up the gradient of value_H (Clavera et al., 2020).
After a termination nothing follows.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import replay
from mbrl_jax.models import imagine, outcomes
from mbrl_jax.models.imagine import ImaginedPath, Sampler
from mbrl_jax.models.outcomes import Decode
from mbrl_jax.replay import Replay
from mbrl_jax.types import Act, Array, Key, Metrics, Model, PyTree, Transition
from mbrl_jax.value_learning.off_policy import OffPolicyHooks
from mbrl_jax.value_learning.parts import (
    ActorObjective,
    Regression,
    Value,
    ValueLearner,
)

EPS = 1e-8  # least variance


class ModelState(NamedTuple):
    model: PyTree  # its state


Expand = Callable[[PyTree, Key, Transition, PyTree], tuple[Regression, Metrics]]
# (learner's state, key, real transitions, members) -> what the critics are fitted to


def method(
    learner: ValueLearner, model: Model, batch_size: int, expand: Expand
) -> OffPolicyHooks:
    """Learns from real transitions, with targets that a model expands."""

    def init(key: Key) -> tuple[PyTree, ModelState]:
        learner_key, model_key = jax.random.split(key)
        return learner.init(learner_key), ModelState(model.init(model_key))

    def prepare(
        key: Key,
        learned: PyTree,
        model_state: ModelState,
        data: Replay,
        env_steps: Array,
    ) -> tuple[ModelState, Metrics]:
        fitted, metrics = model.fit(key, model_state.model, data)
        return ModelState(fitted), metrics

    def update(
        key: Key, learned: PyTree, model_state: ModelState, data: Replay
    ) -> tuple[PyTree, Metrics]:
        batch_key, key = jax.random.split(key)
        target_key, key = jax.random.split(key)
        batch = replay.sample(batch_key, data, batch_size)
        rows, seen = expand(
            learned, target_key, batch, model.members(model_state.model)
        )
        learned, metrics = learner.update(
            key, learned, rows, batch.obs, learner.actor_objective
        )
        return learned, {**metrics, **seen}

    predict = outcomes.of_every_member(model)
    return OffPolicyHooks(
        init, prepare, update, learner.explore, learner.policy, predict
    )


def values(path: ImaginedPath, q_values: Array, discount: float | Array) -> Array:
    """value_h of the futures, [H + 1, N]; `q_values` [H + 1, N] are of its actions."""
    weight = discount ** jnp.arange(len(q_values))[:, None]
    steps = jnp.where(path.alive[:-1], weight[:-1] * (path.reward + path.bonus[:-1]), 0)
    ends = jnp.where(path.alive, weight * (q_values + path.bonus), 0)
    return ends + jnp.pad(jnp.cumsum(steps, axis=0), ((1, 0), (0, 0)))


def lookahead(
    sample: Sampler,
    decode: Decode,
    discount: float | Array,
    horizon: int | Array,
    most: int,
) -> ActorObjective:
    """value_horizon, differentiable through the model (MAAC, Eq. (2)).

    The `horizon` may be traced, from 0 to `most`.
    """

    def objective(key: Key, obs: Array, act: Act, value: Value) -> Array:
        path = imagine.imagined_path(key, sample, decode, act, obs, most)
        q_values = jax.vmap(jax.vmap(value))(path.obs, path.action)
        return values(path, q_values, discount)[horizon]

    return objective


def mve(
    learner: ValueLearner,
    state: PyTree,
    key: Key,
    batch: Transition,
    sample: Sampler,
    decode: Decode,
    horizon: int,
    td_k: bool,
) -> Regression:
    """Targets r + discount value_H(next_obs) (Feinberg et al., 2018, Eq. (2)).

    With `td_k`, the imagined states of each future are rows as well, with what follows
    on it as their targets (Sec. 3.1): B (1 + H) rows, those of the batch first.
    """
    act = partial(learner.act, state)
    path = imagine.imagined_path(key, sample, decode, act, batch.next_obs, horizon)
    least = lambda obs, action: learner.values(state, obs, action).min()
    q_value = jax.vmap(least)(path.obs[-1], path.action[-1])

    def back(follows: Array, x: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, bonus, goes_on = x
        target = reward + learner.discount * jnp.where(goes_on, follows, 0)
        return target + bonus, target

    steps = path.reward, path.bonus[:-1], path.alive[1:]
    last = q_value + path.bonus[-1]
    follows, targets = jax.lax.scan(back, last, steps, reverse=True)
    _, target = back(follows, (batch.reward, jnp.zeros_like(last), ~batch.terminal))
    rows = Regression(batch.obs, batch.action, target, jnp.ones_like(target))
    if not td_k or not horizon:
        return rows
    alive = path.alive[:-1] & ~batch.terminal[None]
    imagined = Regression(
        path.obs[:-1], path.action[:-1], targets, alive.astype(target.dtype)
    )
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), imagined)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), rows, flat)


def steve(
    learner: ValueLearner,
    state: PyTree,
    key: Key,
    batch: Transition,
    model: Model,
    members: PyTree,
    decode: Decode,
    horizon: int,
) -> tuple[Regression, Array]:
    """Targets weighed over horizons (Buckman et al., 2018, Eqs. (8), (9)).

    Each member [M, ...] goes its own way, and each of the K critics judges it: M K
    targets for each horizon.  Returns the rows [B], and the weights [B, H + 1].
    """

    def candidates(member: PyTree) -> Array:
        """[H + 1, B, K]"""
        sample = imagine.sample_member(model, member)
        act = partial(learner.act, state)
        path = imagine.imagined_path(key, sample, decode, act, batch.next_obs, horizon)
        q_values = jax.vmap(jax.vmap(partial(learner.values, state)))(
            path.obs, path.action
        )
        each = partial(values, path, discount=learner.discount)
        follows = jax.vmap(each, in_axes=2, out_axes=2)(q_values)
        follows = jnp.where(batch.terminal[None, :, None], 0, follows)
        return batch.reward[None, :, None] + learner.discount * follows

    found = jnp.moveaxis(jax.vmap(candidates)(members), 0, -1)
    target, weights = jax.vmap(weighed, in_axes=1)(found.reshape(*found.shape[:2], -1))
    usable = weights.sum(axis=1).round()  # 1, or 0 where nothing is known
    return Regression(batch.obs, batch.action, target, usable), weights


def weighed(candidates: Array) -> tuple[Array, Array]:
    """Of candidates [H + 1, N], N for each horizon: the mean of their means, [],
    weighed by their inverse variances, and the weights [H + 1], which sum to 1.

    A horizon with a candidate that is not finite has weight 0; if all are such, all are
    0, and so is the mean.
    """
    good = jnp.isfinite(candidates).all(axis=1)
    candidates = jnp.where(good[:, None], candidates, 0)
    mean, var = candidates.mean(axis=1), candidates.var(axis=1)
    weights = jnp.where(good, 1 / (var + EPS), 0)
    weights = weights / jnp.where(good.any(), weights.sum(), 1)
    return weights @ mean, weights
