"""Seconds per step of model-predictive control."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.setting import Setting, env, make_model, plan_flop
from benchmarks.timing import Call, Row
from mbrl_jax.models import outcomes, particles
from mbrl_jax.models.propagation import PROPAGATIONS, Propagate
from mbrl_jax.planners import mpc
from mbrl_jax.types import Array, Key, Model, Objective, PyTree


def measure(setting: Setting = Setting(), num_repeats: int = 5) -> list[Row]:
    rows = []
    for name in ("ts_inf", "ts1"):
        took = timing.measure(search(setting, PROPAGATIONS[name]), 1, num_repeats)
        unit = f"{timing.seconds_unit()} per MPC step"
        flop = plan_flop(setting)
        rows.append(timing.row("planning", name, took.seconds, unit, took, flop))
    return rows


def search(
    setting: Setting,
    propagation: Callable[[Model, PyTree], Propagate],
    noise_key: Callable[[Key, Array], Key] = lambda key, actions: key,
) -> Call:
    """One step of MPC with the cross-entropy method, compiled.

    `noise_key` says which key the candidate `actions` [H, A] is judged under.
    """
    task = env()
    model, model_state = make_model(setting)
    read = outcomes.decoder(task, learn_reward=False, learn_terminal=False)
    config = mpc.Config(
        horizon=setting.horizon,
        num_samples=setting.num_samples,
        num_elites=max(setting.num_samples // 10, 1),
        num_iterations=setting.num_iterations,
    )

    def act(model_state: PyTree, key: Key, obs: Array) -> Any:
        step = propagation(model, model_state)

        def objective(key: Key, obs: Array) -> Objective:
            def worth(actions: Array) -> Array:
                own_key = noise_key(key, actions)
                num_particles = setting.num_particles
                returns = particles.particle_returns(
                    own_key, step, read, obs, actions, num_particles
                )
                return returns.mean()

            return worth

        policy = mpc.make("cem", config, task.action_size, task.action_limit, objective)
        return policy.act(key, obs, policy.init())

    jitted, key, obs = jax.jit(act), jax.random.key(1), jnp.zeros(task.obs_size)
    return lambda: jitted(model_state, key, obs)
