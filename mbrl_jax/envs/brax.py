"""Brax's environments (Freeman et al., 2021), and any other with Brax's protocol.

`make` builds one of Brax's own tasks on one of its four physics backends; `adapt` takes
any object with Brax's `reset(rng) -> state`, `step(state, action) -> state` and
`action_size`, as MuJoCo Playground's are.  Only the bare environment is used: time is
counted here, and a rollout resets with a fresh key.

What a user of Brax otherwise meets one by one is settled here: the import prints to
stdout; MuJoCo's compiler writes MUJOCO_LOG.TXT into the working directory; some `step`s
write into the state they are given; some change weak types, so that a jitted loop
compiles twice; under vmap the solver of the generalized backend goes on after it has
converged, and so does its gradient; the sources neither hold under
`jax_numpy_rank_promotion="raise"` nor with warnings as errors; `observation_size` runs
a whole reset.

Of the backends, generalized and mjx move as MuJoCo does; spring is 2 to 10 times
cheaper than generalized, positional little, but they are other tasks: a random policy
keeps inverted_pendulum up for 17 of their shorter steps, not 5, and hopper for more
than 20, not 16.

Gradients: mjx loops until its solver has converged, which cannot be differentiated in
reverse; `solver_iterations=1` removes the loop (ant and humanoid come so).  That
changes the motion: hopper's falls move by up to 3 of some 15 steps.  inverted_pendulum
pays 1 whatever happens, so the gradient of its return is exactly 0.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs import returned
from mbrl_jax.envs.brax_tasks import BACKENDS, TASKS, Rule
from mbrl_jax.ops import loop, raycast, root_logger
from mbrl_jax.types import Array, Env, EnvState, Key, PyTree


def make(
    name: str,
    backend: str = "generalized",
    *,
    episode_length: int = 1000,
    solver_iterations: int | None = None,
) -> Env:
    """Brax's task `name` on `backend`; see `TASKS` and `BACKENDS`.

    `solver_iterations`, for mjx only, replaces the number in Brax's model.
    """
    if name not in TASKS:
        raise ValueError(f"unknown Brax task {name!r}; known: {', '.join(TASKS)}")
    if backend not in BACKENDS:
        raise ValueError(
            f"unknown Brax backend {backend!r}; known: {', '.join(BACKENDS)}"
        )
    if solver_iterations is not None and (backend != "mjx" or solver_iterations < 1):
        raise ValueError(
            "solver_iterations must be at least 1 and needs backend 'mjx', not "
            f"{solver_iterations} with {backend!r}"
        )
    full_name, task = f"brax/{name}/{backend}", TASKS[name]
    exact = backend in task.exact
    try:
        brax_env = build(name, backend)
        if solver_iterations is not None:
            options = {"opt.iterations": solver_iterations}
            brax_env.sys = brax_env.sys.tree_replace(options)
        return adapt(
            brax_env,
            name=full_name,
            episode_length=episode_length,
            reward=task.reward if exact else None,
            terminal=task.terminal if exact else None,
        )
    except (TypeError, AttributeError) as error:  # swimmer, from jax 0.10 on
        raise ValueError(
            f"{full_name} does not run with jax {jax.__version__}: {error}"
        ) from error


def adapt(
    brax_env: Any,
    *,
    name: str,
    episode_length: int = 1000,
    obs_key: str | None = None,
    reward: Rule | None = None,
    terminal: Rule | None = None,
) -> Env:
    """Any object with Brax's protocol, which gets actions clipped to [-1, 1].

    `obs_key` selects an entry where observations are a dict.  The state is terminal
    when the simulator says done, or when an observation is not finite.  Both functions
    are traced once, so what does not work fails here.
    """
    if episode_length < 1:
        raise ValueError(f"episode_length must be at least 1, not {episode_length}")

    def first(key: Key) -> PyTree:
        # Raw keys are what the protocol asks for, and what can be checkpointed.
        with _lenient():
            return brax_env.reset(jax.random.key_data(key))

    def move(sim: PyTree, action: Array) -> PyTree:
        sim = jax.tree.map(lambda x: x, sim)  # its dicts are written into
        with _lenient():
            return brax_env.step(sim, action)

    action_size = brax_env.action_size
    like = returned.lasting_types(
        first, lambda sim: move(sim, jnp.zeros(action_size)), f"{name}: step"
    )
    obs_size = _obs_size(like.obs, obs_key)
    see = returned.vector(f"{name}: obs", lambda obs: obs)
    pay = returned.number(f"{name}: reward", lambda reward: reward)

    def env_state(sim: PyTree, time: Array) -> EnvState:
        # An explicit dtype takes a weak type away.
        sim = jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), sim, like)
        obs = see(sim.obs if obs_key is None else sim.obs[obs_key])
        ended = (sim.done != 0) | ~jnp.isfinite(obs).all()
        truncated = (time >= episode_length) & ~ended
        reward = pay(sim.reward).astype(obs.dtype)
        return EnvState(obs, reward, ended, truncated, time, sim)

    def reset(key: Key) -> EnvState:
        return env_state(first(key), jnp.zeros((), jnp.int32))

    clip = partial(jnp.clip, min=-1.0, max=1.0)
    of_clipped = lambda rule: lambda obs, action, after: rule(obs, clip(action), after)

    def step(state: EnvState, action: Array) -> EnvState:
        sim = move(state.sim, clip(jnp.asarray(action, state.obs.dtype)))
        return env_state(sim, state.time + 1)

    jax.eval_shape(lambda sim: env_state(sim, jnp.int32(0)), like)
    return Env(
        name=name,
        reset=reset,
        step=step,
        obs_size=obs_size,
        action_size=action_size,
        action_limit=1.0,
        episode_length=episode_length,
        reward=reward and of_clipped(reward),
        terminal=terminal and of_clipped(terminal),
        render=_renderer(brax_env),
    )


def build(name: str, backend: str) -> Any:
    """Brax's object, silently: no output, no warnings, no MUJOCO_LOG.TXT."""
    with contextlib.redirect_stdout(io.StringIO()), _lenient():
        import mujoco
        from brax import envs

        handler = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            brax_env = envs.get_environment(name, backend=backend)
        finally:
            mujoco.set_mju_user_warning(handler)
    if backend == "generalized":
        # by its class, so that a copy with another `sys` steps by its own
        theirs = type(brax_env)
        step = _our_force()(theirs.pipeline_step)
        brax_env.__class__ = type(theirs.__name__, (theirs,), {"pipeline_step": step})
    return brax_env


@contextlib.contextmanager
def _our_force() -> Iterator[None]:
    """What is traced here has `constraint_force` in place of Brax's own."""
    from brax.generalized import constraint

    theirs, constraint.force = constraint.force, constraint_force
    try:
        yield
    finally:
        constraint.force = theirs


def constraint_force(sys: Any, state: Any) -> Array:
    """Generalized forces [D] of joint limits and contacts, as Brax's, bit by bit.

    They solve min_x |A x + b|^2, x >= 0 by projected gradients.  Brax's loop goes on to
    `solver_iterations` under vmap, even where nothing touches anything; so does its
    gradient.  This one ends once all environments have converged.
    """
    import jaxopt

    jac, inverse = state.con_jac, state.mass_mx_inv  # [C, D], [D, D]
    if jac.shape[0] == 0:
        return jnp.zeros(sys.qd_size())
    a = jac @ inverse @ jac.T + jnp.diag(state.con_diag)
    b = jac @ inverse @ state.qf_smooth - state.con_aref
    solver = jaxopt.ProjectedGradient(
        lambda x: jnp.sum(0.5 * (a @ x + b) ** 2),
        jaxopt.projection.projection_non_negative,
        maxiter=sys.solver_iterations,
        maxls=sys.solver_maxls,
        implicit_diff=False,
    )
    zeros = jnp.zeros_like(b)
    first = tuple(solver.update(zeros, solver.init_state(zeros)))
    x, _ = loop.bounded(
        lambda carry: carry[1].error > solver.tol,
        lambda carry: tuple(solver.update(*carry)),
        first,
        sys.solver_iterations - 1,
    )
    return jac.T @ x


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """For code that was not written under our rules."""
    with (
        warnings.catch_warnings(),
        jax.numpy_rank_promotion("allow"),
        root_logger.kept(),
    ):
        warnings.simplefilter("ignore")
        yield


def _obs_size(obs: PyTree, obs_key: str | None) -> int:
    if isinstance(obs, jax.ShapeDtypeStruct) != (obs_key is None) or (
        obs_key is not None and obs_key not in obs
    ):
        raise ValueError(f"obs_key {obs_key!r} does not select from observations {obs}")
    obs = obs if obs_key is None else obs[obs_key]
    if len(obs.shape) != 1:
        raise ValueError(f"observations must be [O], not of shape {obs.shape}")
    return obs.shape[0]


def _renderer(brax_env: Any) -> Callable[[EnvState], Any] | None:
    """None where there is no MuJoCo model to draw."""
    model = getattr(brax_env, "mj_model", None)
    model = getattr(getattr(brax_env, "sys", None), "mj_model", model)
    if model is None:
        return None

    def render(states: EnvState) -> np.ndarray:
        sim = states.sim
        data = getattr(sim, "data", None)
        qpos = sim.pipeline_state.q if data is None else data.qpos
        return raycast.frames(model, np.asarray(qpos, np.float64))

    return render
