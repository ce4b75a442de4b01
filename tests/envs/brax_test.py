"""The adapter against Brax itself, and against objects that only speak its protocol."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs as brax_envs
from brax.generalized import constraint

from mbrl_jax.envs import brax, brax_tasks

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow
# (task, backend) that cannot be made, and why.
UNSUPPORTED = {
    ("swimmer", backend): "jax 0.10 removed a_min" for backend in brax_tasks.BACKENDS
}
ALL = [
    pytest.param(name, backend, marks=() if name == "inverted_pendulum" else SLOW)
    for name in brax_tasks.TASKS
    for backend in brax_tasks.BACKENDS
    if (name, backend) not in UNSUPPORTED
]


@pytest.fixture
def traced_once(monkeypatch):
    """`make` traces both functions of Brax's; a test finds them traced."""
    build = brax.build

    def remembering(name, backend):
        brax_env = build(name, backend)
        brax_env.reset = jax.jit(brax_env.reset)
        brax_env.step = jax.jit(brax_env.step)
        return brax_env

    monkeypatch.setattr(brax, "build", remembering)


def assert_same_type(one, other):
    """As a scan carry has to be."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.leaves(one) == jax.tree.leaves(other)


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(("name", "backend"), ALL)
def test_step_keeps_shapes_dtypes_and_strong_types(name, backend):
    env = brax.make(name, backend)
    assert env.name == f"brax/{name}/{backend}"
    first = jax.eval_shape(env.reset, jax.random.key(0))
    second = jax.eval_shape(env.step, first, jnp.zeros(env.action_size))
    assert_same_type(first, second)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((first, second)))
    assert first.obs.shape == (env.obs_size,)
    for leaf, dtype in zip(first[1:5], [float, bool, bool, jnp.int32], strict=True):
        assert (leaf.shape, leaf.dtype) == ((), jnp.dtype(jnp.result_type(dtype)))
    for rule, dtype in [(env.reward, float), (env.terminal, bool)]:
        if rule is not None:
            out = jax.eval_shape(rule, first.obs, jnp.zeros(env.action_size), first.obs)
            assert (out.shape, out.dtype) == ((), jnp.result_type(dtype))


@pytest.mark.parametrize(("name", "backend"), UNSUPPORTED)
def test_what_is_listed_as_unsupported_says_so(name, backend):
    with pytest.raises(ValueError, match=r"does not run with jax|Unsupported backend"):
        brax.make(name, backend)


@pytest.mark.slow
@pytest.mark.usefixtures("traced_once")
def test_x64():
    with jax.enable_x64(True):
        env = brax.make("inverted_pendulum", "mjx")
        state = jax.eval_shape(env.reset, jax.random.key(0))
        action = jax.ShapeDtypeStruct((env.action_size,), jnp.float32)
        assert_same_type(jax.eval_shape(env.step, state, action), state)
        assert state.obs.dtype == jnp.float64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("inverted_pendulum", "spring"),
        ("inverted_double_pendulum", "generalized"),
        pytest.param("hopper", "generalized", marks=SLOW),
        pytest.param("ant", "spring", marks=SLOW),
    ],
)
def test_rollout_is_that_of_brax(name, backend, monkeypatch):
    """Of Brax as it comes, without our constraint forces.

    The adapter is not jitted: where it changes nothing, both run the same program.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        brax_env = brax_envs.get_environment(name, backend=backend)
    brax_env.reset, brax_env.step = jax.jit(brax_env.reset), jax.jit(brax_env.step)
    ours = brax_env
    if backend == "generalized":
        ours = brax.build(name, backend)
        ours.reset, ours.step = brax_env.reset, jax.jit(ours.step)
    monkeypatch.setattr(brax, "build", lambda *_: ours)
    env = brax.make(name, backend, episode_length=20)

    @jax.jit
    @jax.vmap
    def rules_of(*transition):
        return [rule and rule(*transition) for rule in (env.reward, env.terminal)]

    keys = jax.random.split(jax.random.key(0), 8)
    state = jax.vmap(env.reset)(keys)
    assert len(np.unique(state.obs, axis=0)) == 8
    for time in range(1, 21):
        action = jax.random.uniform(
            jax.random.key(time), (8, env.action_size), minval=-1
        )
        with jax.numpy_rank_promotion("allow"):
            sim = jax.vmap(brax_env.step)(state.sim, action)
        before, state = state, jax.vmap(env.step)(state, action)
        rules = rules_of(before.obs, action, state.obs)
        done = np.asarray(sim.done) != 0
        np.testing.assert_array_equal(state.obs, sim.obs)
        np.testing.assert_array_equal(state.reward, sim.reward)
        np.testing.assert_array_equal(state.terminal, done)
        np.testing.assert_array_equal(state.truncated, (time == 20) & ~done)
        np.testing.assert_array_equal(state.time, time)
        if rules[0] is not None:
            np.testing.assert_allclose(rules[0], sim.reward, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(rules[1], state.terminal)


@SLOW
def test_mjx_is_differentiable_in_reverse_with_one_solver_iteration_only():
    def gradient(**options):
        env = brax.make("inverted_pendulum", "mjx", **options)
        state = jax.eval_shape(env.reset, jax.random.key(0))
        value = lambda action, state: env.step(state, action).obs.sum()
        return jax.eval_shape(jax.grad(value), jnp.zeros(1), state)

    assert gradient(solver_iterations=1).shape == (1,)
    with pytest.raises(ValueError, match="Reverse-mode differentiation"):
        gradient()


@pytest.mark.slow
def test_nothing_is_printed_warned_of_or_written(tmp_path):
    code = """if True:
        import json, logging
        from mbrl_jax.envs import brax
        size = brax.make("halfcheetah").obs_size
        print(json.dumps([size, len(logging.getLogger().handlers)]))
    """
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads(run.stdout) == [17, 0]  # no handler of the root logger
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("and", {}, "unknown Brax task 'and'; known: ant, "),
        ("ant", {"backend": "bullet"}, "unknown Brax backend 'bullet'; known: gen"),
        ("ant", {"episode_length": 0}, "episode_length must be at least 1, not 0"),
        ("ant", {"solver_iterations": 1}, "not 1 with 'generalized'"),
        ("ant", {"solver_iterations": 0, "backend": "mjx"}, "not 0 with 'mjx'"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        brax.make(name, **options)


class State(NamedTuple):
    obs: Any
    reward: Any
    done: Any
    info: dict[str, Any]


class Protocol:
    """As MuJoCo Playground's: dicts of observations, an `info` that is written into.

    The position moves by ten times the action; done between 2 and 3, NaN beyond.
    """

    action_size = 1

    def reset(self, rng):
        info = {"rng": rng, "steps": 0, "position": jax.random.uniform(rng)}
        return State(self.obs(info), jnp.zeros(()), jnp.zeros(()), info)

    def step(self, state, action):
        state.info["steps"] += 1
        state.info["position"] += 10 * action[0]
        position = state.info["position"]
        obs = self.obs(state.info)
        done = jnp.where((position > 2) & (position < 3), 1.0, 0.0)
        return State(obs, 1.0, done, state.info)

    def obs(self, info):
        position = jnp.where(info["position"] > 3, jnp.nan, info["position"])
        return {"state": position[None], "privileged": jnp.zeros((2, 2))}


def test_any_object_with_the_protocol():
    env = brax.adapt(Protocol(), name="robot", obs_key="state", episode_length=3)
    assert (env.name, env.obs_size, env.action_size) == ("robot", 1, 1)
    assert env.render is env.reward is env.terminal is None
    first = env.reset(jax.random.key(1))
    assert first.sim.info["rng"].dtype == jnp.uint32  # can be checkpointed
    state, step = first, jax.jit(env.step)
    for time in (1, 2, 3):
        state = step(state, jnp.array([0.01]))
        assert (state.time, state.reward) == (time, 1)
        assert (state.terminal, state.truncated) == (False, time == 3)
    assert step._cache_size() == 1
    np.testing.assert_allclose(state.obs, first.obs + 3 * 0.1, rtol=1e-6)
    env.step(first, jnp.array([0.01]))  # not jitted: a dict that is shared
    assert first.sim.info["steps"] == 0


@pytest.mark.parametrize(
    ("action", "terminal"), [(0.05, False), (0.2, True), (0.9, True)]
)
def test_done_or_not_finite_is_terminal(action, terminal):
    env = brax.adapt(Protocol(), name="robot", obs_key="state", episode_length=1)
    state = env.step(env.reset(jax.random.key(1)), jnp.array([action]))
    assert (state.terminal, state.truncated) == (terminal, not terminal)
    assert jnp.isnan(state.obs[0]) == (action == 0.9)


def test_actions_are_clipped():
    """Also those that the rules are about."""
    rule = lambda obs, action, after: action[0]
    env = brax.adapt(
        Protocol(), name="robot", obs_key="state", reward=rule, terminal=rule
    )
    start = env.reset(jax.random.key(1))
    for action, limit in [(7.0, 1.0), (-7.0, -1.0)]:
        found = env.step(start, jnp.array([action])).sim.info["position"]
        assert found == start.sim.info["position"] + 10 * limit
        for known in (env.reward, env.terminal):
            assert known(start.obs, jnp.array([action]), start.obs) == limit


@pytest.mark.parametrize("obs_key", [None, "sate", "privileged"])
def test_observations_must_be_one_vector(obs_key):
    with pytest.raises(ValueError, match=r"obs_key|observations must be \[O\]"):
        brax.adapt(Protocol(), name="robot", obs_key=obs_key)


class Whole(Protocol):
    """Observes whole numbers, and pays nothing at a reset, in whole numbers too."""

    def reset(self, rng):
        return super().reset(rng)._replace(obs=jnp.zeros(1, int), reward=jnp.int32(0))

    def step(self, state, action):
        after = super().step(state, action)
        return after._replace(obs=state.obs + 1, reward=jnp.float32(-0.1))


def test_whole_numbers_do_not_cut_rewards():
    env = brax.adapt(Whole(), name="robot", episode_length=3)
    state = env.step(env.reset(jax.random.key(0)), jnp.zeros(2))
    np.testing.assert_allclose(state.reward, -0.1)
    np.testing.assert_array_equal(state.obs, [1.0])
    assert state.obs.dtype == env.reset(jax.random.key(0)).reward.dtype == jnp.float32


def test_a_reward_is_a_number():
    class Vector(Whole):
        def step(self, state, action):
            return super().step(state, action)._replace(reward=jnp.zeros(1))

    with pytest.raises(ValueError, match=r"robot: step makes \.reward \(1,\) of \(\)"):
        brax.adapt(Vector(), name="robot")


def test_frames_show_the_state():
    env = brax.make("inverted_pendulum")
    q = jnp.array([[0.0, 0.0], [0.0, 0.0], [0.5, 0.0]])
    states = SimpleNamespace(sim=SimpleNamespace(pipeline_state=SimpleNamespace(q=q)))
    frames = np.asarray(env.render(states))
    assert (frames.shape, frames.dtype) == ((3, 240, 320, 3), np.uint8)
    np.testing.assert_array_equal(frames[0], frames[1])
    # The cart and its pole move to the right.
    dark = (frames.sum(axis=-1) < 250).mean(axis=1)  # [3, width]
    columns = (dark * np.arange(320)).sum(axis=-1) / dark.sum(axis=-1)
    assert columns[2] > columns[0] + 20


NUM_CONSTRAINTS, NUM_DOFS, NUM_STATES = 2, 3, 16


def constrained_states():
    """Made up: half of them touch nothing, so that their constraints are blank."""
    keys = jax.random.split(jax.random.key(0), 4)
    touching = (jnp.arange(NUM_STATES) % 2 == 0)[:, None]
    jac = jax.random.normal(keys[0], (NUM_STATES, NUM_CONSTRAINTS, NUM_DOFS))
    root = jax.random.normal(keys[1], (NUM_STATES, NUM_DOFS, NUM_DOFS))
    return {
        "con_jac": jnp.where(touching[:, :, None], jac, 0),
        "con_diag": jnp.where(touching, jnp.ones((1, NUM_CONSTRAINTS)), 0),
        "con_aref": jnp.where(
            touching, 3 * jax.random.normal(keys[2], (NUM_STATES, NUM_CONSTRAINTS)), 0
        ),
        "mass_mx_inv": jnp.eye(NUM_DOFS)[None] + 0.1 * root @ root.swapaxes(1, 2),
        "qf_smooth": jax.random.normal(keys[3], (NUM_STATES, NUM_DOFS)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("num_iterations", [3, 100])  # too few; enough
def test_forces_of_constraints_are_those_of_brax(num_iterations):
    system = SimpleNamespace(
        solver_iterations=num_iterations, solver_maxls=5, qd_size=lambda: NUM_DOFS
    )

    def batch(force):
        def one(state):
            found = force(system, SimpleNamespace(**state))
            return jnp.sin(found).sum(), found

        gradient = jax.vmap(jax.grad(one, has_aux=True))
        with brax._lenient():
            return jax.jit(gradient)(constrained_states())

    (slopes, forces), (known_slopes, known) = (
        batch(force) for force in (brax.constraint_force, constraint.force)
    )
    np.testing.assert_array_equal(forces, known)
    assert (np.abs(known).max(axis=1) > 0.01).sum() >= 4  # they do push
    for name, slope in slopes.items():
        scale = np.abs(known_slopes[name]).max()
        np.testing.assert_allclose(slope, known_slopes[name], atol=1e-5 * scale)


def test_our_forces_are_used_while_an_environment_is_traced_and_no_longer(monkeypatch):
    calls, theirs = [], constraint.force
    ours = lambda *args: calls.append(1) or theirs(*args)
    monkeypatch.setattr(brax, "constraint_force", ours)
    brax.make("inverted_double_pendulum")
    assert calls
    assert constraint.force is theirs
