"""Dyna-Q: learning from what happens, and from what a model says would (Sutton, 1990).

"Integrated architectures for learning, planning, and reacting"; as in Sutton and Barto,
"Reinforcement learning", 2018, Sec. 8.2 to 8.4:

    repeat:
        act, epsilon-greedily in Q, ties at random
        Q(s, a) += alpha (r + discount max Q(s', .) - Q(s, a))
        update the model
        num_planning times: the same update of Q, with what the model says

Uniform planning draws a state that was visited, then an action that was tried there.
With a `kappa` the model pays kappa sqrt(steps since the pair was tried) on top, and all
actions of a visited state are drawn: Dyna-Q+, for worlds that change.  Prioritised
sweeping (Moore and Atkeson, 1993) goes where the error is largest, and from there back
to the pairs that lead there.  Its updates are expected ones, in a deterministic model
the same; and where the book has it alone, here the pair that just happened has its
direct update first, and then the priority that it had before it.  Without planning
either is Q-learning.

For finite worlds whose observation is one-hot, `env.obs_size` states; another one (also
one of a faulty simulator) is acted on and counted, but nothing is learned from it.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.models import tabular
from mbrl_jax.ops import checks, loop
from mbrl_jax.types import Algorithm, Array, Env, EnvState, Key, Metrics, Policy, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    interval: int = 50  # real steps of one step of the algorithm
    num_planning: int = 10  # updates from the model after each real step
    learning_rate: float = 0.1  # alpha
    discount: float = 0.95
    epsilon: float = 0.1  # share of actions that are drawn from all
    model: str = "deterministic"  # or dirichlet, for a random world
    prior: float = 0.0  # of the Dirichlet, for each next state; 0: frequencies
    planning: str = "uniform"  # or prioritised
    threshold: float = 1e-4  # theta: what errors are worth planning, if prioritised
    kappa: float = 0.0  # Dyna-Q+, if uniform: bonus for the square root of a step


class State(NamedTuple):
    env_state: EnvState
    q_values: Array  # [S, A]
    model: PyTree  # of `models.tabular`
    priorities: Array  # [S, A] errors to be planned, 0: none
    env_steps: Array  # [] int32
    so_far: Array  # [] return of the episode that runs
    last_return: Array  # [] of the episode that ended last
    last_length: Array  # [] int32
    num_episodes: Array  # [] int32, ended
    num_non_finite: Array  # [] int32, steps not learned from


class _Planned(NamedTuple):
    """After one real step."""

    number: Array  # [] updates of Q
    change: Array  # [] their mean |change|; 0 if none


_Planning = Callable[[Key, State], tuple[State, _Planned]]


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be, and for an
    environment whose observations are not one-hot."""
    checks.discrete(env)
    checks.vectors(env)
    _check_one_hot(env)
    checks.at_least(config, 1, "interval")
    checks.at_least(config, 0, "num_planning", "prior", "threshold", "kappa")
    checks.within(config, 0, 1, "learning_rate", "discount", "epsilon")
    checks.one_of(config, "model", _MODELS)
    checks.one_of(config, "planning", _PLANNING)
    size = env.obs_size, env.num_actions
    model = _MODELS[config.model](size, config)
    plan = _PLANNING[config.planning](model, config)

    def init(key: Key) -> State:
        zeros, nothing = jnp.zeros(size), jnp.zeros((), jnp.int32)
        return State(
            env_state=env.reset(key),
            q_values=zeros,
            model=model.init(),
            priorities=zeros,
            env_steps=nothing,
            so_far=jnp.zeros(()),
            last_return=jnp.zeros(()),
            last_length=nothing,
            num_episodes=nothing,
            num_non_finite=nothing,
        )

    def advance(state: State, key: Key) -> tuple[State, tuple[Array, _Planned]]:
        act_key, plan_key, reset_key = jax.random.split(key, 3)
        row = state.q_values[_place(state.env_state.obs)[0]]
        action = _act(act_key, row, config.epsilon)
        before, after = state.env_state, env.step(state.env_state, action)
        step, good = _step(before, action, after)
        state, error = _learn(model, config, state, step)
        state, planned = plan(plan_key, state)
        state = _count(state, after, good)
        ended = after.terminal | after.truncated
        again = loop.when(ended, lambda _: env.reset(reset_key), after)
        return state._replace(env_state=again), (jnp.abs(error), planned)

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        reset_key, key = jax.random.split(key)
        keys = jax.random.split(key, config.interval)
        state, (errors, planned) = jax.lax.scan(advance, state, keys)
        lost = ~_fine(state.env_state)
        state = state._replace(
            env_state=loop.when(lost, lambda _: env.reset(reset_key), state.env_state),
            so_far=jnp.where(lost, 0, state.so_far),
        )
        ended = state.num_episodes > 0
        return state, {
            "env_steps": state.env_steps,
            "episode/return": jnp.where(ended, state.last_return, state.so_far),
            "episode/length": jnp.where(ended, state.last_length, state.env_state.time),
            "episode/num_finished": state.num_episodes,
            "episode/non_finite": state.num_non_finite,
            "q/error": errors.mean(),
            "q/num_planned": planned.number.mean(),
            "q/planned_change": planned.change.mean(),
        }

    return Algorithm(init, step, lambda state: _greedy(state.q_values))


def _check_one_hot(env: Env) -> None:
    """By an observation after a reset, where there is one that can be looked at."""
    if env.host:
        return
    with jax.ensure_compile_time_eval():
        obs = env.reset(jax.random.key(0)).obs
        one_hot = isinstance(obs, jax.core.Tracer) or bool(_place(obs)[1])
    if not one_hot:
        raise ValueError(
            f"dyna_q is for finite worlds: observations of {env.name} are not one-hot"
        )


def _place(obs: Array) -> tuple[Array, Array]:
    """The state [] that `obs` [S] is one-hot for, else 0, and whether it is."""
    place = jnp.argmax(obs).astype(jnp.int32)
    good = (obs == jax.nn.one_hot(place, obs.shape[0], dtype=obs.dtype)).all()
    return jnp.where(good, place, 0), good


def _fine(env_state: EnvState) -> Array:
    return _place(env_state.obs)[1] & jnp.isfinite(env_state.reward)


def _act(key: Key, row: Array, epsilon: float | Array) -> Array:
    """Epsilon-greedy in Q of a state [A]; the best ones are equally likely."""
    best = row == row.max()
    probabilities = epsilon / row.shape[0] + (1 - epsilon) * best / best.sum()
    action = jax.random.choice(key, row.shape[0], p=probabilities)
    return action.astype(jnp.int32)


def _greedy(q_values: Array) -> Policy:
    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        return _act(key, q_values[_place(obs)[0]], 0.0), memory

    return Policy(lambda: (), act, lambda obs: q_values[_place(obs)[0]])


def _step(
    before: EnvState, action: Array, after: EnvState
) -> tuple[tabular.TabularTransition, Array]:
    """What happened, and whether it can be learned from: else it is of no state."""
    (s, known), (next_s, next_known) = _place(before.obs), _place(after.obs)
    good = known & next_known & jnp.isfinite(after.reward)
    at = jnp.where(good, s, before.obs.shape[0])
    reward = jnp.where(good, after.reward, 0)
    return tabular.TabularTransition(at, action, reward, next_s, after.terminal), good


def _learn(
    model: tabular.Tabular,
    config: Config,
    state: State,
    step: tabular.TabularTransition,
) -> tuple[State, Array]:
    """Q-learning's update, the model's, and what is now worth planning; the error."""
    at, q = (step.state, step.action), state.q_values
    time = state.env_steps + 1
    ahead = jnp.where(step.terminal, 0, q[step.next_state].max())
    error = step.reward + config.discount * ahead - q[at]
    urgent = jnp.where(jnp.abs(error) > config.threshold, jnp.abs(error), 0)
    state = state._replace(
        q_values=q.at[at].add(config.learning_rate * error, mode="drop"),
        model=model.update(state.model, time, step),
        priorities=state.priorities.at[at].max(urgent, mode="drop"),
        env_steps=time,
    )
    return state, jnp.where(step.state < len(q), error, 0)


def _count(state: State, after: EnvState, good: Array) -> State:
    """Episodes; a reward that is not finite is none."""
    ended = after.terminal | after.truncated
    total = state.so_far + jnp.where(jnp.isfinite(after.reward), after.reward, 0)
    return state._replace(
        so_far=jnp.where(ended, 0, total),
        last_return=jnp.where(ended, total, state.last_return),
        last_length=jnp.where(ended, after.time, state.last_length),
        num_episodes=state.num_episodes + ended,
        num_non_finite=state.num_non_finite + ~good,
    )


# --- Planning.


def _uniform(model: tabular.Tabular, config: Config) -> _Planning:
    def plan(key: Key, state: State) -> tuple[State, _Planned]:
        pair_key, key = jax.random.split(key)
        states, actions = _pairs(pair_key, state.model.tried_at, config)  # [K]
        keys = jax.random.split(key, config.num_planning)
        sample = jax.vmap(model.sample, in_axes=(0, None, 0, 0))
        outcomes = sample(keys, state.model, states, actions)
        waited = state.env_steps - state.model.tried_at[states, actions]
        bonus = config.kappa * jnp.sqrt(waited.astype(outcomes.reward.dtype))
        steps = tabular.TabularTransition(
            states, actions, outcomes.reward + bonus, *outcomes[1:]
        )

        def update(q: Array, step: tabular.TabularTransition) -> tuple[Array, Array]:
            at = step.state, step.action
            ahead = jnp.where(step.terminal, 0, q[step.next_state].max())
            change = config.learning_rate * (
                step.reward + config.discount * ahead - q[at]
            )
            return q.at[at].add(change, mode="drop"), jnp.abs(change)

        q, changes = jax.lax.scan(update, state.q_values, steps)
        return state._replace(q_values=q), _planned(states < len(q), changes)

    return plan


def _pairs(key: Key, tried_at: Array, config: Config) -> tuple[Array, Array]:
    """States [K] that were visited, and actions [K] that were tried there; with a bonus
    any.  The state is S where there is none yet."""
    state_key, action_key = jax.random.split(key)
    tried = tried_at > 0
    visited = tried.any(axis=1)
    allowed = tried | ((config.kappa > 0) & visited[:, None])
    shape = (config.num_planning,)
    states = _drawn(jax.random.uniform(state_key, shape), visited[None])
    actions = _drawn(jax.random.uniform(action_key, shape), allowed[states])
    return states, actions


def _drawn(share: Array, among: Array) -> Array:
    """Of the indices that are true in each row of [K or 1, N] the one at `share` [K] of
    [0, 1): [K]; N where there is none."""
    number = among.sum(axis=1)
    rank = jnp.minimum((share * number).astype(jnp.int32), number - 1)
    before = jnp.cumsum(among, axis=1) <= jnp.maximum(rank, 0)[:, None]
    return before.sum(axis=1, dtype=jnp.int32)


def _prioritised(model: tabular.Tabular, config: Config) -> _Planning:
    if isinstance(config.kappa, int | float) and config.kappa:
        raise ValueError(
            f"kappa is {config.kappa}, must be 0 if planning is prioritised"
        )

    def backup(state: State, q: Array) -> Array:
        """What the model says that Q should be, [S, A]."""
        return model.backup(state.model, config.discount * q.max(axis=1))

    def plan(key: Key, state: State) -> tuple[State, _Planned]:
        def update(
            carry: tuple[Array, Array, Array], _: None
        ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
            q, priorities, target = carry
            at = jnp.unravel_index(priorities.argmax(), q.shape)
            due = priorities[at] > 0
            change = jnp.where(due, config.learning_rate * (target[at] - q[at]), 0)
            q, priorities = q.at[at].add(change), priorities.at[at].set(0)
            target = backup(state, q)
            error = jnp.abs(target - q)
            urgent = due & model.leads_to(state.model, at[0])
            urgent = urgent & (error > config.threshold)
            priorities = jnp.where(urgent, jnp.maximum(priorities, error), priorities)
            return (q, priorities, target), (due, jnp.abs(change))

        q = state.q_values
        carry = q, state.priorities, backup(state, q)
        (q, priorities, _), (due, changes) = jax.lax.scan(
            update, carry, length=config.num_planning
        )
        state = state._replace(q_values=q, priorities=priorities)
        return state, _planned(due, changes)

    return plan


def _planned(done: Array, changes: Array) -> _Planned:
    """Of [K] updates, those that were `done`."""
    number = done.sum(dtype=jnp.int32)
    total = jnp.where(done, changes, 0).sum()
    return _Planned(number, total / jnp.maximum(number, 1))


_PLANNING = {"uniform": _uniform, "prioritised": _prioritised}
_MODELS: dict[str, Callable[[tuple[int, int], Config], tabular.Tabular]] = {
    "deterministic": lambda size, config: tabular.deterministic(*size),
    "dirichlet": lambda size, config: tabular.dirichlet(*size, config.prior),
}
