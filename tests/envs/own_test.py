"""What holds for each of the project's own environments."""

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.types import Array, Env, EnvState

DETOURS = ("detour1", "detour2", "detour3", "detour4")
ROOMS = ("two_rooms1", "two_rooms2", "two_rooms3", "two_rooms4")
GRIDS = ("maze", "gridworld", "blocking_maze", "shortcut_maze", *DETOURS)
GAMES = ("catch", "dodge")
DISCRETE = (*GRIDS, *ROOMS, *GAMES, "cartpole", "cartpole_no_velocity", "t_maze")
PARTLY_SEEN = ("cartpole_no_velocity", "pendulum_no_velocity", "t_maze")
each = pytest.mark.parametrize("name", envs.names())
continuous = pytest.mark.parametrize(
    "name", [name for name in envs.names() if name not in DISCRETE]
)
INVOLVED = ("unicycle", "cart_double_pendulum", "pendubot")  # long programs
SAME_START = ("probe1", "probe3", "probe4", "two_peaks", *GRIDS)
ENDING = (  # by the random actions of these tests
    "cartpole",
    "cartpole_balance",
    "cartpole_no_velocity",
    "detour1",
    "catch",
    "dodge",
    "driving",
    "gridworld",
    "two_peaks",
    "two_rooms4",
)
ENDLESS = [name for name in envs.names() if name[:5] != "probe" and name not in ENDING]
OPTIMAL_RETURNS = {
    "probe1": lambda obs: 1.0,
    "probe2": lambda obs: obs[0],
    "probe3": lambda obs: 1.0,
    "probe4": lambda obs: 1.0,
    "probe5": lambda obs: 1.0,
}


def random_actions(env: Env, num_steps: int) -> np.ndarray:
    """A third of them beyond the limits, the first among them: [T, A] or [T]."""
    if env.num_actions:
        shape = (num_steps,)
        return np.asarray(
            jax.random.randint(jax.random.key(1), shape, 0, env.num_actions)
        )
    shape = (num_steps, env.action_size)
    fractions = np.random.default_rng(1).uniform(-1.5, 1.5, shape).astype(np.float32)
    fractions[0] = 1.3
    return env.action_limit * fractions


class Seen(NamedTuple):
    """Of all states of an episode, the first one included: [T + 1, ...]."""

    obs: Array
    reward: Array
    terminal: Array
    truncated: Array
    time: Array


def run(env: Env, key: Array, actions: Array) -> tuple[EnvState, Seen]:
    """The last state too."""

    def step(env_state: EnvState, action: Array) -> tuple[EnvState, Seen]:
        return env.step(env_state, action), see(env_state)

    see = lambda env_state: Seen(*(getattr(env_state, x) for x in Seen._fields))
    last, seen = jax.lax.scan(step, env.reset(key), actions)
    join = lambda s, x: jnp.concatenate([s, x[None]])
    return last, jax.tree.map(join, seen, see(last))


play = jax.jit(lambda *args: run(*args)[1], static_argnums=0)


class Episode(NamedTuple):
    seen: Seen
    rules: list[Array] | None  # rewards and ends, of what is seen: [T]
    frames: Array  # of the first state and the last


@functools.partial(jax.jit, static_argnums=0)
def look_at(env: Env, key: Array, actions: Array) -> Episode:
    """All in one program."""
    last, seen = run(env, key, actions)
    both = jax.tree.map(lambda *x: jnp.stack(x), env.reset(key), last)
    assert env.render is not None
    rules = None
    if env.reward is not None:
        assert env.terminal is not None
        before_and_after = seen.obs[:-1], actions, seen.obs[1:]
        rules = [jax.vmap(f)(*before_and_after) for f in (env.reward, env.terminal)]
    return Episode(seen, rules, env.render(both))


@functools.cache
def episode(name: str) -> tuple[Env, np.ndarray, Episode]:
    env = envs.make(name)
    actions = random_actions(env, env.episode_length)
    return env, actions, in_numpy(look_at(env, jax.random.key(0), actions))


def in_numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


@each
def test_record(name: str):
    env, _, (seen, _, _) = episode(name)
    assert env.name == name
    assert (env.num_actions > 0) == (env.action_size == 0) == (name in DISCRETE)
    assert seen.obs.shape == (env.episode_length + 1, env.obs_size)
    for leaf in seen[1:]:
        assert leaf.shape == (env.episode_length + 1,)
    assert seen.terminal.dtype == seen.truncated.dtype == bool
    assert seen.time.dtype == np.int32
    for leaf in (seen.obs, seen.reward):
        assert leaf.dtype == np.float32
        assert np.isfinite(leaf).all()
    np.testing.assert_array_equal(seen.time, np.arange(env.episode_length + 1))
    assert not seen.terminal[0]
    assert seen.reward[0] == 0


@each
def test_reward_and_terminal_are_functions_of_what_is_seen(name: str):
    env, _, (seen, rules, _) = episode(name)
    if name in PARTLY_SEEN:
        assert env.reward is env.terminal is None
        return
    reward, terminal = rules
    np.testing.assert_allclose(reward, seen.reward[1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(terminal, seen.terminal[1:])


@each
def test_the_clock_and_the_end(name: str):
    _, _, (seen, _, _) = episode(name)
    assert not seen.truncated[:-1].any()
    assert seen.truncated[-1] == (name in ENDLESS)
    assert seen.terminal.any() == (name not in ENDLESS)


@each
@pytest.mark.parametrize("x64", [False, True])
def test_types_stay_so_that_one_compilation_is_enough(name: str, x64: bool):
    with jax.enable_x64(x64):
        env = envs.make(name)
        before = jax.eval_shape(env.reset, jax.random.key(0))
        kind = int if env.num_actions else float
        action = jnp.asarray(random_actions(env, 1)[0], kind)
        after = jax.eval_shape(env.step, before, action)
        types = lambda tree: [
            (leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)
        ]
        assert types(after) == types(before)
        assert not any(weak for _, _, weak in types(after))
        assert jax.tree.structure(after) == jax.tree.structure(before)
        assert after.obs.dtype == (jnp.float64 if x64 else jnp.float32)


@each
def test_same_key_same_episode_alone_or_in_a_batch(name: str):
    env, actions, (seen, _, _) = episode(name)
    again = look_at(env, jax.random.key(0), actions)
    np.testing.assert_array_equal(again.seen.obs, seen.obs)
    keys = jnp.stack([jax.random.key(i) for i in range(6)])
    few = actions[:5]
    batch = jax.jit(jax.vmap(lambda key: run(env, key, few)[1].obs))(keys)
    single = [look_at(env, key, actions).seen.obs[:6] for key in keys]
    single = np.stack([np.asarray(x) for x in single])
    np.testing.assert_allclose(batch, single, rtol=1e-4, atol=1e-5)
    others_differ = (single[1:, 0] != single[:1, 0]).any()
    assert others_differ == (name not in SAME_START)


@continuous
def test_actions_are_clipped(name: str):
    env, actions, (seen, _, _) = episode(name)
    limit = env.action_limit
    inside = np.clip(actions, -limit, limit)
    clipped = look_at(env, jax.random.key(0), inside).seen
    assert np.abs(actions).max() > limit
    np.testing.assert_array_equal(clipped.reward, seen.reward)
    np.testing.assert_array_equal(clipped.obs, seen.obs)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in INVOLVED else name
        for name in envs.names()
        if name not in DISCRETE
    ],
)
def test_gradient_is_that_of_finite_differences(name: str):
    """Of the next state, obs and reward, weighted, in the state, obs and action."""
    with jax.enable_x64(True):
        env = envs.make(name)
        env_state = jax.jit(env.reset)(jax.random.key(3))
        action = np.full(env.action_size, 0.3 * env.action_limit)
        is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
        leaves, structure = jax.tree.flatten(env_state)
        floats = [leaf for leaf in leaves if is_float(leaf)]
        point, unravel = jax.flatten_util.ravel_pytree((floats, action))
        # Away from the start, which is at rest in some.
        point = np.asarray(point) + 0.1 * np.random.default_rng(0).normal(
            size=point.size
        )
        weights = np.random.default_rng(1).normal(size=point.size)

        @jax.jit
        @jax.value_and_grad
        def step(point: Array) -> Array:
            floats, action = unravel(point)
            fill = iter(floats)
            full = [next(fill) if is_float(leaf) else leaf for leaf in leaves]
            after = env.step(jax.tree.unflatten(structure, full), action)
            results = [leaf for leaf in jax.tree.leaves(after) if is_float(leaf)]
            results = jax.flatten_util.ravel_pytree(results)[0]
            return results @ weights[: results.size]

        small = 1e-6 * np.eye(point.size)
        value = lambda point: float(step(point)[0])
        numeric = [(value(point + s) - value(point - s)) / 2e-6 for s in small]
        gradient = np.asarray(step(point)[1])
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)
        assert np.abs(gradient[-env.action_size :]).min() > 1e-3


@each
def test_pictures(name: str):
    *_, (_, _, frames) = episode(name)
    assert frames.dtype == np.uint8
    assert frames.ndim == 4
    assert frames.shape[0] == 2
    assert frames.shape[-1] == 3
    assert min(frames.shape[1:3]) >= 100
    assert (frames[0] != frames[1]).any()
    num_colours = len(np.unique(frames[0].reshape(-1, 3), axis=0))
    assert num_colours > (2 if name in GAMES else 4)  # games have no edge to blur


@pytest.mark.parametrize("name", OPTIMAL_RETURNS)
def test_optimal_returns_of_the_probes(name: str):
    env = envs.make(name)
    candidates = np.linspace(-1, 1, 41, dtype=np.float32)[:, None]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def play_all(key: Array, action: Array) -> Seen:
        return run(env, key, jnp.repeat(action[None], env.episode_length, axis=0))[1]

    for key in jax.random.split(jax.random.key(0), 4):
        seen = in_numpy(play_all(key, candidates))
        optimum = OPTIMAL_RETURNS[name](seen.obs[0, 0])
        returns = seen.reward.sum(axis=1)
        np.testing.assert_allclose(returns.max(), optimum, atol=1e-6)
        np.testing.assert_array_equal(seen.terminal.sum(axis=1), 1)
        assert seen.terminal[:, -1].all()


def test_half_of_the_coins_are_heads():
    reset = jax.jit(jax.vmap(envs.make("probe2").reset))
    obs = np.asarray(reset(jax.random.split(jax.random.key(0), 1000)).obs)
    assert set(np.unique(obs)) == {-1.0, 1.0}
    assert abs(obs.mean()) < 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cartpole_swing", "unknown environment 'cartpole_swing'; did you mean 'cart"),
        ("", "unknown environment ''; known are: pendulum, pendulum_no_velocity"),
        ("brax/", "brax/NAME/BACKEND"),
        ("atari/pong", "gymnasium/ID"),
    ],
)
def test_unknown_names(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        envs.make(name)


@pytest.mark.parametrize(
    ("name", "module", "arguments"),
    [
        ("brax/reacher", "brax", ("reacher",)),
        ("brax/reacher/spring", "brax", ("reacher", "spring")),
        ("gymnasium/ALE/Pong-v5", "gymnasium", ("ALE/Pong-v5",)),
    ],
)
def test_adapters_by_prefix(monkeypatch, name: str, module: str, arguments: tuple):
    adapter = type(sys)("adapter")
    adapter.make = lambda *args: args
    monkeypatch.setitem(sys.modules, f"mbrl_jax.envs.{module}", adapter)
    assert envs.make(name) == arguments


MODULE = """
from mbrl_jax.envs import pendulum

def make():
    return pendulum.make()._replace(name="mine")

def number():
    return 1

def broken():
    return [][1]

def narrow():
    env = make()
    reset = lambda key: env.reset(key)._replace(reward=0)
    return env._replace(reset=reset)

def pixels():
    env = make()
    reset = lambda key: env.reset(key)._replace(obs=env.reset(key).obs.astype(int))
    return env._replace(reset=reset)
"""


def test_environments_of_ones_own_by_module_and_function(tmp_path, monkeypatch):
    (tmp_path / "envs_of_a_user.py").write_text(MODULE)
    (tmp_path / "envs_with_a_slip.py").write_text("def make(:")
    monkeypatch.syspath_prepend(tmp_path)
    assert envs.make("envs_of_a_user:make").name == "mine"
    assert envs.make("envs_of_a_user:make", 7).episode_length == 7
    for name, words in (
        ("envs_of_a_user:number", "returned a int, no mbrl_jax Env"),
        (
            "envs_of_a_user:broken",
            r"IndexError: list index out of range \(envs_of_a_user.py, line 11\)$",
        ),
        ("envs_of_a_user:narrow", "step makes .reward float32 of int32"),
        ("envs_of_a_user:pixels", r"obs are int32 of shape \(3,\), not \[3\]"),
        ("envs_of_a_user:none", "is not made: AttributeError: .*no attribute 'none'$"),
        ("envs_with_a_slip:make", "is not made: SyntaxError: .*line 1"),
        (
            "envs_of_nobody:make",
            "ModuleNotFoundError: No module named 'envs_of_nobody'",
        ),
        (":make", ":make is not made: ValueError: Empty module name"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            envs.make(name)
        assert "\n" not in str(error.value)


def test_names_that_import_a_module_are_known():
    for name in (*envs.names(), "brax/ant/mjx", "gymnasium/ALE/Pong-v5"):
        assert not envs.names_a_module(name)
    for name in ("mine:make", "a.b:make", "gymnasium/R.evil:X-v0"):
        assert envs.names_a_module(name)


def test_an_episode_of_another_length():
    assert envs.make("pendulum", 7).episode_length == 7
    assert envs.make("gymnasium/Pendulum-v1", 300).episode_length == 300


def test_positions_are_what_is_left_without_velocities():
    for name, of, kept in (
        ("cartpole_no_velocity", "cartpole", (0, 2)),
        ("pendulum_no_velocity", "pendulum", (0, 1)),
    ):
        part, whole = episode(name)[2].seen, episode(of)[2].seen
        np.testing.assert_array_equal(part.obs, whole.obs[:, kept])
        np.testing.assert_array_equal(part.reward, whole.reward)
        np.testing.assert_array_equal(part.terminal, whole.terminal)


@pytest.mark.parametrize(("right", "expected"), [(True, 4.0), (False, -0.1)])
def test_the_t_maze_pays_for_the_turn_that_its_sign_said(right: bool, expected: float):
    env = envs.make("t_maze")
    reset = jax.jit(env.reset)
    for key in jax.random.split(jax.random.key(0), 6):
        sign = reset(key).obs[0]
        up = (sign > 0) == right
        actions = np.array([0] * 10 + [1 if up else 2])
        states = in_numpy(play(env, key, actions))
        np.testing.assert_array_equal(states.obs[0], [sign, 0])
        np.testing.assert_array_equal(states.obs[1:10], np.zeros((9, 2)))
        np.testing.assert_array_equal(states.obs[10], [0, 1])
        np.testing.assert_array_equal(states.terminal, [False] * 11 + [True])
        assert float(states.reward.sum()) == pytest.approx(expected)
    bumped = play(env, key, np.array([1, 0, 2]))
    np.testing.assert_allclose(bumped.reward[1:], [-0.1, 0, -0.1])
