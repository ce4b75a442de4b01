"""Deep PILCO: PILCO with a Bayesian network (Gal, McAllister and Rasmussen, 2016).

"Improving PILCO with Bayesian neural network dynamics models", Algorithm 1:

    repeat:
        run one episode: the first ones at random, later by the policy
        fit the network with dropout to all the data
        `num_updates` times:
            draw P particles where episodes start, and for each a network, by its mask,
            which it keeps
            H times: move them, and draw as many anew from the Gaussian with their
            moments (not if `resample` is off)
            step the policy along the gradient of the return that a Gaussian with their
            moments expects at each step (their mean return, without `expected_reward`)

Deviations, after Higuera et al., 2018, "Synthesizing neural network controllers with
probabilistic model-based reinforcement learning": more particles, and a gradient that
is scaled down to `max_norm`.  And the model sees the last `capacity` transitions, its
noise is learned, and the centres of a policy begin apart from each other (`spread`):
where they begin together, as PILCO's, the gradients of particles are far larger.
"""

import dataclasses

import jax

from mbrl_jax import moment_policies
from mbrl_jax.gradients import closed_loop, swarm
from mbrl_jax.gradients.closed_loop import ExpectedReturn
from mbrl_jax.models import bnn, outcomes, policy_search
from mbrl_jax.types import Algorithm, Array, Env, Key, PyTree

State = policy_search.State


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 400  # transitions kept, the latest
    num_random_episodes: int = 1  # acted at random, before the first policy
    horizon: int = 0  # H, steps of a particle; 0: of an episode
    policy: str = "rbf"  # or linear
    num_basis: int = 50  # radial basis functions
    spread: float = 1.0  # of their centres around the start: the std of each entry
    num_particles: int = 100  # P
    resample: bool = True  # particles are drawn anew from a Gaussian at each step
    # the reward of a step: expected of a Gaussian with the particles' moments, as
    # PILCO's, or else the mean of theirs
    expected_reward: bool = True
    num_updates: int = 500  # of the policy, after each episode
    learning_rate: float = 3e-2  # of Adam, at first
    max_norm: float = 1.0  # of the gradient, above which it is scaled down
    segment: int = 0  # rematerialise, keeping every so many-th state; 0: keep all
    model: bnn.Config = bnn.Config(
        kind="dropout", hidden_sizes=(200, 200), length_scale=1.0
    )
    # concrete dropout ends without any in a simulator without noise


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    _validate(env, config)
    belief = policy_search.belief_of(env, "deep_pilco")
    model_config = dataclasses.replace(config.model, angles=belief.angles)
    model = bnn.make(env.obs_size, env.action_size, model_config)
    made = moment_policies.make(
        env, belief, config.policy, config.num_basis, config.spread
    )
    decode = outcomes.decoder(env, learn_reward=False, learn_terminal=False)
    actor = closed_loop.deterministic(jax.vmap(made.action, (None, 0)))

    def gradient(key: Key, state: bnn.State, ready: PyTree) -> tuple[PyTree, Array]:
        masks_key, key = jax.random.split(key)
        members = bnn.sample_members(masks_key, state, config.num_particles)
        system = swarm.of_members(
            model.predict,
            members,
            lambda key: env.reset(key).obs,
            lambda *moved: decode(*moved).reward,
            config.num_particles,
            config.resample,
        )
        if config.expected_reward:
            expected = lambda obs, action, new: belief.reward(*swarm.moments(new))
            system = system._replace(reward=expected)
        horizon = config.horizon or env.episode_length
        problem = ExpectedReturn(system, actor, horizon, segment=config.segment)
        return swarm.pathwise(problem, key, ready)

    return policy_search.of_particles(env, config, model, made, gradient)


def _validate(env: Env, config: Config) -> None:
    policy_search.validate_particles(config, env)
    policy_search.validate(config.model, "deep_pilco")
    bnn.validate(config.model, env.obs_size)
