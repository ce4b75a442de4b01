"""From pure functions of a physical state to an `Env`; an integrator; a time limit."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from mbrl_jax.envs import returned
from mbrl_jax.ops import circle, raster
from mbrl_jax.types import Array, Belief, Env, EnvState, Key, PyTree

State = TypeVar("State")


class Sim(NamedTuple):
    """What `EnvState.sim` is in the environments built here."""

    state: PyTree  # the physical state
    action: Array  # [A] or [], the action that led here; 0 after a reset


def never(obs: Array, action: Array, next_obs: Array) -> Array:
    """The `terminal` of a task without an end."""
    return jnp.zeros((), bool)


def make_env(
    name: str,
    *,
    initial: Callable[[Key], PyTree],
    dynamics: Callable[[PyTree, Array], PyTree],  # (state, action [A]) -> next state
    observe: Callable[[PyTree], Array],  # state -> [O]
    reward: Callable[[Array, Array, Array], Array],  # (obs, action, next_obs) -> []
    terminal: Callable[[Array, Array, Array], Array] = never,
    shapes: Callable[[PyTree], list[raster.Shapes]],  # what to draw, undermost first
    view: raster.View,
    action_size: int = 0,
    action_limit: float = 0.0,
    num_actions: int = 0,
    episode_length: int,
    belief: Belief | None = None,
    goal: Callable[[], PyTree] | None = None,  # -> state
) -> Env:
    """Clips actions, counts time, and keeps the types of a state from step to step.

    With `num_actions` in place of a size and a limit they are discrete, int32 [], and
    neither clipped nor drawn.  What the functions return may be Python's numbers, and
    observations whole ones: they are made floats before `reward` and `terminal` see
    them.  Raises ValueError, which names the function, for what is not what it should
    be; all are traced once.
    """
    _check_episode_length(episode_length)
    _check_actions(name, action_size, action_limit, num_actions)
    first = returned.named(f"{name}: initial", initial)
    move = returned.named(f"{name}: dynamics", dynamics)
    see = returned.vector(f"{name}: observe", observe)
    pay = returned.number(f"{name}: reward", reward)
    end = returned.boolean(f"{name}: terminal", terminal)

    def clip(action: Array) -> Array:
        if num_actions:
            return returned.whole(action, f"actions of {name}")
        return jnp.clip(jnp.asarray(action), -action_limit, action_limit)

    def nothing(dtype: jnp.dtype) -> Array:
        if num_actions:
            return jnp.zeros((), jnp.int32)
        return jnp.zeros(action_size, dtype)

    @functools.cache
    def types(real: jnp.dtype) -> PyTree:
        """Those of a state, while floats are `real`."""
        step = lambda state: move(state, nothing(see(state).dtype))
        return returned.lasting_types(first, step, f"{name}: dynamics")

    def at_rest(state: PyTree) -> EnvState:
        """An episode that begins there."""
        state = returned.like(state, types(jnp.result_type(float)))
        obs = see(state)
        return EnvState(
            obs=obs,
            reward=jnp.zeros((), obs.dtype),
            terminal=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
            time=jnp.zeros((), jnp.int32),
            sim=Sim(state, nothing(obs.dtype)),
        )

    def reset(key: Key) -> EnvState:
        return at_rest(first(key))

    def step(env_state: EnvState, action: Array) -> EnvState:
        action, obs = clip(action), env_state.obs
        state = move(env_state.sim.state, action.astype(env_state.sim.action.dtype))
        sim = returned.like(Sim(state, action), env_state.sim)
        next_obs = see(sim.state).astype(obs.dtype)
        time = env_state.time + 1
        ended = end(obs, sim.action, next_obs)
        return EnvState(
            obs=next_obs,
            reward=pay(obs, sim.action, next_obs).astype(obs.dtype),
            terminal=ended,
            truncated=(time >= episode_length) & ~ended,
            time=time,
            sim=sim,
        )

    def draw(sim: Sim) -> Array:
        gauges = [] if num_actions else _gauges(sim.action / action_limit, view)
        picture = raster.stack(shapes(sim.state) + gauges)
        return raster.to_uint8(raster.paint(picture, view))

    def picture(env_state: EnvState, height: int, width: int) -> Array:
        seen = raster.resized(view, height, width)
        return raster.paint(raster.stack(shapes(env_state.sim.state)), seen)

    draw_all = jax.jit(lambda sims: jax.lax.map(draw, sims))
    start = jax.eval_shape(lambda: reset(jax.random.key(0)))
    jax.eval_shape(step, start, start.sim.action)  # what does not work fails here
    return Env(
        name=name,
        reset=reset,
        step=step,
        obs_size=start.obs.shape[0],
        action_size=action_size,
        action_limit=action_limit,
        num_actions=num_actions,
        episode_length=episode_length,
        reward=lambda obs, action, next_obs: pay(obs, clip(action), next_obs),
        terminal=lambda obs, action, next_obs: end(obs, clip(action), next_obs),
        render=lambda env_states: draw_all(env_states.sim),
        belief=belief,
        picture=picture,
        goal=goal and (lambda: at_rest(goal())),
    )


def time_limit(env: Env, episode_length: int) -> Env:
    """The same task, cut after `episode_length` steps in place of its own number.

    What an environment cuts before its own number of steps stays cut.  Raises
    ValueError for more steps than an environment on the host was made for.
    """
    _check_episode_length(episode_length)
    if env.host and episode_length > env.episode_length:
        raise ValueError(
            f"{env.name} was made for episodes of {env.episode_length} steps: for "
            f"{episode_length} make it with that episode_length"
        )

    def step(env_state: EnvState, action: Array) -> EnvState:
        after = env.step(env_state, action)
        own = after.truncated & (after.time < env.episode_length)
        late = after.time >= episode_length
        return after._replace(truncated=(own | late) & ~after.terminal)

    return env._replace(step=step, episode_length=episode_length)


def observe_all(env: Env) -> Env:
    """The same task, but `obs` is the whole `EnvState` of `env`, a pytree.

    For policies that plan on the true dynamics: they get what `env.step` needs.
    """
    return _showing(env, lambda env_state: env_state)


def partly_observed(env: Env, name: str, show: Callable[[Array], Array]) -> Env:
    """The same task, but of its observations only `show(obs)` is seen."""
    show = returned.vector(f"{name}: show", show)
    seen = _showing(env, lambda env_state: show(env_state.obs))
    size = jax.eval_shape(seen.reset, jax.random.key(0)).obs.shape[0]
    return seen._replace(name=name, obs_size=size)


def with_last_action(env: Env) -> Env:
    """The same task, which also shows the last action [num_actions] as a one-hot, zeros
    after a reset; for discrete actions, of an environment made here."""
    size = env.obs_size

    def show(env_state: EnvState) -> Array:
        obs = env_state.obs
        last = jax.nn.one_hot(env_state.sim.action, env.num_actions, dtype=obs.dtype)
        return jnp.concatenate([obs, jnp.where(env_state.time > 0, last, 0)])

    def of_obs(rule: Callable[[Array, Array, Array], Array] | None) -> Any:
        return rule and (lambda x, action, y: rule(x[:size], action, y[:size]))

    return _showing(env, show)._replace(
        obs_size=size + env.num_actions,
        reward=of_obs(env.reward),
        terminal=of_obs(env.terminal),
    )


def _showing(env: Env, show: Callable[[EnvState], PyTree]) -> Env:
    def wrap(env_state: EnvState) -> EnvState:
        return env_state._replace(obs=show(env_state), sim=env_state)

    draw, paint, goal = env.render, env.picture, env.goal
    return env._replace(
        reset=lambda key: wrap(env.reset(key)),
        step=lambda env_state, action: wrap(env.step(env_state.sim, action)),
        reward=None,  # of the observations of `env` only
        terminal=None,
        belief=None,
        render=draw and (lambda env_states: draw(env_states.sim)),
        picture=paint and (lambda state, *size: paint(state.sim, *size)),
        goal=goal and (lambda: wrap(goal())),
    )


def behind(env: Env) -> Env:
    """What steps the states that `env = observe_all(...)` shows."""

    def step(shown: EnvState, action: Array) -> EnvState:
        after: Any = env.step(shown._replace(sim=shown), action).obs
        return after

    return env._replace(step=step)


def rk4(
    derivative: Callable[[State], State], state: State, dt: float, num_steps: int = 1
) -> State:
    """Classical Runge-Kutta, `num_steps` steps of `dt` (s); `state` is a pytree."""
    # to compute the rest again is quicker than to keep all that the gradient needs
    keep = jax.checkpoint_policies.save_only_these_names(circle.NAME)
    derivative = jax.checkpoint(derivative, policy=keep)

    def ahead(state: State, dt: float, k: State) -> State:
        return jax.tree.map(lambda x, k: x + dt * k, state, k)

    def step(state: State, _: None) -> tuple[State, None]:
        k1 = derivative(state)
        k2 = derivative(ahead(state, dt / 2, k1))
        k3 = derivative(ahead(state, dt / 2, k2))
        k4 = derivative(ahead(state, dt, k3))
        total = jax.tree.map(lambda a, b, c, d: a + 2 * b + 2 * c + d, k1, k2, k3, k4)
        return ahead(state, dt / 6, total), None

    return jax.lax.scan(step, state, None, length=num_steps)[0]


def _check_episode_length(episode_length: int) -> None:
    if episode_length < 1:
        raise ValueError(f"episode_length must be at least 1, not {episode_length}")


def _check_actions(
    name: str, action_size: int, action_limit: float, num_actions: int
) -> None:
    continuous = action_size > 0 and action_limit > 0
    if continuous == (num_actions > 0):
        raise ValueError(
            f"{name}: either action_size and action_limit or num_actions must be "
            f"positive, not {action_size} and {action_limit:g}, or {num_actions}"
        )


def _gauges(fractions: Array, view: raster.View) -> list[raster.Shapes]:
    """A bar per action at the bottom of the picture; `fractions` [A] in [-1, 1]."""
    x, y = view.centre
    unit, reach, shapes = view.half_height / 100, 0.5 * view.half_height, []
    for i in range(fractions.shape[0]):
        height = jnp.asarray(y - (92 - 7 * i) * unit)
        end = jnp.stack([x + reach * fractions[i], height])
        left, middle, right = (
            jnp.stack([jnp.asarray(x + offset), height])
            for offset in (-reach, 0, reach)
        )
        shapes += [
            raster.capsule(left, right, 1.8 * unit, raster.STEEL, opacity=0.5),
            raster.capsule(middle, end, 1.8 * unit, raster.AMBER),
            raster.disc(middle, 2.6 * unit, raster.INK),
        ]
    return shapes
