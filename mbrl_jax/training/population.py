"""Population-based training (PBT, Jaderberg et al., 2017, arXiv:1711.09846).

Tunes float hyperparameters while it trains: members learn side by side, and now and
then the worst become copies of the best, with slightly different hyperparameters:

    draw each member's hyperparameters; initialise the members
    repeat:
        step every member with its own hyperparameters
        every `exploit_every` steps: each of the worst members
            exploits: takes state and hyperparameters of one of the best
            explores: perturbs these hyperparameters, or draws them afresh

A population is an Algorithm, one program that is vmapped over its members:

    ranges = {"learning_rate": Range(1e-4, 1e-2, log=True)}
    population.make(lambda h: pets.make(env, tune(h["learning_rate"])), ranges)

where `tune` puts the float, which may be traced, into a Config.  Deviations from the
paper: all members exploit at the same time instead of each at its own; a member's score
is the mean return of its own training episodes since the last exploitation; a step
that leaves non-finite values in a member is undone and the member's score is lost, so
that it is among the worst.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import checks, finite
from mbrl_jax.types import Algorithm, Array, Gaussian, Key, Metrics, Policy, PyTree


class Range(NamedTuple):
    """The interval that a hyperparameter is drawn from and kept in."""

    low: float
    high: float
    log: bool = False  # its logarithm is uniform, else itself


Hyperparameters = dict[str, Array]  # {name: []} of one member, {name: [N]} of all
Tunable = Callable[[Mapping[str, float | Array]], Algorithm]  # by its hyperparameters


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    num_members: int = 8  # N
    exploit_every: int = 5  # steps from one exploitation to the next
    # share of the members that are replaced, and of those that are copied; at least one
    exploit_fraction: float = 0.25
    low_factor: float = 0.8  # a perturbed hyperparameter is multiplied by this one
    high_factor: float = 1.2  # or, as likely, by that one
    resample_probability: float = 0.25  # of a draw from the range in its place


class MemberStep(NamedTuple):
    """Of one step of one member."""

    member: PyTree  # its state, the old one if the new one is not finite
    healthy: Array  # [] bool, whether it is the new one
    episode_return: Array  # []
    env_steps: Array  # [] int32, as the member counts them


class State(NamedTuple):
    members: PyTree  # [N, ...] states of the algorithm
    hyperparameters: Hyperparameters  # {name: [N]}
    total_return: Array  # [N] since the last exploitation
    lost: Array  # [N] bool, something was not finite since then
    age: Array  # [] int32, steps since then
    best: Array  # [] int32, the member with the highest score
    member_env_steps: Array  # [N] int32, as the members count them
    env_steps: Array  # [] int32, of all members that there ever were


def make(
    algorithm: Tunable,
    ranges: Mapping[str, Range],
    config: Config = Config(),
) -> Algorithm:
    """A population of `algorithm({name: value})`, the names being those of `ranges`.

    Its policy and its predictions are those of the best member.  Raises ValueError for
    a configuration or a range that cannot be, here or in the algorithm.
    """
    _validate(ranges, config)
    # both ends of the ranges, for the errors that they raise
    algorithm({name: interval.low for name, interval in ranges.items()})
    sample = algorithm({name: interval.high for name, interval in ranges.items()})

    def init(key: Key) -> State:
        draw_key, init_key = jax.random.split(key)
        keys = jax.random.split(init_key, config.num_members)
        hyperparameters = {
            name: draw(key, ranges[name], config.num_members)
            for name, key in _keys(draw_key, ranges).items()
        }
        members = jax.vmap(lambda key, h: algorithm(h).init(key))(keys, hyperparameters)
        nothing = jnp.zeros((), jnp.int32)
        return State(
            members,
            hyperparameters,
            total_return=jnp.zeros(config.num_members),
            lost=jnp.zeros(config.num_members, bool),
            age=nothing,
            best=nothing,
            member_env_steps=jnp.zeros(config.num_members, jnp.int32),
            env_steps=nothing,
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        step_key, exploit_key = jax.random.split(key)
        keys = jax.random.split(step_key, config.num_members)
        advance = jax.vmap(partial(_advance, algorithm))
        outcome = advance(keys, state.members, state.hyperparameters)
        state, scores = _record(state, outcome)
        metrics = _metrics(state, scores, outcome.episode_return)
        state, num_exploited = jax.lax.cond(
            state.age == config.exploit_every,
            lambda: _next_generation(exploit_key, scores, state, ranges, config),
            lambda: (state, jnp.zeros((), jnp.int32)),
        )
        return state, {**metrics, "population/num_exploited": num_exploited}

    def best(state: State) -> tuple[Any, PyTree]:
        """The algorithm of the best member, and its state."""
        pick = lambda tree: jax.tree.map(lambda x: x[state.best], tree)
        return algorithm(pick(state.hyperparameters)), pick(state.members)

    def policy(state: State) -> Policy:
        its_algorithm, member = best(state)
        return its_algorithm.policy(member)

    def predict(state: State, obs: Array, action: Array) -> Gaussian:
        its_algorithm, member = best(state)
        return its_algorithm.predict(member, obs, action)

    return Algorithm(init, step, policy, predict if sample.predict else None)


def draw(key: Key, interval: Range, num_members: int) -> Array:
    """Values [N], uniform in the interval, or log-uniform."""
    low, high, log = interval
    if log:
        low, high = math.log(low), math.log(high)
    values = jax.random.uniform(key, (num_members,), minval=low, maxval=high)
    return jnp.clip(jnp.exp(values) if log else values, interval.low, interval.high)


def exploit_and_explore(
    key: Key,
    scores: Array,
    states: PyTree,
    hyperparameters: Hyperparameters,
    ranges: Mapping[str, Range],
    config: Config,
) -> tuple[PyTree, Hyperparameters, Array]:
    """Truncation selection, then perturbation or resampling (Sec. 4.1.1 of the paper).

    From scores [N], states [N, ...] and hyperparameters {name: [N]} makes those of the
    next generation, and the parents [N] int32 that they come from.  A member among the
    worst has one of the best as its parent; every other is its own, and unchanged.  A
    score that is not finite is worse than any other, and no parent's, if there is a
    finite one.
    """
    parent_key, explore_key = jax.random.split(key)
    parents = _parents(parent_key, finite.losing(scores), config.exploit_fraction)
    states, hyperparameters = jax.tree.map(
        lambda x: x[parents], (states, hyperparameters)
    )
    replaced = parents != jnp.arange(len(parents))
    explored = {
        name: jnp.where(
            replaced,
            _explore(key, hyperparameters[name], ranges[name], config),
            hyperparameters[name],
        )
        for name, key in _keys(explore_key, ranges).items()
    }
    return states, explored, parents


def _parents(key: Key, scores: Array, fraction: float | Array) -> Array:
    """[N] int32, themselves but for the worst; `scores` [N] are finite or -inf."""
    num_members = len(scores)
    num = jnp.round(fraction * num_members).astype(jnp.int32)
    num = jnp.clip(num, 1, num_members // 2)
    order = jnp.argsort(scores, descending=True).astype(jnp.int32)  # best first
    rank = jnp.argsort(order)
    num_parents = jnp.clip(jnp.isfinite(scores).sum(), 1, num)
    drawn = order[jax.random.randint(key, (num_members,), 0, num_parents)]
    own = jnp.arange(num_members, dtype=jnp.int32)
    return jnp.where(rank < num_members - num, own, drawn)


def _explore(key: Key, values: Array, interval: Range, config: Config) -> Array:
    """What each of the values [N] of one hyperparameter may become."""
    factor_key, resample_key, draw_key = jax.random.split(key, 3)
    raised = jax.random.bernoulli(factor_key, shape=values.shape)
    factors = jnp.where(raised, config.high_factor, config.low_factor)
    perturbed = jnp.clip(values * factors, interval.low, interval.high)
    uniform = jax.random.uniform(resample_key, values.shape)
    fresh = draw(draw_key, interval, len(values))
    return jnp.where(uniform < config.resample_probability, fresh, perturbed)


def _keys(key: Key, ranges: Mapping[str, Range]) -> dict[str, Key]:
    """One for each hyperparameter, whatever their order."""
    return dict(zip(sorted(ranges), jax.random.split(key, len(ranges)), strict=True))


def _advance(
    algorithm: Tunable,
    key: Key,
    member: PyTree,
    hyperparameters: Hyperparameters,
) -> MemberStep:
    """A step of one member."""
    after, metrics = algorithm(hyperparameters).step(key, member)
    floats = [x for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.inexact)]
    healthy = finite.all_finite((*floats, jnp.zeros(())))  # never an empty tree
    return MemberStep(
        jax.tree.map(lambda new, old: jnp.where(healthy, new, old), after, member),
        healthy,
        metrics["episode/return"],
        metrics["env_steps"].astype(jnp.int32),
    )


def _record(state: State, outcome: MemberStep) -> tuple[State, Array]:
    """The state after the step of the members, and their scores [N]."""
    known = jnp.isfinite(outcome.episode_return)
    total = state.total_return + jnp.where(known, outcome.episode_return, 0)
    lost = state.lost | ~known | ~outcome.healthy
    scores = jnp.where(lost, -jnp.inf, total / (state.age + 1))
    new_env_steps = outcome.env_steps - state.member_env_steps
    return State(
        outcome.member,
        state.hyperparameters,
        total_return=total,
        lost=lost,
        age=state.age + 1,
        best=jnp.argmax(scores).astype(jnp.int32),
        member_env_steps=jnp.where(
            outcome.healthy, outcome.env_steps, state.member_env_steps
        ),
        env_steps=state.env_steps + new_env_steps.sum(dtype=jnp.int32),
    ), scores


def _metrics(state: State, scores: Array, returns: Array) -> Metrics:
    known = jnp.where(jnp.isfinite(returns), returns, jnp.nan)
    of_best = {
        f"population/{name}": x[state.best] for name, x in state.hyperparameters.items()
    }
    return {
        **of_best,
        "env_steps": state.env_steps,
        "episode/return": jnp.nanmean(known),
        "population/best_return": scores[state.best],
        "population/num_lost": state.lost.sum(),
    }


def _next_generation(
    key: Key,
    scores: Array,
    state: State,
    ranges: Mapping[str, Range],
    config: Config,
) -> tuple[State, Array]:
    """The state, with a new account of scores, and the number of members replaced."""
    members, hyperparameters, parents = exploit_and_explore(
        key, scores, state.members, state.hyperparameters, ranges, config
    )
    replaced = parents != jnp.arange(config.num_members)
    return state._replace(
        members=members,
        hyperparameters=hyperparameters,
        total_return=jnp.zeros_like(state.total_return),
        lost=jnp.zeros_like(state.lost),
        age=jnp.zeros_like(state.age),
        member_env_steps=state.member_env_steps[parents],
    ), replaced.sum(dtype=jnp.int32)


def _validate(ranges: Mapping[str, Range], config: Config) -> None:
    checks.at_least(config, 2, "num_members")
    checks.at_least(config, 1, "exploit_every")
    checks.positive(config, "exploit_fraction", "low_factor", "high_factor")
    checks.within(config, 0, 0.5, "exploit_fraction")
    checks.within(config, 0, 1, "resample_probability")
    if not ranges:
        raise ValueError("ranges is empty, must name a hyperparameter")
    for name, (low, high, log) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"the range of {name} is from {low} to {high}, must be finite and rise"
            )
        if log and low <= 0:
            raise ValueError(
                f"the range of {name} is from {low}, must be positive for a logarithm"
            )
