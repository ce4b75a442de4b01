"""APG: analytic policy gradients, by back-propagation through the simulator.

The simplest way to use a differentiable simulator (Brax, Freeman et al., 2021, Sec. 5):

    repeat:
        in all environments at once, act for one window of `horizon` steps
        step the policy along the gradient of the return of this window

Gradients stop where a window begins; the next window goes on from where it ended.  As
nothing stands for what follows a window, the policy looks no further than `horizon`
steps ahead, and with long windows gradients explode: see `experiments.gradients`, and
SHAC for the cure.  Deviations: an episode ends with its window (no reset inside); a
window that is not finite is left out and counted; the std of the policy is learned.
"""

import dataclasses
from typing import NamedTuple

import jax
import optax

from mbrl_jax import optimizers, policies
from mbrl_jax.gradients import closed_loop, pathwise, windows
from mbrl_jax.gradients.closed_loop import ExpectedReturn
from mbrl_jax.gradients.windows import Parallel
from mbrl_jax.ops import checks, estimate, normalize
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, Params, Policy


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    num_envs: int = 64  # N, environments side by side
    horizon: int = 32  # H, steps of a window
    num_updates: int = 50  # windows, with an update each, in a step of the algorithm
    discount: float = 1.0
    learning_rate: float = 3e-3  # of Adam
    b1: float = 0.7  # Adam's averages are short, as gradients change quickly
    b2: float = 0.95
    max_norm: float = 1.0  # of the gradient, above which it is scaled down
    decay_steps: int = 0  # updates until the learning rate has fallen to 1 %; 0: never
    hidden_sizes: tuple[int, ...] = (64, 64)  # of the policy
    init_std: float = 0.2  # of the action before squashing, in units of its limit
    segment: int = 0  # rematerialise, keeping every so many-th state; 0: keep all


class State(NamedTuple):
    params: Params
    opt_state: optax.OptState
    envs: Parallel


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be, and for an
    environment without a gradient."""
    checks.continuous(env)
    checks.vectors(env)
    checks.at_least(config, 1, "num_envs", "horizon", "num_updates")
    checks.at_least(config, 0, "decay_steps", "segment")
    checks.positive(config, "learning_rate", "max_norm", "init_std")
    checks.within(config, 0, 1, "discount", "b1", "b2")
    checks.divides(config, "segment", "horizon")
    pathwise.check(env)
    network = policies.squashed(env, config.hidden_sizes, config.init_std)
    system = closed_loop.from_env(env)
    optimizer = optimizers.clipped_adam(
        config.learning_rate,
        config.max_norm,
        b1=config.b1,
        b2=config.b2,
        decay_steps=config.decay_steps,
    )

    def init(key: Key) -> State:
        params_key, envs_key = jax.random.split(key)
        params = network.init(params_key)
        envs = windows.init(envs_key, env, config.num_envs)
        return State(params, optimizer.init(params), envs)

    def update(state: State, key: Key) -> tuple[State, Array]:
        stats = normalize.so_far(state.envs.obs)
        actor = closed_loop.Actor(policies.sampler(network, stats))
        problem = ExpectedReturn(
            system, actor, config.horizon, config.discount, segment=config.segment
        )
        gradient, _, _, envs = windows.window(
            key, state.params, env, problem, state.envs
        )
        params, opt_state = optimizers.ascend(
            optimizer, gradient, state.opt_state, state.params
        )
        return State(params, opt_state, envs), estimate.norm(gradient)

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        keys = jax.random.split(key, config.num_updates)
        state, norms = jax.lax.scan(update, state, keys)
        return state, {
            **windows.metrics(state.envs),
            "gradient/norm": norms.mean(),
            "gradient/skipped_updates": state.opt_state.num_skipped,
        }

    def policy(state: State) -> Policy:
        return policies.greedy(network, normalize.so_far(state.envs.obs), state.params)

    return Algorithm(init, step, policy)
