"""The loop of LQR-FLM, for any environment and reward (`algorithms/lqr_flm.py`).

`config` has the fields that `experience` asks for, and `controller` and `temperature`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from mbrl_jax import gathering
from mbrl_jax.gathering import Counters
from mbrl_jax.local_policies import controllers, experience, kl_lqr
from mbrl_jax.local_policies.controllers import Controller, System
from mbrl_jax.local_policies.experience import Reward
from mbrl_jax.models.linear_gaussian import Episodes
from mbrl_jax.ops import checks, definite
from mbrl_jax.planners.lqg import Belief
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, Policy


class State(NamedTuple):
    controller: Controller
    episodes: Episodes  # the latest, the newest first
    size: Array  # [] of a step, a factor of max_kl
    start: Belief  # of the first observations, as it was when a controller was improved
    cost: Array  # [] expected of that one then
    predicted: Array  # [] by how much less that was to become
    num_kept: Array  # [] int32, controllers that could not be improved
    counters: Counters


def make(env: Env, reward: Reward, config: Any) -> Algorithm:
    """Improves a controller of `env` for `reward`, which may both be traced.

    They are checked by `experience.validate` and `validate`.
    """
    num_times, O = env.episode_length, env.obs_size
    form = _FORMS[config.controller]

    def init(key: Key) -> State:
        zero = jnp.zeros(())
        return State(
            experience.first_controller(env, config),
            experience.no_episodes(env, config),
            zero + 1,
            Belief(jnp.zeros(O), jnp.zeros((O, O))),
            zero,
            zero,
            jnp.zeros((), jnp.int32),
            gathering.zero_counters(),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        gathered, every, dynamics, system = experience.gather(
            key, env, state.controller, state.episodes, reward, config
        )
        counters = gathering.count(state.counters, gathered)
        # from the same start, of which only a few episodes tell
        before = system._replace(start=state.start)
        at = controllers.marginals(before, state.controller)
        actual = state.cost - controllers.expected_cost(system.problem, at)
        size = kl_lqr.adapted(state.size, state.predicted, actual)
        max_kl = config.max_kl * num_times * size
        found = kl_lqr.improve(
            system,
            state.controller,
            max_kl,
            form=lambda system, best: form(
                system, best, experience.first_cov(env, config)
            ),
            temperature=config.temperature,
        )
        improved = found.status <= definite.Status.NOT_CONVERGED
        safe = lambda x: jnp.where(improved, x, 0)
        state = State(
            controller=found.controller,
            episodes=every,
            size=size,
            start=system.start,
            cost=safe(found.old_cost),
            predicted=safe(found.old_cost - found.cost),
            num_kept=state.num_kept + ~improved,
            counters=counters,
        )
        variances = jnp.diagonal(dynamics.cov, axis1=1, axis2=2)
        return state, {
            **gathering.report(counters, gathered.returns[:, -1].mean()),
            "model/std": jnp.sqrt(variances).mean(),
            "imagined/return": -safe(found.cost),
            "imagined/improvement": state.predicted,
            "imagined/last_improvement": jnp.where(jnp.isfinite(actual), actual, 0),
            "controller/kl": safe(found.kl),
            "controller/max_kl": max_kl,
            "controller/eta": safe(found.eta),
            "controller/num_kept": state.num_kept,
            "search/num_iterations": found.num_iterations,
            "search/num_indefinite": found.num_indefinite,
        }

    def policy(state: State) -> Policy:
        return controllers.policy(state.controller, noisy=False)

    return Algorithm(init, step, policy)


def validate(config: Any) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.one_of(config, "controller", _FORMS)
    checks.at_least(config, 0, "temperature")


_FORMS: dict[str, Callable[[System, Controller, Array], Controller]] = {
    "open_loop": controllers.open_loop,
    "feedback": lambda system, controller, cov: controllers.feedback(controller, cov),
    "maximum_entropy": lambda system, controller, cov: controller,
}
