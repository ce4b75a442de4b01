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
to samples; an end is not foreseen.  The loop is `local_policies/lqr_flm.py`.
"""

import dataclasses

from mbrl_jax.envs import simulator
from mbrl_jax.local_policies import experience, lqr_flm
from mbrl_jax.types import Algorithm, Env

State = lqr_flm.State


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


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    reward = experience.validate("lqr_flm", env, config)
    lqr_flm.validate(config)
    if config.horizon:
        env = simulator.time_limit(env, config.horizon)
    return lqr_flm.make(env, reward, config)
