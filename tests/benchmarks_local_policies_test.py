"""What the benchmarks of local policies draw, and what both sides of a race compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import kl_lqr_speed, local_policies, peer_gps
from mbrl_jax.local_policies import controllers
from mbrl_jax.ops import definite


def test_an_ellipse_holds_95_percent():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4000, 2)) @ np.array([[2.0, 1.0], [0.0, 0.3]]) + [3, -1]
    drawn = local_policies.ellipse(points)
    inside = drawn.get_patch_transform().inverted().transform(points)
    share = (np.square(inside).sum(axis=1) <= 1).mean()
    assert share == pytest.approx(0.95, abs=0.01)


def test_costs_are_relative_to_those_of_ilqr():
    found = {"ilqr": -50.0, "it": {"return": [[-100.0, -50.0], [-55.0, -50.0]]}}
    np.testing.assert_allclose(
        local_policies.relative(found, "it"), [[2.0, 1.0], [1.1, 1.0]]
    )


@pytest.mark.usefixtures("double")
def test_ours_is_given_the_problem_of_the_peer(monkeypatch):
    monkeypatch.setattr(peer_gps, "NUM_STEPS", 3)
    given = peer_gps.problem(1)
    system, old = kl_lqr_speed.of_condition(1)
    x, x_cov, cost = given["start"], given["start_cov"], 0.0
    for K, k in zip(given["K"], given["k"], strict=True):
        z = np.concatenate([x, K @ x + k])
        cov = np.block([[x_cov, x_cov @ K.T], [K @ x_cov, K @ x_cov @ K.T]])
        cov[10:, 10:] += given["cov"]
        cost += (given["C"] * (cov + np.outer(z, z))).sum() / 2 + given["c"] @ z
        F = np.concatenate([given["A"], given["B"]], axis=1)
        x, x_cov = F @ z, F @ cov @ F.T + given["noise"]
    at = controllers.marginals(system, old)
    found = controllers.expected_cost(system.problem, at)
    assert float(found) == pytest.approx(cost, rel=1e-9)


@pytest.mark.usefixtures("double")
def test_what_does_not_agree_with_the_peer_is_seen():
    rng = np.random.default_rng(0)
    shapes = {"K": (1, 3, 2, 4), "k": (1, 3, 2), "cov": (1, 3, 2, 2)}
    mine = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    kl, status = jnp.array([70.0]), jnp.array([definite.Status.SOLVED])
    controller = controllers.Controller(**jax.tree.map(jnp.array, mine))
    theirs = {name: x[0] for name, x in mine.items()} | {"kl": 70.0}
    kl_lqr_speed.agree("pass", (controller, kl, status), [theirs])
    for name in ("K", "k", "cov", "kl"):
        wrong = {**theirs, name: np.asarray(theirs[name]) * (1 + 1e-5)}
        with pytest.raises(AssertionError, match="tolerance"):
            kl_lqr_speed.agree("pass", (controller, kl, status), [wrong])
    with pytest.raises(AssertionError, match="tolerance"):  # not at the bound
        kl_lqr_speed.agree("step", (controller, kl, status), [theirs])
    bound = jnp.array([kl_lqr_speed.BOUND])
    found = controller, bound, status
    kl_lqr_speed.agree("step", found, [{**theirs, "kl": 1.05 * kl_lqr_speed.BOUND}])
    unsolved = jnp.array([definite.Status.NOT_CONVERGED])
    with pytest.raises(AssertionError):
        kl_lqr_speed.agree("pass", (controller, kl, unsolved), [theirs])
