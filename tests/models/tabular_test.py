"""The tables against dictionaries, counts and closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.models import tabular
from mbrl_jax.ops import tabular as ops_tabular

S, A, T = 6, 3, 80
END = 5  # the state that ends the task
PRIORS = (0.0, 0.3)


def steps(seed: int) -> tabular.TabularTransition:
    """Random ones [T], from the first four states only, by the first two actions."""
    rng = np.random.default_rng(seed)
    next_states = rng.integers(S, size=T)
    return tabular.TabularTransition(
        state=jnp.asarray(rng.integers(4, size=T), jnp.int32),
        action=jnp.asarray(rng.integers(2, size=T), jnp.int32),
        reward=jnp.asarray(rng.normal(size=T), jnp.float32),
        next_state=jnp.asarray(next_states, jnp.int32),
        terminal=jnp.asarray(next_states == END),
    )


def learned(model: tabular.Tabular, data: tabular.TabularTransition) -> Any:
    def update(state, x):
        time, step = x
        return model.update(state, time, step), None

    times = jnp.arange(1, len(data.state) + 1, dtype=jnp.int32)
    return jax.lax.scan(update, model.init(), (times, data))[0]


def rows(data: tabular.TabularTransition) -> list[tuple]:
    return [*zip(*(np.asarray(x).tolist() for x in data), strict=True)]


def values() -> jax.Array:
    return jnp.asarray(np.random.default_rng(9).normal(size=S), jnp.float32)


@pytest.mark.parametrize("seed", range(3))
def test_the_deterministic_model_is_a_dictionary(seed: int):
    model, data = tabular.deterministic(S, A), steps(seed)
    state, last, V = learned(model, data), {}, values()
    for time, (s, a, *outcome) in enumerate(rows(data), start=1):
        last[s, a] = (time, *outcome)
    backup = model.backup(state, V)
    for s in range(S):
        for a in range(A):
            when, reward, next_state, terminal = last.get((s, a), (0, 0.0, s, False))
            assert state.tried_at[s, a] == when
            found = model.sample(jax.random.key(0), state, jnp.array(s), jnp.array(a))
            assert tuple(x.item() for x in found) == (reward, next_state, terminal)
            expected = reward + (0 if terminal else float(V[next_state]))
            assert float(backup[s, a]) == pytest.approx(expected, abs=1e-6)
    for s in range(S):
        expected = {pair for pair, outcome in last.items() if outcome[2] == s}
        leading = np.argwhere(model.leads_to(state, jnp.array(s)))
        assert {tuple(pair) for pair in leading.tolist()} == expected


@pytest.mark.parametrize("name", ["deterministic", "dirichlet"])
def test_a_step_of_no_state_is_written_nowhere(name: str):
    model = getattr(tabular, name)(S, A)
    before = learned(model, steps(0))
    step = tabular.TabularTransition(
        *(jnp.asarray(x) for x in (S, 1, 7.0, END - 1, True))
    )
    after = model.update(before, jnp.array(99), step)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    other = model.update(before, jnp.array(99), step._replace(state=jnp.array(1)))
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, other, before)


@pytest.mark.parametrize("prior", PRIORS)
def test_next_states_are_drawn_from_the_posterior_predictive(prior: float):
    """P(s') = (n(s, a, s') + c) / (n(s, a) + S c), from 4,000 draws of each pair."""
    model, data = tabular.dirichlet(S, A, prior), steps(1)
    state, number = learned(model, data), 4000
    counts = np.zeros((S, A, S))
    for s, a, _, next_state, _ in rows(data):
        counts[s, a, next_state] += 1
    keys = jax.random.split(jax.random.key(0), number)
    draw = jax.jit(jax.vmap(model.sample, in_axes=(0, None, None, None)))
    for s in range(S):
        for a in range(A):
            found = draw(keys, state, jnp.array(s), jnp.array(a))
            shares = np.bincount(found.next_state, minlength=S) / number
            total = counts[s, a].sum()
            expected = (counts[s, a] + prior) / max(total + S * prior, 1e-9)
            if not total:  # never tried
                expected = np.eye(S)[s]
            error = 5 * np.sqrt(expected * (1 - expected) / number)
            assert (np.abs(shares - expected) <= error).all()  # none where it is 0
            ends = (found.next_state == END) & (total > 0)
            np.testing.assert_array_equal(found.terminal, ends)


@pytest.mark.parametrize("prior", PRIORS)
def test_a_draw_of_the_posterior_gives_the_same_worth_on_average(prior: float):
    """Rewards are means; transitions are drawn from Dirichlets in numpy."""
    model, data, V = tabular.dirichlet(S, A, prior), steps(2), values()
    rng, ahead = np.random.default_rng(0), np.where(np.arange(S) == END, 0, values())
    backup = model.backup(learned(model, data), V)
    for s, a in np.ndindex(S, A):
        own = [x for x in rows(data) if x[:2] == (s, a)]
        if not own:
            assert float(backup[s, a]) == pytest.approx(float(V[s]))
            continue
        counts = np.bincount([x[3] for x in own], minlength=S)
        draws = rng.dirichlet(counts + prior + 1e-9, size=4000) @ ahead
        expected = np.mean([x[2] for x in own]) + draws.mean()
        error = 5 * draws.std() / np.sqrt(len(draws)) + 1e-5
        assert abs(float(backup[s, a]) - expected) < error


def test_without_a_prior_it_is_the_most_likely_model():
    """`ops.tabular.counted`, but that what was never tried there may end the task."""
    model, data, V = tabular.dirichlet(S, A), steps(3), values()
    state = learned(model, data)
    tables = ops_tabular.counted(
        data.state,
        data.action,
        data.reward,
        data.next_state,
        data.terminal,
        num_states=S,
        num_actions=A,
    )
    expected = tables.reward + tables.transition @ jnp.where(tables.terminal, 0, V)
    tried = state.tried_at > 0
    assert tried.sum() == 8
    np.testing.assert_allclose(
        model.backup(state, V)[tried], expected[tried], rtol=1e-5, atol=1e-6
    )
    for s in range(S):
        leading = model.leads_to(state, jnp.array(s))
        np.testing.assert_array_equal(leading, (tables.transition[..., s] > 0) & tried)
