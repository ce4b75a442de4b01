"""The loop of on-policy learning: act, learn from it, forget it.

repeat:
    in all environments at once, act for a window of steps, or for whole episodes
    update the learner with what happened
"""

from typing import NamedTuple

import jax

from mbrl_jax import gathering
from mbrl_jax.gathering import Counters, Gatherer
from mbrl_jax.types import Algorithm, Array, Key, Learner, Metrics, PyTree


class State(NamedTuple):
    learner: PyTree
    parallel: PyTree  # ParallelEnvs, or () where every window is whole episodes
    counters: Counters


def make(learner: Learner, gatherer: Gatherer, num_updates: int = 1) -> Algorithm:
    """The loop; `num_updates` of it are a step of the algorithm."""

    def init(key: Key) -> State:
        learner_key, env_key = jax.random.split(key)
        learned = learner.init(learner_key)
        parallel = gatherer.init(env_key, learner.explore(learned))
        return State(learned, parallel, gathering.zero_counters())

    def update(state: State, key: Key) -> tuple[State, tuple[Metrics, Array]]:
        act_key, update_key = jax.random.split(key)
        gathered = gatherer.gather(
            act_key, learner.explore(state.learner), state.parallel
        )
        learned, metrics = learner.update(update_key, state.learner, gathered.windows)
        state = State(
            learned, gathered.parallel, gathering.count(state.counters, gathered)
        )
        return state, (metrics, gathered.returns[:, -1].mean())

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        keys = jax.random.split(key, num_updates)
        state, (seen, so_far) = jax.lax.scan(update, state, keys)
        last = jax.tree.map(lambda x: x[-1], seen)
        return state, {**last, **gathering.report(state.counters, so_far[-1])}

    return Algorithm(init, step, lambda state: learner.policy(state.learner))
