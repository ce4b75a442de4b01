"""PETS: probabilistic ensembles with trajectory sampling (Chua et al., 2018).

Plan through an ensemble that knows what it does not know:

    repeat:
        run one episode: the first ones at random, later by model-predictive control,
            whose planner maximises the mean return of particles through the ensemble
        fit the ensemble to all the data

The paper's grid is `model` x `propagation` x `planner`.  Deviations: all candidates of
a search meet the same random numbers, which makes their comparison less noisy and saves
most of the sampling; the default planner and sizes, which suit small tasks and two CPU
cores; those of `models/ensemble.py`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import imagine, policies, replay
from mbrl_jax.models import ensemble
from mbrl_jax.models.propagation import PROPAGATIONS
from mbrl_jax.ops import checks, finite
from mbrl_jax.planners import mpc
from mbrl_jax.rollout import episode
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Gaussian,
    Key,
    Metrics,
    Objective,
    Policy,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 10_000  # transitions kept
    num_random_episodes: int = 1  # acted at random, before the first plan
    # ts_inf, ts1, moment_matching, distribution_sampling, expectation
    propagation: str = "ts_inf"
    num_particles: int = 10  # P, futures per action sequence; expectation takes one
    risk: str = "mean"  # of the particles' returns: mean, mean_minus_std, cvar
    risk_level: float = 1.0  # stds subtracted, or fraction of worst particles in cvar
    planner: str = "icem"  # or cem (the paper's), cma_es, gradient, mppi, ...
    plan: mpc.Config = mpc.Config()
    model: ensemble.Config = ensemble.Config()


class State(NamedTuple):
    model: ensemble.State
    replay: replay.Replay
    env_steps: Array  # [] int32
    num_episodes: Array  # [] int32


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    _validate(env, config)
    model, read = imagine.learned(env, config.model)
    risk = imagine.RISKS[config.risk](config.risk_level)
    deterministic = config.propagation == "expectation"
    num_particles = 1 if deterministic else config.num_particles

    def init(key: Key) -> State:
        data = replay.init(env.obs_size, env.action_size, config.capacity)
        nothing = jnp.zeros((), jnp.int32)
        return State(model.init(key), data, nothing, nothing)

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        episode_key, fit_key = jax.random.split(key)
        at_random = state.num_episodes < config.num_random_episodes
        acting = policies.switch(at_random, policies.uniform(env), policy(state))
        transitions, valid = episode(episode_key, env, acting)
        data = replay.insert(state.replay, transitions, valid)
        good = finite.all_finite(transitions, num_batch_axes=1)
        fitted, metrics = model.fit(fit_key, state.model, data)
        env_steps = state.env_steps + valid.sum(dtype=jnp.int32)
        state = State(fitted, data, env_steps, state.num_episodes + 1)
        return state, {
            **metrics,
            "env_steps": env_steps,
            "episode/return": transitions.reward.sum(),
            "episode/length": valid.sum(),
            "episode/non_finite": (valid & ~good).sum(),
        }

    def policy(state: State) -> Policy:
        propagate = PROPAGATIONS[config.propagation](model, state.model)

        def objective(key: Key, obs: Array) -> Objective:
            return lambda actions: risk(
                imagine.particle_returns(
                    key, propagate, read, obs, actions, num_particles
                )
            )

        return mpc.make(
            config.planner, config.plan, env.action_size, env.action_limit, objective
        )

    def predict(state: State, obs: Array, action: Array) -> Gaussian:
        every = jax.vmap(model.predict, in_axes=(0, None, None))
        return every(model.members(state.model), obs, action)

    return Algorithm(init, step, policy, predict)


def _validate(env: Env, config: Config) -> None:
    mpc.validate(config.planner, config.plan)
    ensemble.validate(config.model)
    checks.one_of(config, "propagation", PROPAGATIONS)
    checks.one_of(config, "risk", imagine.RISKS)
    checks.at_least(config, 1, "num_random_episodes", "num_particles")
    if config.risk == "cvar":
        checks.positive(config, "risk_level")
        checks.within(config, 0, 1, "risk_level")
    checks.holds_an_episode(config, env)
    members = ensemble.num_elites(config.model)
    if config.propagation != "expectation" and config.num_particles % members:
        raise ValueError(
            f"num_particles is {config.num_particles}, must be a multiple of the "
            f"{members} members that predict"
        )
