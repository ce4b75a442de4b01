"""Local controllers against samples and the joint Gaussian of whole trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.local_policies import controllers
from mbrl_jax.local_policies.controllers import Controller, System
from mbrl_jax.planners import lqr

pytestmark = pytest.mark.usefixtures("double")


def joint(system: System, controller: Controller) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (x_0, u_0, x_1, u_1, ..., x_T), by propagating both as
    affine functions of independent noise."""
    system, controller = jax.tree.map(np.asarray, (system, controller))
    problem, (K, k, cov) = system.problem, controller
    T, A, O = K.shape
    sizes = O + T * (A + O)
    root = np.linalg.cholesky
    x_mean, x_gain = system.start.mean, np.zeros((O, sizes))
    x_gain[:, :O] = root(system.start.cov)
    means, gains, at = [x_mean], [x_gain], O
    for t in range(T):
        u_mean, u_gain = K[t] @ x_mean + k[t], K[t] @ x_gain
        u_gain[:, at : at + A] = root(cov[t])
        x_mean = problem.A[t] @ x_mean + problem.B[t] @ u_mean + problem.c[t]
        x_gain = problem.A[t] @ x_gain + problem.B[t] @ u_gain
        x_gain[:, at + A : at + A + O] = root(system.noise[t])
        means, gains, at = (
            [*means, u_mean, x_mean],
            [*gains, u_gain, x_gain],
            at + A + O,
        )
    gain = np.concatenate(gains)
    return np.concatenate(means), gain @ gain.T


def test_marginals_are_those_of_the_joint_gaussian(random_system):
    system, controller = random_system(0, 4)
    mean, cov = joint(system, controller)
    at = controllers.marginals(system, controller)
    for t in range(4):
        here = slice(5 * t, 5 * t + 5)
        np.testing.assert_allclose(at.mean[t], mean[here], rtol=1e-10)
        np.testing.assert_allclose(at.cov[t], cov[here, here], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(at.last.mean, mean[20:], rtol=1e-10)
    np.testing.assert_allclose(at.last.cov, cov[20:, 20:], rtol=1e-9, atol=1e-12)


def test_kl_is_that_of_the_joint_gaussians(random_system):
    system, new = random_system(0, 3)
    _, old = random_system(1, 3)
    (m, S), (mean, cov) = joint(system, new), joint(system, old)
    inverse, gap = np.linalg.inv(cov), mean - m
    log_dets = np.linalg.slogdet(cov)[1] - np.linalg.slogdet(S)[1]
    expected = (np.trace(inverse @ S) + gap @ inverse @ gap - len(m) + log_dets) / 2
    found = controllers.kl(new, old, controllers.marginals(system, new))
    assert found.shape == (3,)
    assert (found > 0).all()
    np.testing.assert_allclose(found.sum(), expected, rtol=1e-8)
    same = controllers.kl(old, old, controllers.marginals(system, old))
    np.testing.assert_allclose(same, 0, atol=1e-12)


def test_the_expected_cost_is_that_of_the_joint_gaussian(random_system):
    system, controller = random_system(2, 3)
    problem, (mean, cov) = system.problem, joint(system, controller)
    size, expected = len(mean), float(problem.constant.sum())
    hessian, gradient = np.zeros((size, size)), np.zeros(size)
    for t in range(4):
        x, u = slice(5 * t, 5 * t + 3), slice(5 * t + 3, 5 * t + 5)
        hessian[x, x], gradient[x] = problem.Q[t], problem.q[t]
        if t < 3:
            hessian[u, u], gradient[u] = problem.R[t], problem.r[t]
            hessian[u, x], hessian[x, u] = problem.S[t], problem.S[t].T
    expected += (hessian * (cov + np.outer(mean, mean))).sum() / 2 + gradient @ mean
    found = controllers.expected_cost(
        problem, controllers.marginals(system, controller)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_maximum_entropy_is_the_optimum_of_cost_less_entropy(random_system):
    """No derivative is left, by gains or by covariance."""
    system, _ = random_system(3, 4)
    found, status = controllers.maximum_entropy(system.problem, 0.7)
    assert status == 0

    def objective(controller: Controller) -> jax.Array:
        at = controllers.marginals(system, controller)
        entropy = jnp.linalg.slogdet(controller.cov)[1].sum() / 2
        return controllers.expected_cost(system.problem, at) - 0.7 * entropy

    for slope in jax.jit(jax.grad(objective))(found):
        np.testing.assert_allclose(slope, 0, atol=1e-9)
    np.testing.assert_allclose(found.K, lqr.solve(system.problem).K, rtol=1e-12)


def test_a_linear_policy_is_its_own_linearisation():
    rng = np.random.default_rng(0)
    W, b, obs = rng.normal(size=(2, 3)), rng.normal(size=2), rng.normal(size=(5, 4, 3))
    valid, cov = jnp.arange(20).reshape(5, 4) % 3 > 0, jnp.eye(2)
    found = controllers.linearised(lambda x: W @ x + b, cov, jnp.asarray(obs), valid)
    np.testing.assert_allclose(found.K, np.stack([W] * 4), rtol=1e-12)
    np.testing.assert_allclose(found.k, np.stack([b] * 4), rtol=1e-12)
    np.testing.assert_array_equal(found.cov, np.stack([cov] * 4))


def test_a_policy_is_linearised_as_regression_does_it():
    """Of many normal samples, but of those alone that are valid."""
    rng = np.random.default_rng(1)
    obs = 0.7 * rng.normal(size=(20_000, 1, 2)) + np.array([0.3, -0.2])
    valid = np.arange(20_000) % 2 == 0
    obs[~valid] += 1
    act = lambda x: jnp.stack([jnp.sin(2 * x[0]) + x[1] ** 2])
    args = jnp.asarray(obs), jnp.asarray(valid)[:, None]
    found = controllers.linearised(act, jnp.eye(1), *args)
    rows, actions = obs[valid, 0], np.asarray(jax.vmap(act)(jnp.asarray(obs[valid, 0])))
    inputs = np.column_stack([rows, np.ones(len(rows))])
    best = np.linalg.lstsq(inputs, actions, rcond=None)[0]
    np.testing.assert_allclose(found.K[0, 0], best[:2, 0], atol=0.03)
    np.testing.assert_allclose(found.k[0], best[2], atol=0.03)
    mean = found.K[0] @ rows.mean(axis=0) + found.k[0]
    np.testing.assert_allclose(mean, actions.mean(axis=0))


def test_forms_keep_what_they_should(random_system):
    system, controller = random_system(4, 4)
    cov = 0.3 * jnp.eye(2)
    blind = controllers.open_loop(system, controller, cov)
    steered = controllers.feedback(controller, cov)
    mean = controllers.marginals(system, controller).mean
    np.testing.assert_allclose(controllers.marginals(system, blind).mean, mean)
    np.testing.assert_allclose(controllers.marginals(system, steered).mean, mean)
    assert not blind.K.any()
    np.testing.assert_array_equal(steered.K, controller.K)
    for x in (blind, steered):
        np.testing.assert_array_equal(x.cov, np.stack([cov] * 4))


def test_the_policy_draws_from_the_controller_of_each_time(random_system):
    _, controller = random_system(5, 3)
    policy = controllers.policy(controller)
    obs = jnp.array([1.0, -2.0, 0.5])
    for time, used in enumerate((0, 1, 2, 2)):
        keys = jax.random.split(jax.random.key(time), 20_000)
        memory = jnp.array(time, jnp.int32)
        act = jax.vmap(policy.act, in_axes=(0, None, None))
        actions, after = act(keys, obs, memory)
        assert (after == time + 1).all()
        mean = controller.K[used] @ obs + controller.k[used]
        np.testing.assert_allclose(actions.mean(axis=0), mean, atol=0.04)
        np.testing.assert_allclose(np.cov(actions.T), controller.cov[used], atol=0.08)
        still = controllers.policy(controller, noisy=False)
        np.testing.assert_allclose(still.act(keys[0], obs, memory)[0], mean)
    assert policy.init() == 0


def test_a_covariance_of_zero_is_no_noise(random_system):
    _, controller = random_system(5, 3)
    policy = controllers.policy(controller._replace(cov=0 * controller.cov))
    action, _ = policy.act(jax.random.key(0), jnp.ones(3), policy.init())
    np.testing.assert_allclose(action, controller.K[0].sum(axis=1) + controller.k[0])
