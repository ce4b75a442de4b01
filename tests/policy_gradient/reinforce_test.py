"""Every baseline against the exact gradient, its expectation and its variance."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from mbrl_jax import envs, gathering
from mbrl_jax.policy_gradient import actor_critic, reinforce
from mbrl_jax.types import Array, Key, Window

pytestmark = pytest.mark.usefixtures("double")

BASELINES = list(reinforce.BASELINES)
CONFIG = reinforce.Config(discount=1.0)


def each(process, windows: Window, baseline: str, discount: float = 1.0) -> Array:
    """The gradient of every episode, [N, P]."""
    config = dataclasses.replace(CONFIG, baseline=baseline, discount=discount)
    rows, _ = reinforce.rows_of(process.net, process.agent, windows, config)
    found = reinforce.gradients(process.net, process.agent.actor, rows, baseline)
    return jax.vmap(lambda x: ravel_pytree(x)[0])(found)


def exact(process, discount: float = 1.0) -> Array:
    return ravel_pytree(process.gradient(discount))[0]


def all_of(process, baseline: str, discount: float = 1.0) -> Array:
    """Of the 1024 episodes, [1024, P]."""
    found = jax.jit(lambda: each(process, process.windows, baseline, discount))
    return found()


def test_the_oracle_is_the_derivative_of_the_value(process):
    start = lambda actor: process.value(actor, 1.0)[:2].mean()
    gradient = jax.jit(jax.grad(start))(process.agent.actor)
    np.testing.assert_allclose(exact(process), ravel_pytree(gradient)[0], atol=1e-12)
    windows = process.windows
    returns = np.where(windows.valid, windows.transitions.reward, 0).sum(axis=1)
    assert returns.mean() == pytest.approx(float(start(process.agent.actor)), abs=1e-9)


@pytest.mark.parametrize("discount", [1.0, 0.7])
@pytest.mark.parametrize("baseline", ["none", "value"])
def test_the_mean_over_all_that_can_happen_is_the_gradient(process, baseline, discount):
    """The critic is only right for a discount of 1, and needs not be."""
    mean = all_of(process, baseline, discount).mean(axis=0)
    np.testing.assert_allclose(mean, exact(process, discount), atol=1e-10)


@pytest.mark.parametrize("baseline", ["average", "optimal"])
def test_a_baseline_of_the_other_episodes_has_no_bias(process, baseline):
    """Over all pairs of episodes there are, each as often as it happens."""
    size = len(process.chances)
    pairs = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2)

    @jax.jit
    def mean() -> Array:
        def add(total: Array, part: Array) -> tuple[Array, None]:
            gradients = jax.vmap(of_pair)(part)
            chances = jnp.asarray(process.chances)[part].prod(axis=1)
            return total + chances @ gradients, None

        def of_pair(pair: Array) -> Array:
            windows = jax.tree.map(lambda x: jnp.asarray(x)[pair], process.paths)
            return each(process, windows, baseline).mean(axis=0)

        parts = jnp.asarray(pairs.reshape(size, size, 2))
        return jax.lax.scan(add, jnp.zeros_like(exact(process)), parts)[0]

    np.testing.assert_allclose(mean(), exact(process), atol=1e-9)


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_mean_of_what_the_environment_gives_is_the_gradient(tabular, baseline):
    """4000 independent batches of 4 episodes: no parameter is further off than one in
    a hundred such tests would allow by chance."""
    policy = actor_critic.policy(tabular.net, tabular.agent, explore=True)
    gatherer = gathering.episode_gatherer(tabular.env, 4)

    def batch(key: Key) -> Array:
        windows = gatherer.gather(key, policy, ()).windows
        return each(tabular, windows, baseline).mean(axis=0)

    found = jax.jit(jax.vmap(batch))(jax.random.split(jax.random.key(1), 4000))
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    off = np.abs(found.mean(axis=0) - exact(tabular))
    limit = scipy.stats.norm.isf(0.005 / found.shape[1])
    assert 3 < limit < 4
    assert (off <= limit * error + 1e-12).all()
    assert (error < 0.1).all()  # or nothing could be seen


def test_baselines_lower_the_variance(process):
    """By parameter, none of the constants is better than `optimal`; its variance is the
    least that a constant can have, but for leaving one out."""
    none, average, optimal, value = (
        np.asarray(all_of(process, name)).var(axis=0) for name in BASELINES
    )
    assert value.sum() < 0.8 * optimal.sum()
    assert optimal.sum() < 0.99 * average.sum()
    assert average.sum() < 0.5 * none.sum()
    assert (optimal <= 1.01 * np.minimum(none, average) + 1e-12).all()
    gradients = np.asarray(all_of(process, "none"))
    scores = scores_of(process)
    square = (scores**2).mean(axis=0)
    best = (gradients * scores).mean(axis=0) / np.where(square > 0, square, 1)
    least = (gradients - best * scores).var(axis=0)
    np.testing.assert_allclose(optimal, least, rtol=0.01, atol=1e-12)


def scores_of(process) -> np.ndarray:
    """d log P(episode) / d parameters, [1024, P], without `reinforce`."""
    data, valid = process.windows.transitions, process.windows.valid
    stats = process.agent.obs

    def log_prob(actor, obs, action, valid) -> Array:
        std = jnp.sqrt(stats.squares / stats.number)
        seen = (obs - stats.mean[None]) / jnp.where(std > 0, std, 1)[None]
        logits = jax.vmap(lambda x: process.net.act(actor, (), x)[1])(seen)
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)
        return jnp.where(valid, taken[:, 0], 0).sum()

    found = jax.jit(jax.vmap(jax.grad(log_prob), (None, 0, 0, 0)))(
        process.agent.actor, data.obs, data.action, valid
    )
    return np.asarray(jax.vmap(lambda x: ravel_pytree(x)[0])(found))


def test_an_episode_alone_has_no_baseline(tabular):
    alone = jax.tree.map(lambda x: x[:1], tabular.windows)
    names = ("none", "average", "optimal")
    found = jax.jit(lambda: [each(tabular, alone, name) for name in names])()
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-12)


def test_a_step_goes_up_the_gradient(tabular):
    """Adam's first step is its signs; the critic is fitted where there is one."""
    for baseline, fitted in (("none", False), ("value", True)):
        config = dataclasses.replace(CONFIG, baseline=baseline)
        learner = reinforce.make(tabular.net, config)
        start = jax.jit(learner.init)(jax.random.key(0))._replace(agent=tabular.agent)
        update = jax.jit(partial(learner.update, jax.random.key(0)))
        after, metrics = update(start, tabular.windows)
        norm = np.linalg.norm(exact(tabular))
        assert metrics["policy/gradient_norm"] == pytest.approx(norm)
        change = jax.tree.map(jnp.subtract, after.agent.actor, tabular.agent.actor)
        steps, gradient = ravel_pytree(change)[0], exact(tabular)
        known = np.abs(gradient) > 1e-6
        np.testing.assert_allclose(
            steps[known], config.learning_rate * np.sign(gradient[known]), rtol=1e-2
        )
        same = jax.tree.map(np.array_equal, after.agent.critic, tabular.agent.critic)
        assert all(jax.tree.leaves(same)) != fitted
        assert ("critic/loss" in metrics) == fitted


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"baseline": "best"}, "baseline is 'best', must be one of: none, average"),
        ({"discount": 1.1}, "discount is 1.1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_a_configuration_that_cannot_be(changes: dict, fault: str):
    net = actor_critic.make(envs.make("probe4"), actor_critic.Config())
    with pytest.raises(ValueError, match=fault):
        reinforce.make(net, dataclasses.replace(CONFIG, **changes))
