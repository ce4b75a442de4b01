"""Generalised computation graphs: what is worth what, labels by hand, its search."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.envs import point_mass
from mbrl_jax.planners import mpc
from mbrl_jax.types import Array, Transition
from mbrl_jax.value_learning import gcg, off_policy

ENV = point_mass.make()._replace(obs_size=1, action_size=1, action_limit=2.0)
H, B = 3, 4000
COLLECT = off_policy.Config(capacity=50, warmup=10, batch_size=B)
CONFIG = gcg.Config(
    discount=0.9,
    target_rate=0.25,
    planner="cem",
    plan=mpc.Config(horizon=H, num_samples=200, num_elites=20, num_iterations=6),
)


class Said:
    """In place of a network: y = params y - (action - aim)^2 sharp, b = params b."""

    def __init__(self, hidden_size: int, encoder_sizes: tuple[int, ...]) -> None:
        pass

    def init(self, key: Array, obs: Array, actions: Array) -> Any:
        zeros = jnp.zeros(len(actions))
        return {"y": zeros, "b": jnp.zeros(()), "aim": zeros, "sharp": zeros}

    def apply(self, params: Any, obs: Array, actions: Array) -> tuple[Array, Array]:
        away = jnp.square(actions[:, 0] - params["aim"])
        return params["y"] - params["sharp"] * away, params["b"] + 0 * obs[0]


@pytest.fixture
def said(monkeypatch) -> None:
    monkeypatch.setattr(gcg, "Graph", Said)


def learned(hooks: off_policy.OffPolicyHooks, **changes: Any) -> gcg.State:
    state, _ = hooks.init(jax.random.key(0))
    params = {**state.params, **{x: jnp.asarray(y) for x, y in changes.items()}}
    return state._replace(params=params, target=params)


def recorded() -> replay.Replay:
    """Episodes of five steps that end in a collision, and of four that the clock
    ends; rewards are the numbers of the steps."""
    number = np.arange(18)
    in_order = number % 9
    terminal, truncated = in_order == 4, in_order == 8
    rows = Transition(
        obs=number[:, None].astype(np.float32),
        action=np.zeros((18, 1), np.float32),
        reward=number.astype(np.float32),
        next_obs=number[:, None].astype(np.float32) + 1,
        terminal=terminal,
        truncated=truncated,
    )
    data = replay.init(1, 1, 50)
    return replay.insert(data, jax.tree.map(jnp.asarray, rows), jnp.ones(18, bool))


def labels(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the H steps from one on: collided by then, reward, known."""
    collided, reward, known = np.zeros(H), np.zeros(H), np.zeros(H, bool)
    over = None
    for h in range(H):
        step = start + h
        if over == "terminal":
            collided[h], known[h] = 1, True
        elif over is None:
            reward[h], known[h] = step, True
            collided[h] = step % 9 == 4
            over = {4: "terminal", 8: "truncated"}.get(step % 9)
    return collided, reward, known


def updated(config: gcg.Config, state: Any = None, **changes: Any) -> tuple[Any, Any]:
    hooks = gcg.make(ENV, config, COLLECT)
    before = learned(hooks, **changes)
    after, metrics = jax.jit(lambda key: hooks.update(key, before, (), recorded()))(
        jax.random.key(1)
    )
    return after, metrics


def expected(error: Any) -> float:
    """The mean over all sequences of `error(collided, reward)`, where it is known."""
    sums = np.zeros(2)
    for start in range(18 - H + 1):
        collided, reward, known = labels(start)
        sums += [error(collided, reward)[known].sum(), known.sum()]
    return sums[0] / sums[1]


def test_collisions_are_learned_by_cross_entropy_and_stay(said):
    y = np.array([-1.0, -2.0, -3.0])
    p = 1 / (1 + np.exp(-y))
    cross = lambda hit, _: -(hit * np.log(p) + (1 - hit) * np.log(1 - p))
    _, metrics = updated(CONFIG, y=y)
    assert metrics["model/loss"] == pytest.approx(expected(cross), rel=0.04)


def test_rewards_are_learned_by_the_square_and_are_over_after_an_end(said):
    y = np.array([4.0, 7.0, 12.0])
    config = dataclasses.replace(CONFIG, predict="reward")
    _, metrics = updated(config, y=y)
    square = lambda _, reward: (y - reward) ** 2
    assert metrics["model/loss"] == pytest.approx(expected(square), rel=0.05)


def test_a_value_is_learned_towards_the_best_that_follows(said):
    """J' = y_1 + 0.9 y_2 + 0.81 y_3 + 0.729 b; 0 after a terminal, and nothing is
    learned where the clock ended the sequence."""
    config = dataclasses.replace(CONFIG, predict="reward", bootstrap=True)
    rest = {"y": np.array([1.0, 2.0, 3.0]), "b": -3.0}
    _, without = updated(dataclasses.replace(config, bootstrap=False), **rest)
    _, metrics = updated(config, **rest)
    best = 1 + 0.9 * 2 + 0.81 * 3 - 0.729 * 3
    errors = []
    for start in range(18 - H + 1):
        collided, _, known = labels(start)
        if known[-1]:
            errors.append((-3 - (0 if collided[-1] else best)) ** 2)
    found = metrics["model/loss"] - without["model/loss"]
    assert found == pytest.approx(np.mean(errors), rel=0.05)


def test_what_has_collided_is_worth_that_for_ever(said):
    """-1 / (1 - 0.9) where a sequence has ended so; else -sigmoid(0) for every step."""
    config = dataclasses.replace(CONFIG, bootstrap=True)
    _, without = updated(CONFIG)
    _, metrics = updated(config)
    best = -0.5 * (1 + 0.9 + 0.81)
    errors = []
    for start in range(18 - H + 1):
        collided, _, known = labels(start)
        if known[-1]:
            errors.append((-10 if collided[-1] else best) ** 2)
    found = metrics["model/loss"] - without["model/loss"]
    assert found == pytest.approx(np.mean(errors), rel=0.05)


@pytest.mark.parametrize("predict", gcg.PREDICT)
def test_the_first_action_of_the_best_sequence_is_executed(said, predict: str):
    """In units of the limit, 2: of a reward, where it is largest; of a collision,
    where its logit is smallest."""
    sign = 1.0 if predict == "reward" else -1.0
    config = dataclasses.replace(CONFIG, predict=predict)
    hooks = gcg.make(ENV, config, COLLECT)
    state = learned(hooks, aim=[0.4, -0.3, 0.8], sharp=sign * 4 * np.ones(H))
    policy = hooks.policy(state)
    act = jax.jit(lambda key: policy.act(key, jnp.ones(1), policy.init())[0])
    assert act(jax.random.key(0))[0] == pytest.approx(0.8, abs=0.1)
    explore = hooks.explore(state)
    draw = lambda key: explore.act(key, jnp.ones(1), explore.init())[0][0]
    keys = jax.random.split(jax.random.key(1), 60)
    noisy = np.asarray(jax.jit(jax.vmap(draw))(keys))
    assert noisy.std() == pytest.approx(0.4, rel=0.3)


def test_the_target_moves_a_little(said):
    after, _ = updated(CONFIG, y=np.ones(H))
    moved = np.asarray(after.params["y"]) - 1
    assert np.abs(moved).min() > 1e-4
    np.testing.assert_allclose(
        np.asarray(after.target["y"]) - 1, 0.25 * moved, rtol=1e-3
    )


def test_the_graph_sees_no_action_before_its_time():
    """y_h depends on the actions up to h, and on all of them; b on all."""
    network = gcg.Graph(8, (8,))
    actions = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
    params = network.init(jax.random.key(0), jnp.ones(3), actions)
    apply = lambda actions: network.apply(params, jnp.ones(3), actions)
    y, b = jax.jit(jax.jacobian(apply))(actions)
    depends = np.abs(np.asarray(y)).max(axis=2) > 1e-9  # [h, action]
    np.testing.assert_array_equal(depends, np.tri(4, dtype=bool))
    assert (np.abs(np.asarray(b)).max(axis=1) > 1e-9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predict": "events"}, "predict is 'events', must be one of"),
        ({"hidden_size": 0}, "hidden_size is 0, must be at least 1"),
        ({"planner": "ilqr"}, "planner is 'ilqr', which looks into the dynamics"),
        (
            {"plan": mpc.Config(horizon=11)},
            "collect.warmup is 10, less than the 11 steps of plan.horizon",
        ),
    ],
)
def test_what_cannot_be_is_an_early_error(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        gcg.make(ENV, dataclasses.replace(CONFIG, **change), COLLECT)
