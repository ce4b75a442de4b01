"""The pathwise gradient for training, and whether a simulator has one.

`pathwise_mean` is the mean of `estimators.pathwise`, several times as fast; `check`
says at once where there is no gradient through a simulator at all.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import Literal

from mbrl_jax.gradients import closed_loop
from mbrl_jax.gradients.closed_loop import Carry, ExpectedReturn, Rollout, StepRecord
from mbrl_jax.ops import finite, scan
from mbrl_jax.types import Array, Env, EnvState, Key, Params, PyTree


def pathwise_mean(
    key: Key, params: Params, problem: ExpectedReturn, starts: PyTree
) -> tuple[Params, Rollout, Array]:
    """The mean of `pathwise` over samples from the states `starts` [N, ...].

    Returns the gradient, the samples [N, ...] (their `log_prob` is left 0), and which
    were finite, [N] bool, others are left out.  All samples are differentiated as one,
    so that what the policy's weights gain at a step is one product for all of them;
    only where a sample is broken is the policy differentiated again, without it.
    """
    num_samples = jax.tree.leaves(starts)[0].shape[0]
    keys = jax.random.split(key, num_samples)
    first = jax.vmap(problem.system.observe)(starts)[0]
    like = jax.eval_shape(problem.actor.sample, params, key, first)
    nudges = jnp.zeros((problem.horizon, num_samples, *like.shape), like.dtype)
    objective = partial(_nudged, problem, keys, starts)
    (total, pulls), samples = jax.grad(objective, (0, 1), has_aux=True)(params, nudges)
    swap = partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1))
    samples = samples._replace(steps=swap(samples.steps))
    obs, weighted = samples.steps.obs, samples.steps.weighted
    last = jax.vmap(problem.system.observe)(samples.final)
    earned = (swap(pulls), weighted, samples.bootstrap)
    valid = finite.all_finite(earned, 1) & finite.usable((obs, last), 1)

    def again(_: Any) -> tuple[Array, Params]:
        total = _policy_gradient(problem.actor, keys, params, obs, pulls, valid)
        return jnp.zeros((), bool), total

    # a loop of at most one round: of a `cond` under vmap both branches are executed
    _, total = jax.lax.while_loop(lambda x: x[0], again, (~valid.all(), total))
    number = jnp.maximum(valid.sum(), 1)
    return jax.tree.map(lambda x: x / number, total), samples, valid


def _nudged(
    problem: ExpectedReturn, keys: Key, starts: PyTree, params: Params, nudges: Array
) -> tuple[Array, Rollout]:
    """The sum over samples, to whose actions `nudges` [H, N, A] are added.

    Of the rollouts beside it the steps are [H, N, ...].  Densities are not computed.
    """
    # what is kept is written to memory and read again, which is slower than a tanh
    sample = jax.checkpoint(
        problem.actor.sample,
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    )
    system = problem.system._replace(log_prob=None)

    def move(
        key: Key, carry: Carry, time: Array, nudge: Array
    ) -> tuple[Carry, StepRecord]:
        actor = closed_loop.Actor(lambda *args: sample(*args) + nudge)
        nudged = problem._replace(system=system, actor=actor)
        return closed_loop.step(nudged, closed_loop.free, params, key, carry, time)

    def step(carry: Carry, x: tuple[Array, Array]) -> tuple[Carry, StepRecord]:
        return jax.vmap(move, (0, 0, None, 0))(keys, carry, *x)

    carry, xs = jax.vmap(closed_loop.begin)(starts), (jnp.arange(len(nudges)), nudges)
    carry, steps = scan.checkpointed(step, carry, xs, problem.segment)
    bootstraps = jax.vmap(partial(closed_loop.bootstrap, problem))(carry)
    total = steps.weighted.sum() + bootstraps.sum()
    return total, Rollout(carry[0], bootstraps, steps)


def _policy_gradient(
    actor: closed_loop.Actor,
    keys: Key,  # [N] of the rollouts
    params: Params,
    obs: Array,  # [N, H, O]
    pulls: Array,  # [H, N, A] the gradients with respect to the actions
    valid: Array,  # [N] bool
) -> Params:
    """The gradient with respect to `params` of the sum over the valid samples."""
    mask = valid[None, :, None]
    obs = jnp.where(mask, jnp.swapaxes(obs, 0, 1), 0)
    pulls = jnp.where(mask, pulls, 0)

    def add(total: Params, x: tuple[Array, Array, Array]) -> tuple[Params, None]:
        time, obs, pull = x  # of all samples at one time, which stay in the cache

        def act(params: Params) -> Array:
            one = lambda key, obs: actor.sample(
                params, closed_loop.act_key(key, time), obs
            )
            return jax.vmap(one)(keys, obs)

        (gradient,) = jax.vjp(act, params)[1](pull)
        return jax.tree.map(jnp.add, total, gradient), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, (jnp.arange(len(pulls)), obs, pulls))[0]


def varies(function: Callable[..., Array], by: PyTree, *others: PyTree) -> bool:
    """Whether the derivative of function(by, *others) with respect to `by` is anything
    but exactly 0.  It is traced, but neither compiled nor run."""

    def tangent(by: PyTree, direction: PyTree, *others: PyTree) -> Array:
        along = lambda by: function(by, *others)
        return jax.jvp(along, (by,), (direction,))[1]

    jaxpr = jax.make_jaxpr(tangent)(by, by, *others).jaxpr
    size = len(jax.tree.leaves(by))
    return reaches(jaxpr, {*jaxpr.invars[size : 2 * size]})


def reaches(jaxpr: core.Jaxpr, variables: set[Any]) -> bool:
    """Whether any of the outputs is computed from any of these variables."""
    moved = {*variables}
    for equation in jaxpr.eqns:
        if any(x in moved for x in equation.invars if not isinstance(x, Literal)):
            moved |= {*equation.outvars}
    return bool({x for x in jaxpr.outvars if not isinstance(x, Literal)} & moved)


@lru_cache(maxsize=16)
def check(env: Env) -> None:
    """Raises ValueError if there is no gradient through the simulator `env`.

    It is traced, but neither compiled nor run: two steps, so that a reward of the state
    before a step depends on an action.
    """
    closed_loop.from_env(env)  # not of an environment on the host

    def total(action: Array, state: EnvState) -> Array:
        def step(state: EnvState, _: None) -> tuple[EnvState, Array]:
            state = env.step(state, action)
            return state, state.reward

        return jax.lax.scan(step, state, length=2)[1].sum()

    state = jax.eval_shape(env.reset, jax.random.key(0))
    action = jnp.zeros(env.action_size, state.obs.dtype)
    if not varies(total, action, state):
        raise ValueError(
            f"the gradient of the return of {env.name} is exactly 0: its reward does "
            "not change with the actions, or only by jumps.  Give it a reward that "
            "does, or take a method that needs no gradient of the simulator (pets)"
        )
    try:
        jax.eval_shape(jax.grad(total), action, state)
    except ValueError as error:
        if "Reverse-mode differentiation" not in str(error):
            raise
        raise ValueError(
            f"{env.name} cannot be differentiated in reverse: a step loops until it "
            "has converged.  Take another backend (brax/NAME/spring or generalized), "
            'or a fixed number of iterations: envs.brax.make(NAME, "mjx", '
            "solver_iterations=1)"
        ) from error
