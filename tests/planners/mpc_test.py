import dataclasses
import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import rollout
from mbrl_jax.envs import linear_quadratic
from mbrl_jax.planners import mpc
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan, PyTree, Simulation

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
    start = policy.init()
    assert start.plan is START
    action, (plan, age) = policy.act(jax.random.key(0), jnp.zeros(3), start)
    assert age == 1
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
        policy.act(jax.random.key(seed), jnp.zeros(3), policy.init())
    data = {tuple(np.asarray(jax.random.key_data(key))) for key in seen}
    assert len(data) == 4


def test_a_plan_is_executed_for_an_interval():
    """Without a search in between, also where examples are batched."""
    searches = []

    def planner(key: Key, objective: Objective, plan: Plan) -> tuple[Plan, Metrics]:
        jax.debug.callback(lambda: searches.append(1))
        actions = objective(plan.mean) + jnp.arange(H * A, dtype=float).reshape(H, A)
        return plan._replace(actions=actions), {}

    policy = mpc.replan(planner, START, lambda key, obs: lambda plan: obs[0], 3)

    def run(first: Array) -> Array:
        """The actions [7, A] at observations that count from `first` on."""

        def step(memory: mpc.Memory, t: Array) -> tuple[mpc.Memory, Array]:
            obs = (first + 100 * t)[None].astype(float)
            return policy.act(jax.random.key(0), obs, memory)[::-1]

        return jax.lax.scan(step, policy.init(), jnp.arange(7))[1]

    expected = [100 * (t - t % 3) + np.arange(A) + A * (t % 3) for t in range(7)]
    found = jax.jit(run)(jnp.array(0.0))
    np.testing.assert_array_equal(found, expected)
    jax.effects_barrier()
    assert len(searches) == 3
    found = jax.jit(jax.vmap(run))(jnp.array([0.0, 7.0]))
    jax.effects_barrier()
    np.testing.assert_array_equal(found[1], 7 + np.array(expected))
    assert len(searches) == 3 + 3


def test_an_interval_of_0_is_the_whole_horizon():
    config = mpc.Config(horizon=H, num_samples=20, num_elites=3, interval=0)
    goal = lambda key, obs: lambda actions: -jnp.square(actions - obs[0]).sum()
    acts = [
        jax.jit(mpc.make("cem", c, A, 1.0, goal).act)
        for c in (config, dataclasses.replace(config, interval=H))
    ]
    plan = mpc.make("cem", config, A, 1.0, goal).init()
    memories, key, obs = [plan, plan], jax.random.key(0), jnp.zeros(1)
    for _ in range(H + 1):
        results = [
            act(key, obs, memory) for act, memory in zip(acts, memories, strict=True)
        ]
        np.testing.assert_array_equal(results[0][0], results[1][0])
        memories = [memory for _, memory in results]


def task(key: Key, obs: Array) -> Simulation:
    """x' = x + u / 2, with -x^2 - u^2 / 10 earned; and a key, a flag, a count."""

    def step(state: PyTree, action: Array) -> tuple[PyTree, Array]:
        x, key, flag, count = state
        earned = -jnp.square(x).sum() - jnp.square(action).sum() / 10
        key = jax.random.split(key)[0]
        return (x + action / 2, key, ~flag, count + 1), earned

    start = (obs[:A], key, jnp.array(True), jnp.array(0))
    return Simulation(start, step)


def test_ilqr_plans_as_the_riccati_recursion_does():
    """The task is linear-quadratic, with a key, a flag and a count in the state."""
    config = mpc.Config(horizon=H, num_samples=3, num_iterations=1)
    policy = mpc.make("ilqr", config, A, 10.0, task)
    obs = jnp.array([1.0, -2.0, 0.0])
    action, _ = jax.jit(policy.act)(jax.random.key(0), obs, policy.init())
    P = 0.0  # of each dimension alone: cost P x^2 from here on; nothing at the end
    for _ in range(H):
        gain = P / 2 / (0.1 + P / 4)
        P = 1 + 0.1 * gain**2 + P * (1 - gain / 2) ** 2
    np.testing.assert_allclose(action, -gain * obs[:A], rtol=1e-4)


def test_ilqr_stays_within_the_limits_and_needs_to_look_inside():
    policy = mpc.make("ilqr", mpc.Config(horizon=H), A, 0.5, task)
    obs = jnp.array([1.0, -2.0, 0.0])
    _, memory = jax.jit(policy.act)(jax.random.key(0), obs, policy.init())
    assert np.abs(memory.plan.actions).max() == 0.5
    policy = mpc.make("ilqr", mpc.Config(), A, 0.5, lambda key, obs: jnp.sum)
    with pytest.raises(TypeError, match=r"needs a types\.Simulation"):
        policy.act(jax.random.key(0), obs, policy.init())


@pytest.mark.parametrize("name", mpc.PLANNERS)
def test_the_start_of_a_search(name: str):
    config = mpc.Config(horizon=H, num_kept=K, init_std=0.25)
    policy = mpc.make(name, config, A, 2.0, task)
    start, age = policy.init()
    assert age == 0
    np.testing.assert_array_equal(start.mean, np.zeros((H, A)))
    np.testing.assert_array_equal(start.std, np.full((H, A), 0.5))
    assert start.elites.shape == (K if name == "icem" else 0, H, A)
    act = partial(policy.act, jax.random.key(0), jnp.zeros(3))
    action, after = jax.eval_shape(act, policy.init())
    assert action.shape == (A,)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, (start, age))


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
        return rollout.simulation(env, here)

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
        ("cem", {"interval": -1}, "interval is -1, must be at least 0"),
        ("cem", {"interval": 6}, "interval is 6, more than the 5 of horizon"),
        ("cem", {"momentum": 1.5}, "momentum is 1.5"),
        ("cem", {"init_std": 0.0}, "init_std is 0.0, must be positive"),
        ("gradient", {"step_size": 0.0}, "step_size is 0.0, must be positive"),
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


def test_ilqr_of_a_float32_state_keeps_the_memory_of_a_float64_plan():
    def step(x: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = x + 0.1 * a.sum().astype(x.dtype)
        return y, -((y - 1) ** 2)

    with jax.enable_x64(True):
        config = mpc.Config(horizon=3, num_samples=8, num_iterations=1)
        objective = lambda key, x: Simulation(x, step)
        policy = mpc.make("ilqr", config, 1, 1.0, objective)
        x, memory = jnp.zeros((), jnp.float32), policy.init()
        after = jax.eval_shape(policy.act, jax.random.key(0), x, memory)[1]
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, memory)
        assert after.plan.mean.dtype == memory.plan.mean.dtype == jnp.float64


def test_actions_without_a_limit_are_refused():
    with pytest.raises(ValueError, match="mpc: action_limit is inf, must be finite"):
        mpc.make("cem", mpc.Config(), 1, jnp.inf, lambda key, obs: jnp.sum)
