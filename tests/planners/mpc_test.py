import dataclasses
import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import imagine, rollout
from mbrl_jax.envs import linear_quadratic
from mbrl_jax.planners import mpc
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan

H, A, K = 4, 2, 3


def numbered(shape: tuple[int, ...], offset: int) -> Array:
    return offset + jnp.arange(np.prod(shape), dtype=float).reshape(shape)


START = Plan(
    *(jnp.zeros((H, A)), jnp.ones((H, A)), jnp.zeros((H, A)), jnp.zeros((K, H, A)))
)
FOUND = Plan(*(numbered(x.shape, 100 * i) for i, x in enumerate(START)))


def test_one_step_later():
    """The plan moves on, the search widens again, and the first action is executed."""

    def planner(key: Key, objective: Objective, plan: Plan) -> tuple[Plan, Metrics]:
        assert plan is START
        return FOUND, {}

    policy = mpc.replan(planner, START, lambda key, obs: lambda actions: actions.sum())
    assert policy.init() is START
    action, plan = policy.act(jax.random.key(0), jnp.zeros(3), START)
    np.testing.assert_array_equal(action, FOUND.actions[0])
    np.testing.assert_array_equal(plan.mean[:-1], FOUND.mean[1:])
    np.testing.assert_array_equal(plan.mean[-1], [0, 0])
    np.testing.assert_array_equal(plan.actions[:-1], FOUND.actions[1:])
    np.testing.assert_array_equal(plan.elites[:, :-1], FOUND.elites[:, 1:])
    np.testing.assert_array_equal(plan.elites[:, -1], FOUND.elites[:, -1])
    np.testing.assert_array_equal(plan.std, START.std)


def test_search_and_objective_have_keys_of_their_own():
    """And those of another step are others."""
    seen = []

    def planner(key: Key, objective: Objective, plan: Plan) -> tuple[Plan, Metrics]:
        seen.extend([key, objective(plan.mean)])
        return plan, {}

    policy = mpc.replan(planner, START, lambda key, obs: lambda actions: key)
    for seed in range(2):
        policy.act(jax.random.key(seed), jnp.zeros(3), START)
    data = {tuple(np.asarray(jax.random.key_data(key))) for key in seen}
    assert len(data) == 4


@pytest.mark.parametrize("name", mpc.PLANNERS)
def test_the_start_of_a_search(name: str):
    config = mpc.Config(horizon=H, num_kept=K, init_std=0.25)
    policy = mpc.make(
        name, config, A, 2.0, lambda key, obs: lambda actions: actions.sum()
    )
    start = policy.init()
    np.testing.assert_array_equal(start.mean, np.zeros((H, A)))
    np.testing.assert_array_equal(start.std, np.full((H, A), 0.5))
    assert start.elites.shape == (K if name == "icem" else 0, H, A)
    act = partial(policy.act, jax.random.key(0), jnp.zeros(3))
    action, after = jax.eval_shape(act, start)
    assert action.shape == (A,)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, start)


@pytest.mark.parametrize("name", mpc.PLANNERS)
def test_a_planner_gets_the_hyperparameters_that_it_knows(name: str):
    planner, fields = mpc.PLANNERS[name]
    known = inspect.signature(planner).parameters
    config = {field.name for field in dataclasses.fields(mpc.Config)}
    assert set(fields) == set(known) & config


def test_memory_pays_on_the_true_dynamics():
    """One iteration per step, started at the last plan, comes within 20 % (14 %).

    Of the optimum of 20 steps, summed over 8 starts.  No action is 90 % off, and the
    same search from scratch at every step 36 %.
    """
    problem, num_steps = linear_quadratic.TWO_MASSES, 25
    env = linear_quadratic.make(problem, action_limit=2.0, episode_length=num_steps)
    best = linear_quadratic.optimum(problem, num_steps)
    config = mpc.Config(horizon=20, num_samples=200, num_elites=20, num_iterations=1)

    def objective(key: Key, obs: Array) -> Objective:
        env_state = env.reset(key)
        state = env_state.sim.state._replace(x=obs)
        here = env_state._replace(obs=obs, sim=env_state.sim._replace(state=state))
        return partial(imagine.simulated_return, env, here)

    policy = mpc.make("cem", config, 1, 2.0, objective)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def loss(key: Key, remember: Array) -> Array:
        """How far the return is from the optimum."""

        def act(key: Key, obs: Array, memory: Plan) -> tuple[Array, Plan]:
            action, after = policy.act(key, obs, memory)
            return action, jax.tree.map(partial(jnp.where, remember), after, memory)

        done = rollout.episode(key, env, policy._replace(act=act)).transitions
        return linear_quadratic.optimal_return(best, done.obs[0]) - done.reward.sum()

    keys = jax.random.split(jax.random.key(0), 8)
    remembering, forgetting = loss(keys, True).sum(), loss(keys, False).sum()
    assert 0 < remembering < 0.2 * 101  # the optimum
    assert forgetting > 1.5 * remembering


GOOD = {"horizon": 5, "num_samples": 8, "num_elites": 4, "num_kept": 2}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("newton", {}, "planner is 'newton', must be one of: random_shooting, cem"),
        ("cem", {"horizon": 0}, "horizon is 0"),
        ("mppi", {"num_samples": -1}, "num_samples is -1"),
        ("icem", {"num_elites": 0}, "num_elites is 0"),
        ("cem", {"num_iterations": 0}, "num_iterations is 0"),
        ("cem", {"num_elites": 9}, "num_elites is 9, more than the 8 of num_samples"),
        ("icem", {"num_elites": 9}, "num_elites is 9, more than the 8 of num_samples"),
        ("icem", {"num_kept": 5}, "num_kept is 5, more than the 4 of num_elites"),
        ("icem", {"num_kept": -1}, "num_kept is -1"),
        ("cem", {"momentum": 1.5}, "momentum is 1.5"),
        ("cem", {"init_std": 0.0}, "init_std is 0.0, must be positive"),
        ("mppi", {"temperature": -1.0}, "temperature is -1.0, must be positive"),
    ],
)
def test_what_cannot_be(name: str, change: dict[str, Any], message: str):
    config = mpc.Config(**(GOOD | change))
    with pytest.raises(ValueError, match=message):
        mpc.make(name, config, 1, 1.0, lambda key, obs: jnp.sum)


@pytest.mark.parametrize("name", ["random_shooting", "mppi"])
def test_what_a_planner_does_not_read_may_be(name: str):
    mpc.validate(name, mpc.Config(num_samples=8, num_elites=9, num_kept=99))
    mpc.validate("icem", mpc.Config(**(GOOD | {"num_kept": 0})))
