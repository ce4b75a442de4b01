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
from mbrl_jax.policy_gradient import actor_critic, experience, ppo
from mbrl_jax.policy_gradient.experience import Samples
from mbrl_jax.types import Metrics, Window

pytestmark = pytest.mark.usefixtures("double")

CONFIG = ppo.Config(
    discount=1.0, gae_lambda=1.0, num_epochs=1, num_minibatches=1, max_norm=1e9
)


def rows_with(**fields: Any) -> Samples:
    return Samples(**(dict.fromkeys(Samples._fields) | fields))


@partial(jax.jit, static_argnums=(0, 1))
def run(net, whole: tuple, floats: dict, agent, more, windows) -> tuple:
    """Compiled once for all floats."""
    learner = ppo.make(net, dataclasses.replace(CONFIG, **dict(whole), **floats))
    start = learner.init(jax.random.key(0))
    return learner.update(
        jax.random.key(0), start._replace(agent=agent, **more), windows
    )


def updated(
    process, windows: Window, *, more: Any = None, **changes: Any
) -> tuple[ppo.State, Metrics]:
    """From the agent of `process`; `more` replaces other parts of the state."""
    floats = {x: y for x, y in changes.items() if isinstance(y, float)}
    whole = tuple((x, y) for x, y in changes.items() if x not in floats)
    return run(process.net, whole, floats, process.agent, more or {}, windows)


@pytest.mark.parametrize("gae_lambda", [0.0, 1.0])
@pytest.mark.parametrize("objective", ppo.OBJECTIVES)
def test_the_first_step_goes_up_the_exact_policy_gradient(
    process, surrogate_gradient, objective, gae_lambda
):
    """Adam's mean is a tenth of it, downwards."""
    state, _ = updated(
        process, process.windows, objective=objective, gae_lambda=gae_lambda
    )
    mean, _ = optax.tree_utils.tree_get(state.opt_state, "mu")
    gone = -10 * ravel_pytree(mean)[0]
    expected = surrogate_gradient(process, gae_lambda)
    np.testing.assert_allclose(gone, expected, atol=1e-9)


def test_the_clipped_objective():
    """(ratio, advantage) -> min(ratio A, clip(ratio) A), with a clip of 0.2."""
    cases = [(1.5, 2.0, 2.4), (0.5, 2.0, 1.0), (1.5, -2.0, -3.0), (0.5, -2.0, -1.6)]
    cases += [(1.1, 1.0, 1.1), (1.0, -3.0, -3.0)]
    ratio, advantage, expected = jnp.array(cases).T
    kl, rows = jnp.full_like(ratio, 9.0), rows_with(advantage=advantage)
    clip = partial(ppo.OBJECTIVES["clip"], CONFIG, rows=rows, kl=kl, beta=jnp.ones(()))
    np.testing.assert_allclose(clip(ratio), expected)
    slopes = jax.grad(lambda ratio: clip(ratio).sum())(ratio)
    np.testing.assert_allclose(slopes, [0, 2, -2, 0, 1, -3])
    wide = dataclasses.replace(CONFIG, clip=0.6)
    clip = ppo.OBJECTIVES["clip"](wide, ratio, rows, kl, jnp.ones(()))
    np.testing.assert_allclose(clip, ratio * advantage)


def test_the_penalised_objective():
    ratio, advantage, kl = jnp.array([[1.5, 0.5], [2.0, -2.0], [0.1, 0.4]])
    rows = rows_with(advantage=advantage)
    found = ppo.OBJECTIVES["penalty"](CONFIG, ratio, rows, kl, jnp.array(3.0))
    np.testing.assert_allclose(found, [3.0 - 0.3, -1.0 - 1.2])


def test_the_value_is_no_better_than_from_within_its_clip():
    """(value, before, target): the square of the error, or of the clipped value's."""
    cases = [(1.0, 0.0, 1.0, 0.64), (0.1, 0.0, 1.0, 0.81), (-1.0, 0.0, 1.0, 4.0)]
    value, before, target, expected = jnp.array(cases).T
    rows = rows_with(value=before, target=target)
    clipped = dataclasses.replace(CONFIG, value_clip=0.2)
    np.testing.assert_allclose(ppo._squares(clipped, value, rows), expected)
    squares = (value - target) ** 2
    np.testing.assert_allclose(ppo._squares(CONFIG, value, rows), squares)
    slopes = jax.grad(lambda x: ppo._squares(clipped, x, rows).sum())(value)
    np.testing.assert_allclose(slopes, [0, -1.8, -4.0])  # none beyond, the right way


def test_a_ratio_that_is_clipped_goes_no_further(tabular):
    """A high rate takes ratios beyond the clip; with a wide one they go on."""
    many = {"num_epochs": 40, "learning_rate": 0.03}
    _, clipped = updated(tabular, tabular.windows, clip=0.05, **many)
    _, free = updated(tabular, tabular.windows, clip=1e3, **many)
    assert clipped["policy/clipped"] > 0.5
    assert free["policy/clipped"] == 0
    assert clipped["policy/divergence"] < 0.1 * free["policy/divergence"]


@pytest.mark.parametrize(
    ("learning_rate", "beta"), [(1e-6, 0.5), (1e-1, 2.0), (None, 1.0)]
)
def test_beta_doubles_where_the_kl_is_high_and_halves_where_low(
    tabular, learning_rate, beta
):
    """As seen in the last epoch; in between it stays."""
    config = {"objective": "penalty", "num_epochs": 2, "target_kl": 0.01}
    if learning_rate is None:
        learning_rate = 1e-2
        _, seen = updated(tabular, tabular.windows, learning_rate=1e-2, **config)
        config["target_kl"] = float(seen["policy/divergence"])
    _, metrics = updated(
        tabular, tabular.windows, learning_rate=learning_rate, **config
    )
    assert metrics["policy/beta"] == beta
    target, kl = config["target_kl"], float(metrics["policy/divergence"])
    assert (kl > 1.5 * target, kl < target / 1.5) == (beta > 1, beta < 1)


@pytest.mark.parametrize(
    ("targets", "beta"), [(1.6, 2.0), (1.4, 1.0), (1 / 1.4, 1.0), (1 / 1.6, 0.5)]
)
def test_the_kl_may_be_off_by_half_of_its_target(tabular, targets: float, beta: float):
    config = {"objective": "penalty", "num_epochs": 2, "learning_rate": 1e-2}
    _, seen = updated(tabular, tabular.windows, target_kl=0.01, **config)
    target = float(seen["policy/divergence"]) / targets
    _, metrics = updated(tabular, tabular.windows, target_kl=target, **config)
    assert metrics["policy/beta"] == beta


@pytest.mark.slow
def test_a_reward_for_entropy_raises_it(tabular):
    """As the second epoch sees it, after a step that is for little else."""
    config = {"num_epochs": 2, "learning_rate": 1e-2}
    before, after = (
        updated(tabular, tabular.windows, entropy_weight=weight, **more)[1]
        for weight, more in ((0.0, {}), (1e3, config))
    )
    assert after["policy/entropy"] > before["policy/entropy"] + 1e-3


def test_the_penalty_holds_the_policy_back(tabular):
    """The larger beta, the nearer it stays: the KL is that of the last epoch."""
    config = {"objective": "penalty", "num_epochs": 30, "learning_rate": 0.03}
    far, near = (
        updated(tabular, tabular.windows, more={"beta": beta}, **config)[1]
        for beta in (1e-6, 30.0)
    )
    assert near["policy/divergence"] < 0.1 * far["policy/divergence"]


@pytest.mark.parametrize(("target", "power"), [(1e9, 6), (1e-9, 1 - 5)])
def test_the_rate_falls_where_the_kl_is_high_and_rises_where_low(
    tabular, target, power
):
    """By a factor at each of six steps; at the first the policy has not moved yet."""
    config = {"num_epochs": 6, "rate_factor": 1.5, "target_kl": target}
    _, metrics = updated(tabular, tabular.windows, **config)
    assert metrics["policy/rate"] == pytest.approx(1.5**power)
    _, metrics = updated(tabular, tabular.windows, **(config | {"rate_factor": 1.0}))
    assert metrics["policy/rate"] == 1


def test_the_rate_is_a_factor_of_the_step(tabular):
    steps = []
    for rate in (1.0, 0.25):
        state, _ = updated(tabular, tabular.windows, more={"rate": rate})
        change = jax.tree.map(jnp.subtract, state.agent.actor, tabular.agent.actor)
        steps.append(ravel_pytree(change)[0])
    np.testing.assert_allclose(steps[1], 0.25 * steps[0], atol=1e-12)


def test_what_is_not_valid_does_not_matter(tabular):
    """Nonsense after the ends of episodes changes nothing."""
    windows = jax.tree.map(lambda x: x[:64], tabular.windows)
    data = windows.transitions
    wild = data._replace(
        reward=np.where(windows.valid, data.reward, 1e6),
        action=np.where(windows.valid, data.action, 2),
    )
    config = {"num_epochs": 3, "num_minibatches": 4}
    clean, _ = updated(tabular, windows, **config)
    dirty, _ = updated(tabular, windows._replace(transitions=wild), **config)
    for a, b in zip(*map(jax.tree.leaves, (clean.agent, dirty.agent)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_an_update_raises_the_expected_return(tabular):
    state, metrics = updated(
        tabular, tabular.windows, num_epochs=10, num_minibatches=8, learning_rate=1e-2
    )
    before, after = (
        float(tabular.value(agent.actor, 1.0)[:2].mean())
        for agent in (tabular.agent, state.agent)
    )
    # the statistics have not moved, since the windows are those they were made of
    assert after > before + 0.1
    assert np.isfinite(metrics["critic/loss"])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"objective": "best"}, "objective is 'best', must be one of: clip, penalty"),
        ({"rate_factor": 0.5}, "rate_factor is 0.5, must be at least 1"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"num_minibatches": 0}, "num_minibatches is 0"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"value_clip": -0.1}, "value_clip is -0.1"),
        ({"gae_lambda": -0.1}, "gae_lambda is -0.1"),
    ],
)
def test_a_configuration_that_cannot_be(changes: dict, fault: str):
    net = actor_critic.make(envs.make("probe4"), actor_critic.Config())
    with pytest.raises(ValueError, match=fault):
        ppo.make(net, dataclasses.replace(CONFIG, **changes))


@pytest.mark.slow
def test_steps_with_a_memory_stay_together(tabular):
    """A recurrent update is the same whatever else is in its minibatch's order."""
    net = actor_critic.make(
        tabular.env, actor_critic.Config(hidden_sizes=(), memory_size=3)
    )
    agent = jax.jit(lambda: actor_critic.init(jax.random.key(0), net))()
    start = jnp.zeros((len(tabular.windows.valid), 3))
    windows = tabular.windows._replace(memory=(start, start))
    rows, _ = jax.jit(partial(experience.gae_samples, net))(agent, windows, 1.0, 1.0)
    assert experience.flatten_time(rows).obs.shape == rows.obs.shape
    process = tabular._replace(net=net, agent=agent)
    mixed = np.random.default_rng(0).permutation(len(start))
    shuffled = jax.tree.map(lambda x: x[mixed], windows)
    a, b = (updated(process, x, num_epochs=2)[0].agent for x in (windows, shuffled))
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-9)
