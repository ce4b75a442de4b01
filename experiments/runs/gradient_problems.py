"""What `experiments.gradients` measures: policies in simulators, models and a map.

A `Task` has one program for all horizons up to the longest: an episode that ends after
`end` steps, which may be traced, is one of that horizon.  Compiling takes longer than
anything else here.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runs import registry
from mbrl_jax.gradients import closed_loop, pathwise
from mbrl_jax.gradients.closed_loop import Actor, DynamicalSystem, ExpectedReturn
from mbrl_jax.models import outcomes
from mbrl_jax.types import Array, Env, Gaussian, Key, Model, Params, PyTree

DOUBLING_STD, DOUBLING_PARAMS = 0.01, 0.3
NUM_STARTS = 256  # first states of a model, where no data are kept


class Task(NamedTuple):
    policy: str  # what it is, in words
    system: str
    params: Params
    problem: Callable[
        [int | Array], ExpectedReturn
    ]  # of episodes that end after so many steps
    variance: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    # closed forms of the total variance of estimators: horizons [K] -> [K] each


class Policy(NamedTuple):
    name: str
    params: Params
    apply: Callable[[Params, Array], Array]  # obs [O] -> action [A]


def doubling_map(horizon: int) -> Task:
    """The curse of chaos in a line (PIPPS, Parmas et al., 2018).

    x' = (2 x + params + 0.01 e) mod 1; cos(2 pi x) of the last state is the reward.
    The state is x before the mod, and the time.
    """
    std = DOUBLING_STD

    def mean(state: Any, action: Array) -> Array:
        return 2 * jnp.mod(state[0], 1) + action

    def problem(end: int | Array) -> ExpectedReturn:
        def reward(state: Any, action: Array, after: Any) -> Array:
            return jnp.where(after[1] == end, jnp.cos(2 * jnp.pi * after[0]), 0)

        system = DynamicalSystem(
            reset=lambda key: (jax.random.uniform(key), jnp.zeros((), int)),
            step=lambda key, state, action: (
                mean(state, action) + std * jax.random.normal(key),
                state[1] + 1,
            ),
            observe=lambda state: state[0][None],
            reward=reward,
            terminal=lambda state, action, after: after[1] >= end,
            log_prob=lambda state, action, after: jax.scipy.stats.norm.logpdf(
                after[0], mean(state, action), std
            ),
        )
        actor = closed_loop.deterministic(lambda params, obs: params)
        return ExpectedReturn(system, actor, horizon)

    def variance(horizons: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "pathwise": 2 * np.pi**2 * (2.0**horizons - 1) ** 2,
            "likelihood_ratio": horizons / (2 * std**2),
        }

    params = jnp.asarray(DOUBLING_PARAMS)
    return Task("a constant", "doubling map", params, problem, variance)


def in_simulator(env: Env, policy: Policy, horizon: int, std: float) -> Task:
    """Raises ValueError where there is no gradient."""
    pathwise.check(env)
    system = closed_loop.from_env(env)
    return _task("simulator", system, env, policy, horizon, std)


def in_model(
    run: registry.Run, state: PyTree, policy: Policy, horizon: int, std: float
) -> Task:
    """In the model that a run has learned, from states that it has seen.

    Raises ValueError if it has none.
    """
    algorithm, env = _algorithm(run), run.env
    predict = algorithm.predict
    if predict is None:
        name = run.record["algorithm"]
        raise ValueError(f"{name} learns no model: leave --model out")
    learned = [
        _learns(run.record["config"], name) or known is None
        for name, known in (("reward", env.reward), ("terminal", env.terminal))
    ]
    read = outcomes.decoder(env, *learned)
    if hasattr(state, "replay"):
        starts = state.replay.data.obs[: int(state.replay.size)]
    else:
        keys = jax.random.split(jax.random.key(0), NUM_STARTS)
        starts = jax.vmap(env.reset)(keys).obs
    std_of = predict(state, starts[0], jnp.zeros(env.action_size)).std  # [M, D]
    model = Model(
        init=lambda key: state,
        fit=lambda key, state, data: (state, {}),
        members=lambda state: jnp.arange(std_of.shape[0]),
        predict=lambda member, obs, action: jax.tree.map(
            lambda x: x[member], predict(state, obs, action)
        ),
    )
    system = closed_loop.from_model(model, state, read, starts, env.action_size)
    if not std_of.any():
        system = system._replace(log_prob=None)
    return _task("learned model", system, env, policy, horizon, std)


def _learns(config: Mapping[str, Any], name: str) -> bool:
    """Whether the model is told to learn the reward, or terminations."""
    return any(
        config.get(f"{field}.{config.get(f'{field}.name')}.learn_{name}")
        for field in ("model", "network")
    )


def network(env: Env, hidden_sizes: Sequence[int], gain: float, seed: int) -> Policy:
    """A tanh network, weights normal with std gain / sqrt(inputs): alike in every
    precision."""
    random = np.random.default_rng(seed)
    sizes = [env.obs_size, *hidden_sizes, env.action_size]
    params = [
        {
            "weight": jnp.asarray(
                gain / math.sqrt(inputs) * random.normal(size=(outputs, inputs)), float
            ),
            "bias": jnp.zeros(outputs),
        }
        for inputs, outputs in itertools.pairwise(sizes)
    ]

    def apply(params: Params, obs: Array) -> Array:
        x = obs
        for layer in params:
            x = jnp.tanh(layer["weight"] @ x + layer["bias"])
        return env.action_limit * x

    shape = " x ".join(map(str, hidden_sizes)) or "linear"
    return Policy(f"random network ({shape})", params, apply)


def trained(run: registry.Run, state: PyTree) -> Policy | None:
    """The policy of a run; None if it has no parameters, as where it plans.

    It has them if they are `params` of the algorithm's state.
    """
    if not hasattr(state, "params"):
        return None
    policy = _algorithm(run).policy

    def apply(params: Params, obs: Array) -> Array:
        acting = policy(state._replace(params=params))
        return acting.act(jax.random.key(0), obs, acting.init())[0]

    name = f"{run.record['algorithm']} after {run.step} steps"
    return Policy(name, state.params, apply)


def first_state(run: registry.Run) -> PyTree:
    """Of the first seed, its floats in the present precision."""

    def cast(x: Array) -> Array:
        x = x[0] if run.key.ndim else x
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(jnp.result_type(float)) if is_float else x

    return jax.tree.map(cast, run.state)


def _algorithm(run: registry.Run) -> Any:
    first = lambda x: float(np.ravel(x)[0])
    return run.algorithm({name: first(x) for name, x in run.hyperparameters.items()})


def _task(
    name: str,
    system: DynamicalSystem,
    env: Env,
    policy: Policy,
    horizon: int,
    std: float,
) -> Task:
    actor: Actor = closed_loop.deterministic(policy.apply)
    if std:
        spread = jnp.full(env.action_size, std * env.action_limit)
        actor = closed_loop.gaussian(
            lambda params, obs: Gaussian(policy.apply(params, obs), spread)
        )

    def problem(end: int | Array) -> ExpectedReturn:
        return ExpectedReturn(_ending(system, end), actor, horizon)

    return Task(policy.name, name, policy.params, problem)


def _ending(system: DynamicalSystem, end: int | Array) -> DynamicalSystem:
    """The system, in which an episode also ends after `end` steps."""

    def reset(key: Key) -> PyTree:
        return system.reset(key), jnp.zeros((), jnp.int32)

    def step(key: Key, state: PyTree, action: Array) -> PyTree:
        return system.step(key, state[0], action), state[1] + 1

    def terminal(state: PyTree, action: Array, after: PyTree) -> Array:
        return system.terminal(state[0], action, after[0]) | (after[1] >= end)

    log_prob = system.log_prob
    return DynamicalSystem(
        reset=reset,
        step=step,
        observe=lambda state: system.observe(state[0]),
        reward=lambda state, action, after: system.reward(state[0], action, after[0]),
        terminal=terminal,
        log_prob=log_prob
        and (lambda state, action, after: log_prob(state[0], action, after[0])),
    )
