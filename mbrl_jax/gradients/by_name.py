"""The gradient of the mean return of particles, by the name of its estimator.

For deterministic actors, and systems with a density: a learned model's.
"""

from collections.abc import Callable
from typing import Any

import jax

from mbrl_jax.gradients import estimators, swarm
from mbrl_jax.gradients.closed_loop import Actor, ExpectedReturn
from mbrl_jax.ops.estimate import Estimate
from mbrl_jax.types import Array, Key, Params

Estimator = Callable[[Key, Params, ExpectedReturn, int], tuple[Params, Array]]
# (key, params, problem, number of particles) -> the gradient, and the return


def _independent(estimator: Callable[..., Estimate]) -> Estimator:
    def estimate(*args: Any) -> tuple[Params, Array]:
        found = estimator(*args)
        return found.gradient, found.mean_return

    return estimate


def _gaussian_resampling(
    key: Key, params: Params, problem: ExpectedReturn, num_particles: int
) -> tuple[Params, Array]:
    one = problem.system
    system = swarm.system(
        one.reset,
        lambda key, number, obs, action: one.step(key, obs, action),
        one.reward,
        num_particles,
        resample=True,
    )
    together = Actor(jax.vmap(problem.actor.sample, (None, None, 0)))
    return swarm.pathwise(problem._replace(system=system, actor=together), key, params)


ESTIMATORS: dict[str, Estimator] = {
    "total_propagation": _independent(estimators.total_propagation),
    "pathwise": _independent(estimators.pathwise),
    "likelihood_ratio": _independent(estimators.likelihood_ratio),
    "batch_importance": estimators.batch_importance,
    "gaussian_resampling": _gaussian_resampling,
}
