"""A policy in a simulator or in a learned model, as one differentiable function.

    J(params) = E[sum_{t<H} discount^t r_t + discount^H value(obs_H)]

`rollout` is one sample of it, `step` one step; `estimators` differentiate them.

    system = closed_loop.from_env(env)
    actor = closed_loop.gaussian(lambda params, obs: Gaussian(mean, std))
    problem = closed_loop.Problem(system, actor, horizon=32)
    total, sample = closed_loop.rollout(key, params, problem, system.reset(start_key))
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mbrl_jax.ops import scan
from mbrl_jax.types import Array, Env, Gaussian, Key, Model, Params, PyTree

Carry = tuple[PyTree, Array]
# a state; the weight of the next reward: discount^t, 0 after the end of the episode


Decode = Callable[[Array, Array, Array], Any]


class DynamicalSystem(NamedTuple):
    """What a policy is rolled out in: the true simulator, or a learned model.

    An observation or an action may also be a belief about one, a pytree, see `pilco`.
    """

    reset: Callable[[Key], PyTree]  # -> state
    step: Callable[[Key, PyTree, Any], PyTree]  # (key, state, action) -> next state
    observe: Callable[[PyTree], Any]  # state -> obs [O]
    reward: Callable[[PyTree, Any, PyTree], Array]  # (state, action, next state)
    terminal: Callable[[PyTree, Any, PyTree], Array]  # the same -> [] bool
    log_prob: Callable[[PyTree, Any, PyTree], Array] | None = None
    # the same -> [] log-density of the next state; None if it has none


class Actor(NamedTuple):
    """A policy with parameters."""

    sample: Callable[[Params, Key, Any], Any]  # (params, key, obs) -> action [A]
    log_prob: Callable[[Params, Array, Array], Array] | None = None
    # (params, obs, action) -> []; None if the policy is deterministic


class ExpectedReturn(NamedTuple):
    """The expected return whose gradient is wanted."""

    system: DynamicalSystem
    actor: Actor
    horizon: int  # H
    discount: float | Array = 1.0
    value: Callable[[Array], Array] | None = None  # obs [O] -> [], of what follows
    segment: int = 0  # steps between the states that are kept, see ops/scan


class StepRecord(NamedTuple):
    """What one step led to.  After the end of the episode it means nothing."""

    obs: Array  # [O] before the step
    action: Array  # [A]
    reward: Array  # []
    terminal: Array  # [] bool
    alive: Array  # [] bool, whether this was before the end
    weighted: Array  # [] discount^t reward, 0 after the end
    log_prob: Array  # [] of action and next state, of those that have a density


class Rollout(NamedTuple):
    """One sample."""

    final: PyTree  # state
    bootstrap: Array  # [] discount^H value(obs_H), 0 after the end of the episode
    steps: StepRecord  # [H, ...]


def from_env(env: Env) -> DynamicalSystem:
    """The true simulator.  It goes on through a time limit, but not after an end."""
    if env.host:
        raise ValueError(f"{env.name} steps outside jax: it has no gradient")
    return DynamicalSystem(
        reset=env.reset,
        step=lambda key, state, action: env.step(state, action),
        observe=lambda state: state.obs,
        reward=lambda state, action, next_state: next_state.reward,
        terminal=lambda state, action, next_state: next_state.terminal,
    )


def from_model(
    model: Model, state: PyTree, decode: Decode, starts: Array, action_size: int
) -> DynamicalSystem:
    """A learned model: each step asks one member, drawn anew (TS1 of PETS).

    `decode` is as `outcomes.decoder` makes it: (obs [O], action [A], y [D]) ->
    `.reward`, `.terminal`.  The state is y, the model's last outcome, of which obs
    comes first; rollouts begin at rows of `starts` [B, O].  What is predicted with a
    std of 0 counts as known; where that is everything, replace `log_prob` by None.
    """
    members = model.members(state)
    num_members = jax.tree.leaves(members)[0].shape[0]

    def predict(member: Array, obs: Array, action: Array) -> Gaussian:
        one = jax.tree.map(lambda x: x[member], members)
        return model.predict(one, obs, action)

    def draw(key: Key, obs: Array, action: Array) -> Array:
        member_key, noise_key = jax.random.split(key)
        member = jax.random.randint(member_key, (), 0, num_members)
        return _sample(noise_key, predict(member, obs, action))

    def log_prob(obs: Array, action: Array, next_y: Array) -> Array:
        every = jax.vmap(predict, in_axes=(0, None, None))
        mixture = every(jnp.arange(num_members), obs, action)  # [M, D]
        each = jax.vmap(_log_density, in_axes=(0, None))(mixture, next_y)
        return jax.nn.logsumexp(each) - jnp.log(num_members)

    return _imagined(draw, log_prob, decode, starts, action_size)


def from_member(
    predict: Callable[[Array, Array], Gaussian],
    decode: Decode,
    starts: Array,
    action_size: int,
) -> DynamicalSystem:
    """As `from_model`, but one member all along (TS-infinity): (obs, action) -> y."""
    return _imagined(
        lambda key, obs, action: _sample(key, predict(obs, action)),
        lambda obs, action, next_y: _log_density(predict(obs, action), next_y),
        decode,
        starts,
        action_size,
    )


def states_at(system: DynamicalSystem, obs: Array) -> Array:
    """The states [N, D] of an imagined `system` that show `obs` [N, O]."""
    blank = jax.eval_shape(system.reset, jax.random.key(0))
    states = jnp.zeros((len(obs), *blank.shape), blank.dtype)
    return states.at[:, : obs.shape[1]].set(obs)


def _imagined(
    draw: Callable[[Key, Array, Array], Array],  # (key, obs, action) -> y [D]
    log_prob: Callable[[Array, Array, Array], Array],  # (obs, action, y) -> []
    decode: Decode,
    starts: Array,
    action_size: int,
) -> DynamicalSystem:
    num_starts, size = starts.shape
    action = jnp.zeros(action_size, starts.dtype)
    blank = jax.eval_shape(draw, jax.random.key(0), starts[0], action)

    def reset(key: Key) -> Array:
        row = starts[jax.random.randint(key, (), 0, num_starts)]
        return jnp.zeros(blank.shape, blank.dtype).at[:size].set(row)

    return DynamicalSystem(
        reset=reset,
        step=lambda key, y, action: draw(key, y[:size], action),
        observe=lambda y: y[:size],
        reward=lambda y, action, next_y: decode(y[:size], action, next_y).reward,
        terminal=lambda y, action, next_y: decode(y[:size], action, next_y).terminal,
        log_prob=lambda y, action, next_y: log_prob(y[:size], action, next_y),
    )


def gaussian(apply: Callable[[Params, Array], Gaussian]) -> Actor:
    """A stochastic policy: `apply` maps (params, obs) to the mean and std [A]."""
    return Actor(
        sample=lambda params, key, obs: _sample(key, apply(params, obs)),
        log_prob=lambda params, obs, action: _log_density(apply(params, obs), action),
    )


def deterministic(apply: Callable[[Params, Array], Array]) -> Actor:
    """`apply` maps (params, obs) to the action [A]."""
    return Actor(sample=lambda params, key, obs: apply(params, obs))


def rollout(
    key: Key,
    params: Params,
    problem: ExpectedReturn,
    start: PyTree,
    *,
    window: int | None = None,
) -> tuple[Array, Rollout]:
    """One sample of what is to be maximised, from the state `start`; differentiable.

    With a `window`, the sum over windows of rewards and the value at the end, each a
    function of the state it begins in, taken as given (SHAC, Eq. 5).
    """
    window = problem.horizon if window is None else window
    if window < 1 or problem.horizon % window:
        raise ValueError(f"window {window} does not divide horizon {problem.horizon}")

    def run(carry: Carry, times: Array) -> tuple[Carry, tuple[StepRecord, Array]]:
        body = partial(step, problem, free, params, key)
        carry, steps = scan.checkpointed(
            body, jax.lax.stop_gradient(carry), times, problem.segment
        )
        return carry, (steps, bootstrap(problem, carry))

    times = jnp.arange(problem.horizon).reshape(-1, window)
    (final, _), (steps, bootstraps) = scan.checkpointed(
        run, begin(start), times, min(problem.segment, 1)
    )
    steps = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
    sample = Rollout(final, bootstraps[-1], steps)
    return steps.weighted.sum() + bootstraps.sum(), sample


def begin(start: PyTree) -> Carry:
    return start, jnp.ones(())


def step(
    problem: ExpectedReturn,
    hold: Callable[[PyTree], PyTree],
    params: Params,
    key: Key,  # of the rollout: shorter horizons see the same noise
    carry: Carry,
    time: Array,
) -> tuple[Carry, StepRecord]:
    """One step.

    Samples that have a density go through `hold`: `free` for the pathwise gradient;
    with `stop_gradient` the gradient goes through the log-density in their place.
    """
    (system, actor), (state, weight) = problem[:2], carry
    obs, log_prob = system.observe(state), jnp.zeros(())
    action = actor.sample(params, act_key(key, time), obs)
    if actor.log_prob is not None:
        action = hold(action)
        log_prob += actor.log_prob(params, obs, action)
    next_state = system.step(_step_key(key, time), state, action)
    if system.log_prob is not None:
        next_state = hold(next_state)
        log_prob += system.log_prob(state, action, next_state)
    alive, moved = weight > 0, (state, action, next_state)
    reward, terminal = system.reward(*moved), system.terminal(*moved)
    weighted = jnp.where(alive, weight * reward, 0)
    weight = jnp.where(terminal, 0, problem.discount * weight)
    # a state that has ended stays, so that nothing after it can become non-finite
    state = jax.tree.map(lambda new, old: jnp.where(alive, new, old), next_state, state)
    record = StepRecord(obs, action, reward, terminal, alive, weighted, log_prob)
    return (state, weight), record


def act_key(key: Key, time: Array) -> Key:
    """What the policy draws with at a step of the rollout of `key`."""
    return jax.random.split(jax.random.fold_in(key, time))[0]


def _step_key(key: Key, time: Array) -> Key:
    return jax.random.split(jax.random.fold_in(key, time))[1]


def bootstrap(problem: ExpectedReturn, carry: Carry) -> Array:
    """The weighted value of what follows; 0 after the end."""
    state, weight = carry
    if problem.value is None:
        return jnp.zeros_like(weight)
    value = problem.value(problem.system.observe(state))
    return jnp.where(weight > 0, weight * value, 0)


def free(sample: PyTree) -> PyTree:
    return sample


def _sample(key: Key, distribution: Gaussian) -> Array:
    mean, std = distribution
    return mean + std * jax.random.normal(key, mean.shape, mean.dtype)


def _log_density(distribution: Gaussian, x: Array) -> Array:
    """Summed over the entries that have one, those with a std above 0."""
    random = distribution.std > 0
    std = jnp.where(random, distribution.std, 1)
    log_prob = jax.scipy.stats.norm.logpdf(x, distribution.mean, std)
    return jnp.where(random, log_prob, 0).sum()


def float_vector(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """The floating-point leaves as one vector, and the way back."""
    leaves, structure = jax.tree.flatten(tree)
    where = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    vector, unravel = ravel_pytree([leaves[i] for i in where])

    def rebuild(vector: Array) -> PyTree:
        new = dict(zip(where, unravel(vector), strict=True))
        return jax.tree.unflatten(
            structure, [new.get(i, x) for i, x in enumerate(leaves)]
        )

    return vector, rebuild
