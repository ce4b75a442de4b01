"""The constrained step: its optimality, its bound, and that its search ends."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.local_policies import controllers, kl_lqr
from mbrl_jax.local_policies.controllers import Controller, System
from mbrl_jax.ops.definite import Status
from mbrl_jax.planners import lqr
from mbrl_jax.planners.lqg import Belief

pytestmark = pytest.mark.usefixtures("double")

improve = jax.jit(kl_lqr.improve)
every = jax.jit(jax.vmap(kl_lqr.improve))
HORIZON = 5


def stacked(systems: list) -> tuple[System, Controller]:
    return jax.tree.map(lambda *x: np.stack(x), *systems)


@pytest.fixture(scope="module")
def yardstick() -> System:
    """An unstable double integrator that is to come to (10, 10) within 100 steps."""
    with jax.enable_x64(True):
        goal, A = jnp.array([10.0, 10.0]), jnp.array([[1.1, 0.0], [1.0, 1.0]])
        B, eye = jnp.array([[1.0], [0.0]]), jnp.eye(2)
        # costs have no factor of a half here
        problem = lqr.time_invariant(A, B, 2 * eye, jnp.array([[0.2]]), horizon=100)
        problem = problem._replace(c=jnp.tile((-A @ goal)[None], (100, 1)))
        problem = lqr.tracking(
            problem, jnp.tile(goal[None], (101, 1)), jnp.zeros((100, 1))
        )
        noise = jnp.tile(1e-8 * eye[None], (100, 1, 1))
        return System(problem, noise, Belief(jnp.array([5.0, 5.0]), 0.01 * eye))


def test_the_optimum_of_a_known_system(yardstick: System):
    """Gains and expected cost are those of an independent solver."""
    best, status = controllers.maximum_entropy(yardstick.problem, 0.0)
    assert status == Status.SOLVED
    np.testing.assert_allclose(
        best.K[0], [[-1.639230103973942, -0.5756856390212218]], rtol=1e-8
    )
    np.testing.assert_allclose(best.k[0], [47.54145846969105], rtol=1e-8)
    at = controllers.marginals(yardstick, best)
    cost = controllers.expected_cost(yardstick.problem, at)
    np.testing.assert_allclose(cost, 11845.046770295812, rtol=1e-8)


def test_far_from_its_bound_the_step_is_that_of_riccati(yardstick: System):
    old = Controller(jnp.zeros((100, 1, 2)), jnp.zeros((100, 1)), jnp.ones((100, 1, 1)))
    found = improve(yardstick, old, 1e12)
    exact = lqr.solve(yardstick.problem)
    assert found.status == Status.SOLVED
    np.testing.assert_allclose(found.controller.K, exact.K, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.controller.k, exact.k, rtol=1e-6, atol=1e-6)
    assert found.kl < 1e12


def test_the_bound_is_kept_and_no_better_step_is_within_it(random_system):
    """Where it is active, |KL - max_kl| <= 0.1 max_kl and the derivatives of the
    Lagrangian vanish; a larger bound has a smaller eta and a lower cost."""
    system, old = random_system(0, HORIZON)
    bounds = np.array([1e-3, 1e-2, 0.1, 1.0, 5.0])
    many = jax.tree.map(lambda x: np.stack([x] * len(bounds)), (system, old))
    found = every(*many, bounds)
    assert (found.status == Status.SOLVED).all()
    np.testing.assert_allclose(found.kl, bounds, rtol=0.1)
    assert (np.diff(found.eta) < 0).all()
    assert (np.diff(found.cost) < 0).all()
    assert (found.cost < found.old_cost).all()

    @jax.jit
    def terms(new: Controller) -> tuple[jax.Array, jax.Array]:
        at = controllers.marginals(system, new)
        kl = controllers.kl(new, old, at).sum()
        return controllers.expected_cost(system.problem, at), kl

    new = jax.tree.map(lambda x: x[2], found)
    for found_term, term in zip((new.cost, new.kl), terms(new.controller), strict=True):
        np.testing.assert_allclose(found_term, term, rtol=1e-8)
    slope = jax.jit(jax.grad(lambda new, eta: terms(new)[0] + eta * terms(new)[1]))
    for x, y in zip(
        slope(new.controller, new.eta), slope(new.controller, 0 * new.eta), strict=True
    ):
        np.testing.assert_allclose(x, 0, atol=1e-7)
        assert np.abs(y).max() > 0.1  # so neither term vanishes by itself
    np.testing.assert_allclose(found.old_cost[0], terms(old)[0], rtol=1e-10)


def test_the_search_ends_on_a_thousand_problems(random_system):
    """Half of them with costs that no controller minimises: eta stays above that."""
    curvatures = np.where(np.arange(1000) % 2, 0.1, -3.0)
    systems = stacked(
        [random_system(i, HORIZON, least) for i, least in enumerate(curvatures)]
    )
    rng = np.random.default_rng(0)
    bounds = 10.0 ** rng.uniform(-3, 4, 1000)
    found = every(*systems, bounds)
    assert (found.status == Status.SOLVED).all()
    assert found.num_iterations.max() <= 50
    assert (found.kl <= 1.1 * bounds).all()
    active = np.abs(found.kl - bounds) <= 0.1 * bounds
    scale = jax.jit(jax.vmap(variation))(*systems)
    assert (active | (found.eta <= 1.001e-8 * scale)).all()
    assert 500 < active.sum() < 990
    assert active[curvatures < 0].all()
    assert found.num_indefinite[curvatures < 0].mean() > 1
    assert not found.num_indefinite[curvatures > 0].any()
    assert (found.cost < found.old_cost).all()


def variation(system: System, old: Controller) -> jax.Array:
    return kl_lqr._variation(system.problem, controllers.marginals(system, old))


def test_the_unit_of_the_cost_makes_no_difference(random_system):
    system, old = random_system(1, HORIZON)
    many, scale = [], np.array([1.0, 3e-12, 7e-3, 2e3, 5e9])
    for size in scale:
        costs = {
            x: size * getattr(system.problem, x) for x in ("Q", "S", "R", "q", "r")
        }
        many.append((system._replace(problem=system.problem._replace(**costs)), old))
    found = every(*stacked(many), np.full(5, 0.1))
    for x in found.controller:
        np.testing.assert_allclose(x, np.stack([x[0]] * 5), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.eta / scale, found.eta[0], rtol=1e-9)


@pytest.mark.parametrize("form", ["open_loop", "feedback"])
def test_the_bound_is_on_what_is_executed(form: str, random_system):
    """Also for costs that no controller minimises, however small eta is."""
    cov = 0.3 * jnp.eye(2)
    forms = {
        "open_loop": partial(controllers.open_loop, cov=cov),
        "feedback": lambda system, controller: controllers.feedback(controller, cov),
    }
    step = jax.jit(partial(kl_lqr.improve, form=forms[form]))
    for least, bound in ((0.1, 0.2), (-3.0, 1e4)):
        system, old = random_system(2, HORIZON, least)
        found = step(system, forms[form](system, old), bound)
        assert found.status == Status.SOLVED
        assert (found.num_indefinite > 0) == (least < 0)
        np.testing.assert_allclose(found.kl, bound, rtol=0.1)
        np.testing.assert_array_equal(found.controller.cov, np.stack([cov] * HORIZON))
        assert bool(found.controller.K.any()) == (form == "feedback")
        assert found.cost < found.old_cost


def test_what_cannot_be_solved_keeps_the_old_controller(random_system):
    system, old = random_system(3, HORIZON)
    nan = system.problem.q.at[2, 0].set(jnp.nan)
    indefinite = old.cov.at[1].set(-jnp.eye(2))
    broken = [
        (system._replace(problem=system.problem._replace(q=nan)), old),
        (system, old._replace(cov=indefinite)),
        *[(system, old)] * 3,
    ]
    found = every(*stacked(broken), np.full(5, 0.1))
    np.testing.assert_array_equal(
        found.status, [Status.NOT_FINITE, Status.INDEFINITE, *[Status.SOLVED] * 3]
    )
    for i in (0, 1):
        for x, y in zip(found.controller, broken[i][1], strict=True):
            np.testing.assert_array_equal(x[i], y)
    few = jax.jit(partial(kl_lqr.improve, num_iterations=2))(system, old, 1e-6)
    assert few.status in (Status.NOT_CONVERGED, Status.INDEFINITE)
    assert few.num_iterations == 2


def test_a_temperature_keeps_the_entropy(random_system):
    """Far from the bound: the optimum of cost less entropy.  Near it no derivative of
    the Lagrangian is left."""
    system, old = random_system(4, HORIZON)
    step = jax.jit(partial(kl_lqr.improve, temperature=0.5))
    far, near = step(system, old, 1e6), step(system, old, 0.1)
    best, _ = controllers.maximum_entropy(system.problem, 0.5)
    for x, y in zip(far.controller, best, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(near.kl, 0.1, rtol=0.1)

    @jax.jit
    @jax.grad
    def slope(new: Controller) -> jax.Array:
        at = controllers.marginals(system, new)
        entropy = jnp.linalg.slogdet(new.cov)[1].sum() / 2
        cost = controllers.expected_cost(system.problem, at) - 0.5 * entropy
        return cost + near.eta * controllers.kl(new, old, at).sum()

    for x in slope(near.controller):
        np.testing.assert_allclose(x, 0, atol=1e-7)


def test_a_temperature_may_change_with_time(random_system):
    """Each step's entropy is worth its own, also where old ones are far away."""
    system, old = random_system(5, HORIZON)
    worth = jnp.array([0.1, 2.0, 0.5, 1.0, 0.3])
    step = jax.jit(kl_lqr.improve)
    far, near = (step(system, old, x, temperature=worth) for x in (1e6, 0.1))

    @jax.jit
    @jax.grad
    def slope(new: Controller, eta: jax.Array) -> jax.Array:
        at = controllers.marginals(system, new)
        entropy = worth @ jnp.linalg.slogdet(new.cov)[1] / 2
        cost = controllers.expected_cost(system.problem, at) - entropy
        return cost + eta * controllers.kl(new, old, at).sum()

    for found in (far, near):
        for x in slope(found.controller, found.eta):
            np.testing.assert_allclose(x, 0, atol=1e-6)
    np.testing.assert_allclose(near.kl, 0.1, rtol=0.1)
    even = step(system, old, 0.1, temperature=jnp.full(HORIZON, 0.5))
    for x, y in zip(even, step(system, old, 0.1, temperature=0.5), strict=True):
        jax.tree.map(np.testing.assert_allclose, x, y)


def test_a_pull_is_the_cross_entropy(random_system):
    """With its weight for a temperature: weight KL(new || other), by time step."""
    system, new = random_system(6, HORIZON)
    _, other = random_system(7, HORIZON)
    weight = jnp.array([0.1, 2.0, 0.5, 1.0, 0.3])
    problem = kl_lqr.toward(system.problem, other, weight)

    def pulled(new: Controller) -> jax.Array:
        at = controllers.marginals(system, new)
        entropy = weight @ jnp.linalg.slogdet(new.cov)[1] / 2
        without = controllers.expected_cost(system.problem, at)
        found = controllers.expected_cost(problem, at) - without - entropy
        return found - weight @ controllers.kl(new, other, at)

    # up to a constant, which is that of the other one itself
    np.testing.assert_allclose(pulled(new), pulled(other), rtol=1e-9)


def test_weights_follow_what_deviates():
    kl = jnp.array([1.0] * 9 + [1.2, -5.0])
    found = kl_lqr.scheduled(jnp.full(11, 0.5), kl)
    np.testing.assert_allclose(found, [1.0] * 10 + [0.25])
    even = kl_lqr.scheduled(jnp.full(3, 0.5), jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(even, [0.5, 0.5, 1.0])


def test_steps_are_as_large_as_predictions_are_right():
    """The maximum of predicted s - (predicted - actual) s^2, within a factor."""
    size = lambda *args: float(kl_lqr.adapted(*args))
    assert size(1.0, 4.0, 2.0) == pytest.approx(1.0)
    assert size(0.5, 4.0, 3.0) == pytest.approx(1.0)
    assert size(1.0, 4.0, -4.0) == pytest.approx(0.25)
    assert size(1.0, 4e-9, 2e-9) == pytest.approx(1.0)  # in any unit
    assert size(1.0, 4.0, 4.0) == 5.0
    assert size(1.0, 4.0, 9.0) == 5.0
    assert size(1.0, 4.0, -1e9) == pytest.approx(0.1)
    assert size(3.0, 4.0, 5.0) == 10.0
    assert size(0.02, 4.0, -1e9) == pytest.approx(0.01)
    assert size(0.7, 0.0, 1.0) == size(0.7, -1.0, 1.0) == size(0.7, 1.0, np.nan) == 0.7
