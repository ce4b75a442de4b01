"""Policy distillation, of teachers that are tables and of those that it trains."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.algorithms import policy_distillation
from mbrl_jax.envs import grid, multi_task
from mbrl_jax.types import Algorithm, Array, Policy
from mbrl_jax.value_learning import distillation, dqn, off_policy

UP, DOWN, LEFT, RIGHT = range(4)
HALL = grid.make("hall", grid.parse("SSSSS"), episode_length=6)
YARD = grid.make("yard", grid.parse("SS\nSS\nSS"), episode_length=6)
BOTH = multi_task.make([HALL, YARD])
DISTIL = distillation.Config(
    capacity=150, interval=50, num_updates=200, batch_size=16, learning_rate=5e-3
)
CONFIG = policy_distillation.Config(hidden_sizes=(32,), distil=DISTIL)


def table(values: Array) -> Policy:
    """A teacher with these values of the cells [S, 4]."""

    def told(obs: Array) -> Array:
        assert obs.shape == (len(values),)  # as of its own task
        return obs @ values

    return Policy(lambda: (), None, told)  # type: ignore[arg-type]  # it never acts


VALUES = [
    5 + jax.random.uniform(jax.random.key(size), (size, 4)) for size in (5, 6)
]  # that differ by less than 1, as of tasks with rare rewards
TEACHERS = [table(values) for values in VALUES]


def steps(algorithm: Algorithm, number: int) -> tuple[Any, Any]:
    """The states [number + 1, ...] and metrics."""

    @jax.jit
    def run(key: Array) -> tuple[Any, Any]:
        init_key, key = jax.random.split(key)

        def one(state: Any, key: Array) -> tuple[Any, Any]:
            state, metrics = algorithm.step(key, state)
            return state, (state, metrics)

        first = algorithm.init(init_key)
        _, (states, metrics) = jax.lax.scan(one, first, jax.random.split(key, number))
        return jax.tree.map(
            lambda x, y: jnp.concatenate([x[None], y]), first, states
        ), (metrics)

    return run(jax.random.key(0))


def shown(task: int) -> Array:
    """All observations of a task, [S, O]."""
    cells = jnp.pad(jnp.eye(len(VALUES[task])), ((0, 0), (0, 6 - len(VALUES[task]))))
    return (
        jnp.pad(jnp.insert(cells, 6, 0.0, axis=1), ((0, 0), (0, 1)))
        .at[:, 6 + task]
        .set(1)
    )


@functools.cache
def learned(loss: str) -> list[np.ndarray]:
    """The student's values of all cells, [S, 4] of each task."""
    config = dataclasses.replace(CONFIG, loss=loss)
    algorithm = policy_distillation.make(BOTH, config, TEACHERS)
    states, _ = steps(algorithm, 3)
    values = algorithm.policy(jax.tree.map(lambda x: x[-1], states)).values
    return [np.asarray(jax.vmap(values)(shown(task))) for task in range(2)]


@pytest.mark.parametrize("loss", ["kl", "mse", "nll"])
def test_the_student_does_in_each_task_what_its_teacher_does(loss: str):
    for found, values in zip(learned(loss), VALUES, strict=True):
        np.testing.assert_array_equal(found.argmax(axis=1), values.argmax(axis=1))


def test_its_values_are_the_teachers_or_logits_of_the_best():
    for found, values in zip(learned("mse"), VALUES, strict=True):
        np.testing.assert_allclose(found, values, atol=0.1)
    for found, values in zip(learned("kl"), VALUES, strict=True):
        expected = jax.nn.softmax(values / 0.01)
        np.testing.assert_allclose(jax.nn.softmax(found), expected, atol=0.1)


@pytest.mark.parametrize("actor", ["student", "teacher"])
def test_who_is_asked_for_acts(actor: str):
    """The teacher of the hall always goes right, and that of the yard up; a student
    that has learned nothing yet goes elsewhere."""
    ways = RIGHT, UP
    teachers = [
        table(jnp.zeros((size, 4)).at[:, way].set(1.0))
        for size, way in zip((5, 6), ways, strict=True)
    ]
    own = dataclasses.replace(DISTIL, actor=actor, exploration=0.0, interval=5)
    config = dataclasses.replace(CONFIG, distil=own)
    states, metrics = steps(policy_distillation.make(BOTH, config, teachers), 1)
    actions = states.replay.data.action[1, :, :5]
    expected = np.broadcast_to(np.array(ways)[:, None], (2, 5))
    assert (actor == "teacher") == (actions == expected).all()
    assert metrics["env_steps"] == 10


@pytest.mark.slow
def test_teachers_of_its_own_learn_first_and_then_stay():
    own = dataclasses.replace(
        DISTIL,
        interval=20,
        num_teacher_steps=2,
        num_updates=2,
        collect=off_policy.Config(capacity=20, warmup=5, interval=10, batch_size=4),
        teacher=dqn.Config(hidden_sizes=(8,)),
    )
    config = dataclasses.replace(CONFIG, distil=own)
    states, metrics = steps(policy_distillation.make(BOTH, config), 4)
    assert metrics["env_steps"].tolist() == [20, 40, 80, 120]

    def moves(tree: Any) -> list[bool]:
        parts = [np.abs(np.diff(x, axis=0)) for x in jax.tree.leaves(tree)]
        return np.any([x.reshape(4, -1).any(axis=1) for x in parts], axis=0).tolist()

    assert moves(states.params) == [False, False, True, True]
    assert moves(states.teachers.learner.params) == [False, True, False, False]
    assert (states.replay.size[:, 0] == states.replay.size[:, 1]).all()


@pytest.mark.parametrize(
    ("env", "config", "teachers", "error"),
    [
        (BOTH, CONFIG, TEACHERS[:1], "hall.yard has 2 tasks, but there are 1 teachers"),
        (HALL, CONFIG, [Policy(lambda: (), None)], "teacher of hall does not tell"),
        (
            BOTH,
            dataclasses.replace(CONFIG, teachers=("a", "b")),
            (),
            "teachers names 2, but 0 policies are given",
        ),
        (BOTH, dataclasses.replace(CONFIG, loss="l1"), (), "loss is 'l1', must be one"),
        (
            BOTH,
            dataclasses.replace(CONFIG, temperature=0.0),
            (),
            "temperature is 0.0, must be positive",
        ),
        (
            BOTH,
            dataclasses.replace(
                CONFIG, distil=dataclasses.replace(DISTIL, capacity=10)
            ),
            (),
            "interval is 50, more than the 10 of capacity",
        ),
        (
            BOTH,
            dataclasses.replace(CONFIG, distil=dataclasses.replace(DISTIL, actor="no")),
            (),
            "actor is 'no', must be one of: student, teacher",
        ),
    ],
)
def test_what_cannot_be(env: Any, config: Any, teachers: Any, error: str):
    with pytest.raises(ValueError, match=error):
        policy_distillation.make(env, config, teachers)
