"""The gradient of the expected return with respect to a policy, through dynamics.

    J(params) = E[sum_{t<H} discount^t r_t + discount^H value(obs_H)]

Every estimator is `(key, params, problem, num_samples) -> Estimate`, but for
`batch_importance`, whose samples depend on each other:

    pathwise           back-propagation through time, noise reparameterised; `window`:
                       cut between short windows (SHAC, Xu et al., 2022)
    likelihood_ratio   the score function (REINFORCE, Williams, 1992), with the return
                       to go and a leave-one-out baseline
    total_propagation  both, mixed at each step back by inverse variance (PIPPS, Parmas
                       et al., 2018, arXiv 1902.01240, Algorithm 1)
    batch_importance   the score function of what all samples do together (ibid.)
    finite_difference  central, with common random numbers: the referee

A short horizon with a `value` after it is MAAC and SVG(H).  A sample that is not finite
is left out and counted.  What depends on where an episode ends is not seen by the
pathwise gradient, nor is anything that jumps: only the likelihood ratio sees it.

    problem = closed_loop.Problem(system, actor, horizon=32)
    estimate = jax.jit(lambda key: estimators.pathwise(key, params, problem, 64))(key)

For training there is `pathwise.pathwise_mean`: only the mean, several times as fast.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.nn import logsumexp

from mbrl_jax.gradients import closed_loop
from mbrl_jax.gradients.closed_loop import Carry, ExpectedReturn, StepRecord
from mbrl_jax.ops import estimate, scan
from mbrl_jax.ops.estimate import Estimate, summarise
from mbrl_jax.types import Array, Key, Params, PyTree


def pathwise(
    key: Key,
    params: Params,
    problem: ExpectedReturn,
    num_samples: int,
    *,
    window: int | None = None,
) -> Estimate:
    """Back-propagation through time.

    With a `window`, which divides the horizon, no gradient passes from one window of
    steps into the one before; the value, if there is one, stands for it.
    """

    def objective(params: Params, start: PyTree, key: Key) -> tuple[Array, Array]:
        total, sample = closed_loop.rollout(key, params, problem, start, window=window)
        return total, sample.steps.weighted.sum()

    starts, keys = _starts(key, problem, num_samples)
    gradient = jax.grad(objective, has_aux=True)
    return summarise(*jax.vmap(gradient, in_axes=(None, 0, 0))(params, starts, keys))


def likelihood_ratio(
    key: Key, params: Params, problem: ExpectedReturn, num_samples: int
) -> Estimate:
    """The score function; of the actions, else of the next states."""
    _check_density(problem)
    starts, keys = _starts(key, problem, num_samples)
    sample = lambda start, key: closed_loop.rollout(key, params, problem, start)[1]
    samples = jax.vmap(sample)(starts, keys)
    advantages = _advantages(samples.steps, samples.bootstrap)

    def surrogate(params: Params, start: PyTree, key: Key, advantages: Array) -> Array:
        def step(carry: Any, x: tuple[Array, Array]) -> tuple[Any, Array]:
            (time, advantage), hold = x, jax.lax.stop_gradient
            carry, done = closed_loop.step(
                problem, hold, params, key, hold(carry), time
            )
            return carry, done.weighted + advantage * done.log_prob

        xs = (jnp.arange(problem.horizon), advantages)
        carry = closed_loop.begin(start)
        return scan.checkpointed(step, carry, xs, problem.segment)[1].sum()

    in_axes = (None, 0, 0, 0)
    gradients = jax.vmap(jax.grad(surrogate), in_axes)(params, starts, keys, advantages)
    return summarise(gradients, samples.steps.weighted.sum(axis=1))


def batch_importance(
    key: Key, params: Params, problem: ExpectedReturn, num_samples: int
) -> tuple[Params, Array]:
    """The gradient by likelihood ratio with batch importance weights, and the return.

        sum_t mean_j d log q_t(x_jt+1) advantage_jt,   q_t(x) = mean_i p(x | x_it)

    Each sampled next state counts for all samples, by how likely it was from there
    (Parmas et al., 2018, "PIPPS", Sec. 3.3).  For deterministic actors in systems with
    a density.  The leave-one-out baseline biases it by the order of 1 / num_samples,
    and what is not finite is not left out.
    """
    system, actor = problem.system, problem.actor
    density = _density_of_a_step(problem)
    starts, keys = _starts(key, problem, num_samples)
    advance = partial(closed_loop.step, problem, closed_loop.free, params)

    def move(before: Carry, time: Array) -> tuple[Carry, tuple]:
        after, done = jax.vmap(advance, (0, 0, None))(keys, before, time)
        return after, (before, after[0], done)

    times = jnp.arange(problem.horizon)
    carry = jax.vmap(closed_loop.begin)(starts)
    last, (before, after, steps) = jax.lax.scan(move, carry, times)
    steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)  # [N, H, ...]
    bootstraps = jax.vmap(partial(closed_loop.bootstrap, problem))(last)
    advantages = _advantages(steps, bootstraps).T  # [H, N]

    def surrogate(params: Params) -> Array:
        def step(total: Array, x: tuple) -> tuple[Array, None]:
            time, (states, weights), next_states, advantages = x

            def act(key: Key, state: PyTree) -> Array:
                own = closed_loop.act_key(key, time)
                return actor.sample(params, own, system.observe(state))

            def log_mixture(next_state: PyTree) -> Array:
                each = jax.vmap(density, (0, 0, None))(states, actions, next_state)
                return logsumexp(each, b=alive) - jnp.log(alive.sum())

            alive, actions = weights > 0, jax.vmap(act)(keys, states)
            rewards = jax.vmap(system.reward)(states, actions, next_states)
            scores = jax.vmap(log_mixture)(next_states) * advantages
            return total + jnp.where(alive, scores + weights * rewards, 0).sum(), None

        xs = times, before, after, advantages
        return scan.checkpointed(step, jnp.zeros(()), xs, 1)[0] / num_samples

    return jax.grad(surrogate)(params), steps.weighted.sum(axis=1).mean()


def total_propagation(
    key: Key, params: Params, problem: ExpectedReturn, num_samples: int
) -> Estimate:
    """Back-propagation in which each step weighs both estimators (Algorithm 1).

    At every step backwards the message from the future (the gradient with respect to
    the sampled action and next state) is available pathwise and by likelihood ratio.
    The two are mixed by the inverse of the variance, among the samples, of the gradient
    with respect to `params` that each gives at this step.  A variance that overflows
    counts as infinite.  The weights come from the same samples, which biases the
    estimate by the order of 1 / num_samples.
    """
    _check_density(problem)
    starts, keys = _starts(key, problem, num_samples)
    times = scan.segments(jnp.arange(problem.horizon), problem.segment or 1)
    move = partial(closed_loop.step, problem, closed_loop.free, params)
    advance = jax.vmap(move, (0, 0, None))

    def run(carry: Carry, times: Array) -> tuple[Carry, tuple[Carry, StepRecord]]:
        def step(before: Carry, time: Array) -> tuple[Carry, tuple[Carry, StepRecord]]:
            after, done = advance(keys, before, time)
            return after, (before, done)

        return jax.lax.scan(step, carry, times)  # a segment of all samples

    def forward(carry: Carry, times: Array) -> tuple[Carry, tuple[Carry, StepRecord]]:
        after, (_, steps) = run(carry, times)
        return after, (carry, steps)

    carry = jax.vmap(closed_loop.begin)(starts)
    last, (kept, steps) = jax.lax.scan(forward, carry, times)
    in_order = lambda x: jnp.moveaxis(x.reshape(-1, *x.shape[2:]), 0, 1)
    steps = jax.tree.map(in_order, steps)  # [N, H, ...]
    bootstraps, messages = jax.vmap(partial(_last_message, problem))(last)
    advantages = _advantages(steps, bootstraps).T.reshape(*times.shape, -1)

    def sweep(later: Any, x: tuple[Carry, Array, Array]) -> tuple[Any, None]:
        carry, times, advantages = x
        before = run(carry, times)[1][0]  # [segment, N, ...], computed again
        back = partial(_mixed_step_back, problem, params, keys)
        return jax.lax.scan(back, later, (before, times, advantages), reverse=True)

    zeros = jax.tree.map(lambda x: jnp.zeros((num_samples, *x.shape), x.dtype), params)
    (_, gradients), _ = jax.lax.scan(
        sweep, (messages, zeros), (kept, times, advantages), reverse=True
    )
    return summarise(gradients, steps.weighted.sum(axis=1))


def finite_difference(
    key: Key,
    params: Params,
    problem: ExpectedReturn,
    num_samples: int,
    *,
    step: float | None = None,
) -> Estimate:
    """Central differences: each entry of `params` moved by `step`, the noise kept.

    The default step is the cube root of the machine's precision.  Of the samples that
    `pathwise` has with the same key, so that the two can be compared one by one.
    """
    vector, unravel = ravel_pytree(params)
    step = float(jnp.finfo(vector.dtype).eps ** (1 / 3)) if step is None else step
    starts, keys = _starts(key, problem, num_samples)

    def totals(vector: Array) -> tuple[Array, Array]:  # objective and return, [N]
        one = partial(closed_loop.rollout, params=unravel(vector), problem=problem)
        total, samples = jax.vmap(lambda start, key: one(key, start=start))(
            starts, keys
        )
        return total, samples.steps.weighted.sum(axis=1)

    def derivative(i: Array) -> Array:  # [N]
        up, down = vector.at[i].add(step), vector.at[i].add(-step)
        return (totals(up)[0] - totals(down)[0]) / (up[i] - down[i])

    entries = jax.lax.map(derivative, jnp.arange(vector.size))  # [params, N]
    return summarise(jax.vmap(unravel)(entries.T), totals(vector)[1])


def log_growth(key: Key, params: Params, problem: ExpectedReturn) -> Array:
    """How errors grow: [H] the log of the largest singular value of the Jacobian of the
    state after 1 to H steps with respect to the first state, along one rollout.

    Divided by the number of steps it estimates the largest Lyapunov exponent.  The
    policy is in the loop, its noise is fixed.  The state is all its floating-point
    leaves.
    """
    start_key, key = jax.random.split(key)
    start = problem.system.reset(start_key)

    def step(carry: Any, time: Array) -> tuple[Any, Array]:
        state, product, log_scale = carry
        vector, rebuild = closed_loop.float_vector(state)

        def move(vector: Array) -> tuple[Array, PyTree]:
            running = closed_loop.begin(rebuild(vector))
            (state, _), _ = closed_loop.step(
                problem, closed_loop.free, params, key, running, time
            )
            return closed_loop.float_vector(state)[0], state

        jacobian, state = jax.jacfwd(move, has_aux=True)(vector)
        product = jacobian @ product
        size = jnp.abs(product).max()
        size = jnp.where(size > 0, size, 1)
        product, log_scale = product / size, log_scale + jnp.log(size)
        return (state, product, log_scale), log_scale + jnp.log(
            jnp.linalg.norm(product, ord=2)
        )

    size = closed_loop.float_vector(start)[0].size
    carry = (start, jnp.eye(size), jnp.zeros(()))
    return jax.lax.scan(step, carry, jnp.arange(problem.horizon))[1]


def _mixed_step_back(
    problem: ExpectedReturn,
    params: Params,
    keys: Key,  # [N]
    later: tuple[Array, Params],  # messages [N, D], gradients [N, ...] of later steps
    x: tuple[Any, Array, Array],  # carries before the step [N, ...], time, advantages
) -> tuple[tuple[Array, Params], None]:
    """One step back of total propagation, for all samples."""
    (messages, gradients), (carry, time, advantages) = later, x
    pull = jax.vmap(partial(_pull, problem, params), (0, 0, None, 0, 0))
    score, pathwise = pull(keys, carry, time, advantages, messages)
    valid = jnp.isfinite(advantages)
    share = estimate.inverse_variance_share(score[0], pathwise[0], valid)
    here, messages = jax.tree.map(partial(estimate.mix, share), score, pathwise)
    return (messages, jax.tree.map(jnp.add, gradients, here)), None


def _pull(
    problem: ExpectedReturn,
    params: Params,
    key: Key,
    carry: Carry,
    time: Array,
    advantage: Array,
    message: Array,  # [D] gradient with respect to the state after the step
) -> tuple[tuple[Params, Array], tuple[Params, Array]]:
    """What a step adds to the gradient with respect to `params`, and the message to the
    step before: by likelihood ratio, and pathwise."""
    vector, rebuild = closed_loop.float_vector(carry[0])

    def pull(hold: Callable[[PyTree], PyTree], score: Array) -> tuple[Params, Array]:
        def move(params: Params, vector: Array) -> tuple[Array, Array, Array]:
            before = (rebuild(vector), carry[1])
            (state, _), done = closed_loop.step(
                problem, hold, params, key, before, time
            )
            vector = closed_loop.float_vector(state)[0]
            return vector, done.weighted, done.log_prob

        (_, reward, log_prob), back = jax.vjp(move, params, vector)
        return back((message, jnp.ones_like(reward), score.astype(log_prob.dtype)))

    pathwise = pull(closed_loop.free, jnp.zeros(()))
    return pull(jax.lax.stop_gradient, advantage), pathwise


def _last_message(problem: ExpectedReturn, carry: Carry) -> tuple[Array, Array]:
    """The value after the horizon, and its gradient [D]."""
    vector, rebuild = closed_loop.float_vector(carry[0])
    value = lambda vector: closed_loop.bootstrap(problem, (rebuild(vector), carry[1]))
    return jax.value_and_grad(value)(vector)


def _advantages(steps: StepRecord, bootstraps: Array) -> Array:
    """Weights [N, H] of the score: the return to go, less that of the other samples."""
    returns = estimate.to_go(steps.weighted.at[:, -1].add(bootstraps))
    advantages = estimate.leave_one_out(returns)
    return jnp.where(steps.alive | jnp.isnan(advantages), advantages, 0)


def _starts(key: Key, problem: ExpectedReturn, num_samples: int) -> tuple[PyTree, Key]:
    """First states, and a key for each rollout."""
    start_key, key = jax.random.split(key)
    start_keys = jax.random.split(start_key, num_samples)
    return jax.vmap(problem.system.reset)(start_keys), jax.random.split(
        key, num_samples
    )


def _density_of_a_step(
    problem: ExpectedReturn,
) -> Callable[[PyTree, Any, PyTree], Array]:
    density = problem.system.log_prob
    if density is None or problem.actor.log_prob is not None:
        raise ValueError(
            "batch importance weights need a system with a log_prob and an actor "
            "without one: take likelihood_ratio"
        )
    return density


def _check_density(problem: ExpectedReturn) -> None:
    if problem.actor.log_prob is None and problem.system.log_prob is None:
        raise ValueError(
            "a likelihood ratio needs a density, but neither the actor nor the system "
            "has a log_prob: make one of them stochastic, or use pathwise"
        )
