"""Model-predictive control: any planner becomes a policy that replans as it goes."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import checks, loop
from mbrl_jax.planners import ilqr_planner
from mbrl_jax.planners.cem import cem
from mbrl_jax.planners.cma_es import cma_es
from mbrl_jax.planners.gradient import gradient
from mbrl_jax.planners.icem import icem
from mbrl_jax.planners.mppi import mppi
from mbrl_jax.planners.random_shooting import random_shooting
from mbrl_jax.types import Array, Key, Objective, Plan, Planner, Policy

# which fields of `Config` each planner takes, besides the horizon
PLANNERS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "random_shooting": (random_shooting, ("num_samples",)),
    "cem": (cem, ("num_samples", "num_elites", "num_iterations", "momentum")),
    "icem": (
        icem,
        ("num_samples", "num_elites", "num_iterations", "momentum", "noise_exponent"),
    ),
    "cma_es": (cma_es, ("num_samples", "num_iterations")),
    "ilqr": (ilqr_planner.planner, ("num_samples", "num_iterations")),
    "gradient": (gradient, ("num_samples", "num_iterations", "step_size")),
    "mppi": (mppi, ("num_samples", "num_iterations", "temperature")),
}
LOOK_INSIDE = ("ilqr",)  # planners that need a `Simulation` for their objective


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters of the search for a plan; a planner reads those it knows."""

    horizon: int = 20  # H, steps planned ahead
    interval: int = 1  # steps executed of a plan before the next; 0: all of it
    num_samples: int = 100  # N, sequences per iteration; starts of gradient and ilqr
    num_elites: int = 12  # best sequences that an iteration learns from; cem, icem
    num_iterations: int = 3  # of the search, per environment step; not random_shooting
    momentum: float = 0.1  # share of the old mean and variance; cem, icem
    init_std: float = 0.5  # of the actions, in units of the action limit
    noise_exponent: float = 2.0  # 0 white, larger is smoother in time; icem
    num_kept: int = 5  # elites that survive to the next step; icem
    temperature: float = 0.1  # in standard deviations of the returns; mppi
    step_size: float = 0.05  # of Adam, in units of the action limit; gradient


def make(
    name: str,
    config: Config,
    action_size: int,
    action_limit: float,
    objective: Callable[[Key, Array], Objective],
) -> Policy:
    """The policy of the planner `name` for `objective(key, obs)`.

    Raises ValueError for a configuration that cannot be.
    """
    validate(name, config)
    checks.finite_limit("mpc", action_limit)
    search, fields = PLANNERS[name]
    hyperparameters = {field: getattr(config, field) for field in fields}
    num_kept = config.num_kept if name == "icem" else 0
    planner = partial(search, action_limit=action_limit, **hyperparameters)
    shape = (config.horizon, action_size)
    zeros = jnp.zeros(shape)
    start = Plan(
        zeros,
        jnp.full(shape, config.init_std * action_limit),
        zeros,
        jnp.zeros((num_kept, *shape)),
    )
    return replan(planner, start, objective, config.interval or config.horizon)


class Memory(NamedTuple):
    plan: Plan  # from the next step on; where the next search starts
    age: Array  # [] int32, steps done


def replan(
    planner: Planner,
    start: Plan,
    objective: Callable[[Key, Array], Objective],
    interval: int = 1,
) -> Policy:
    """Plans every `interval` steps, and executes the plan until then.

    At each step mean and kept elites move on by one step; the std starts afresh (Chua
    et al., 2018, App. A.3).
    """

    def act(key: Key, obs: Array, memory: Memory) -> tuple[Array, Memory]:
        search_key, objective_key = jax.random.split(key)

        def search(plan: Plan) -> Plan:
            return planner(search_key, objective(objective_key, obs), plan)[0]

        def search_if_due(plan: Plan) -> Plan:
            return loop.when(memory.age % interval == 0, search, plan)

        plan = (search if interval == 1 else search_if_due)(memory.plan)
        return plan.actions[0], Memory(_shift(plan, start), memory.age + 1)

    return Policy(lambda: Memory(start, jnp.zeros((), jnp.int32)), act)


def _shift(plan: Plan, start: Plan) -> Plan:
    shift = lambda x, last: jnp.concatenate([x[1:], last[None]])
    return Plan(
        shift(plan.mean, jnp.zeros_like(plan.mean[-1])),
        start.std,
        shift(plan.actions, plan.actions[-1]),
        jnp.concatenate([plan.elites[:, 1:], plan.elites[:, -1:]], axis=1),
    )


def validate(name: str, config: Config) -> None:
    """Raises ValueError, naming the fields, for a configuration that cannot be."""
    if name not in PLANNERS:
        raise ValueError(f"planner is {name!r}, must be one of: {', '.join(PLANNERS)}")
    counts = ("horizon", "num_samples", "num_elites", "num_iterations")
    checks.at_least(config, 1, *counts)
    checks.at_least(config, 0, "interval", "num_kept")
    checks.at_most(config, "interval", "horizon")
    checks.within(config, 0, 1, "momentum")
    checks.positive(config, "init_std", "temperature", "step_size")
    if "num_elites" in PLANNERS[name][1]:
        checks.at_most(config, "num_elites", "num_samples")
    if name == "icem":
        checks.at_most(config, "num_kept", "num_elites")
