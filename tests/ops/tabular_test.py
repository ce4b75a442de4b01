import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import tabular


def random_tables(seed: int, S: int = 6, A: int = 3) -> tabular.Tables:
    rng = np.random.default_rng(seed)
    return tabular.Tables(
        jnp.asarray(rng.dirichlet(np.ones(S), size=(S, A))),
        jnp.asarray(rng.normal(size=(S, A))),
        jnp.arange(S) == 0,
    )


@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_the_best_policy(seed: int):
    """By policy iteration: a linear system for each policy, until none is better."""
    with jax.enable_x64(True):
        tables, discount = random_tables(seed), 0.9
        found = tabular.value_iteration(tables, discount, tolerance=1e-12)
        found = jax.tree.map(np.asarray, found)
    P, r, end = (np.asarray(x) for x in tables)
    rows, policy = np.arange(len(end)), np.zeros(len(end), int)
    for _ in range(20):
        going = np.where(end[:, None], 0, P[rows, policy])
        system = np.eye(len(end)) - discount * going
        values = np.linalg.solve(system, np.where(end, 0, r[rows, policy]))
        q_values = np.where(end[:, None], 0, r + discount * P @ values)
        policy = q_values.argmax(axis=1)
    np.testing.assert_allclose(found.values, values, atol=1e-10)
    np.testing.assert_allclose(found.q_values, q_values, atol=1e-10)
    assert found.residual <= 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_the_values_of_a_policy(seed: int):
    """The best policy attains the best values, and another that of its iteration."""
    tables, discount = random_tables(seed), 0.9
    best = tabular.value_iteration(tables, discount)
    greedy = jax.nn.one_hot(best.q_values.argmax(axis=1), 3)
    values = tabular.policy_values(tables, greedy, discount)
    np.testing.assert_allclose(values, best.values, atol=1e-4)
    policy = np.random.default_rng(seed).dirichlet(np.ones(3), size=6)
    P, r, end = (np.asarray(x) for x in tables)
    values = np.zeros(6)
    for _ in range(300):
        values = np.where(end, 0, (policy * (r + discount * P @ values)).sum(axis=1))
    found = tabular.policy_values(tables, jnp.asarray(policy, jnp.float32), discount)
    np.testing.assert_allclose(found, values, atol=1e-4)


def test_without_an_end_or_a_discount_it_says_that_it_does_not_converge():
    forever = tabular.Tables(jnp.ones((1, 1, 1)), jnp.ones((1, 1)), jnp.zeros(1, bool))
    found = tabular.value_iteration(forever, 1.0, max_iterations=50)
    assert found.residual == 1
    assert found.values == 50


def test_counted_by_hand():
    """Action 0 of state 0 was tried three times, action 1 of state 1 once."""
    tables = tabular.counted(
        states=jnp.array([0, 0, 0, 1]),
        actions=jnp.array([0, 0, 0, 1]),
        rewards=jnp.array([1.0, 2.0, 6.0, -1.0]),
        next_states=jnp.array([1, 1, 0, 2]),
        terminal=jnp.array([False, False, False, True]),
        num_states=3,
        num_actions=2,
    )
    expected = np.tile(np.eye(3)[:, None], (1, 2, 1))  # where nothing was tried
    expected[0, 0] = [1 / 3, 2 / 3, 0]
    expected[1, 1] = [0, 0, 1]
    np.testing.assert_allclose(tables.transition, expected, rtol=1e-6)
    np.testing.assert_allclose(tables.reward, [[3, 0], [0, -1], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(tables.terminal, [False, False, True])


def test_what_is_counted_approaches_what_is():
    tables = random_tables(0)
    key, state_key, action_key = jax.random.split(jax.random.key(0), 3)
    states = jax.random.randint(state_key, (5_000,), 0, 6)
    actions = jax.random.randint(action_key, (5_000,), 0, 3)
    rows = tables.transition[states, actions]
    after = jax.random.categorical(key, jnp.log(rows))
    found = tabular.counted(
        states,
        actions,
        tables.reward[states, actions],
        after,
        tables.terminal[after],
        num_states=6,
        num_actions=3,
    )
    # 280 trials of each pair: four standard deviations of a share are 0.12
    np.testing.assert_allclose(found.transition, tables.transition, atol=0.12)
    np.testing.assert_allclose(found.reward, tables.reward, atol=1e-4)
    np.testing.assert_array_equal(found.terminal, tables.terminal)
