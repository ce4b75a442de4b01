"""What `apg`, `shac`, `bptt` and `svg` have of their own: what they learn, and how."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax import optimizers, rollout
from mbrl_jax.algorithms import apg, bptt, shac, svg
from mbrl_jax.envs import probes, simulator
from mbrl_jax.gradients import closed_loop, pathwise, windows
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble
from mbrl_jax.networks import MLP
from mbrl_jax.ops import normalize, raster
from mbrl_jax.types import Array, Env, EnvState, Gaussian, Key, Model, Policy

SMALL = ensemble.Config(num_members=2, hidden_sizes=(16,), num_epochs=30)
QUICK = {
    "apg": apg.Config(num_envs=16, horizon=2, learning_rate=1e-2, hidden_sizes=(16,)),
    "shac": shac.Config(
        num_envs=16,
        horizon=2,
        num_updates=50,
        discount=0.5,
        learning_rate=1e-2,
        hidden_sizes=(16,),
        critic_sizes=(16,),
    ),
    "bptt": bptt.Config(
        capacity=64,
        num_updates=10,
        num_rollouts=20,
        horizon=2,
        learning_rate=1e-2,
        hidden_sizes=(16,),
        model=models.Config(ensemble=SMALL),
    ),
    "svg": svg.Config(
        capacity=256,
        num_updates=20,
        batch_size=16,
        learning_rate=1e-2,
        hidden_sizes=(16,),
        critic_sizes=(16,),
        std=0.1,  # so that the limits of the action do not matter
        model=models.Config(
            ensemble=dataclasses.replace(SMALL, num_members=1, num_epochs=5)
        ),
    ),
}
MODULES = {"apg": apg, "shac": shac, "bptt": bptt, "svg": svg}
NUM_STEPS = {"apg": 4, "shac": 4, "bptt": 40, "svg": 40}


def walk() -> Env:
    """Two steps from 0, best to 1/2 and no further: only what follows a step pays it,
    the second one only what follows the end of the episode, which is a time limit."""
    return simulator.make_env(
        "walk",
        initial=lambda key: jnp.zeros(1),
        dynamics=lambda state, action: state + action,
        observe=lambda state: state,
        reward=lambda obs, action, next_obs: 1 - (obs[0] - 0.5) ** 2,
        terminal=simulator.never,
        shapes=lambda state: raster.lanes(state, 1.0),
        view=raster.LANES,
        action_size=1,
        action_limit=1.0,
        episode_length=2,
    )


def lasting() -> Env:
    """probe4, its state counts steps; the end comes after two."""
    env = probes.probe4()

    def step(env_state: EnvState, action: Array) -> EnvState:
        after = env.step(env_state, action)
        count = env_state.obs + 1
        sim = after.sim._replace(state=count)
        ended, never = count[0] >= 2, jnp.zeros((), bool)
        return after._replace(obs=count, sim=sim, terminal=ended, truncated=never)

    return env._replace(step=step, episode_length=2)


# those which have a gradient; nothing is known about rewards of the last one
TASKS = {
    "probe4": probes.probe4,
    "probe5": probes.probe5,
    "walk": walk,
    "lasting": lasting,
    "spoiled": probes.probe4,
}


def make_task(name: str) -> Env:
    return TASKS[name]()


def spoil(env: Env, which: Array) -> Env:
    """What the model takes for the rewards of the last task is not finite."""
    assert env.reward is not None
    reward, factor = env.reward, jnp.where(which == len(TASKS) - 1, jnp.nan, 1.0)
    return env._replace(reward=lambda *args: factor * reward(*args))


@pytest.fixture
def of_task(trained: Callable) -> Callable[[str, str], Any]:
    """What came of an algorithm in a task, learned together with the others."""

    def pick(name: str, task: str) -> Any:
        what = MODULES[name], QUICK[name], NUM_STEPS[name]
        found = trained(*what, tuple(TASKS), make_task, spoil)
        return jax.tree.map(lambda x: x[list(TASKS).index(task)], found)

    return pick


def policy_of(name: str, task: str, of_task: Callable) -> Policy:
    algorithm = MODULES[name].make(make_task(task), QUICK[name])
    return algorithm.policy(of_task(name, task).state)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("task", ["probe4", "probe5"])
def test_the_policy_goes_where_the_reward_is_best(
    of_task: Callable, name: str, task: str
):
    """At action 1/2, or at half the obs; a return of 1 - 0.1^2 is 0.1 off."""
    env, policy = make_task(task), policy_of(name, task, of_task)
    evaluate = jax.jit(lambda key: rollout.evaluate(key, env, policy, 8)[0])
    assert evaluate(jax.random.key(1))["eval/return_min"] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apg", "shac", "bptt"])
def test_the_gradient_goes_through_what_follows(of_task: Callable, name: str):
    """Nothing but the next state tells which first action is best.  Of the second one
    the critic tells it, or the model."""
    policy = policy_of(name, "walk", of_task)
    act = jax.jit(lambda obs: policy.act(jax.random.key(0), obs, policy.init())[0])
    np.testing.assert_allclose(act(jnp.zeros(1)), 0.5, atol=0.1)
    if name != "apg":
        np.testing.assert_allclose(act(jnp.full(1, 0.5)), 0, atol=0.1)


@pytest.mark.slow
def test_the_critic_of_shac_learns_the_value(of_task: Callable):
    """Of a reward of about 1 in each of two steps, then the end; discount 0.5."""
    found = of_task("shac", "lasting")
    assert found.metrics["critic/mse"][-1] < 0.01
    np.testing.assert_allclose(found.state.scale.mean, (1.5 + 1) / 2, rtol=0.05)


@pytest.mark.slow
def test_a_model_that_breaks_leaves_the_policy_alone(of_task: Callable):
    """The imagined rewards are not finite: all rollouts are counted, none used."""
    found, config = of_task("bptt", "spoiled"), QUICK["bptt"]
    jax.tree.map(np.testing.assert_array_equal, found.state.params, found.first.params)
    number = NUM_STEPS["bptt"] * config.num_updates * config.num_rollouts
    assert found.metrics["gradient/num_non_finite"][-1] == number


@pytest.mark.slow
@pytest.mark.parametrize(
    ("horizon", "num_updates", "num_steps"), [(0, 20, 100), (-1, 1, 300)]
)
def test_svg_with_a_q_or_with_whole_episodes(
    trained: Callable, horizon: int, num_updates: int, num_steps: int
):
    """SVG(0) finds out the reward from its critic; SVG(inf) has an episode each time,
    to which its policy must belong."""
    env, changes = probes.probe5(), {"horizon": horizon, "num_updates": num_updates}
    config = dataclasses.replace(QUICK["svg"], **changes)
    state = trained(svg, config, num_steps, ("probe5",)).state
    policy = svg.make(env, config).policy(jax.tree.map(lambda x: x[0], state))
    evaluate = jax.jit(lambda key: rollout.evaluate(key, env, policy, 8)[0])
    assert evaluate(jax.random.key(1))["eval/return_min"] > 0.98


class _SeenError(Exception):
    """What a window was asked for."""


def asked_for(
    monkeypatch: pytest.MonkeyPatch, module: Any, config: Any, **changes: Any
) -> closed_loop.ExpectedReturn:
    """By the first update of a state with these changes; nothing is compiled."""

    def window(key: Key, params: Any, env: Env, problem: Any, envs: Any) -> None:
        raise _SeenError(problem)

    algorithm = module.make(probes.probe4(), config)
    state = jax.jit(algorithm.init)(jax.random.key(0))._replace(**changes)
    monkeypatch.setattr(windows, "window", window)
    with jax.disable_jit(), pytest.raises(_SeenError) as seen:
        algorithm.step(jax.random.key(0), state)
    return seen.value.args[0]


@pytest.mark.parametrize("name", ["apg", "shac"])
def test_the_objective_is_that_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch, name: str
):
    config = dataclasses.replace(QUICK[name], horizon=4, discount=0.7, segment=2)
    problem = asked_for(monkeypatch, MODULES[name], config)
    assert (problem.horizon, problem.discount, problem.segment) == (4, 0.7, 2)
    assert (problem.value is None) == (name == "apg")


def test_the_objective_of_bptt_is_that_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
):
    def pathwise_mean(key: Key, params: Any, problem: Any, states: Any) -> None:
        raise _SeenError(problem, states)

    monkeypatch.setattr(pathwise, "pathwise_mean", pathwise_mean)
    config = dataclasses.replace(QUICK["bptt"], horizon=4, discount=0.7, segment=2)
    algorithm = bptt.make(probes.probe4(), config)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(_SeenError) as seen:
        jax.eval_shape(algorithm.step, jax.random.key(0), state)
    problem, states = seen.value.args
    assert (problem.horizon, problem.discount, problem.segment) == (4, 0.7, 2)
    assert problem.value is None
    assert {len(x) for x in jax.tree.leaves(states)} == {20 // 2}  # of each member


@pytest.mark.parametrize("name", ["apg", "shac"])
def test_schedules_and_averages_are_those_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch, name: str
):
    seen, rates = [], []
    adam, average = optimizers.clipped_adam, optax.incremental_update

    def clipped_adam(*args: float, **options: Any) -> Any:
        seen.append((*args, options))
        return adam(*args, **options)

    def incremental_update(new: Any, old: Any, step_size: float) -> Any:
        rates.append(step_size)
        return average(new, old, step_size)

    monkeypatch.setattr(optimizers, "clipped_adam", clipped_adam)
    monkeypatch.setattr(optax, "incremental_update", incremental_update)
    own = {"critic_learning_rate": 0.3, "target_decay": 0.1} if name == "shac" else {}
    config = dataclasses.replace(
        QUICK[name],
        learning_rate=0.2,
        max_norm=3.0,
        b1=0.4,
        b2=0.5,
        decay_steps=6,
        **own,
    )
    algorithm = MODULES[name].make(probes.probe4(), config)
    options = {"b1": 0.4, "b2": 0.5, "decay_steps": 6}
    expected = [(rate, 3.0, options) for rate in (0.2, 0.3)]
    assert seen == expected[: 2 if own else 1]
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    jax.eval_shape(algorithm.step, jax.random.key(0), state)
    assert rates == ([0.9] if own else [])


@pytest.mark.parametrize("name", ["apg", "shac"])
def test_no_gradient_is_an_error_before_anything_runs(name: str):
    with pytest.raises(ValueError, match="probe2 is exactly 0"):
        MODULES[name].make(probes.probe2())


@pytest.mark.parametrize(
    ("name", "changes", "fault"),
    [
        ("apg", {"segment": 3}, "segment is 3, must divide horizon, 2"),
        ("apg", {"num_envs": 0}, "num_envs is 0"),
        ("shac", {"num_minibatches": 5}, "num_minibatches is 5, must divide"),
        ("shac", {"td_lambda": 1.5}, "td_lambda is 1.5"),
        (
            "bptt",
            {"num_rollouts": 21},
            "num_rollouts is 21, must be a multiple of the 2",
        ),
        ("bptt", {"capacity": 0}, "capacity is 0, less than the 1 steps"),
        ("svg", {"horizon": -2}, "horizon is -2"),
        ("svg", {"horizon": 300}, "horizon is 300, more than the 256 of capacity"),
        ("svg", {"discount": 1.0}, "discount is 1.0"),
        ("svg", {"horizon": -1}, "num_updates is 20, must be 1 where horizon is -1"),
        (
            "svg",
            {
                "model": models.Config(
                    ensemble=dataclasses.replace(SMALL, learn_terminal=True)
                )
            },
            "learn_terminal",
        ),
    ],
)
def test_a_configuration_that_cannot_be(name: str, changes: dict, fault: str):
    config = dataclasses.replace(QUICK[name], **changes)
    with pytest.raises(ValueError, match=fault):
        MODULES[name].make(probes.probe4(), config)


def bumped(tree: Any) -> Any:
    return jax.tree.map(lambda x: x + 0.1, tree)


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_shac_climbs_its_target_critic_which_follows_the_critic():
    """One update of two steps, of which nothing but the critic tells what they are for;
    the target keeps `target_decay` of what it was, in the units of today."""
    env, config = walk(), dataclasses.replace(QUICK["shac"], num_updates=1)

    @jax.jit
    def update(state: shac.State | None, decay: float) -> shac.State:
        changed = dataclasses.replace(config, target_decay=decay)
        algorithm, key = shac.make(env, changed), jax.random.key(0)
        state = algorithm.init(key) if state is None else state
        return algorithm.step(key, state)[0]

    state = update(None, 0.2)
    after = update(state, 0.2)
    other = update(state._replace(critic=bumped(state.critic)), 0.2)
    assert_same(other.params, after.params)
    other = update(state._replace(target=bumped(state.target)), 0.2)
    with pytest.raises(AssertionError):
        assert_same(other.params, after.params)

    def value(params: Any, scale: normalize.RunningStats) -> np.ndarray:
        """Where the networks see -1, 0 and 1."""
        critic, stats = MLP(config.critic_sizes, 1, nn.elu), normalize.so_far(scale)
        found = critic.apply(params, jnp.array([[-1.0], [0.0], [1.0]]))
        return np.asarray(found)[:, 0] * float(stats.std[0]) + float(stats.mean[0])

    kept = update(state, 1.0)
    assert kept.scale.number > state.scale.number
    before = value(state.target, state.scale)
    np.testing.assert_allclose(value(kept.target, kept.scale), before, atol=1e-5)
    assert_same(update(state, 0.0).target, after.critic)
    mix = lambda old, new: 0.2 * old + 0.8 * new
    expected = jax.tree.map(mix, kept.target, after.critic)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.target, expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [0, 1])
def test_svg_climbs_its_critic(horizon: int):
    """In an episode of one step that is no end, what follows is up to the critic."""
    config = dataclasses.replace(
        QUICK["svg"], horizon=horizon, num_updates=1, critic_learning_rate=1e-9
    )
    algorithm = svg.make(walk(), config)
    step = jax.jit(lambda state: algorithm.step(jax.random.key(0), state)[0])
    state = jax.jit(algorithm.init)(jax.random.key(0))
    after = step(state)
    assert_same(step(state._replace(target=bumped(state.target))).params, after.params)
    other = step(state._replace(critic=bumped(state.critic)))
    with pytest.raises(AssertionError):
        assert_same(other.params, after.params)


@pytest.mark.slow
def test_bptt_goes_through_every_member(monkeypatch: pytest.MonkeyPatch):
    """Of three members one is broken: a third of the rollouts."""

    def stub(obs_size: int, action_size: int, config: Any) -> Model:
        def predict(member: Array, obs: Array, action: Array) -> Gaussian:
            mean = jnp.where(member == 1, jnp.nan, obs + action)
            return Gaussian(mean, jnp.ones_like(obs))

        fit = lambda key, state, data: (state, {})
        return Model(lambda key: (), fit, lambda state: jnp.arange(3), predict)

    monkeypatch.setattr(ensemble, "make", stub)
    members = dataclasses.replace(SMALL, num_members=3, num_elites=3)
    config = dataclasses.replace(
        QUICK["bptt"],
        num_updates=2,
        num_rollouts=12,
        model=models.Config(ensemble=members),
    )
    algorithm = bptt.make(walk(), config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    _, metrics = jax.jit(algorithm.step)(jax.random.key(0), state)
    assert metrics["gradient/num_non_finite"] == 2 * 12 / 3
    assert metrics["gradient/norm"] > 0
