"""Dyna: where its futures start, and with which actions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import policies, replay
from mbrl_jax.algorithms import dyna
from mbrl_jax.envs import point_mass
from mbrl_jax.models import ensemble
from mbrl_jax.types import Array, Env, Gaussian, Model, Policy, Transition
from mbrl_jax.value_learning import branching, by_name, off_policy
from mbrl_jax.value_learning import sac as sac_learner
from mbrl_jax.value_learning.parts import ValueLearner

ENV: Env = point_mass.make()
COLLECT = off_policy.Config(capacity=40, warmup=4, interval=3, num_envs=2)
LATEST = 3 * 2  # steps of an iteration
NUM = 60  # futures, of two steps
CONFIG = dyna.Config(
    collect=COLLECT,
    learner=by_name.Config(sac=sac_learner.Config(hidden_sizes=(4,))),
    imagine=branching.Config(NUM, 2, 2, retain=1),
)
POLICY, UNIFORM = 0.25, -0.75  # all that they do here


def always(action: float) -> Policy:
    act = lambda key, obs, memory: (jnp.full(2, action), memory)
    return Policy(lambda: (), act)


def still(*args: Any) -> Model:
    """In place of an ensemble; it does not learn that anything ever moves."""

    def predict(member: Array, obs: Array, action: Array) -> Gaussian:
        return Gaussian(obs + member, jnp.zeros_like(obs))

    zero = lambda *_: jnp.zeros(1)
    return Model(zero, lambda *_: (zero(), {}), lambda state: state, predict)


def known() -> Transition:
    """Thirty real steps, all different, oldest first."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    never = jnp.zeros(30, bool)
    return Transition(draw(30, 6), draw(30, 2), draw(30), draw(30, 6), never, never)


def imagined(monkeypatch: pytest.MonkeyPatch, starts: str, actions: str) -> Transition:
    """The first steps of the futures, then the second, [2, NUM, ...]."""

    make = sac_learner.make

    def learner(env: Env, config: sac_learner.Config) -> ValueLearner:
        return make(env, config)._replace(
            init=lambda key: (),
            explore=lambda state: always(POLICY),
            policy=lambda state: always(9.0),
        )

    monkeypatch.setattr(off_policy, "make", lambda env, hooks, config: hooks)
    monkeypatch.setattr(ensemble, "make", still)
    monkeypatch.setattr(policies, "uniform", lambda env: always(UNIFORM))
    monkeypatch.setattr(sac_learner, "make", learner)
    config = dataclasses.replace(CONFIG, starts=starts, actions=actions)
    hooks: Any = dyna.make(ENV, config)

    @jax.jit
    def run(key: Array) -> Transition:
        empty = replay.init(6, 2, COLLECT.capacity)
        data = replay.insert(empty, known(), jnp.ones(30, bool))
        learned, model_state = hooks.init(key)
        steps = jnp.zeros((), jnp.int32)
        return hooks.prepare(key, learned, model_state, data, steps)[0].imagined.data

    rows = jax.tree.map(np.asarray, run(jax.random.key(1)))
    rows = jax.tree.map(lambda x: x.reshape(2, NUM, *x.shape[1:]), rows)
    np.testing.assert_array_equal(rows.obs[0], rows.obs[1])  # nothing moves
    np.testing.assert_array_equal(rows.action[1], np.float32(POLICY))
    return rows


def places(obs: np.ndarray) -> list[int]:
    """Of each in the real data; -1 where it is not in there."""
    at = {tuple(x): i for i, x in enumerate(np.asarray(known().obs))}
    return [at.get(tuple(x), -1) for x in obs]


@pytest.mark.parametrize(
    ("starts", "among"),
    [("seen", range(30)), ("latest", range(30 - LATEST, 30)), ("initial", [-1])],
)
def test_futures_start_where_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch, starts: str, among: range
):
    rows = imagined(monkeypatch, starts, "policy")
    found = places(rows.obs[0])
    assert set(found) <= set(among)
    assert len(set(found)) > 0.7 * len(among)
    np.testing.assert_array_equal(rows.action[0], np.float32(POLICY))
    if starts == "initial":  # at rest, in other places each
        np.testing.assert_array_equal(rows.obs[0, :, 2:4], 0)
        assert (np.abs(rows.obs) <= point_mass.RANGE).all()
        assert len(np.unique(rows.obs[0, :, 0])) == NUM


@pytest.mark.parametrize("actions", ["taken", "uniform"])
def test_futures_begin_with_the_actions_that_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch, actions: str
):
    """And go on with the policy's."""
    rows = imagined(monkeypatch, "seen", actions)
    expected = np.full((NUM, 2), UNIFORM, np.float32)
    if actions == "taken":
        expected = np.asarray(known().action)[places(rows.obs[0])]
    np.testing.assert_array_equal(rows.action[0], expected)
