"""LQR-FLM: LQR with fitted local models, within a KL divergence of the last controller.

(Levine and Abbeel, "Learning neural network policies with guided policy search under
unknown dynamics", 2014; the lectures on local models of Levine, CS 285.)

    repeat:
        run `num_episodes` with the controller p(u | x), linear-Gaussian at each step
        fit p(x' | x, u), linear-Gaussian at each step, to these episodes
        expand the reward to second order around the mean of x and u
        improve p(u | x) by LQR, within KL(new || old trajectories) <= max_kl T

The controllers: "open_loop", a sequence of actions (version 0.5), "feedback" (1.0),
both with noise of a fixed std, without which nothing could be fitted, and
"maximum_entropy" (2.0), whose noise is Quu^-1; without a temperature that shrinks from
step to step, until nothing is left to fit to.  The dynamics: by least squares, prior
"none" (1.0), or with a normal-inverse-Wishart prior from a "mixture" of Gaussians of
the rows of the latest episodes (2.0).  How far a step goes follows from how much of the
last one's promise came true.

It is local: what is evaluated is the mean of one controller, for where episodes start.
Limits of the actions are part of what is fitted.  Deviations: the reward is known, and
is expanded around the mean, where what bends up is taken for straight, and not fitted
to samples; an end is not foreseen.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from mbrl_jax import gathering
from mbrl_jax.envs import simulator
from mbrl_jax.gathering import Counters
from mbrl_jax.local_policies import controllers, experience, kl_lqr
from mbrl_jax.local_policies.controllers import Controller, System
from mbrl_jax.models.linear_gaussian import Episodes
from mbrl_jax.ops import checks, definite
from mbrl_jax.planners.lqg import Belief
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, Policy


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    controller: str = "maximum_entropy"  # or feedback, open_loop
    prior: str = "mixture"  # or none
    num_episodes: int = 5  # N, in a step of the algorithm
    horizon: int = 0  # T, their steps; 0: of an episode
    max_kl: float = 0.2  # nats per time step, before it is adapted
    temperature: float = 0.0  # of maximum_entropy: a nat's worth in units of reward
    init_std: float = 0.5  # of the first controller, in units of the action limit
    strength: float = 1.0  # of the prior, in rows per time step
    num_clusters: int = 20  # of the mixture, at most
    rows_per_cluster: int = 20  # at least
    num_remembered: int = 20  # latest episodes: what the mixture, and the start, are of


class State(NamedTuple):
    controller: Controller
    episodes: Episodes  # the latest, the newest first
    size: Array  # [] of a step, a factor of max_kl
    start: Belief  # of the first observations, as it was when a controller was improved
    cost: Array  # [] expected of that one then
    predicted: Array  # [] by how much less that was to become
    num_kept: Array  # [] int32, controllers that could not be improved
    counters: Counters


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    reward = experience.validate("lqr_flm", env, config)
    checks.one_of(config, "controller", _FORMS)
    checks.at_least(config, 0, "temperature")
    if config.horizon:
        env = simulator.time_limit(env, config.horizon)
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


_FORMS: dict[str, Callable[[System, Controller, Array], Controller]] = {
    "open_loop": controllers.open_loop,
    "feedback": lambda system, controller, cov: controllers.feedback(controller, cov),
    "maximum_entropy": lambda system, controller, cov: controller,
}
