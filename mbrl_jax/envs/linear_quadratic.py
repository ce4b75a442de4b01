"""Linear-quadratic: the task whose optimum is known, an oracle for everything else.

x' = A x + B u + w with w ~ N(0, noise_std^2), reward -(x^T Q x + u^T R u) of the state
and action before the step; obs is x.  The optimum is the Riccati recursion of
Bertsekas, "Dynamic programming and optimal control", 2017, Sec. 3.1.

x state [O], u action [A], K gains (u = -K x), P cost-to-go (x^T P x).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

Matrix = Array | np.ndarray | tuple[tuple[float, ...], ...]

ACTION_LIMIT = 10.0  # the optimum stays well within, see the tests
START = 1.0  # the state starts uniform within +-
EPISODE_LENGTH = 50


class LinearQuadratic(NamedTuple):
    A: Matrix  # [O, O]
    B: Matrix  # [O, A]
    Q: Matrix  # [O, O] positive semi-definite
    R: Matrix  # [A, A] positive definite
    noise_std: float = 0.0  # of each state, each step


# Two masses of 1 kg on a line, x = (positions, velocities), with a spring (2 N/m) and a
# damper (0.2 N s/m) between them and a force on the first; semi-implicit Euler, 0.1 s.
TWO_MASSES = LinearQuadratic(
    A=(
        (0.98, 0.02, 0.098, 0.002),
        (0.02, 0.98, 0.002, 0.098),
        (-0.2, 0.2, 0.98, 0.02),
        (0.2, -0.2, 0.02, 0.98),
    ),
    B=((0.01,), (0.0,), (0.1,), (0.0,)),
    Q=(
        (1.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0, 0.0),
        (0.0, 0.0, 0.1, 0.0),
        (0.0, 0.0, 0.0, 0.1),
    ),
    R=((0.5,),),
)


class State(NamedTuple):
    x: Array  # [O]
    key: Key  # of the noise to come: who plans with `step` must not be shown it


class Optimum(NamedTuple):
    gains: Array  # [T, A, O] u_t = -gains[t] x_t
    costs: Array  # [T + 1, O, O] the cost of what follows t is x_t^T costs[t] x_t
    noise_costs: Array  # [T + 1] and this much for the noise


def make(
    problem: LinearQuadratic = TWO_MASSES,
    *,
    action_limit: float = ACTION_LIMIT,
    episode_length: int = EPISODE_LENGTH,
) -> Env:
    obs_size, action_size = _sizes(problem)

    def initial(key: Key) -> State:
        start_key, noise_key = jax.random.split(key)
        x = jax.random.uniform(start_key, (obs_size,), minval=-START, maxval=START)
        return State(x, noise_key)

    def dynamics(state: State, action: Array) -> State:
        key, noise_key = jax.random.split(state.key)
        A, B = jnp.asarray(problem.A), jnp.asarray(problem.B)
        noise = problem.noise_std * jax.random.normal(noise_key, (obs_size,))
        return State(A @ state.x + B @ action + noise, key)

    def reward(obs: Array, action: Array, next_obs: Array) -> Array:
        Q, R = jnp.asarray(problem.Q), jnp.asarray(problem.R)
        return -(obs @ Q @ obs + action @ R @ action)

    return simulator.make_env(
        "linear_quadratic",
        initial=initial,
        dynamics=dynamics,
        observe=lambda state: state.x,
        reward=reward,
        shapes=lambda state: raster.lanes(state.x, START),
        view=raster.LANES,
        action_size=action_size,
        action_limit=action_limit,
        episode_length=episode_length,
    )


def optimum(problem: LinearQuadratic, horizon: int) -> Optimum:
    """The best controller over T = `horizon` steps, by the Riccati recursion."""
    A, B, Q, R = (jnp.asarray(matrix, jnp.result_type(float)) for matrix in problem[:4])
    noise_var = problem.noise_std**2

    def back(after: tuple[Array, Array], _: None) -> tuple[tuple, tuple]:
        P, noise_cost = after
        K = jnp.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        noise_cost = noise_cost + noise_var * jnp.trace(P)
        P = Q + A.T @ P @ (A - B @ K)
        P = (P + P.T) / 2
        return (P, noise_cost), (K, P, noise_cost)

    end = (jnp.zeros_like(A), jnp.zeros((), A.dtype))
    _, (gains, costs, noise_costs) = jax.lax.scan(
        back, end, None, length=horizon, reverse=True
    )
    return Optimum(
        gains,
        jnp.concatenate([costs, end[0][None]]),
        jnp.concatenate([noise_costs, end[1][None]]),
    )


def optimal_return(best: Optimum, x: Array) -> Array:
    """Expected return of the optimal controller over its T steps from `x` [O]."""
    return -(x @ best.costs[0] @ x + best.noise_costs[0])


def _sizes(problem: LinearQuadratic) -> tuple[int, int]:
    shapes = [np.shape(matrix) for matrix in problem[:4]]
    obs_size, action_size = shapes[1] if len(shapes[1]) == 2 else (0, 0)
    wanted = [
        (obs_size, obs_size),
        (obs_size, action_size),
        (obs_size, obs_size),
        (action_size, action_size),
    ]
    if shapes != wanted:
        raise ValueError(f"A, B, Q, R of a problem do not fit together: {shapes}")
    return obs_size, action_size
