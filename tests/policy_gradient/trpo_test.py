import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mbrl_jax import envs, gathering
from mbrl_jax.ops import normalize
from mbrl_jax.policy_gradient import actor_critic, experience, trpo
from mbrl_jax.types import Array, Env, Key, Metrics

pytestmark = pytest.mark.usefixtures("double")

CRITIC = trpo.CriticConfig(num_epochs=2, num_minibatches=1)
CONFIG = trpo.Config(discount=1.0, gae_lambda=1.0, critic=CRITIC)


class Seen(NamedTuple):
    """Of one update, what can be said without the learner."""

    metrics: Metrics
    kl: Array  # [] of the same steps
    gain: Array  # [] change of the surrogate
    far: Array  # [] how far its outputs moved at most


def train(env: Env, config: trpo.Config, num_updates: int) -> Seen:
    """Stacked, [num_updates]."""
    net = actor_critic.make(env, actor_critic.Config(hidden_sizes=(8,)))
    learner = trpo.make(net, config)
    gatherer = gathering.window_gatherer(env, 4, 16)

    def update(carry: tuple, key: Key) -> tuple[tuple, Seen]:
        state, running = carry
        act_key, key = jax.random.split(key)
        found = gatherer.gather(act_key, learner.explore(state), running)
        new, metrics = learner.update(key, state, found.windows)
        rows, _ = experience.gae_samples(
            net, state.agent, found.windows, config.discount, config.gae_lambda
        )
        outputs = acting(new.agent, found.windows.transitions.obs)
        gain = score(net, outputs, rows) - score(net, rows.outputs, rows)
        far = jnp.abs(outputs - rows.outputs).max()
        seen = Seen(metrics, kl(env, rows.outputs, outputs).mean(), gain, far)
        return (new, found.parallel), seen

    def acting(agent: actor_critic.Agent, obs: Array) -> Array:
        """What it does where it sees `obs` [N, T, O], with its statistics: [N, T, D]"""
        stats = normalize.so_far(agent.obs)

        def one(obs: Array) -> Array:
            return net.act(agent.actor, (), (obs - stats.mean) / stats.std)[1]

        return jax.vmap(jax.vmap(one))(obs)

    @jax.jit
    def run(key: Key) -> Seen:
        init_key, env_key, key = jax.random.split(key, 3)
        state = learner.init(init_key)
        start = state, gatherer.init(env_key, learner.explore(state))
        return jax.lax.scan(update, start, jax.random.split(key, num_updates))[1]

    return jax.tree.map(np.asarray, run(jax.random.key(0)))


def score(net, outputs: Array, rows: experience.Samples) -> Array:
    """The mean of ratio times advantage, which is made to have mean 0 and std 1."""
    log_prob = jax.vmap(jax.vmap(net.family.log_prob))(outputs, rows.action)
    centred = rows.advantage - rows.advantage.mean()
    return (jnp.exp(log_prob - rows.log_prob) * centred).mean() / centred.std()


def kl(env: Env, old: Array, new: Array) -> Array:
    """Of outputs [N, T, D], as of discrete or of normal distributions."""
    if env.num_actions:
        log_p, log_q = jax.nn.log_softmax(old), jax.nn.log_softmax(new)
        return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    (m, s), (n, t) = (jnp.split(x, 2, axis=-1) for x in (old, new))
    far = (jnp.exp(2 * s) + (m - n) ** 2) / (2 * jnp.exp(2 * t))
    return (t - s + far - 0.5).sum(axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("point_mass", {}),
        # so far, and hardly damped, that the second order does not tell how far
        ("cartpole", {"max_kl": 0.3, "damping": 1e-3}),
    ],
)
def test_200_updates_never_leave_the_trust_region(name: str, changes: dict):
    config = dataclasses.replace(
        CONFIG, discount=0.99, gae_lambda=0.97, **({"max_kl": 0.01} | changes)
    )
    with jax.enable_x64(False):  # as users run it
        seen = train(envs.make(name), config, 201)
        # the first windows choose the units of the observations
        seen = jax.tree.map(lambda x: x[1:], seen)
    moved = seen.metrics["policy/moved"] == 1
    assert moved.mean() > 0.8
    assert seen.metrics["policy/divergence"].max() <= config.max_kl
    assert np.median(seen.kl[moved]) > 0.3 * config.max_kl  # no timid steps
    assert (seen.kl <= config.max_kl * 1.01).all()
    np.testing.assert_allclose(
        seen.kl, seen.metrics["policy/divergence"], rtol=1e-2, atol=1e-6
    )
    assert (seen.gain[moved] > -1e-6).all()
    assert np.median(seen.gain[moved]) > 1e-3
    assert (seen.far[~moved] < 1e-4).all()
    assert (seen.far[moved] > 1e-4).all()
    if changes:
        assert (seen.metrics["policy/tries"][moved] > 1).any()


def updated(
    process, monkeypatch: pytest.MonkeyPatch, change: Any, **changes: Any
) -> tuple[trpo.State, Metrics]:
    """With what `change` makes of the natural step in its place."""
    step = trpo.natural.step
    with monkeypatch.context() as patch:
        patch.setattr(
            trpo.natural,
            "step",
            lambda *args, **more: jax.tree.map(change, step(*args, **more)),
        )
        learner = trpo.make(process.net, dataclasses.replace(CONFIG, **changes))

        @jax.jit
        def run(agent, windows) -> tuple[trpo.State, Metrics]:
            start = learner.init(jax.random.key(0))._replace(agent=agent)
            return learner.update(jax.random.key(0), start, windows)

        return run(process.agent, process.windows)


@pytest.mark.parametrize("factor", [-1.0, np.nan, 1e3])
def test_a_change_for_the_worse_is_refused(tabular, monkeypatch, factor):
    """Down, nowhere, or so far that ten times 0.8 brings it not near enough."""
    state, metrics = updated(tabular, monkeypatch, lambda x: factor * x)
    assert metrics["policy/moved"] == 0
    assert metrics["policy/divergence"] == 0
    assert metrics["policy/tries"] == CONFIG.num_tries
    jax.tree.map(np.testing.assert_array_equal, state.agent.actor, tabular.agent.actor)
    moved = jax.tree.map(np.array_equal, state.agent.critic, tabular.agent.critic)
    assert not all(jax.tree.leaves(moved))  # the critic learns all the same


@pytest.mark.slow
def test_a_change_that_is_too_long_is_shortened(tabular, monkeypatch):
    """By 0.8 from try to try, until the KL, quadratic in the length, is small."""
    _, once = updated(tabular, monkeypatch, lambda x: x, damping=1e-3)
    state, metrics = updated(tabular, monkeypatch, lambda x: 3 * x, damping=1e-3)
    assert once["policy/moved"] == metrics["policy/moved"] == 1
    # 3 x 0.8^4 = 1.23 and 3 x 0.8^5 = 0.98: four or five times shorter
    assert metrics["policy/tries"] - once["policy/tries"] in (4, 5)
    assert 0.6 * CONFIG.max_kl < metrics["policy/divergence"] <= CONFIG.max_kl
    before, after = (
        float(tabular.value(agent.actor, 1.0)[:2].mean())
        for agent in (tabular.agent, state.agent)
    )
    assert after > before


def test_the_surrogate_has_the_exact_policy_gradient(process, surrogate_gradient):
    rows, _ = jax.jit(partial(experience.gae_samples, process.net))(
        process.agent, process.windows, 1.0, 0.5
    )

    @jax.jit
    def gradient(actor) -> tuple:
        gain, divergence = experience.surrogate(process.net, rows)
        both = jax.grad(gain)(actor), jax.grad(divergence)(actor)
        return *both, gain(actor), divergence(actor)

    up, none, *now = gradient(process.agent.actor)
    expected = surrogate_gradient(process, 0.5)
    np.testing.assert_allclose(ravel_pytree(up)[0], expected, atol=1e-10)
    np.testing.assert_allclose(ravel_pytree(none)[0], 0, atol=1e-10)
    np.testing.assert_allclose(now, 0, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"num_tries": 0}, "num_tries is 0"),
        ({"backtrack_ratio": 1.2}, "backtrack_ratio is 1.2"),
        ({"max_kl": -0.01}, "max_kl is -0.01"),
        ({"num_iterations": 0}, "num_iterations is 0"),
        ({"critic": trpo.CriticConfig(num_epochs=0)}, "num_epochs is 0"),
    ],
)
def test_a_configuration_that_cannot_be(changes: dict, fault: str):
    net = actor_critic.make(envs.make("probe4"), actor_critic.Config())
    with pytest.raises(ValueError, match=fault):
        trpo.make(net, dataclasses.replace(CONFIG, **changes))
