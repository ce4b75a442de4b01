"""PoWER: policy learning by weighting exploration with the returns.

(Kober and Peters, "Policy search for motor primitives in robotics", 2011; of whole
episodes: Kormushev, Calinon and Caldwell, "Robot motor skill coordination with EM-based
reinforcement learning", 2010.)

    repeat:
        run an episode with each of theta_k = theta + e_k, e_k ~ N(0, std^2)
        of the latest `num_remembered`, take the `num_elites` best
        theta <- theta + sum_k u_k (theta_k - theta) / sum_k u_k
        std^2 <- sum_k u_k (theta_k - theta)^2 / sum_k u_k, within bounds

theta are the weights of a movement primitive (`local_policies/movement_primitives`) of
one dimension for each action.  With `positions` it is where these entries of the
observation should be, on the way from where they are first to `goal`:

    action = stiffness (primitive - positions) - damping velocities

Without, it is the action itself, in units of its limit, on the way from 0 to 0.

u_k > 0 comes of the returns as `ops/elites.reward_weighted` says.  Deviation: noise is
drawn once for an episode, not in every step, so what an action was followed by does not
weigh on its own.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import gathering
from mbrl_jax.gathering import Counters, Gathered
from mbrl_jax.local_policies import movement_primitives
from mbrl_jax.local_policies.movement_primitives import Shape
from mbrl_jax.ops import checks, elites, finite
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, Policy, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    positions: tuple[int, ...] = ()  # entries of obs that are led, one for each action
    velocities: tuple[int, ...] = ()  # entries of obs, theirs
    goal: tuple[float, ...] = ()  # of the positions
    stiffness: float = 10.0  # action per unit of position
    damping: float = 1.0  # action per unit of velocity
    num_basis: int = 10  # K, weights of each dimension
    decay: float = 3.0  # of the phase, in a duration
    duration: int = 0  # steps of the motion; 0: of an episode
    num_rollouts: int = 10  # parameters tried, in a step of the algorithm
    num_episodes: int = 1  # of each of them, whose mean return counts
    num_remembered: int = 50  # latest rollouts
    num_elites: int = 10  # the best of them
    sharpness: float = 5.0  # log of the best one's weight over that of the last elite
    init_std: float = 1.0  # of a weight
    min_std: float = 0.1  # in units of the first one, which is the largest


class State(NamedTuple):
    theta: Array  # [D]
    std: Array  # [D]
    tried: Array  # [N, D] the latest, the newest first
    returns: Array  # [N]
    valid: Array  # [N] bool
    counters: Counters


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    _validate(env, config)
    size = env.action_size * config.num_basis
    gatherer = gathering.episode_gatherer(env, config.num_episodes)
    acting = _follower(env, config)

    def init(key: Key) -> State:
        number = config.num_remembered
        return State(
            theta=jnp.zeros(size),
            std=config.init_std * jnp.ones(size),
            tried=jnp.zeros((number, size)),
            returns=jnp.zeros(number),
            valid=jnp.zeros(number, bool),
            counters=gathering.zero_counters(),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        noise_key, act_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (config.num_rollouts, size))
        new = state.theta[None] + state.std[None] * noise

        def run(x: tuple[Key, Array]) -> Gathered:
            return gatherer.gather(x[0], acting(x[1]), ())

        keys = jax.random.split(act_key, config.num_rollouts)
        each = gathering.over(env)(run, (keys, new))  # [N, E, ...]
        returns, valid = _outcome(each)
        tried, returns, valid = jax.tree.map(
            lambda x, y: jnp.concatenate([x, y])[: config.num_remembered],
            (new, returns, valid),
            (state.tried, state.returns, state.valid),
        )
        best, best_returns = elites.best(
            tried, jnp.where(valid, returns, -jnp.inf), config.num_elites
        )
        theta, var = elites.reward_weighted(
            state.theta, state.std**2, best, best_returns, config.sharpness
        )
        low, high = config.min_std * config.init_std, config.init_std
        std = jnp.clip(jnp.sqrt(var), low, high)
        gathered = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each)
        counters = gathering.count(state.counters, gathered)
        state = State(theta, std, tried, returns, valid, counters)
        some = jnp.isfinite(best_returns[0])
        return state, {
            **gathering.report(counters, gathered.returns[:, -1].mean()),
            "search/best_return": jnp.where(some, best_returns[0], 0),
            "search/std": std.mean(),
            "search/num_valid": valid.sum(),
        }

    return Algorithm(init, step, lambda state: acting(state.theta))


def _outcome(each: Gathered) -> tuple[Array, Array]:
    """The mean return of the episodes [N, E, T], and if all of it was finite, [N]."""
    windows = each.windows
    sound = ~windows.valid | finite.usable(windows.transitions, num_batch_axes=3)
    rewards = jnp.where(windows.valid & sound, windows.transitions.reward, 0)
    return rewards.sum(axis=2).mean(axis=1), sound.all(axis=(1, 2))


def _follower(env: Env, config: Config) -> Callable[[Array], Policy]:
    """theta [D] -> a policy that follows the primitive; its memory is where that is."""
    led = bool(config.positions)
    num_steps = config.duration or env.episode_length
    Memory = tuple[movement_primitives.State, Array, Array]  # ..., amplitude, step

    def policy(theta: Array) -> Policy:
        weights = theta.reshape(env.action_size, config.num_basis)
        nowhere = jnp.zeros_like(weights[:, 0])
        goal = jnp.stack(list(config.goal)).astype(theta.dtype) if led else nowhere

        def init() -> Memory:
            first = movement_primitives.start(nowhere)
            return first, jnp.ones_like(nowhere), jnp.zeros((), bool)

        def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
            place, amplitude, started = memory
            if led:
                position = obs[jnp.array(config.positions)]
                velocity = obs[jnp.array(config.velocities)]
                begin = lambda new, old: jnp.where(started, old, new)
                first = movement_primitives.start(position.astype(theta.dtype))
                place, amplitude = jax.tree.map(
                    begin, (first, goal - first.position), (place, amplitude)
                )
            shape = Shape(weights, goal, amplitude, config.decay)
            place = movement_primitives.advance(shape, place, 1 / num_steps)
            action = env.action_limit * place.position
            if led:
                ahead = place.position - position
                action = config.stiffness * ahead - config.damping * velocity
            return action, (place, amplitude, jnp.ones((), bool))

        return Policy(init, act)

    return policy


def _validate(env: Env, config: Config) -> None:
    checks.continuous(env)
    checks.at_least(config, 1, "num_basis", "num_rollouts", "num_episodes")
    checks.at_least(config, 2, "num_elites")
    checks.at_least(config, 0, "duration", "stiffness", "damping", "sharpness")
    checks.positive(config, "init_std", "decay")
    checks.within(config, 0, 1, "min_std")
    checks.at_most(config, "num_elites", "num_remembered")
    checks.at_most(config, "num_rollouts", "num_remembered")
    led = len(config.positions)
    if not (config.positions or config.velocities or config.goal):
        return
    if {led, len(config.velocities), len(config.goal)} != {env.action_size}:
        raise ValueError(
            f"positions, velocities and goal are {config.positions}, "
            f"{config.velocities} and {config.goal}: each must have one entry for each "
            f"of the {env.action_size} actions of {env.name}, or none"
        )
    for field in ("positions", "velocities"):
        if not all(0 <= i < env.obs_size for i in getattr(config, field)):
            raise ValueError(
                f"{field} is {getattr(config, field)}, must be entries of the "
                f"{env.obs_size} observations of {env.name}"
            )
