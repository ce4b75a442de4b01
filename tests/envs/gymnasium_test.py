"""The adapter against Gymnasium stepped directly, and against systems that fail."""

import gc
import sys
from typing import ClassVar

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import policies, rollout
from mbrl_jax.algorithms import sac
from mbrl_jax.envs import gymnasium
from mbrl_jax.value_learning import off_policy
from mbrl_jax.value_learning import sac as sac_learner
from mbrl_jax.value_learning.parts import PixelsConfig

KEY = jax.random.key(0)


class Counter(gym.Env):
    """Observes [seed, steps, action]; ends after 5 steps; breaks when told to."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3, 1))

    def __init__(self, low=(-1.0,), high=(1.0,), drift=0.0):
        self.action_space = gym.spaces.Box(np.array(low), np.array(high), dtype=float)
        self.drift, self.resets, self.calls, self.broken = drift, 0, [], False

    def reset(self, *, seed=None, options=None):
        self.resets, self.steps, self.seed = self.resets + 1, 0, seed
        if self.broken:
            raise OSError("the battery is flat")
        return np.array([[seed], [0.0], [0.0]]), {}

    def step(self, action):
        self.steps += 1
        if self.broken:
            raise OSError("the cable is out")
        self.calls.append(action)
        noise = self.drift * self.resets
        obs = np.array([[self.seed], [self.steps + noise], [action[0]]])
        return obs, 0.5, self.steps == 5, False, {}


def run(env, key, actions):
    """The states after each of `actions` [T, A] in a scan, jitted."""

    def rollout(key, actions):
        step = lambda state, action: (env.step(state, action),) * 2
        return jax.lax.scan(step, env.reset(key), actions)

    return jax.jit(rollout)(key, actions)[1]


def uniform(env, key, num_steps):
    limit, shape = env.action_limit, (num_steps, env.action_size)
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


@pytest.mark.parametrize(
    ("env_id", "num_steps"), [("Pendulum-v1", 200), ("InvertedPendulum-v5", 40)]
)
def test_trajectory_is_that_of_gymnasium(env_id, num_steps):
    env = gymnasium.make(env_id)
    actions = uniform(env, jax.random.key(1), num_steps)
    states = run(env, KEY, actions)
    direct = gym.make(env_id)
    obs, _ = direct.reset(seed=int(states.sim.seed[0]))
    direct.action_space.seed(0)
    for time, action in enumerate(np.asarray(actions)):
        before = jnp.asarray(obs, jnp.float32)
        obs, reward, terminated, truncated, _ = direct.step(action)
        state = jax.tree.map(lambda x, time=time: x[time], states)
        np.testing.assert_array_equal(state.obs, np.float32(obs))
        np.testing.assert_array_equal(state.reward, np.float32(reward))
        assert (state.terminal, state.truncated) == (terminated, truncated)
        assert state.time == time + 1
        known = env.reward(before, action, state.obs)
        np.testing.assert_allclose(known, reward, rtol=1e-5, atol=1e-5)
        assert env.terminal(before, action, state.obs) == terminated
        if terminated:
            break
    assert states.truncated.any() == (env_id == "Pendulum-v1")
    assert states.terminal.any() == (env_id == "InvertedPendulum-v5")


def test_sizes_and_limits():
    env = gymnasium.make("Pendulum-v1")
    assert (env.name, env.host) == ("gymnasium/Pendulum-v1", True)
    assert (env.obs_size, env.action_size, env.action_limit) == (3, 1, 2.0)
    assert env.episode_length == 200
    assert gymnasium.make("Pendulum-v1", episode_length=7).episode_length == 7
    state = jax.eval_shape(env.reset, KEY)
    assert jax.eval_shape(env.step, state, jnp.zeros(1)) == state
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_the_key_seeds_the_simulator():
    env = gymnasium.make("Pendulum-v1")
    reset = jax.jit(env.reset)
    one, again, other = (reset(jax.random.key(seed)).obs for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert (one != other).all()


@pytest.mark.parametrize(
    "batched",
    [
        lambda env, keys: jax.vmap(env.reset)(keys),
        lambda env, keys: jax.vmap(env.step, in_axes=(None, 0))(
            env.reset(keys[0]), jnp.zeros((2, 1))
        ),
        lambda env, keys: jax.jit(
            jax.vmap(lambda key: env.step(env.reset(key), jnp.zeros(1)))
        )(keys),
    ],
    ids=["reset", "step", "jitted"],
)
def test_vmap_is_refused(batched):
    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(ValueError, match="Pendulum-v1 runs on the host, one run at a"):
        batched(env, jax.random.split(KEY, 2))


def test_episodes_in_a_scan_end_and_begin_in_order():
    host = Counter()
    env = gymnasium.adapt(host, name="counter", episode_length=9)

    def advance(state, key):
        new = env.step(state, jnp.zeros(1))
        fresh = lambda: env.reset(key)
        return jax.lax.cond(new.terminal | new.truncated, fresh, lambda: new), new

    def rollout(key):
        keys = jax.random.split(key, 12)
        return jax.lax.scan(advance, env.reset(key), keys)[1]

    compiled = jax.jit(rollout)
    states = compiled(KEY)
    np.testing.assert_array_equal(states.obs[:, 1], [1, 2, 3, 4, 5] * 2 + [1, 2])
    np.testing.assert_array_equal(states.terminal, ([False] * 4 + [True]) * 2 + [0, 0])
    assert len(np.unique(states.obs[:, 0])) == 3
    assert (host.resets, len(host.calls)) == (3, 12)  # nothing was replayed
    np.testing.assert_array_equal(compiled(KEY).obs, states.obs)


def test_the_clock_is_kept_apart_from_the_end():
    env = gymnasium.adapt(Counter(), name="counter", episode_length=5)
    states = run(env, KEY, jnp.zeros((5, 1)))
    np.testing.assert_array_equal(states.terminal, [0, 0, 0, 0, 1])
    assert not states.truncated.any()
    env = gymnasium.adapt(Counter(), name="counter", episode_length=4)
    states = run(env, KEY, jnp.zeros((4, 1)))
    np.testing.assert_array_equal(states.truncated, [0, 0, 0, 1])
    assert not states.terminal.any()


def test_states_can_be_left_and_taken_up_again():
    """By other episodes in between, and in a new process."""
    env, twin = gymnasium.make("Pendulum-v1"), gymnasium.make("Pendulum-v1")
    keys = jax.random.split(KEY, 2)
    actions = uniform(env, jax.random.key(1), 10)
    expected = [run(env, key, actions).obs for key in keys]
    states, step, step_twin = (
        [env.reset(key) for key in keys],
        *map(jax.jit, (env.step, twin.step)),
    )
    for time, action in enumerate(actions):
        for i in range(2):
            states[i] = (step_twin if time == 7 else step)(states[i], action)
            np.testing.assert_array_equal(states[i].obs, expected[i][time])


def test_a_state_has_more_than_one_future():
    env = gymnasium.adapt(Counter(), name="counter", episode_length=9)
    state = env.step(env.reset(KEY), jnp.array([0.25]))
    for action in (0.5, -0.5):
        after = env.step(state, jnp.array([action]))
        np.testing.assert_array_equal(after.obs[1:], [2, action])


@pytest.mark.parametrize(
    ("options", "drift", "message"),
    [
        ({"replay": False}, 0.0, "stands elsewhere, and replay is off"),
        ({}, 1.0, "not deterministic"),
    ],
)
def test_what_cannot_be_replayed_says_so(options, drift, message):
    env = gymnasium.adapt(Counter(drift=drift), name="robot", **options)
    state = env.step(env.reset(KEY), jnp.zeros(1))
    env.step(state, jnp.zeros(1))
    with pytest.raises(Exception, match=f"robot failed: RuntimeError: it .*{message}"):
        jax.block_until_ready(env.step(state, jnp.ones(1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [("step", "the cable is out"), ("reset", "the battery is flat")],
)
def test_a_system_that_fails_says_why_and_can_go_on(call, message):
    host = Counter()
    env = gymnasium.adapt(host, name="robot", episode_length=9)
    step, action = jax.jit(env.step), jnp.zeros(1)
    state = jax.block_until_ready(step(env.reset(KEY), action))
    host.broken = True  # halfway through what it is asked to do
    fail = {"step": lambda: step(state, action), "reset": lambda: env.reset(KEY)}
    with pytest.raises(Exception, match=f"robot failed: OSError: {message}"):
        jax.block_until_ready(fail[call]())
    host.broken = False
    np.testing.assert_array_equal(step(state, action).obs[1:], [2, 0])


def test_stepping_past_the_end_of_the_episode_is_refused():
    env = gymnasium.adapt(Counter(), name="robot", episode_length=2)
    state = env.reset(KEY)
    for _ in range(2):
        state = env.step(state, jnp.zeros(1))
    with pytest.raises(Exception, match="robot failed: RuntimeError: its episode has"):
        jax.block_until_ready(env.step(state, jnp.zeros(1)))


@pytest.mark.parametrize(
    ("low", "high", "limit", "action", "expected"),
    [
        ([-1.0], [1.0], 1.0, [0.3], [0.3]),
        ([-2.0, -2.0], [2.0, 2.0], 2.0, [-1.5, 2.0], [-1.5, 2.0]),
        ([0.0, -3.0], [4.0, 1.0], 1.0, [0.5, -1.0], [3.0, -3.0]),
        ([-2.0, -1.0], [2.0, 1.0], 1.0, [0.5, 0.5], [1.0, 0.5]),
        ([-1.0], [1.0], 1.0, [7.0], [1.0]),
    ],
)
def test_actions_fill_the_box(low, high, limit, action, expected):
    host = Counter(low, high)
    env = gymnasium.adapt(host, name="counter", episode_length=9)
    assert (env.action_limit, env.action_size) == (limit, len(low))
    env.step(env.reset(KEY), jnp.array(action)).obs.block_until_ready()
    np.testing.assert_allclose(host.calls[0], expected, rtol=1e-6)
    assert host.action_space.contains(host.calls[0])


def test_x64():
    env = gymnasium.adapt(Counter(), name="robot", episode_length=9)
    with jax.enable_x64(True):
        action = jnp.array([1 / 3])
        state = jax.jit(env.step)(jax.jit(env.reset)(KEY), action)
        for _ in range(2):  # the second time after another state: replayed
            after = jax.jit(env.step)(state, action)
        assert after.obs.dtype == after.reward.dtype == jnp.float64
        np.testing.assert_array_equal(np.asarray(after.obs)[1:], [2, 1 / 3])


def test_users_rules_come_first():
    rule = lambda obs, action, next_obs: obs.sum()
    env = gymnasium.make("Pendulum-v1", reward=rule, terminal=rule)
    assert env.reward is env.terminal is rule
    assert gymnasium.adapt(Counter(), name="counter").reward is None


class Written(gym.Env):
    """A line that an action moves on; parts are replaced as `replaced` says."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    action_space = gym.spaces.Box(-1, 1, (1,))
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))

    def __init__(self, render_mode=None, replaced=(), closed=()):
        self.render_mode, self.closed = render_mode, closed
        for name, value in dict(replaced).items():
            setattr(self, name, value)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.x = 0, self.np_random.uniform()
        return np.array([self.time, self.x]), {}

    def step(self, action):
        self.time, self.x = self.time + 1, self.x + float(action[0])
        return np.array([self.time, self.x]), 1, False, False, {}

    def render(self):
        return np.full((4, 6, 3), self.time, np.uint8)

    def close(self):
        self.closed.append(self.render_mode)


gym.register("Written-v0", entry_point=Written, max_episode_steps=4)


def test_pictures_are_those_of_another_simulator():
    closed = []
    env = gymnasium.make("Written-v0", closed=closed)
    states, valid = rollout.trajectory(KEY, env, policies.uniform(env))
    assert valid.all()
    frames = env.render(states)
    assert (frames.shape, frames.dtype) == ((5, 4, 6, 3), np.uint8)
    np.testing.assert_array_equal(frames[:, 0, 0, 0], range(5))
    some = jax.tree.map(lambda x: x[jnp.array([1, 3])], states)
    np.testing.assert_array_equal(env.render(some)[:, 0, 0, 0], [1, 3])
    assert closed == ["rgb_array"] * 2  # and not that which is stepped
    blind = gymnasium.make("Written-v0", replaced={"metadata": {}}, closed=closed)
    assert blind.render is None


def test_a_simulator_is_closed_when_nothing_needs_it(monkeypatch):
    closed = []
    env = gymnasium.make("Written-v0", closed=closed)
    assert closed == []
    del env
    gc.collect()
    assert closed == [None]
    with pytest.raises(ValueError, match="must have finite bounds"):
        gymnasium.make("Written-v0", replaced={"action_space": INFINITE}, closed=closed)
    assert closed == [None, None]


def test_more_steps_than_its_own_limit():
    env = gymnasium.make("Written-v0", episode_length=6)
    states = run(env, KEY, jnp.zeros((6, 1)))
    np.testing.assert_array_equal(states.truncated, [0, 0, 0, 0, 0, 1])


def changing(**parts):
    """Of what is returned: obs, reward, terminated, truncated, info."""

    def step(action):
        return tuple(
            {**dict.fromkeys(NAMES), **GOOD, **parts}[name]
            for name in NAMES
            if parts.get(name) is not Ellipsis
        )

    return {"step": step}


NAMES = ("obs", "reward", "terminated", "truncated", "info")
GOOD = {"obs": np.zeros(2), "reward": 0.5, "terminated": False, "truncated": False}


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (changing(obs=np.zeros(3)), r"an observation has shape \(3,\), not \(2,\)"),
        (changing(reward=np.ones(1)), r"reward must be a number, not of shape \(1,\)"),
        (changing(reward=None), "TypeError: float"),
        (changing(terminated=None), "terminated must be True or False, not None"),
        (changing(truncated=np.zeros(1)), "truncated must be True or False, not array"),
        (changing(truncated=...), "not enough values to unpack"),  # of its TimeLimit
        ({"reset": lambda: (0, {})}, "TypeError: .*unexpected keyword argument"),
        ({"reset": lambda **options: np.zeros(2)}, "ValueError: .*unpack|2 values"),
        ({"step": lambda action: [][1]}, "failed: IndexError: list index out of range"),
        (changing(reward=0.5, obs=np.zeros(2)), None),
    ],
)
def test_what_cannot_be_used_is_refused_before_it_is(replaced, message):
    """In words, in one line, when it is made."""
    if message is None:
        assert gymnasium.make("Written-v0", replaced=replaced, closed=[]).obs_size == 2
        return
    with pytest.raises(ValueError, match=message) as error:
        gymnasium.make("Written-v0", replaced=replaced, closed=[])
    assert str(error.value).startswith("gymnasium/Written-v0 ")
    assert "\n" not in str(error.value)


def test_wrappers_that_count_on_are_refused():
    def host():
        return gym.wrappers.NormalizeObservation(Written(closed=[]))

    with pytest.raises(
        ValueError, match="robot does not do the same again after reset"
    ):
        gymnasium.adapt(host(), name="robot", episode_length=4, probe=True)
    env = gymnasium.adapt(host(), name="robot", episode_length=4, replay=False)
    assert run(env, KEY, jnp.zeros((4, 1))).truncated[-1]
    wrapped = gym.wrappers.NormalizeReward(Written(closed=[]))
    with pytest.raises(ValueError, match="robot does not do the same again"):
        gymnasium.adapt(wrapped, name="robot", episode_length=4, probe=True)


def test_chance_that_is_not_seeded_is_refused():
    chance = np.random.default_rng(0)
    reset = lambda **options: (chance.uniform(size=2), {})
    replaced = {"reset": reset, **changing()}
    with pytest.raises(ValueError, match=f"after reset.seed=0.: {gymnasium.REMEDY}"):
        gymnasium.make("Written-v0", replaced=replaced, closed=[])


def test_a_fault_is_one_line_however_it_arrives():
    def step(action):
        raise KeyError("joint\n\n3")

    host = Written(closed=[])
    env = gymnasium.adapt(host, name="robot", episode_length=4)
    state = env.reset(KEY)
    host.step = step
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.block_until_ready(jax.jit(env.step)(state, jnp.zeros(1)))
    assert gymnasium.fault(error.value) == r"robot failed: KeyError: 'joint\n\n3'"
    assert gymnasium.fault(gymnasium.HostFault("as it is")) == "as it is"
    assert gymnasium.fault(ValueError("something else")) is None


def test_whole_numbers_are_reached_from_all_sides():
    host = Counter()
    host.action_space = gym.spaces.Box(0, 2, (1,), np.int64)
    env = gymnasium.adapt(host, name="counter", episode_length=9)
    run(env, KEY, jnp.array([[-0.9], [-0.4], [0.4], [0.9]]))
    assert np.ravel(host.calls).tolist() == [0, 1, 1, 2]


def broken_spaces(**spaces):
    host = Counter()
    for name, space in spaces.items():
        setattr(host, name, space)
    return lambda: gymnasium.adapt(host, name="robot")


def test_discrete_actions_are_numbers():
    env, theirs = gymnasium.make("CartPole-v1"), gym.make("CartPole-v1")
    assert (env.num_actions, env.action_size) == (2, 0)
    actions = np.random.default_rng(0).integers(0, 2, 12)
    states = run(env, KEY, jnp.asarray(actions))
    seed = int(env.reset(KEY).sim.seed)
    obs, _ = theirs.reset(seed=seed)
    for t, action in enumerate(actions):
        obs, reward, terminated, _, _ = theirs.step(action)
        np.testing.assert_allclose(states.obs[t], obs, rtol=1e-6)
        assert (states.reward[t], states.terminal[t]) == (reward, terminated)
    third = gymnasium.adapt(Third(), name="third")
    states = run(third, KEY, jnp.array([0, 2]))
    np.testing.assert_array_equal(states.obs[:, 0], [3, 5])


class Third(gym.Env):
    """Observes its action, one of 3, 4 and 5."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Discrete(3, start=3)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1), {}

    def step(self, action):
        return np.array([float(action)]), 0.0, False, False, {}


class Camera(gym.Env):
    """Shows [seed, steps, action] in the corner of a picture, and no more."""

    observation_space = gym.spaces.Box(0, 255, (4, 5, 3), np.uint8)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps = seed, 0
        return self.shown(0), {}

    def shown(self, action):
        picture = np.full((4, 5, 3), 255, np.uint8)
        picture[3, 4] = self.seed % 256, self.steps, 100 * (1 + action)
        return picture

    def step(self, action):
        self.steps += 1
        return self.shown(action[0]), 0.5, False, False, {}


def test_pictures_stay_pictures():
    env = gymnasium.adapt(Camera(), name="camera", episode_length=8)
    assert (env.obs_shape, env.obs_size, env.num_frames) == ((4, 5, 3), 0, 1)
    states = run(env, KEY, jnp.array([[0.5], [-1.0]]))
    assert states.obs.dtype == jnp.uint8
    corner = np.asarray(states.obs[:, 3, 4])
    assert corner[0, 0] == int(states.sim.seed[0]) % 256
    np.testing.assert_array_equal(corner[:, 1:], [[1, 150], [2, 0]])
    assert (np.asarray(states.obs).reshape(2, -1)[:, :-3] == 255).all()


def test_learners_see_the_pictures_of_gymnasium():
    env = gymnasium.adapt(Camera(), name="camera", episode_length=8)
    collect = off_policy.Config(capacity=12, warmup=4, interval=6, batch_size=2)
    learn = sac_learner.Config(hidden_sizes=(4,))
    algorithm = sac.make(env, sac.Config(collect, learn, PixelsConfig((2,), 3, 1)))
    state, metrics = jax.jit(algorithm.step)(KEY, jax.jit(algorithm.init)(KEY))
    assert metrics["env_steps"] == 6
    assert np.isfinite(metrics["critic/mse"])
    rows = np.asarray(state.replay.data.obs)[:6, 3, 4, 1]
    np.testing.assert_array_equal(rows, range(6))


class Several(gym.Env):
    """Observes a place in words of its own: a number of three, and a vector."""

    observation_space = gym.spaces.Dict(
        where=gym.spaces.Discrete(3), speed=gym.spaces.Box(-1.0, 1.0, (2,))
    )
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    name = "where"

    def reset(self, *, seed=None, options=None):
        return {self.name: 0, "speed": np.zeros(2)}, {}

    def step(self, action):
        return (
            {self.name: 2, "speed": np.array([0.5, action[0]])},
            0.0,
            False,
            False,
            {},
        )


def test_several_spaces_are_one_vector_as_gymnasium_flattens_them():
    env, theirs = gymnasium.adapt(Several(), name="several"), Several()
    assert (env.obs_shape, env.obs_size) == ((), 5)
    states = run(env, KEY, jnp.array([[-0.25]]))
    obs, *_ = theirs.step(np.array([-0.25]))
    expected = gym.spaces.flatten(Several.observation_space, obs)
    np.testing.assert_allclose(states.obs[0], expected)
    assert set(np.asarray(states.obs[0]).tolist()) == {0.5, -0.25, 0, 1}
    broken = gymnasium.adapt(type("Broken", (Several,), {"name": "there"})(), name="b")
    with pytest.raises(Exception, match=r"b failed: .*an observation is .*'there'"):
        jax.block_until_ready(jax.jit(broken.reset)(KEY))


BOX = gym.spaces.Box(-1, 1, (2,))
INFINITE = gym.spaces.Box(-np.inf, np.inf, (2,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: gymnasium.make("Pendulum-v9"),
            "gymnasium does not make 'Pendulum-v9'",
        ),
        (
            broken_spaces(action_space=gym.spaces.MultiDiscrete([2, 2])),
            "action_space must be a Box or Discrete, not MultiDiscrete",
        ),
        (broken_spaces(action_space=INFINITE), "action_space must have finite bounds"),
        (
            broken_spaces(observation_space=gym.spaces.Sequence(BOX)),
            "observation_space must be a Box, or made of spaces that .*, not Sequence",
        ),
        (
            lambda: gymnasium.adapt(Counter(), name="robot", episode_length=0),
            "episode_length must be at least 1, not 0",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"pip install 'mbrl_jax\[gymnasium\]'"):
        gymnasium.make("Pendulum-v1")
