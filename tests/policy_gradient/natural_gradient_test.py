import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mbrl_jax import envs
from mbrl_jax.policy_gradient import actor_critic, natural_gradient
from mbrl_jax.types import Array, Metrics

pytestmark = pytest.mark.usefixtures("double")

CONFIG = natural_gradient.Config(
    discount=1.0,
    gae_lambda=1.0,
    critic=natural_gradient.CriticConfig(num_epochs=1, num_minibatches=1),
)


@partial(jax.jit, static_argnums=(0, 1))
def run(net, whole: tuple, floats: dict, agent, windows) -> tuple:
    """Compiled once for all floats."""
    config = dataclasses.replace(CONFIG, **dict(whole), **floats)
    learner = natural_gradient.make(net, config)
    start = learner.init(jax.random.key(0))._replace(agent=agent)
    return learner.update(jax.random.key(0), start, windows)


def stepped(
    process, *, solver: str, num_iterations: int = 100, **floats: float
) -> tuple[np.ndarray, Metrics]:
    """The change of the policy's parameters, [P]."""
    whole = ("solver", solver), ("num_iterations", num_iterations)
    state, metrics = run(process.net, whole, floats, process.agent, process.windows)
    change = jax.tree.map(jnp.subtract, state.agent.actor, process.agent.actor)
    return np.asarray(ravel_pytree(change)[0]), metrics


def fisher_of(process) -> np.ndarray:
    """The mean over all steps of the covariance of the score, by its definition."""
    data, valid = process.windows.transitions, process.windows.valid
    nodes = np.asarray(data.obs)[np.asarray(valid)].argmax(axis=-1)
    share = np.bincount(nodes, minlength=6) / len(nodes)
    stats = jax.tree.map(np.asarray, process.agent.obs)
    std = np.sqrt(stats.squares / stats.number)
    seen = (np.eye(7)[:6] - stats.mean) / np.where(std > 0, std, 1)

    def log_prob(actor: Any, obs: Array) -> Array:
        return jax.nn.log_softmax(process.net.act(actor, (), obs)[1])

    both = lambda actor, obs: (log_prob(actor, obs), jax.jacobian(log_prob)(actor, obs))
    each = jax.jit(jax.vmap(both, (None, 0)))
    log_probs, scores = each(process.agent.actor, seen)
    scores = [np.reshape(x, (6, 3, -1)) for x in jax.tree.leaves(scores)]
    scores = np.concatenate(scores, axis=-1)  # [node, action, P]
    chances = np.exp(log_probs)
    return np.einsum("s,sa,sap,saq->pq", share, chances, scores, scores)


@pytest.mark.parametrize(("solver", "tolerance"), [("exact", 1e-8), ("cg", 1e-3)])
def test_the_step_is_that_of_the_formula(
    process, surrogate_gradient, solver, tolerance
):
    """With the exact gradient and the exact Fisher matrix of the tables."""
    damping, divergence = 0.1, 0.02
    gradient = surrogate_gradient(process, 1.0)
    matrix = fisher_of(process) + damping * np.eye(len(gradient))
    x = np.linalg.solve(matrix, gradient)
    expected = np.sqrt(2 * divergence / (x @ gradient)) * x
    found, _ = stepped(process, solver=solver, damping=damping, max_kl=divergence)
    np.testing.assert_allclose(found, expected, atol=tolerance * abs(expected).max())


def test_the_measured_kl_is_that_of_the_step(process):
    """To second order, and less by the damping."""
    for divergence in (1e-3, 1e-5):
        _, metrics = stepped(process, solver="exact", damping=1e-6, max_kl=divergence)
        ratio = float(metrics["policy/divergence"]) / divergence
        assert ratio == pytest.approx(1, abs=0.1 if divergence > 1e-4 else 0.02)
    _, damped = stepped(process, solver="exact", damping=1.0, max_kl=1e-5)
    assert 0 < damped["policy/divergence"] < 0.9e-5


def test_steps_raise_the_expected_return_faster_than_along_the_gradient(
    tabular, surrogate_gradient
):
    """At the same, small KL: the gain per divergence is the natural gradient's."""
    start = lambda change: float(moved(tabular, change)[:2].mean())
    natural, metrics = stepped(tabular, solver="exact", damping=1e-8, max_kl=1e-4)
    gradient, fisher = surrogate_gradient(tabular, 1.0), fisher_of(tabular)
    plain = gradient * np.sqrt(2e-4 / (gradient @ fisher @ gradient))
    before = start(0 * natural)
    assert start(natural) - before > 1.02 * (start(plain) - before) > 0
    assert metrics["policy/divergence"] == pytest.approx(1e-4, rel=0.05)


def moved(process, change: np.ndarray) -> Array:
    """The exact values [7] after a change of the policy's parameters."""
    flat, unravel = ravel_pytree(process.agent.actor)
    return process.value(unravel(flat + change), 1.0)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"solver": "lu"}, "solver is 'lu', must be one of: cg, exact"),
        ({"max_kl": 0.0}, "max_kl is 0.0"),
        ({"damping": -0.1}, "damping is -0.1"),
        ({"num_iterations": 0}, "num_iterations is 0"),
        ({"discount": 2.0}, "discount is 2.0"),
    ],
)
def test_a_configuration_that_cannot_be(changes: dict, fault: str):
    net = actor_critic.make(envs.make("probe4"), actor_critic.Config())
    with pytest.raises(ValueError, match=fault):
        natural_gradient.make(net, dataclasses.replace(CONFIG, **changes))
