import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from mbrl_jax import envs
from mbrl_jax.policy_gradient import a2c, actor_critic, experience
from mbrl_jax.types import Metrics, Window

pytestmark = pytest.mark.usefixtures("double")

CONFIG = a2c.Config(
    learning_rate=1e-3,
    square_decay=0.0,  # RMSProp's mean squares are those of the last gradient
    discount=1.0,
    entropy_weight=0.0,
    max_norm=1e9,
)


@partial(jax.jit, static_argnums=(0, 1))
def run(net, whole: tuple, floats: dict, agent, windows) -> tuple:
    """Compiled once for all floats."""
    learner = a2c.make(net, dataclasses.replace(CONFIG, **dict(whole), **floats))
    start = learner.init(jax.random.key(0))
    return learner.update(jax.random.key(0), start._replace(agent=agent), windows)


def updated(process, windows: Window, **changes: Any) -> tuple[a2c.State, Metrics]:
    floats = {x: y for x, y in changes.items() if isinstance(y, float)}
    whole = tuple((x, y) for x, y in changes.items() if x not in floats)
    return run(process.net, whole, floats, process.agent, windows)


def ascended(process, state: a2c.State) -> tuple[np.ndarray, np.ndarray]:
    """What was gone up, of actor and critic: by its squares and its signs."""
    squares = optax.tree_utils.tree_get(state.opt_state, "nu")
    before = process.agent.actor, process.agent.critic
    after = state.agent.actor, state.agent.critic
    gone = [
        np.sqrt(ravel_pytree(x)[0])
        * np.sign(ravel_pytree(new)[0] - ravel_pytree(old)[0])
        for x, new, old in zip(squares, after, before, strict=True)
    ]
    return gone[0], gone[1]


@pytest.mark.slow
@pytest.mark.parametrize("gae_lambda", [0.0, 0.6, 1.0])
def test_it_goes_up_the_exact_policy_gradient(process, surrogate_gradient, gae_lambda):
    state, _ = updated(process, process.windows, gae_lambda=gae_lambda)
    gone, _ = ascended(process, state)
    expected = surrogate_gradient(process, gae_lambda)
    np.testing.assert_allclose(gone, expected, atol=1e-8)


def test_it_goes_down_the_squares_of_the_critic(tabular):
    """Weighted; a critic that is right for every node has nowhere to go."""
    state, metrics = updated(tabular, tabular.windows)
    _, gone = ascended(tabular, state)
    np.testing.assert_allclose(gone, 0, atol=2e-3)  # its units have changed a little
    worse = jax.tree.map(lambda x: x + 0.3, tabular.agent.critic)
    off = tabular._replace(agent=tabular.agent._replace(critic=worse))
    state, metrics = updated(off, off.windows, value_weight=0.25)
    rows, _ = jax.jit(partial(experience.gae_samples, off.net))(
        off.agent, off.windows, 1.0, 1.0
    )

    def loss(critic) -> jax.Array:
        values = experience.values_of(off.net, critic, rows)
        return (jnp.where(rows.valid, values - rows.target, 0) ** 2).sum()

    total = rows.valid.sum()
    error, gradient = jax.jit(jax.value_and_grad(loss))(worse)
    assert metrics["critic/loss"] == pytest.approx(float(error / total))
    _, gone = ascended(off, state)
    down = -0.25 * ravel_pytree(gradient)[0] / total
    np.testing.assert_allclose(gone, down, atol=1e-9)


def test_the_bonus_is_the_gradient_of_the_entropy(tabular):
    alone = updated(tabular, tabular.windows)[0]
    both, metrics = updated(tabular, tabular.windows, entropy_weight=0.5)
    rows, _ = jax.jit(partial(experience.gae_samples, tabular.net))(
        tabular.agent, tabular.windows, 1.0, 1.0
    )

    def entropy(actor) -> jax.Array:
        log_p = jax.nn.log_softmax(experience.outputs_of(tabular.net, actor, rows))
        each = -(jnp.exp(log_p) * log_p).sum(axis=-1)
        return jnp.where(rows.valid, each, 0).sum() / rows.valid.sum()

    mean, gradient = jax.jit(jax.value_and_grad(entropy))(tabular.agent.actor)
    assert metrics["policy/entropy"] == pytest.approx(float(mean))
    assert float(mean) == pytest.approx(1.5 * np.log(2))  # quarters, and a half
    change = ascended(tabular, both)[0] - ascended(tabular, alone)[0]
    np.testing.assert_allclose(change, 0.5 * ravel_pytree(gradient)[0], atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"gae_lambda": 1.5}, "gae_lambda is 1.5"),
        ({"square_decay": -0.1}, "square_decay is -0.1"),
        ({"entropy_weight": -1.0}, "entropy_weight is -1.0"),
        ({"value_weight": -1.0}, "value_weight is -1.0"),
        ({"max_norm": 0.0}, "max_norm is 0.0"),
    ],
)
def test_a_configuration_that_cannot_be(changes: dict, fault: str):
    net = actor_critic.make(envs.make("probe4"), actor_critic.Config())
    with pytest.raises(ValueError, match=fault):
        a2c.make(net, dataclasses.replace(CONFIG, **changes))
