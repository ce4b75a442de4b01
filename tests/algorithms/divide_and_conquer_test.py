"""Divide and conquer: TRPO where there is one context, and the wiring of several."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, gathering
from mbrl_jax.algorithms import divide_and_conquer
from mbrl_jax.envs import simulator
from mbrl_jax.ops import normalize
from mbrl_jax.policy_gradient import actor_critic, experience, trpo
from mbrl_jax.types import Env, Key, Metrics, Policy, PyTree

pytestmark = pytest.mark.usefixtures("double")

STEPS, PERIOD = 6, 3
ENV = simulator.time_limit(envs.make("turned_point_mass"), 6)
# one batch of the critic, so that its order does not matter
CRITIC = experience.CriticConfig(num_epochs=2, num_minibatches=1)
LEARN = trpo.Config(max_kl=0.05, critic=CRITIC)
CONFIG = divide_and_conquer.Config(
    penalty=0.3,
    num_starts=40,
    num_episodes=24,
    period=PERIOD,
    num_last_passes=300,
    batch_size=36,
    learning_rate=3e-3,
    net=actor_critic.Config(hidden_sizes=(16,)),
    learn=LEARN,
)
NET = actor_critic.make(ENV, CONFIG.net)


class Run(NamedTuple):
    """Before and after each step, [STEPS, ...], and what it told."""

    before: divide_and_conquer.State
    after: divide_and_conquer.State
    metrics: Metrics


@cache
def run(coupling: str, penalty: float = 0.3) -> Run:
    return jax.tree.map(np.asarray, program(coupling)(jax.random.key(0), penalty))


@cache
def program(coupling: str) -> Callable[[Key, float], Run]:
    @jax.jit
    def go(key: Key, penalty: float) -> Run:
        config = dataclasses.replace(CONFIG, coupling=coupling, penalty=penalty)
        algorithm = divide_and_conquer.make(ENV, config)

        def step(state: PyTree, key: Key) -> tuple[PyTree, Run]:
            after, metrics = algorithm.step(key, state)
            return after, Run(state, after, metrics)

        keys = jax.random.split(key, STEPS)
        return jax.lax.scan(step, algorithm.init(key), keys)[1]

    return go


@pytest.mark.slow
@pytest.mark.parametrize(("coupling", "number"), [("central", 4), ("dnc", 1)])
def test_with_one_context_it_is_trpo(coupling: str, number: int):
    """The same numbers, whatever the penalty: nobody else is there."""
    config = dataclasses.replace(CONFIG, coupling=coupling, num_contexts=number)
    algorithm = divide_and_conquer.make(ENV, config)
    learner = trpo.make(NET, LEARN)
    gatherer = gathering.episode_gatherer(ENV, CONFIG.num_episodes)

    @jax.jit
    def both(key: Key) -> tuple[PyTree, PyTree]:
        state = algorithm.init(key)
        own = jax.tree.map(lambda x: x[0], state.learners)
        for step_key in jax.random.split(key, 2):
            state, _ = algorithm.step(step_key, state)
            act_key, learn_key, _ = jax.random.split(step_key, 3)
            found = gatherer.gather(act_key, learner.explore(own), ())
            own, _ = learner.update(learn_key, own, found.windows)
        return state, own

    state, own = both(jax.random.key(1))
    found = jax.tree.map(lambda x: x[0], state.learners)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    jax.tree.map(same, found.agent.actor, own.agent.actor)
    jax.tree.map(same, found.agent.obs, own.agent.obs)
    if coupling == "central":
        jax.tree.map(same, state.centre, own.agent.actor)


class Caught(Exception):
    """The policy that was to gather."""


@pytest.mark.slow
def test_an_episode_keeps_the_policy_of_the_context_nearest_to_its_start():
    def gather(key: Key, policy: Policy, parallel: PyTree) -> Any:
        raise Caught(policy)

    catching = gathering.Gatherer(lambda key, policy: (), gather)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "episode_gatherer", lambda env, number: catching)
        algorithm = divide_and_conquer.make(ENV, CONFIG)
    state = jax.tree.map(lambda x: jnp.asarray(x[0]), run("dnc").before)
    agent = state.learners.agent
    net = jax.tree.map(jnp.zeros_like, agent.actor["net"])
    means = jnp.array([-30.0, -10.0, 10.0, 30.0])
    net["params"]["Dense_1"]["bias"] = jnp.tile(means[:, None], (1, 2))
    actor = {"net": net, "log_std": agent.actor["log_std"]}
    learners = state.learners._replace(agent=agent._replace(actor=actor))
    with pytest.raises(Caught) as caught:
        algorithm.step(jax.random.key(0), state._replace(learners=learners))
    policy: Policy = caught.value.args[0]
    centres = state.contexts.centre
    assert len(np.unique(np.sign(centres)[:, :2], axis=0)) == 4
    for i, mean in enumerate(means):
        action, memory = policy.act(jax.random.key(1), centres[i], policy.init())
        np.testing.assert_allclose(action, mean, atol=5)
        assert memory == i
        later, _ = policy.act(jax.random.key(2), centres[3 - i], memory)
        np.testing.assert_allclose(later, mean, atol=5)


def test_each_policy_learns_from_episodes_of_its_own():
    _, after, metrics = run("dnc")
    agent = after.learners.agent
    np.testing.assert_array_equal(
        agent.returns.number.sum(axis=1), metrics["env_steps"]
    )
    assert (agent.returns.number[-1] > 20 * STEPS).all()
    # but all are in the same units
    numbers = np.tile(metrics["env_steps"][:, None], (1, 4))
    np.testing.assert_array_equal(agent.obs.number, numbers)
    assert (np.ptp(agent.obs.mean, axis=1) == 0).all()
    assert (metrics["policy/divergence"] <= LEARN.max_kl).all()
    assert (metrics["policy/moved"] == 1).all()


def means_of(state: PyTree) -> tuple[np.ndarray, np.ndarray]:
    """At the centres of the contexts [4, O], [j, A] of the policy of each, and of the
    centre."""
    stats = normalize.so_far(jax.tree.map(lambda x: x[0], state.learners.agent.obs))
    obs = (state.contexts.centre - stats.mean[None]) / stats.std[None]
    net = state.learners.agent.actor["net"]
    act = lambda net, obs: NET.act({"net": net, "log_std": jnp.zeros(2)}, (), obs)[1]
    own = jax.vmap(act)(net, obs)[:, :2]
    centre = jax.vmap(lambda obs: act(state.centre["net"], obs))(obs)[:, :2]
    return np.asarray(own), np.asarray(centre)


@pytest.mark.slow
def test_the_centre_does_what_each_policy_does_at_its_own_observations():
    """Just fitted, and in new units; where nobody begins anew it can be compared."""
    state = jax.tree.map(lambda x: x[PERIOD - 1], run("distral", 0.0).after)
    own, centre = means_of(state)
    spread = np.abs(own - own.mean(axis=0)).mean()
    assert spread > 0.1
    np.testing.assert_allclose(centre, own, atol=0.3 * spread)


def test_all_begin_anew_at_the_centre_but_for_their_stds():
    _, after, metrics = run("dnc")
    net, stds = after.learners.agent.actor["net"], after.learners.agent.actor["log_std"]
    same = lambda i: all(
        jax.tree.leaves(
            jax.tree.map(
                lambda x, centre: np.allclose(x[i], centre[i][None]),
                net,
                after.centre["net"],
            )
        )
    )
    assert [same(i) for i in range(STEPS)] == [False, False, True] * 2
    assert (np.ptp(stds, axis=1) > 1e-3).all()
    np.testing.assert_allclose(after.centre["log_std"], stds.mean(axis=1))
    loss = metrics["centre/loss"]
    assert loss[2] < 0.5 * loss[1]
    apart = run("distral").after.learners.agent.actor["net"]["params"]["Dense_0"][
        "bias"
    ]
    assert (np.ptp(apart, axis=1).max(axis=1)[1:] > 1e-2).all()


@pytest.mark.parametrize("coupling", ["dnc", "distral"])
def test_coupled_policies_stay_nearer(coupling: str):
    free, held = run("none", 1.0), run(coupling, 1.0)

    def apart(found: Run) -> float:
        """How differently two policies act where one of them begins."""
        state = jax.tree.map(lambda x: x[PERIOD - 2], found.after)
        stats = normalize.so_far(jax.tree.map(lambda x: x[0], state.learners.agent.obs))
        obs = (state.contexts.centre - stats.mean[None]) / stats.std[None]
        act = lambda actor: jax.vmap(lambda obs: NET.act(actor, (), obs)[1])(obs)
        outputs = np.asarray(jax.vmap(act)(state.learners.agent.actor))[..., :2]
        return float(outputs.std(axis=0).mean())

    assert apart(held) < 0.9 * apart(free)
    assert held.metrics["policy/coupling"][-1] > 0
    assert not free.metrics["policy/coupling"].any()


def test_what_is_evaluated_is_the_centre():
    state = jax.tree.map(lambda x: jnp.asarray(x[-2]), run("dnc").after)
    policy = divide_and_conquer.make(ENV, CONFIG).policy(state)
    _, centre = means_of(state)
    for obs, mean in zip(state.contexts.centre, centre, strict=True):
        action, _ = policy.act(jax.random.key(0), obs, policy.init())
        np.testing.assert_allclose(action, mean, rtol=1e-6)


def test_refusals():
    def refused(words: str, env: Env = ENV, **settings: Any) -> None:
        with pytest.raises(ValueError, match=words):
            divide_and_conquer.make(env, dataclasses.replace(CONFIG, **settings))

    refused("coupling is 'kl', must be one of: dnc, none, central", coupling="kl")
    refused("penalty is -1, must be at least 0", penalty=-1)
    refused("num_contexts is 0, must be at least 1", num_contexts=0)
    refused("num_contexts is 41, more than the 40 of num_starts", num_contexts=41)
    refused("period is 0, must be at least 1", period=0)
    refused("learning_rate is 0, must be positive", learning_rate=0)
    memory = actor_critic.Config(memory_size=3)
    refused("net.memory_size is 3, must be 0", net=memory)
    refused("the actions of cartpole are discrete", envs.make("cartpole"))
    many = trpo.Config(critic=experience.CriticConfig(num_minibatches=999))
    refused("num_minibatches is 999, more than the 144 steps", learn=many)
