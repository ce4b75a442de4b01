"""The loop of off-policy learning: act, remember, learn from what is remembered.

    repeat:
        prepare: fit a model, imagine                   of the methods that have one
        `interval` times:
            act once in each environment, and remember it
            `updates_per_step` times: update the learner

Before `warmup` steps are remembered, actions are random and nothing is learned.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import gathering, policies, replay
from mbrl_jax.gathering import Counters
from mbrl_jax.ops import checks, loop
from mbrl_jax.replay import Replay
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Gaussian,
    Key,
    Learner,
    Metrics,
    Policy,
    PyTree,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 100_000  # real transitions kept
    warmup: int = 1000  # of them, before the first update
    interval: int = 250  # steps of each environment in an iteration
    num_envs: int = 1  # side by side
    updates_per_step: int = 1  # of the environments, all at once
    batch_size: int = 256


class OffPolicyHooks(NamedTuple):
    """What a method does in the loop.  Its model state also holds what it imagined."""

    init: Callable[[Key], tuple[PyTree, PyTree]]  # -> learner's state, model state
    prepare: Callable[[Key, PyTree, PyTree, Replay, Array], tuple[PyTree, Metrics]]
    # (key, learner's state, model state, real data, env_steps) -> model state; once an
    # iteration
    update: Callable[[Key, PyTree, PyTree, Replay], tuple[PyTree, Metrics]]
    # (key, learner's state, model state, real data) -> learner's state
    explore: Callable[[PyTree], Policy]  # learner's state -> what gathers experience
    policy: Callable[[PyTree], Policy]  # what has been learned
    predict: Callable[[PyTree, Array, Array], Gaussian] | None = None
    # of the model state, see `Algorithm`


class State(NamedTuple):
    learner: PyTree
    model_state: PyTree  # () without a model
    replay: Replay
    parallel: gathering.ParallelEnvs
    counters: Counters


def model_free(learner: Learner, batch_size: int) -> OffPolicyHooks:
    """Learns from real transitions alone.

    For the same key it starts with the networks of a method that has a model as well.
    """

    def init(key: Key) -> tuple[PyTree, tuple[()]]:
        learner_key, _ = jax.random.split(key)
        return learner.init(learner_key), ()

    def update(
        key: Key, state: PyTree, model_state: PyTree, data: Replay
    ) -> tuple[PyTree, Metrics]:
        batch_key, key = jax.random.split(key)
        batch = replay.sample(batch_key, data, batch_size)
        return learner.update(key, state, batch)

    return OffPolicyHooks(
        init=init,
        prepare=lambda key, state, model_state, data, env_steps: (model_state, {}),
        update=update,
        explore=learner.explore,
        policy=learner.policy,
    )


def make(env: Env, hooks: OffPolicyHooks, config: Config) -> Algorithm:
    """The loop.  Raises ValueError for a configuration that cannot be."""
    _validate(config)
    gatherer = gathering.window_gatherer(env, config.num_envs, 1)

    def acting(learned: PyTree, ready: Array) -> Policy:
        return policies.switch(ready, hooks.explore(learned), policies.uniform(env))

    def init(key: Key) -> State:
        method_key, env_key = jax.random.split(key)
        learned, model_state = hooks.init(method_key)
        parallel = gatherer.init(env_key, acting(learned, jnp.zeros((), bool)))
        data = replay.of(env, config.capacity)
        return State(learned, model_state, data, parallel, gathering.zero_counters())

    def prepare(key: Key, ready: Array, state: State) -> tuple[PyTree, Metrics]:
        """The model state, and metrics: zeros before the first time."""
        go = partial(hooks.prepare, key, state.learner)
        known = state.replay, state.counters.env_steps
        return loop.reporting(ready, lambda old: go(old, *known), state.model_state)

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        prepare_key, key = jax.random.split(key)
        ready = state.replay.size >= config.warmup
        model_state, known = prepare(prepare_key, ready, state)
        state = state._replace(model_state=model_state)

        def update(
            carry: tuple[PyTree, Metrics], key: Key, data: Replay
        ) -> tuple[PyTree, Metrics]:
            learned, seen = hooks.update(key, carry[0], model_state, data)
            return learned, jax.tree.map(jnp.add, carry[1], seen)

        def advance(
            carry: tuple[State, Metrics], key: Key
        ) -> tuple[tuple[State, Metrics], Array]:
            (state, sums), (act_key, key) = carry, jax.random.split(key)
            gathered = gatherer.gather(
                act_key, acting(state.learner, ready), state.parallel
            )
            steps = jax.tree.map(lambda x: x[:, 0], gathered.windows.transitions)
            every = jnp.ones(config.num_envs, bool)
            data = replay.insert(state.replay, steps, every, stride=config.num_envs)

            def learn(carry: tuple[PyTree, Metrics]) -> tuple[PyTree, Metrics]:
                keys = jax.random.split(key, config.updates_per_step)
                one = lambda carry, key: (update(carry, key, data), None)
                return jax.lax.scan(one, carry, keys)[0]

            learned, sums = loop.when(ready, learn, (state.learner, sums))
            state = State(
                learned,
                state.model_state,
                data,
                gathered.parallel,
                gathering.count(state.counters, gathered),
            )
            return (state, sums), gathered.returns.mean()

        shapes = jax.eval_shape(
            hooks.update, key, state.learner, model_state, state.replay
        )[1]
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        keys = jax.random.split(key, config.interval)
        (state, sums), so_far = jax.lax.scan(advance, (state, sums), keys)
        num_updates = config.interval * config.updates_per_step
        return state, {
            **known,
            **jax.tree.map(lambda x: x / num_updates, sums),
            **gathering.report(state.counters, so_far[-1]),
        }

    def predict(state: State, obs: Array, action: Array) -> Gaussian:
        assert hooks.predict is not None
        return hooks.predict(state.model_state, obs, action)

    return Algorithm(
        init,
        step,
        lambda state: hooks.policy(state.learner),
        predict if hooks.predict else None,
    )


def _validate(config: Config) -> None:
    counts = ("capacity", "warmup", "interval", "num_envs", "updates_per_step")
    checks.at_least(config, 1, *counts, "batch_size")
    checks.at_most(config, "warmup", "capacity")
