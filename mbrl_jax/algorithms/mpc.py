"""MPC on the true dynamics: plan with the simulator itself, at every step anew.

Nothing is learned: what a planner reaches when the model is perfect, which bounds what
it reaches with a learned one (Chua et al., 2018, Sec. 6; Levine, CS 285).

    repeat: run one episode; every `plan.interval` steps plan `plan.horizon` steps ahead
    from the state the simulator is in, execute the plan until the next

`env` has to show the simulator's state: `simulator.observe_all(env)`.  Noise of the
simulator's own is planned with as it will come.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import rollout
from mbrl_jax.envs import simulator
from mbrl_jax.ops import checks
from mbrl_jax.planners import mcts, mcts_models
from mbrl_jax.planners import mpc as planning
from mbrl_jax.rollout import episode
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    EnvState,
    Key,
    Metrics,
    Policy,
    Simulation,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    # random_shooting, cem, icem, mppi, cma_es, gradient, ilqr or mcts
    planner: str = "icem"
    plan: planning.Config = planning.Config()  # of all but mcts
    search: mcts.Config = mcts.Config()  # of mcts, also for discrete actions


class State(NamedTuple):
    """Nothing is learned: what has been reached."""

    env_steps: Array  # [] int32
    num_episodes: Array  # [] int32, of those whose return is finite
    mean_return: Array  # [] theirs


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be, and for an
    environment that does not show its state."""
    if env.host:
        raise ValueError(f"{env.name} steps outside jax: nothing can plan with it")
    shown = jax.eval_shape(env.reset, jax.random.key(0)).obs
    if not isinstance(shown, EnvState):
        raise ValueError(
            f"mpc plans with the simulator of {env.name}, whose state it must be shown:"
            " make it of simulator.observe_all(env)"
        )
    planner = _planner(simulator.behind(env), config)

    def init(key: Key) -> State:
        nothing = jnp.zeros((), jnp.int32)
        return State(nothing, nothing, jnp.zeros(()))

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        transitions, valid = episode(key, env, planner)
        total = transitions.reward.sum()
        good = jnp.isfinite(total)
        num_episodes = state.num_episodes + good
        change = jnp.where(good, total, state.mean_return) - state.mean_return
        state = State(
            state.env_steps + valid.sum(dtype=jnp.int32),
            num_episodes,
            state.mean_return + change / jnp.maximum(num_episodes, 1),
        )
        return state, {
            "env_steps": state.env_steps,
            "episode/return": total,
            "episode/length": valid.sum(),
            "episode/mean_return": state.mean_return,
        }

    def policy(state: State) -> Policy:
        return planner

    return Algorithm(init, step, policy)


def _planner(hidden: Env, config: Config) -> Policy:
    # of what is not in use, too
    checks.under("search", mcts.validate, config.search)
    if config.planner == "mcts":
        plans = partial(planning.validate, "random_shooting")
        checks.under("plan", plans, config.plan)
        return mcts_models.make(hidden, config.search)
    checks.continuous(hidden, f"planner {config.planner!r}, unlike 'mcts',")

    def future(key: Key, shown: Any) -> Simulation:
        return rollout.simulation(hidden, shown)

    return planning.make(
        config.planner, config.plan, hidden.action_size, hidden.action_limit, future
    )
