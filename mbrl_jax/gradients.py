"""The gradient of the expected return with respect to a policy, through dynamics.

    J(params) = E[sum_{t<H} discount^t r_t + discount^H value(obs_H)]

Every estimator is `(key, params, problem, num_samples) -> Estimate`:

    pathwise           back-propagation through time, noise reparameterised; `window`:
                       cut between short windows (SHAC, Xu et al., 2022)
    likelihood_ratio   the score function (REINFORCE, Williams, 1992), with the return
                       to go and a leave-one-out baseline
    total_propagation  both, mixed at each step back by inverse variance (PIPPS, Parmas
                       et al., 2018, arXiv 1902.01240, Algorithm 1)
    finite_difference  central, with common random numbers: the referee

A short horizon with a `value` after it is MAAC and SVG(H).  A sample that is not finite
is left out and counted.  What depends on where an episode ends is not seen by the
pathwise gradient, nor is anything that jumps: only the likelihood ratio sees it.

    system = gradients.from_env(env)
    actor = gradients.gaussian(lambda params, obs: Gaussian(mean, std))
    problem = gradients.Problem(system, actor, horizon=32)
    estimate = jax.jit(lambda key: gradients.pathwise(key, params, problem, 64))(key)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mbrl_jax.ops import estimate, scan
from mbrl_jax.ops.estimate import Estimate, summarise
from mbrl_jax.types import Array, Env, Gaussian, Key, Model, Params, PyTree


class System(NamedTuple):
    """What a policy is rolled out in: the true simulator, or a learned model."""

    reset: Callable[[Key], PyTree]  # -> state
    step: Callable[[Key, PyTree, Array], PyTree]  # (key, state, action) -> next state
    observe: Callable[[PyTree], Array]  # state -> obs [O]
    reward: Callable[[PyTree, Array, PyTree], Array]  # (state, action, next state)
    terminal: Callable[[PyTree, Array, PyTree], Array]  # the same -> [] bool
    log_prob: Callable[[PyTree, Array, PyTree], Array] | None = None
    # the same -> [] log-density of the next state; None if it has none


class Actor(NamedTuple):
    """A policy with parameters."""

    sample: Callable[[Params, Key, Array], Array]  # (params, key, obs) -> action [A]
    log_prob: Callable[[Params, Array, Array], Array] | None = None
    # (params, obs, action) -> []; None if the policy is deterministic


class Problem(NamedTuple):
    """The expected return whose gradient is wanted."""

    system: System
    actor: Actor
    horizon: int  # H
    discount: float | Array = 1.0
    value: Callable[[Array], Array] | None = None  # obs [O] -> [], of what follows
    segment: int = 0  # steps between the states that are kept, see ops/scan


class Rollout(NamedTuple):
    """One sample.  `rewards` [H] are discounted, 0 after the end of the episode."""

    final: PyTree  # state
    bootstrap: Array  # [] discount^H value(obs_H), 0 after the end of the episode
    rewards: Array  # [H]
    alive: Array  # [H] bool, whether the step was before the end


def from_env(env: Env) -> System:
    """The true simulator.  It goes on through a time limit, but not after an end."""
    if env.host:
        raise ValueError(f"{env.name} steps outside jax: it has no gradient")
    return System(
        reset=env.reset,
        step=lambda key, state, action: env.step(state, action),
        observe=lambda state: state.obs,
        reward=lambda state, action, next_state: next_state.reward,
        terminal=lambda state, action, next_state: next_state.terminal,
    )


def from_model(
    model: Model,
    state: PyTree,
    read: Callable[[Array, Array, Array], Any],
    starts: Array,
    action_size: int,
) -> System:
    """A learned model: each step asks one member, drawn anew (TS1 of PETS).

    `read` is as `imagine.outcome` makes it: (obs [O], action [A], y [D]) -> `.reward`,
    `.terminal`.  The state is y, the model's last outcome, of which obs comes first;
    rollouts begin at rows of `starts` [B, O].  What is predicted with a std of 0 counts
    as known; where that is everything, replace `log_prob` by None.
    """
    members = model.members(state)
    num_members = jax.tree.leaves(members)[0].shape[0]
    obs_size = starts.shape[1]

    def predict(member: Array, y: Array, action: Array) -> Gaussian:
        one = jax.tree.map(lambda x: x[member], members)
        return model.predict(one, y[:obs_size], action)

    blank = jax.eval_shape(
        predict, jnp.zeros((), int), starts[0], jnp.zeros(action_size)
    )

    def reset(key: Key) -> Array:
        row = jax.random.randint(key, (), 0, starts.shape[0])
        return (
            jnp.zeros(blank.mean.shape, blank.mean.dtype).at[:obs_size].set(starts[row])
        )

    def step(key: Key, y: Array, action: Array) -> Array:
        member_key, noise_key = jax.random.split(key)
        member = jax.random.randint(member_key, (), 0, num_members)
        return _sample(noise_key, predict(member, y, action))

    def log_prob(y: Array, action: Array, next_y: Array) -> Array:
        every = jax.vmap(predict, in_axes=(0, None, None))
        mixture = every(jnp.arange(num_members), y, action)  # [M, D]
        each = jax.vmap(_log_density, in_axes=(0, None))(mixture, next_y)
        return jax.nn.logsumexp(each) - jnp.log(num_members)

    return System(
        reset=reset,
        step=step,
        observe=lambda y: y[:obs_size],
        reward=lambda y, action, next_y: read(y[:obs_size], action, next_y).reward,
        terminal=lambda y, action, next_y: read(y[:obs_size], action, next_y).terminal,
        log_prob=log_prob,
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


def pathwise(
    key: Key,
    params: Params,
    problem: Problem,
    num_samples: int,
    *,
    window: int | None = None,
) -> Estimate:
    """Back-propagation through time.

    With a `window`, which divides the horizon, no gradient passes from one window of
    steps into the one before; the value, if there is one, stands for it.
    """

    def objective(params: Params, start: PyTree, key: Key) -> tuple[Array, Array]:
        total, sample = rollout(key, params, problem, start, window=window)
        return total, sample.rewards.sum()

    starts, keys = _starts(key, problem, num_samples)
    gradient = jax.grad(objective, has_aux=True)
    return summarise(*jax.vmap(gradient, in_axes=(None, 0, 0))(params, starts, keys))


def likelihood_ratio(
    key: Key, params: Params, problem: Problem, num_samples: int
) -> Estimate:
    """The score function; of the actions, else of the next states."""
    _check_density(problem)
    starts, keys = _starts(key, problem, num_samples)
    sample = lambda start, key: rollout(key, params, problem, start)[1]
    samples = jax.vmap(sample)(starts, keys)
    advantages = _advantages(samples.rewards, samples.alive, samples.bootstrap)

    def surrogate(params: Params, start: PyTree, key: Key, advantages: Array) -> Array:
        def step(carry: Any, x: tuple[Array, Array]) -> tuple[Any, Array]:
            (time, advantage), hold = x, jax.lax.stop_gradient
            carry, (reward, log_prob, _) = _step(
                problem, hold, params, key, hold(carry), time
            )
            return carry, reward + advantage * log_prob

        xs = (jnp.arange(problem.horizon), advantages)
        carry = (start, jnp.ones(()))
        return scan.checkpointed(step, carry, xs, problem.segment)[1].sum()

    in_axes = (None, 0, 0, 0)
    gradients = jax.vmap(jax.grad(surrogate), in_axes)(params, starts, keys, advantages)
    return summarise(gradients, samples.rewards.sum(axis=1))


def total_propagation(
    key: Key, params: Params, problem: Problem, num_samples: int
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
    advance = jax.vmap(partial(_step, problem, _free, params), (0, 0, None))

    def run(carry: Any, times: Array) -> tuple[Any, tuple]:  # a segment of all samples
        def step(before: Any, time: Array) -> tuple[Any, tuple]:
            after, (rewards, _, alive) = advance(keys, before, time)
            return after, (before, rewards, alive)

        return jax.lax.scan(step, carry, times)

    def forward(carry: Any, times: Array) -> tuple[Any, tuple]:
        after, (_, rewards, alive) = run(carry, times)
        return after, (carry, rewards, alive)

    carry = (starts, jnp.ones(num_samples))
    last, (kept, *record) = jax.lax.scan(forward, carry, times)
    rewards, alive = (x.reshape(-1, num_samples).T for x in record)  # [N, H]
    bootstraps, messages = jax.vmap(partial(_last_message, problem))(last)
    advantages = _advantages(rewards, alive, bootstraps).T.reshape(*times.shape, -1)

    def sweep(later: Any, x: tuple[Any, Array, Array]) -> tuple[Any, None]:
        carry, times, advantages = x
        before = run(carry, times)[1][0]  # [segment, N, ...], computed again
        back = partial(_mixed_step_back, problem, params, keys)
        return jax.lax.scan(back, later, (before, times, advantages), reverse=True)

    zeros = jax.tree.map(lambda x: jnp.zeros((num_samples, *x.shape), x.dtype), params)
    (_, gradients), _ = jax.lax.scan(
        sweep, (messages, zeros), (kept, times, advantages), reverse=True
    )
    return summarise(gradients, rewards.sum(axis=1))


def finite_difference(
    key: Key,
    params: Params,
    problem: Problem,
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
        one = lambda start, key: rollout(key, unravel(vector), problem, start)
        total, samples = jax.vmap(one)(starts, keys)
        return total, samples.rewards.sum(axis=1)

    def derivative(i: Array) -> Array:  # [N]
        up, down = vector.at[i].add(step), vector.at[i].add(-step)
        return (totals(up)[0] - totals(down)[0]) / (up[i] - down[i])

    entries = jax.lax.map(derivative, jnp.arange(vector.size))  # [params, N]
    return summarise(jax.vmap(unravel)(entries.T), totals(vector)[1])


def log_growth(key: Key, params: Params, problem: Problem) -> Array:
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
        vector, rebuild = _float_vector(state)

        def move(vector: Array) -> tuple[Array, PyTree]:
            running = (rebuild(vector), jnp.ones(()))
            (state, _), _ = _step(problem, _free, params, key, running, time)
            return _float_vector(state)[0], state

        jacobian, state = jax.jacfwd(move, has_aux=True)(vector)
        product = jacobian @ product
        size = jnp.abs(product).max()
        size = jnp.where(size > 0, size, 1)
        product, log_scale = product / size, log_scale + jnp.log(size)
        return (state, product, log_scale), log_scale + jnp.log(
            jnp.linalg.norm(product, ord=2)
        )

    size = _float_vector(start)[0].size
    carry = (start, jnp.eye(size), jnp.zeros(()))
    return jax.lax.scan(step, carry, jnp.arange(problem.horizon))[1]


def rollout(
    key: Key,
    params: Params,
    problem: Problem,
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

    def run(carry: Any, times: Array) -> tuple[Any, tuple[Array, Array, Array]]:
        body = partial(_step, problem, _free, params, key)
        carry, (rewards, _, alive) = scan.checkpointed(
            body, jax.lax.stop_gradient(carry), times, problem.segment
        )
        return carry, (rewards, alive, _bootstrap(problem, carry))

    carry = (start, jnp.ones(()))
    times = jnp.arange(problem.horizon).reshape(-1, window)
    (final, _), (rewards, alive, bootstraps) = scan.checkpointed(
        run, carry, times, min(problem.segment, 1)
    )
    sample = Rollout(final, bootstraps[-1], rewards.ravel(), alive.ravel())
    return rewards.sum() + bootstraps.sum(), sample


def _step(
    problem: Problem,
    hold: Callable[[PyTree], PyTree],
    params: Params,
    key: Key,  # of the rollout: shorter horizons see the same noise
    carry: tuple[PyTree, Array],  # state; weight of the next reward, 0 after the end
    time: Array,
) -> tuple[tuple[PyTree, Array], tuple[Array, Array, Array]]:
    """One step: the carry after it; its weighted reward, log-density, whether alive.

    Samples that have a density go through `hold`: `_free` for the pathwise gradient;
    with `stop_gradient` the gradient goes through the log-density in their place.
    """
    (system, actor), (state, weight) = problem[:2], carry
    act_key, step_key = jax.random.split(jax.random.fold_in(key, time))
    obs, log_prob = system.observe(state), jnp.zeros(())
    action = actor.sample(params, act_key, obs)
    if actor.log_prob is not None:
        action = hold(action)
        log_prob += actor.log_prob(params, obs, action)
    next_state = system.step(step_key, state, action)
    if system.log_prob is not None:
        next_state = hold(next_state)
        log_prob += system.log_prob(state, action, next_state)
    alive, step = weight > 0, (state, action, next_state)
    reward = jnp.where(alive, weight * system.reward(*step), 0)
    weight = jnp.where(system.terminal(*step), 0, problem.discount * weight)
    # a state that has ended stays, so that nothing after it can become non-finite
    state = jax.tree.map(lambda new, old: jnp.where(alive, new, old), next_state, state)
    return (state, weight), (reward, log_prob, alive)


def _mixed_step_back(
    problem: Problem,
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
    problem: Problem,
    params: Params,
    key: Key,
    carry: tuple[PyTree, Array],
    time: Array,
    advantage: Array,
    message: Array,  # [D] gradient with respect to the state after the step
) -> tuple[tuple[Params, Array], tuple[Params, Array]]:
    """What a step adds to the gradient with respect to `params`, and the message to the
    step before: by likelihood ratio, and pathwise."""
    vector, rebuild = _float_vector(carry[0])

    def pull(hold: Callable[[PyTree], PyTree], score: Array) -> tuple[Params, Array]:
        def move(params: Params, vector: Array) -> tuple[Array, Array, Array]:
            before = (rebuild(vector), carry[1])
            (state, _), (reward, log_prob, _) = _step(
                problem, hold, params, key, before, time
            )
            return _float_vector(state)[0], reward, log_prob

        (_, reward, log_prob), back = jax.vjp(move, params, vector)
        return back((message, jnp.ones_like(reward), score.astype(log_prob.dtype)))

    return pull(jax.lax.stop_gradient, advantage), pull(_free, jnp.zeros(()))


def _last_message(problem: Problem, carry: tuple[PyTree, Array]) -> tuple[Array, Array]:
    """The value after the horizon, and its gradient [D]."""
    vector, rebuild = _float_vector(carry[0])
    value = lambda vector: _bootstrap(problem, (rebuild(vector), carry[1]))
    return jax.value_and_grad(value)(vector)


def _advantages(rewards: Array, alive: Array, bootstraps: Array) -> Array:
    """Weights [N, H] of the score: the return to go, less that of the other samples."""
    returns = estimate.to_go(rewards.at[:, -1].add(bootstraps))
    advantages = estimate.leave_one_out(returns)
    return jnp.where(alive | jnp.isnan(advantages), advantages, 0)


def _bootstrap(problem: Problem, carry: tuple[PyTree, Array]) -> Array:
    state, weight = carry
    if problem.value is None:
        return jnp.zeros_like(weight)
    value = problem.value(problem.system.observe(state))
    return jnp.where(weight > 0, weight * value, 0)


def _starts(key: Key, problem: Problem, num_samples: int) -> tuple[PyTree, Key]:
    """First states, and a key for each rollout."""
    start_key, key = jax.random.split(key)
    start_keys = jax.random.split(start_key, num_samples)
    return jax.vmap(problem.system.reset)(start_keys), jax.random.split(
        key, num_samples
    )


def _check_density(problem: Problem) -> None:
    if problem.actor.log_prob is None and problem.system.log_prob is None:
        raise ValueError(
            "a likelihood ratio needs a density, but neither the actor nor the system "
            "has a log_prob: make one of them stochastic, or use pathwise"
        )


def _free(sample: PyTree) -> PyTree:
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


def _float_vector(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
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
