"""Versions 0.5, 1.0 and 1.5, planning on the true dynamics, and imitation of a planner.

`contract_test.py` has what they share with every algorithm.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import policies, rollout
from mbrl_jax.algorithms import mbrl_v05, mbrl_v10, mbrl_v15, nagabandi
from mbrl_jax.algorithms import mpc as true_mpc
from mbrl_jax.envs import linear_quadratic, point_mass, probes, simulator
from mbrl_jax.models import aggregation, ensemble
from mbrl_jax.models import by_name as models
from mbrl_jax.planners import mpc
from mbrl_jax.policy_gradient import actor_critic
from mbrl_jax.types import Algorithm, Array, Env, Policy, PyTree

ENV = simulator.time_limit(point_mass.make(), 30)
MODEL = ensemble.Config(
    probabilistic=False,
    num_members=1,
    hidden_sizes=(32, 32),
    learning_rate=3e-3,
    batch_size=32,
    num_epochs=150,
)
PLAN = mpc.Config(horizon=12, num_samples=50, num_elites=6)
TINY = dataclasses.replace(MODEL, hidden_sizes=(4,), num_epochs=2)


def train(algorithm: Algorithm, num_steps: int) -> tuple[list[PyTree], list[Any]]:
    """All states from the initial one on, and the metrics of each step."""
    key = jax.random.key(0)
    states, step, metrics = [jax.jit(algorithm.init)(key)], jax.jit(algorithm.step), []
    for i in range(num_steps):
        state, found = step(jax.random.fold_in(key, i), states[-1])
        states.append(state)
        metrics.append(found)
    return states, metrics


def mean_return(env: Env, algorithm: Algorithm, state: PyTree) -> float:
    """Of six episodes, from the same starts for all."""
    run = lambda key, x: rollout.evaluate(key, env, algorithm.policy(x), 6)[0]
    return float(jax.jit(run)(jax.random.key(7), state)["eval/return_mean"])


# --- The ladder.


def small(module: Any, planner: str) -> Algorithm:
    plan = dataclasses.replace(PLAN, interval=0)
    return module.make(
        ENV,
        module.Config(
            90, planner=planner, plan=plan, model=models.Config(ensemble=TINY)
        ),
    )


@pytest.mark.slow
def test_version_05_collects_at_random_and_version_10_by_its_plans():
    """The actions of the first three episodes."""
    first, second = (
        np.asarray(train(small(module, "cem"), 3)[0][-1].replay.data.action)
        for module in (mbrl_v05, mbrl_v10)
    )
    by_key = jax.vmap(lambda key: rollout.episode(key, ENV, policies.uniform(ENV)))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(3))
    random = jax.jit(by_key)(jax.vmap(jax.random.split)(keys)[:, 0]).transitions.action
    np.testing.assert_allclose(first, np.asarray(random).reshape(90, 2), rtol=1e-6)
    np.testing.assert_array_equal(first[:30], second[:30])
    assert (first[30:] != second[30:]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("module", [mbrl_v05, mbrl_v10, mbrl_v15])
def test_the_planner_is_the_one_of_the_configuration(module: Any):
    config = module.Config().plan
    plan = dataclasses.replace(config, horizon=4, interval=1, num_elites=3, num_kept=2)

    def program(make: Callable[[PyTree], Policy]) -> str:
        act = lambda key, obs, x: make(x).act(key, obs, make(x).init())
        return str(jax.make_jaxpr(act)(jax.random.key(0), jnp.zeros(6), state.model))

    def expected(planner: str) -> str:
        what = module.Config(
            planner=planner, plan=plan, model=models.Config(ensemble=TINY)
        )
        return program(aggregation.planning(ENV, what)[1])

    algorithm = module.make(
        ENV,
        module.Config(planner="mppi", plan=plan, model=models.Config(ensemble=TINY)),
    )
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    found = program(lambda model: algorithm.policy(state._replace(model=model)))
    assert found == expected("mppi") != expected("cem")


@pytest.mark.parametrize(
    ("module", "blind"), [(mbrl_v05, True), (mbrl_v10, True), (mbrl_v15, False)]
)
def test_what_is_seen_on_the_way_matters_from_version_15_on(module: Any, blind: bool):
    horizon, default = 4, module.Config()
    small = {"horizon": horizon, "num_samples": 8, "num_elites": 3, "num_kept": 2}
    assert (default.plan.interval > 1) == blind
    interval = horizon if blind else 1
    plan = dataclasses.replace(
        default.plan, interval=interval, num_iterations=1, **small
    )
    algorithm = module.make(
        ENV, dataclasses.replace(default, plan=plan, model=models.Config(ensemble=TINY))
    )
    policy = algorithm.policy(algorithm.init(jax.random.key(0)))
    act, memory = jax.jit(policy.act), policy.init()
    keys = jax.random.split(jax.random.key(1), horizon + 1)
    obs = jnp.array([0.5, -0.5, 0.0, 0.0, -1.0, 1.0])
    for i, key in enumerate(keys):
        here, _ = act(key, obs, memory)
        there, memory = act(key, -obs, memory)
        same = blind and 0 < i < horizon
        assert bool((here == there).all()) == same


@pytest.mark.slow
def test_point_mass():
    """Version 1.5 solves it within 6 episodes, as PETS does, with the same bound.

    Random actions are worth -55, the planner on the true dynamics -18.
    """
    config = mbrl_v15.Config(
        capacity=300, planner="cem", plan=PLAN, model=models.Config(ensemble=MODEL)
    )
    algorithm = mbrl_v15.make(ENV, config)
    states, _ = train(algorithm, 6)
    assert mean_return(ENV, algorithm, states[-1]) > -24


@pytest.mark.parametrize("module", [mbrl_v05, mbrl_v10, mbrl_v15, nagabandi])
def test_what_cannot_be(module: Any):
    with pytest.raises(ValueError, match="planner is 'newton', must be one of"):
        module.make(ENV, module.Config(planner="newton"))
    with pytest.raises(ValueError, match=r"capacity is 29, less than the 30 steps"):
        module.make(ENV, module.Config(capacity=29))
    if module is not mbrl_v05:
        with pytest.raises(ValueError, match="num_random_episodes is 0"):
            module.make(ENV, module.Config(num_random_episodes=0))


# --- The true dynamics.


@pytest.mark.slow
@pytest.mark.parametrize("planner", ["icem", "ilqr"])
def test_what_was_planned_to_the_end_is_what_comes(planner: str):
    """The simulator's own noise included, whose keys are in its state."""
    problem = linear_quadratic.TWO_MASSES._replace(noise_std=0.1)
    num_steps = 6
    env = linear_quadratic.make(problem, action_limit=2.0, episode_length=num_steps)
    plan = mpc.Config(horizon=num_steps, interval=0)
    shown = simulator.observe_all(env)
    algorithm = true_mpc.make(shown, true_mpc.Config(planner, plan))
    policy = algorithm.policy(algorithm.init(jax.random.key(0)))
    transitions, valid = jax.jit(partial(rollout.episode, env=shown, policy=policy))(
        jax.random.key(3)
    )
    assert valid.all()
    start = jax.tree.map(lambda x: x[0], transitions.obs)
    foreseen = rollout.simulation(env, start)(transitions.action)
    assert transitions.reward.sum() == pytest.approx(float(foreseen), rel=1e-5)


def test_planning_on_the_true_dynamics_is_that_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
):
    seen = []
    monkeypatch.setattr(mpc, "make", lambda *args: seen.append(args[:4]))
    plan = dataclasses.replace(PLAN, horizon=7)
    true_mpc.make(simulator.observe_all(ENV), true_mpc.Config("mppi", plan))
    assert seen == [("mppi", plan, 2, ENV.action_limit)]


def test_it_needs_to_be_shown_the_simulator():
    with pytest.raises(ValueError, match=r"make it of simulator\.observe_all\(env\)"):
        true_mpc.make(ENV)
    outside = ENV._replace(host=True)
    with pytest.raises(ValueError, match="nothing can plan with it"):
        true_mpc.make(outside)


# --- Imitation.


BEFORE, IMITATIONS = 2 + 3, 20  # episodes
IMITATION = nagabandi.Config(
    capacity=40,
    num_random_episodes=2,
    num_model_episodes=3,
    num_updates=100,
    batch_size=32,
    learning_rate=3e-3,
    num_imitations=IMITATIONS,
    num_episodes=16,
    net=actor_critic.Config(hidden_sizes=(32,), squash=True),
    planner="cem",
    plan=mpc.Config(horizon=1, num_samples=50, num_elites=5, num_iterations=4),
    model=models.Config(ensemble=TINY),
)


@pytest.fixture(scope="module")
def imitating() -> tuple[Algorithm, list[PyTree], list[Any]]:
    """In probe5, with one model-free update at the end: the states from the initial one
    on, and the metrics.  The best action is obs / 2, worth 1."""
    algorithm = nagabandi.make(probes.probe5(), IMITATION)
    return algorithm, *train(algorithm, BEFORE + IMITATIONS + 1)


def same(a: PyTree, b: PyTree) -> bool:
    return all(map(np.array_equal, *map(jax.tree.leaves, (a, b))))


@pytest.mark.slow
def test_a_network_learns_what_the_planner_does(imitating: tuple):
    algorithm, states, metrics = imitating
    assert states[BEFORE].answers.size == 0
    state = states[BEFORE + IMITATIONS]
    assert state.answers.size == IMITATIONS
    losses = [float(x["imitation/loss"]) for x in metrics[:-1]]
    assert max(losses[:BEFORE]) == 0 < min(losses[BEFORE:])
    assert losses[-1] < losses[BEFORE] / 2
    answers = jax.tree.map(lambda x: np.asarray(x)[:IMITATIONS], state.answers.data)
    np.testing.assert_allclose(answers.action, answers.obs / 2, atol=0.1)
    policy = algorithm.policy(state)
    act = jax.jit(lambda key, obs: policy.act(key, obs, policy.init())[0])
    for obs in (-1.0, 1.0):  # now the network's: it needs no key
        acts = [act(jax.random.key(i), jnp.full(1, obs)) for i in range(2)]
        np.testing.assert_array_equal(*acts)
        np.testing.assert_allclose(acts[0], obs / 2, atol=0.15)


@pytest.mark.slow
def test_the_model_stays_as_it_is_once_it_is_imitated(imitating: tuple):
    _, states, _ = imitating
    assert [int(x.num_steps) for x in states] == list(range(len(states)))
    models = [x.model for x in states]
    assert not any(same(*models[i : i + 2]) for i in range(BEFORE))
    assert all(same(models[BEFORE], x) for x in models[BEFORE:])


@pytest.mark.slow
def test_after_the_imitation_it_learns_without_the_model(imitating: tuple):
    _, states, metrics = imitating
    imitated, tuned = states[-2:]
    assert same(imitated.answers, tuned.answers)
    assert not same(imitated.learner.agent.actor, tuned.learner.agent.actor)
    assert tuned.env_steps - imitated.env_steps == 16  # episodes of a step
    assert 0 < metrics[-1]["policy/divergence"] <= IMITATION.trpo.max_kl
    assert metrics[-2]["policy/divergence"] == 0


@pytest.mark.slow
def test_platos_teacher_is_between_the_planner_and_the_network(imitating: tuple):
    """In probe5 what it maximises is 1 - (a - obs / 2)^2 - w ((a - mean) / std)^2 / 2,
    the best planner's and the network's actions being obs / 2 and `mean`."""
    _, states, _ = imitating
    state = states[BEFORE]._replace(num_steps=jnp.asarray(BEFORE + 1))
    agent = state.learner.agent
    moved = {**agent.actor, "log_std": agent.actor["log_std"] - 0.3}
    learner = state.learner._replace(agent=agent._replace(actor=moved))
    state, row = state._replace(learner=learner), int(state.replay.size)
    plato = dataclasses.replace(
        IMITATION,
        teacher="plato",
        net=dataclasses.replace(IMITATION.net, init_std=0.5),
    )

    @jax.jit
    @jax.vmap
    def taught(weight: Array) -> tuple[Array, Array, Array]:
        config = dataclasses.replace(plato, kl_weight=weight)
        after, _ = nagabandi.make(probes.probe5(), config).step(
            jax.random.key(0), state
        )
        done = jax.tree.map(lambda x: x[row], after.replay.data)
        return done.obs[0], done.action[0], after.answers.data.action[0, 0]

    weights = np.array([0.0, 0.05, 0.5, 1e6])
    std = 0.5 * np.exp(-0.3)  # of the network, the limit being 1
    obs, action, answer = map(np.asarray, taught(jnp.asarray(weights)))
    acts = nagabandi.make(probes.probe5(), IMITATION).policy(state)
    mean = float(acts.act(jax.random.key(0), jnp.asarray(obs[:1]), acts.init())[0][0])
    assert abs(mean - obs[0] / 2) > 0.3
    share = weights / std**2
    np.testing.assert_allclose(action, (obs + share * mean) / (2 + share), atol=0.03)
    divergence = (action - mean) ** 2 / std**2 / 2
    assert (np.diff(divergence) < -0.01).all()
    np.testing.assert_allclose(answer, obs / 2, atol=0.03)


def test_platos_weight_is_no_gain():
    for words, settings in (
        ("teacher is 'kahn', must be one of: dagger, plato", {"teacher": "kahn"}),
        ("kl_weight is -1, must be at least 0", {"kl_weight": -1}),
    ):
        with pytest.raises(ValueError, match=words):
            nagabandi.make(probes.probe5(), dataclasses.replace(IMITATION, **settings))
