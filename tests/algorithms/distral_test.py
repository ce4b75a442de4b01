"""Distral, of linear networks of a one-hot: tables, which are known in closed form."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.algorithms import distral
from mbrl_jax.envs import grid, multi_task
from mbrl_jax.networks import MLP
from mbrl_jax.types import Array, Transition

TEXTS = ("S..\n.#G", "SG.\n...\n..S")
GRIDS = [grid.parse(text, step_reward=-0.1) for text in TEXTS]
SIZES = [layout.walls.size for layout in GRIDS]
TASKS = [
    grid.make(name, layout, episode_length=12)
    for name, layout in zip(("hall", "yard"), GRIDS, strict=True)
]
BOTH = multi_task.make(TASKS)
NETWORK = MLP((), 4, jax.nn.relu)
STILL = 1e-12  # a learning rate
CONFIG = distral.Config(
    hidden_sizes=(),
    beta=2.0,
    discount=0.8,
    capacity=64,
    newest=64,
    interval=1,
    num_updates=300,
    batch_size=64,
    learning_rate=0.02,
    centroid_rate=STILL,
    target_rate=0.2,
)
ALPHAS = (0.0, 0.5, 1.0)


def cells(params: Any) -> np.ndarray:
    """What a network says of each cell, [O, 4]."""
    size = max(SIZES)
    return np.asarray(jax.vmap(lambda x: NETWORK.apply(params, x))(jnp.eye(size)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def one(params: Any, task: int) -> Any:
    return jax.tree.map(lambda x: x[task], params)


def some_params(key: Array) -> Any:
    """Of a network that prefers one action to the other."""
    start = NETWORK.init(key, jnp.zeros(max(SIZES)))
    noise = lambda x: jax.random.normal(key, x.shape)
    return jax.tree.map(noise, start)


def everything(task: int) -> tuple[Transition, np.ndarray]:
    """All actions in all cells where one can be, and which rows [S A] these are."""
    layout = GRIDS[task]
    cell, action = np.divmod(np.arange(4 * layout.walls.size), 4)
    after = grid._neighbours(layout)[cell, action]
    seen = np.zeros((len(cell), BOTH.obs_size), np.float32)
    seen[:, max(SIZES) + task] = 1
    obs, next_obs = seen.copy(), seen.copy()
    obs[np.arange(len(cell)), cell] = next_obs[np.arange(len(cell)), after] = 1
    reward = np.float32(layout.prizes[after] - 0.1)
    end = layout.terminal[after]
    rows = Transition(obs, action, reward, next_obs, end, np.zeros(len(cell), bool))
    free = ~(layout.terminal | layout.walls.ravel())
    return rows, free[cell]


@functools.cache
def learning(columns: int) -> Any:
    """A function of the centroid, which stays: the tasks of each of `ALPHAS`, which
    learned from everything."""

    def run(centroid: Any, alpha: Array) -> Any:
        config = dataclasses.replace(CONFIG, alpha=alpha, columns=columns)
        algorithm = distral.make(BOTH, config)
        start = algorithm.init(jax.random.key(1))._replace(centroid=centroid)
        kept = [
            replay.insert(one(start.experience.replay, i), *everything(i))
            for i in range(2)
        ]
        kept = jax.tree.map(lambda x, y: jnp.stack([x, y]), *kept)
        start = start._replace(experience=start.experience._replace(replay=kept))
        step = lambda state, key: (algorithm.step(key, state)[0], None)
        state, _ = jax.lax.scan(step, start, jax.random.split(jax.random.key(2), 4))
        return state.tasks.params

    return jax.jit(
        lambda centroid: jax.lax.map(
            lambda alpha: run(centroid, alpha), jnp.array(ALPHAS)
        )
    )


def soft_values(task: int, log_prior: np.ndarray, alpha: float) -> np.ndarray:
    """Q [S, 4] by value iteration for Eq. (1), whose best policies are known:
    V = max over pi of E[r + discount V' + (alpha log pi_0 - log pi) / beta]."""
    tables = grid.tables(GRIDS[task])
    transition, reward = np.asarray(tables.transition), np.asarray(tables.reward)
    ended, prior = np.asarray(tables.terminal), np.exp(log_prior[: len(reward)])
    v = np.zeros(len(reward))
    for _ in range(200):
        q = reward + CONFIG.discount * transition @ v
        pi = prior**alpha * np.exp(CONFIG.beta * q)
        pi /= pi.sum(axis=1, keepdims=True)
        costs = (alpha * np.log(prior) - np.log(pi)) / CONFIG.beta
        v = np.where(ended, 0, (pi * (q + costs)).sum(axis=1))
    return q


@pytest.mark.parametrize("columns", [1, 2])
def test_values_are_the_best_of_the_objective(columns: int):
    """Of Q, given a centroid; in one column with what that pays."""
    centroid = some_params(jax.random.key(5))
    found, log_prior = learning(columns)(centroid), log_softmax(cells(centroid))
    for i, alpha in enumerate(ALPHAS):
        for task, layout in enumerate(GRIDS):
            free = ~(layout.terminal | layout.walls.ravel())
            expected = soft_values(task, log_prior, alpha)
            if columns == 1:
                expected += alpha / CONFIG.beta * log_prior[: len(expected)]
            own = cells(one(one(found, i), task))[: len(expected)]
            np.testing.assert_allclose(own[free], expected[free], atol=0.04)


def test_without_alpha_no_task_knows_of_the_centroid():
    """And with one they do."""
    first, second = [
        learning(2)(some_params(key)) for key in jax.random.split(jax.random.key(6))
    ]
    same = [
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    ]
    assert not any(same)
    jax.tree.map(np.testing.assert_array_equal, one(first, 0), one(second, 0))


@functools.cache
def distilled(columns: int) -> tuple[Any, Any]:
    """States before and after some steps of the centroid alone."""
    config = dataclasses.replace(
        CONFIG,
        alpha=0.5,
        columns=columns,
        capacity=800,
        newest=800,
        interval=400,
        learning_rate=STILL,
        centroid_rate=0.02,
        batch_size=256,
    )
    algorithm = distral.make(BOTH, config)

    @jax.jit
    def run() -> tuple[Any, Any]:
        start = algorithm.init(jax.random.key(1))
        params = jax.vmap(some_params)(jax.random.split(jax.random.key(3), 2))
        start = start._replace(tasks=start.tasks._replace(params=params))
        step = lambda state, key: (algorithm.step(key, state)[0], None)
        keys = jax.random.split(jax.random.key(2), 2)
        return start, jax.lax.scan(step, start, keys)[0]

    return run()


def test_the_centroid_is_the_mixture_of_what_the_tasks_do_where_they_are():
    """Weighted by their discounted visits, which are counted here."""
    start, after = distilled(1)
    data = jax.tree.map(np.asarray, after.experience.replay.data)
    counts, plain = np.zeros((2, 2, max(SIZES)))
    for task in range(2):
        time = 0
        for i in range(800):
            cell = data.obs[task, i, : max(SIZES)].argmax()
            counts[task, cell] += CONFIG.discount**time
            plain[task, cell] += 1
            ends = data.terminal[task, i] or data.truncated[task, i]
            time = 0 if ends else time + 1
    policies = [
        np.exp(log_softmax(CONFIG.beta * cells(one(start.tasks.params, task))))
        for task in range(2)
    ]
    mixed, unlike = [
        np.einsum("ts,tsa->sa", x, np.array(policies))
        / x.sum(axis=0).clip(1e-9)[:, None]
        for x in (counts, plain)
    ]
    found, often = np.exp(log_softmax(cells(after.centroid))), counts.sum(axis=0) > 10
    assert often.sum() > 3
    np.testing.assert_allclose(found[often], mixed[often], atol=0.04)
    for other in (*policies, unlike):
        assert np.abs(found - other)[often].max() > 0.1


def test_policies_are_made_of_both_columns_or_of_one():
    """The centroid does not see which task it is."""
    for columns in (1, 2):
        config = dataclasses.replace(CONFIG, alpha=0.5, columns=columns)
        algorithm = distral.make(BOTH, config)
        start, _ = distilled(1)
        state = start._replace(centroid=some_params(jax.random.key(8)))
        values = algorithm.policy(state).values
        for task in range(2):
            obs = jnp.eye(9)[0], jnp.eye(2)[task]
            own = CONFIG.beta * cells(one(state.tasks.params, task))[0]
            both = own + 0.5 * log_softmax(cells(state.centroid)[0])
            expected = both if columns == 2 else own
            found = values(jnp.concatenate(obs))
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"alpha": 1.5}, "alpha is 1.5, must be from 0 to 1"),
        ({"beta": 0.0}, "beta is 0.0, must be positive"),
        ({"columns": 3}, "columns is 3, must be from 1 to 2"),
        ({"newest": 900}, "newest is 900, more than the 64 of capacity"),
        ({"interval": 900}, "interval is 900, more than the 64 of capacity"),
    ],
)
def test_what_cannot_be(changed: dict[str, Any], error: str):
    with pytest.raises(ValueError, match=error):
        distral.make(BOTH, dataclasses.replace(CONFIG, **changed))
