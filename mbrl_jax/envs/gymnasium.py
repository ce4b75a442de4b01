"""Gymnasium's environments (Towers et al., 2024), or a real system, on the host.

The simulator is called from inside a jitted `step` by `io_callback`.  It has a state of
its own, which an `EnvState` only refers to: by the seed of the episode and all actions
since.  Where the simulator stands elsewhere, as after an evaluation between
two training steps, or in a new process that resumes an old run, it is reset with that
seed and the actions are replayed.  So `step` is a function of its arguments as in any
other environment; but only one run at a time is possible: `vmap` is refused.
"""

import contextlib
import math
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

from mbrl_jax.envs import returned
from mbrl_jax.types import Array, Env, EnvState, Key

PROBED = 5  # steps that are made twice, to see whether they come out the same
REMEDY = (
    "its randomness must come from that seed, and nothing may count on over episodes, "
    "as NormalizeObservation does"
)
PICTURES = "rgb_array"  # the render mode that has them

Rule = Callable[[Array, Array, Array], Array]  # (obs [O], action [A], next_obs [O])


class Sim(NamedTuple):
    """Where the simulator stands: `actions[:time]` after a reset with `seed`."""

    seed: Array  # [] int32
    actions: Array  # [L, A], L = episode_length


class HostFault(RuntimeError):
    """What a simulator on the host did wrong, in one line that names it."""


def fault(error: BaseException) -> str | None:
    """That line, if it is why a jitted function failed: jax hides it in a traceback."""
    if isinstance(error, HostFault):
        return str(error)
    found = re.findall(rf"\b{HostFault.__name__}: (.*)", str(error))
    return found[-1] if found else None


class GymnasiumTask(NamedTuple):
    """The rules of one of Gymnasium's tasks."""

    terminal: Rule
    reward: Rule


def make(
    env_id: str,
    *,
    episode_length: int | None = None,
    reward: Rule | None = None,
    terminal: Rule | None = None,
    replay: bool = True,
    **kwargs: Any,
) -> Env:
    """`gymnasium.make(env_id, **kwargs)`, closed when it is needed no more.

    `episode_length` None is Gymnasium's own limit, or 1000 if it has none.  `reward`
    and `terminal` default to those in `TASKS`.  Pictures are those of its render mode
    "rgb_array", if it has that one.  Raises ValueError for what cannot be made or, with
    `replay`, does not come out the same when it is reset with the same seed.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(
            f"the environment {env_id!r} needs gymnasium: "
            "pip install 'mbrl_jax[gymnasium]'"
        ) from error

    if episode_length is not None:
        kwargs["max_episode_steps"] = episode_length
    name = f"gymnasium/{env_id}"

    def build(**more: Any) -> Any:
        try:
            return gymnasium.make(
                env_id, disable_env_checker=True, **{**kwargs, **more}
            )
        except (ImportError, gymnasium.error.Error) as error:
            said = returned.in_a_line(error)
            raise ValueError(f"gymnasium does not make {env_id!r}: {said}") from error
        except Exception as error:
            raise ValueError(f"{name} fails: {returned.in_a_line(error)}") from error

    host_env = build()
    try:
        modes = (getattr(host_env, "metadata", None) or {}).get("render_modes") or ()
        task = TASKS.get(env_id)
        env = adapt(
            host_env,
            name=name,
            episode_length=episode_length or _limit(host_env) or 1000,
            reward=reward or (task.reward if task else None),
            terminal=terminal or (task.terminal if task else None),
            replay=replay,
            probe=replay,
            painter=(lambda: build(render_mode=PICTURES))
            if PICTURES in modes
            else None,
        )
    except Exception:
        _close(host_env)
        raise
    weakref.finalize(env.step, _close, host_env)
    return env


def adapt(
    host_env: Any,
    *,
    name: str,
    episode_length: int = 1000,
    reward: Rule | None = None,
    terminal: Rule | None = None,
    replay: bool = True,
    probe: bool = False,
    painter: Callable[[], Any] | None = None,
) -> Env:
    """Any object with Gymnasium's `reset`, `step`, `observation_space`, `action_space`.

    Pictures, a box of bytes with three axes, stay as they are, see `Env.obs_shape`; all
    other observations are flattened, those of several spaces (Dict, Tuple) one after
    the other, and discrete ones are one-hot.  Actions are mapped from [-limit, limit]
    to the box; the limit is the box's own if it is the same in all directions, else 1.
    They are rounded for a box of whole numbers; discrete ones are numbers from 0.
    Set `replay` to false for a system that cannot be brought back to an earlier state.
    With `probe` it is moved a few steps, twice: what does not come out the same raises
    ValueError.  `painter` makes another one, whose `render()` is a picture.
    """
    if episode_length < 1:
        raise ValueError(f"episode_length must be at least 1, not {episode_length}")
    obs_size, num_actions = _obs_size(host_env), _num_actions(host_env)
    obs_shape = _picture_shape(host_env)
    low, high = _action_bounds(host_env)
    size = low.size  # of what is sent
    symmetric = (low == -high[0]).all() and (high == high[0]).all()
    limit = float(high[0]) if symmetric else 1.0

    def to_space(action: np.ndarray) -> Any:
        if num_actions:
            return int(action[0]) + int(host_env.action_space.start)
        box = action if symmetric else low + (action / limit + 1) / 2 * (high - low)
        space = host_env.action_space
        box = np.clip(box, low, high)
        if np.issubdtype(space.dtype, np.integer):
            box = np.rint(box)  # cut off, 0 would be most of [-1, 1]
        return box.astype(space.dtype).reshape(space.shape)

    host = _host(host_env, name, to_space, replay)
    if probe:
        shape = (min(PROBED, episode_length), size)
        actions = limit * np.random.default_rng(0).uniform(-1, 1, shape)
        _check_replay(host, name, np.zeros(shape) if num_actions else actions)

    @custom_vmap
    def call(message: Array) -> Array:
        """As bytes: jax would round float64 if only this thread enables x64."""
        dtype = message.dtype
        like = jax.ShapeDtypeStruct((obs_size + 3, dtype.itemsize), jnp.uint8)

        def answer(sent: Array) -> np.ndarray:
            values = host(np.asarray(sent).view(dtype)[:, 0])
            return values.astype(dtype)[:, None].view(np.uint8)

        sent = jax.lax.bitcast_convert_type(message, jnp.uint8)
        return jax.lax.bitcast_convert_type(io_callback(answer, like, sent), dtype)

    @call.def_vmap
    def refuse(*_: Any) -> Any:
        raise ValueError(
            f"{name} runs on the host, one run at a time: it cannot be vmapped; "
            "use jax.lax.map or a Python loop"
        )

    def env_state(answer: Array, time: Array, sim: Sim) -> EnvState:
        obs, reward = answer[:obs_size], answer[obs_size]
        if obs_shape:
            obs = obs.reshape(obs_shape).astype(jnp.uint8)
        ended, late = answer[obs_size + 1] != 0, answer[obs_size + 2] != 0
        late = (late | (time >= episode_length)) & ~ended
        return EnvState(obs, reward, ended, late, time, sim)

    def reset(key: Key) -> EnvState:
        seed = jax.random.randint(key, (), 0, 2**24)  # a float32 holds it exactly
        actions = jnp.zeros((episode_length, size), jnp.result_type(float))
        answer = call(seed.astype(actions.dtype)[None])
        return env_state(answer, jnp.zeros((), jnp.int32), Sim(seed, actions))

    def step(state: EnvState, action: Array) -> EnvState:
        seed, actions = state.sim
        action = jnp.asarray(action, actions.dtype).reshape(size)
        counters = jnp.stack([seed, state.time]).astype(actions.dtype)
        obs = state.obs.astype(actions.dtype).reshape(-1)
        answer = call(jnp.concatenate([counters, obs, action, actions.reshape(-1)]))
        sim = Sim(seed, actions.at[state.time].set(action))
        return env_state(answer, state.time + 1, sim)

    return Env(
        name=name,
        reset=reset,
        step=step,
        obs_size=0 if obs_shape else obs_size,
        obs_shape=obs_shape,
        action_size=0 if num_actions else size,
        action_limit=0.0 if num_actions else limit,
        num_actions=num_actions,
        episode_length=episode_length,
        reward=reward,
        terminal=terminal,
        render=_renderer(painter, name, to_space) if painter and replay else None,
        host=True,
    )


def pendulum_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    """Minus angle^2 + 0.1 speed^2 + 0.001 torque^2, of the state before the step."""
    angle, torque = jnp.arctan2(obs[1], obs[0]), jnp.clip(action[0], -2.0, 2.0)
    return -(angle**2 + 0.1 * obs[2] ** 2 + 0.001 * torque**2)


def never(obs: Array, action: Array, next_obs: Array) -> Array:
    """No end, but of an observation that is not finite."""
    return ~jnp.isfinite(next_obs).all()


def inverted_pendulum_terminal(obs: Array, action: Array, next_obs: Array) -> Array:
    """The pole is more than 0.2 rad from upright."""
    return (jnp.abs(next_obs[1]) > 0.2) | never(obs, action, next_obs)


def inverted_pendulum_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    """1 for every step that does not end the episode."""
    ended = inverted_pendulum_terminal(obs, action, next_obs)
    return 1.0 - ended.astype(next_obs.dtype)


TASKS = {
    "Pendulum-v1": GymnasiumTask(never, pendulum_reward),
    "InvertedPendulum-v5": GymnasiumTask(
        inverted_pendulum_terminal, inverted_pendulum_reward
    ),
}


def _host(
    host_env: Any, name: str, to_space: Callable[[np.ndarray], Any], replay: bool
) -> Callable[[np.ndarray], np.ndarray]:
    """What is called back, with one array in and one out: each more costs 0.03 ms.

    [seed] resets; [seed, time, obs, action, actions] steps -> [obs, reward, terminal,
    truncated].
    """
    size, obs_size = _action_bounds(host_env)[0].size, _obs_size(host_env)
    lock = threading.Lock()
    stands: tuple[int, bytes] | None = None  # seed and actions since, or unknown

    def see(obs: Any) -> np.ndarray:
        space = host_env.observation_space
        flat = _flat(obs) if _is_box(space) else _joined(space, obs)
        if flat.size != obs_size:
            raise ValueError(
                f"an observation has shape {np.shape(obs)}, not {space.shape}"
            )
        return flat

    def start(seed: int) -> np.ndarray:
        nonlocal stands
        stands = None  # if the next line fails
        obs, _ = _values("reset", host_env.reset(seed=seed), "obs, info")
        stands = (seed, b"")
        return np.concatenate([see(obs), np.zeros(3)])

    def move(seed: int, past: np.ndarray, action: np.ndarray) -> np.ndarray:
        nonlocal stands
        stands = None
        obs, reward, ended, late, _ = _values(
            "step",
            host_env.step(to_space(action)),
            "obs, reward, terminated, truncated, info",
        )
        if np.ndim(reward):
            raise ValueError(
                f"reward must be a number, not of shape {np.shape(reward)}"
            )
        flags = [_flag("terminated", ended), _flag("truncated", late)]
        stands = (seed, past.tobytes() + action.tobytes())
        return np.concatenate([see(obs), [float(reward), *flags]])

    def rewind(seed: int, past: np.ndarray, obs: np.ndarray) -> None:
        if not replay:
            raise RuntimeError("it stands elsewhere, and replay is off")
        seen = start(seed)
        for time, action in enumerate(past):
            seen = move(seed, past[:time], action)
        if not np.array_equal(seen[:obs_size].astype(obs.dtype), obs, equal_nan=True):
            raise RuntimeError(
                f"it is not deterministic: replayed, it came elsewhere; {REMEDY}"
            )

    def step(message: np.ndarray) -> np.ndarray:
        seed, time = int(message[0]), int(message[1])
        obs, action, actions = np.split(message[2:], [obs_size, obs_size + size])
        actions = actions.reshape(-1, size)
        if time >= len(actions):
            raise RuntimeError(f"its episode has ended, at step {time}")
        past = actions[:time]
        if stands != (seed, past.tobytes()):
            rewind(seed, past, obs)
        return move(seed, past, action)

    def answer(message: np.ndarray) -> np.ndarray:
        with lock, _explained(name):
            return start(int(message[0])) if len(message) == 1 else step(message)

    return answer


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise HostFault(f"{name} failed: {returned.in_a_line(error)}") from error


def _check_replay(
    host: Callable[[np.ndarray], np.ndarray], name: str, actions: np.ndarray
) -> None:
    """Raises ValueError if the same `actions` [T, A] do not end the same."""

    def answers() -> np.ndarray:
        seed, found = 0, [host(np.zeros(1))]
        for time, action in enumerate(actions):
            obs = found[-1][:-3]
            parts = ([seed, time], obs, action, actions.ravel())
            found.append(host(np.concatenate(parts)))
            if found[-1][-2:].any():
                break
        return np.array(found, np.float32)

    try:
        one, two = answers(), answers()
    except HostFault as error:
        raise ValueError(str(error)) from error
    if not np.array_equal(one, two, equal_nan=True):
        raise ValueError(
            f"{name} does not do the same again after reset(seed=0): {REMEDY}"
        )


def _renderer(
    painter: Callable[[], Any], name: str, to_space: Callable[[np.ndarray], Any]
) -> Callable[[EnvState], Any]:
    """Makes the episode again in another simulator, which paints."""

    def render(states: EnvState) -> np.ndarray:
        times = set(np.asarray(states.time).tolist())
        actions = np.asarray(states.sim.actions)[-1, : max(times)]
        simulator = painter()
        try:
            with _explained(name):
                simulator.reset(seed=int(states.sim.seed[-1]))
                frames = [_frame(simulator)] if 0 in times else []
                for time, action in enumerate(actions, start=1):
                    simulator.step(to_space(action))
                    frames += [_frame(simulator)] if time in times else []
        finally:
            _close(simulator)
        return np.stack(frames)

    return render


def _frame(simulator: Any) -> np.ndarray:
    frame = np.asarray(simulator.render())
    if frame.ndim != 3 or frame.dtype != np.uint8:
        raise ValueError(f"render() gave {frame.dtype} of shape {frame.shape}")
    return frame


def _close(host_env: Any) -> None:
    with contextlib.suppress(Exception):  # nothing depends on it any more
        host_env.close()


def _limit(host_env: Any) -> int | None:
    return host_env.spec.max_episode_steps if host_env.spec else None


def _values(function: str, values: Any, names: str) -> tuple[Any, ...]:
    """Of the names; older versions of Gymnasium's protocol have others."""
    number = len(names.split(","))
    if not isinstance(values, tuple) or len(values) != number:
        found = len(values) if isinstance(values, tuple) else type(values).__name__
        raise ValueError(f"{function} must return {number} values ({names}): {found}")
    return values


def _flag(name: str, value: Any) -> bool:
    if np.ndim(value) or value not in (0, 1):
        raise ValueError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def _flat(obs: Any) -> np.ndarray:
    return np.asarray(obs, np.float64).reshape(-1)


def _is_box(space: Any) -> bool:
    return hasattr(space, "low") and getattr(space, "shape", None) is not None


def _joined(space: Any, obs: Any) -> np.ndarray:
    """An observation of several spaces, or of a discrete one, as a vector."""
    import gymnasium

    try:
        return _flat(gymnasium.spaces.flatten(space, obs))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"an observation is {obs!r}, not of {space}") from error


def _obs_size(host_env: Any) -> int:
    space = host_env.observation_space
    if _is_box(space):
        return math.prod(space.shape)
    if not getattr(space, "is_np_flattenable", False):
        raise ValueError(
            f"observation_space must be a Box, or made of spaces that can be flattened "
            f"to one, not {space}"
        )
    import gymnasium

    return gymnasium.spaces.flatdim(space)


def _picture_shape(host_env: Any) -> tuple[int, ...]:
    """Of pictures [height, width, channels] in bytes; () of anything else."""
    space = host_env.observation_space
    if _is_box(space) and len(space.shape) == 3 and space.dtype == np.uint8:
        return tuple(space.shape)
    return ()


def _num_actions(host_env: Any) -> int:
    """Of discrete ones; else 0."""
    space = host_env.action_space
    return int(space.n) if hasattr(space, "n") and space.shape == () else 0


def _action_bounds(host_env: Any) -> tuple[np.ndarray, np.ndarray]:
    """Each [A], in float64; of a discrete action's number, [1]."""
    space, num_actions = host_env.action_space, _num_actions(host_env)
    if num_actions:
        return np.zeros(1), np.full(1, num_actions - 1.0)
    if not hasattr(space, "low"):
        raise ValueError(f"action_space must be a Box or Discrete, not {space}")
    low, high = _flat(space.low), _flat(space.high)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(f"action_space must have finite bounds, not {space}")
    return low, high
