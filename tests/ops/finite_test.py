import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax.ops import finite
from mbrl_jax.types import Array, PyTree

BAD = pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf, 1e30])
PARAMS = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.array([1.0, -1.0, 0.5])}
M = 3  # members, the leading axis of PARAMS


def gradients(num: int) -> list[PyTree]:
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype)
    return [jax.tree.map(draw, PARAMS) for _ in range(num)]


def run(
    optimizer: optax.GradientTransformation, grads: list[PyTree]
) -> tuple[PyTree, PyTree]:
    """Parameters and optimiser state after the updates."""

    @jax.jit
    def update(grad: PyTree, params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for grad in grads:
        params, state = update(grad, params, state)
    return params, state


def assert_close(a: PyTree, b: PyTree, rtol: float = 1e-6) -> None:
    """Equal but for the rounding of programs that XLA fuses in different ways."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), a, b)


def test_what_is_not_finite_loses():
    x = jnp.array([1.0, jnp.nan, jnp.inf, -jnp.inf, -(2.0**99)])
    lost = finite.losing(x)
    np.testing.assert_array_equal(lost, [1.0, -np.inf, -np.inf, -np.inf, -(2.0**99)])
    np.testing.assert_array_equal(jax.lax.top_k(lost, 2)[1], [0, 4])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_bad_entry_costs_its_sample_in_every_leaf(bad: float):
    w = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    b = np.random.default_rng(1).normal(size=5).astype(np.float32)
    samples = {"w": jnp.array(w).at[1, 0, 2].set(bad), "b": jnp.array(b).at[3].set(bad)}
    mean, num_left_out = finite.masked_mean(samples)
    good = [0, 2, 4]
    np.testing.assert_allclose(mean["w"], w[good].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(mean["b"], b[good].mean(), rtol=1e-6)
    assert num_left_out == 2


def test_the_mean_of_nothing_is_zero():
    mean, num_left_out = finite.masked_mean(jnp.full((4, 2), jnp.nan))
    np.testing.assert_array_equal(mean, [0.0, 0.0])
    assert num_left_out == 4


def test_all_finite_for_each_index_of_the_batch():
    tree = (jnp.zeros((3, 2)).at[1, 0].set(jnp.inf), jnp.zeros(3).at[2].set(jnp.nan))
    np.testing.assert_array_equal(finite.all_finite(tree, 1), [True, False, False])
    assert not finite.all_finite(tree)
    assert finite.all_finite(PARAMS)


@BAD
@pytest.mark.parametrize(
    "optimizer", [optax.adam(0.1), optax.sgd(0.1, momentum=0.9)], ids=["adam", "sgd"]
)
def test_a_bad_gradient_is_as_if_it_had_not_come(
    optimizer: optax.GradientTransformation, bad: float
):
    """1e30 is finite, but its square is not in single precision."""
    first, second, last = gradients(3)
    broken = {**second, "w": second["w"].at[0, 1].set(bad)}
    params, state = run(finite.skip_non_finite(optimizer), [first, *[broken] * 9, last])
    assert_close((params, state.inner), run(optimizer, [first, last]))
    assert state.num_skipped == 9  # and it never gives up


@BAD
def test_only_the_bad_member_stays(bad: float):
    first, second = gradients(2)
    broken = {**second, "b": second["b"].at[1].set(bad)}
    guarded = finite.skip_non_finite(optax.adam(0.1), M)
    before, before_state = run(guarded, [first])
    after, after_state = run(guarded, [first, broken])
    unguarded, unguarded_state = run(optax.adam(0.1), [first, second])

    def part(rows: list[int], params: PyTree, state: PyTree) -> PyTree:
        of_members = (params, state[0].mu, state[0].nu)  # all but the step count
        return jax.tree.map(lambda x: x[jnp.array(rows)], of_members)

    found = after, after_state.inner
    assert_close(part([0, 2], *found), part([0, 2], unguarded, unguarded_state))
    assert_close(part([1], *found), part([1], before, before_state.inner), rtol=0)
    np.testing.assert_array_equal(after_state.num_skipped, [0, 1, 0])
    assert after_state.inner[0].count == 2


def test_without_bad_gradients_nothing_changes():
    grads = gradients(4)
    for num_members in (None, M):
        guarded = finite.skip_non_finite(optax.adam(0.1), num_members)
        params, state = run(guarded, grads)
        assert_close((params, state.inner), run(optax.adam(0.1), grads))
        assert not state.num_skipped.any()


@pytest.mark.parametrize("num_members", [None, M])
def test_problems_side_by_side_do_not_meet(num_members: int | None):
    """Under vmap both branches run; the result is that of each problem alone."""
    optimizer = finite.skip_non_finite(optax.adam(0.1), num_members)
    (good,) = gradients(1)
    broken = {**good, "w": good["w"].at[2, 0].set(jnp.nan)}

    def one(grads: PyTree) -> tuple[PyTree, Array]:
        updates, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
        return updates, state.num_skipped

    both = jax.tree.map(lambda *x: jnp.stack(x), good, broken)
    alone = jax.jit(one)
    expected = jax.tree.map(lambda *x: jnp.stack(x), alone(good), alone(broken))
    found = jax.jit(jax.vmap(one))(both)
    assert_close(found, expected)
    assert found[1].sum() == 1
    assert finite.all_finite(found[0])


def test_zeroed_rows():
    tree = {"a": jnp.array([[1.0, jnp.nan], [2.0, 3.0]]), "b": jnp.array([4, 5])}
    found = finite.zeroed(jnp.array([True, False]), tree)
    np.testing.assert_array_equal(found["a"], [[0, 0], [2, 3]])
    np.testing.assert_array_equal(found["b"], [0, 5])


def test_what_statistics_of_it_overflow_is_not_usable():
    x = jnp.array([1.0, -1e14, 1e16, -1e30, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(finite.moderate(x), [1, 1, 0, 0, 0, 0])
    tree = {"obs": jnp.stack([x, jnp.zeros(6)], axis=1), "number": jnp.arange(6)}
    np.testing.assert_array_equal(finite.usable(tree, 1), [1, 1, 0, 0, 0, 0])
