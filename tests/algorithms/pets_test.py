"""What is PETS's own; `contract_test.py` has what it shares with every algorithm."""

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import policies, rollout
from mbrl_jax.algorithms import pets
from mbrl_jax.envs import point_mass, probes, simulator
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble
from mbrl_jax.models.propagation import PROPAGATIONS
from mbrl_jax.ops import raster
from mbrl_jax.planners import mpc
from mbrl_jax.types import Algorithm, Array, Env, Key, PyTree

KINDS = {
    "D": ensemble.Config(probabilistic=False, num_members=1),
    "P": ensemble.Config(num_members=1),
    "DE": ensemble.Config(probabilistic=False, num_members=3, num_elites=2),
    "PE": ensemble.Config(num_members=3),
}


def train(
    env: Env, config: pets.Config, num_steps: int
) -> tuple[Algorithm, PyTree, PyTree]:
    """The algorithm, its state after `num_steps`, and the metrics on the way."""
    algorithm, key = pets.make(env, config), jax.random.key(0)
    step, state, metrics = jax.jit(algorithm.step), jax.jit(algorithm.init)(key), []
    for key in jax.random.split(key, num_steps):
        state, metric = step(key, state)
        metrics.append(metric)
    return algorithm, state, jax.tree.map(lambda *x: np.stack(x), *metrics)


# --- The grid of the paper.

SMALL = mpc.Config(horizon=2, num_samples=6, num_elites=3, num_iterations=1, num_kept=1)
# every pair of a kind, a propagation and a planner is in one of these
GRID = [
    (list(KINDS)[(i + j) % len(KINDS)], propagation, planner)
    for i, propagation in enumerate(PROPAGATIONS)
    for j, planner in enumerate(mpc.PLANNERS)
]


def test_the_grid_has_every_pair():
    names = set(KINDS), set(PROPAGATIONS), set(mpc.PLANNERS)
    for i, j in itertools.combinations(range(3), 2):
        pairs = {(cell[i], cell[j]) for cell in GRID}
        assert pairs == set(itertools.product(names[i], names[j]))


@pytest.mark.parametrize(("kind", "propagation", "planner"), GRID)
def test_every_cell_of_the_grid_acts(kind: str, propagation: str, planner: str):
    env = point_mass.make()
    config = pets.Config(
        propagation=propagation,
        num_particles=6,
        planner=planner,
        plan=SMALL,
        model=models.Config(ensemble=KINDS[kind]),
    )
    algorithm = pets.make(env, config)

    def act(key: Key, obs: Array) -> tuple[Array, PyTree]:
        policy = algorithm.policy(algorithm.init(key))
        return policy.act(key, obs, policy.init())[0]

    obs = jax.ShapeDtypeStruct((6,), jnp.result_type(float))
    assert jax.eval_shape(act, jax.random.key(0), obs).shape == (2,)


def test_a_planner_that_looks_inside_knows_no_risk():
    config = pets.Config(planner="ilqr", risk="cvar", risk_level=0.5)
    with pytest.raises(ValueError, match="risk is 'cvar': ilqr plans for the mean"):
        pets.make(point_mass.make(), config)


def cliff() -> Env:
    """A walk that ends beyond 1; only the simulator knows why it pays and ends."""
    return simulator.make_env(
        "cliff",
        initial=lambda key: jax.random.uniform(key, (1,)),
        dynamics=lambda state, action: state + action,
        observe=lambda state: state,
        reward=lambda obs, action, next_obs: obs[0],
        terminal=lambda obs, action, next_obs: next_obs[0] > 1,
        shapes=lambda state: raster.lanes(state, 1.0),
        view=raster.LANES,
        action_size=1,
        action_limit=1.0,
        episode_length=6,
    )._replace(reward=None, terminal=None)


@pytest.mark.slow
def test_episodes_of_any_length_are_booked():
    """Random ones, then planned ones; what the environment does not tell is learned."""
    env, num = cliff(), 3
    config = pets.Config(
        capacity=50,
        num_random_episodes=num,
        propagation="distribution_sampling",
        num_particles=6,
        planner="mppi",
        plan=SMALL,
        model=models.Config(
            ensemble=dataclasses.replace(
                KINDS["DE"], hidden_sizes=(8,), num_epochs=3, batch_size=4
            )
        ),
    )
    algorithm, state, metrics = train(env, config, 6)
    lengths = metrics["episode/length"]
    ends = np.cumsum(lengths)
    assert len(set(lengths)) > 1
    assert lengths.max() <= 6
    np.testing.assert_array_equal(metrics["env_steps"], ends)
    assert state.replay.size == state.replay.position == ends[-1]
    rows = jax.tree.map(lambda x: np.asarray(x)[: ends[-1]], state.replay.data)
    np.testing.assert_allclose(rows.next_obs, rows.obs + rows.action, atol=1e-6)
    ended = np.flatnonzero(rows.terminal | rows.truncated)
    np.testing.assert_array_equal(ended, ends - 1)
    random = jax.jit(lambda key: rollout.episode(key, env, policies.uniform(env)))
    for i, key in enumerate(jax.random.split(jax.random.key(0), 6)):
        actions = random(jax.random.split(key)[0]).transitions.action[: lengths[i]]
        found = rows.action[ends[i] - lengths[i] : ends[i]]
        assert np.allclose(found, actions, atol=1e-6) == (i < num)
    mean, std = jax.eval_shape(algorithm.predict, state, np.zeros(1), np.zeros(1))
    assert mean.shape == std.shape == (2, 3)  # elites; obs, reward, logit


# --- Learning.


@pytest.mark.slow
def test_the_best_action_is_found_by_a_learned_reward():
    """Probe 5: the best action is half the obs, worth 1; random ones are worth 0.4.

    No action is worth 0.75.  Only the simulator knows the reward here.  Four of four
    other seeds got 0.997.
    """
    env = probes.probe5()._replace(reward=None)
    config = pets.Config(
        capacity=64,
        propagation="ts1",
        num_particles=3,
        planner="icem",
        plan=mpc.Config(
            horizon=1, num_samples=60, num_elites=5, num_iterations=1, num_kept=2
        ),
        model=models.Config(
            ensemble=ensemble.Config(
                num_members=3, hidden_sizes=(32, 32), learning_rate=3e-3, num_epochs=60
            )
        ),
    )
    _, _, metrics = train(env, config, 60)
    assert metrics["episode/return"][-15:].mean() > 0.93


@pytest.mark.slow
def test_point_mass():
    """Solved within 6 episodes of 30 steps.

    From these starts random actions are worth -55 and the same planner on the true
    dynamics -18.  The bound is at 85 % of the way; five of five other seeds got 96 %.
    """
    env = simulator.time_limit(point_mass.make(), 30)
    config = pets.Config(
        capacity=300,
        num_particles=3,
        planner="cem",
        plan=mpc.Config(horizon=12, num_samples=50, num_elites=6),
        model=models.Config(
            ensemble=ensemble.Config(
                num_members=3,
                hidden_sizes=(32, 32),
                learning_rate=3e-3,
                batch_size=32,
                num_epochs=150,
            )
        ),
    )
    algorithm, state, _ = train(env, config, 6)
    evaluate = lambda key, x: rollout.evaluate(key, env, algorithm.policy(x), 6)[0]
    found = jax.jit(evaluate)(jax.random.key(7), state)
    assert found["eval/return_mean"] > -24


# --- Risk.


def test_who_fears_risk_takes_the_safe_action():
    """Positive actions lead to 2 +- 3, negative ones to 1 +- 0.1; obs is the reward."""
    env = probes.probe4()._replace(
        reward=lambda obs, action, next_obs: next_obs[0],
        terminal=simulator.never,
    )
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (1000, 1))
    noise = rng.normal(size=(1000, 1))
    outcome = np.where(action > 0, 2 + 3 * noise, 1 + 0.1 * noise)
    config = pets.Config(
        capacity=1000,
        num_particles=200,
        planner="random_shooting",
        plan=mpc.Config(horizon=1, num_samples=50),
        model=models.Config(
            ensemble=ensemble.Config(
                num_members=1,
                hidden_sizes=(32,),
                learning_rate=3e-3,
                num_epochs=40,
                # the error of the mean would stop it before the std is good
                max_holdout=0,
            )
        ),
    )

    @jax.jit
    def learned(key: Key) -> pets.State:
        state = pets.make(env, config).init(key)
        data = state.replay.data._replace(
            action=jnp.asarray(action, jnp.float32),
            next_obs=jnp.asarray(outcome, jnp.float32),
        )
        full = state.replay._replace(data=data, size=jnp.int32(1000))
        model = ensemble.make(1, 1, config.model.ensemble)
        return state._replace(model=model.fit(key, state.model, full)[0])

    @jax.jit
    def take(
        keys: Key, state: pets.State, levels: dict[str, float]
    ) -> dict[str, Array]:
        """The actions at each key, by how risk is measured."""

        def act(key: Key, risk: str) -> Array:
            averse = dataclasses.replace(config, risk=risk, risk_level=levels[risk])
            policy = pets.make(env, averse).policy(state)
            return policy.act(key, jnp.zeros(1), policy.init())[0]

        return {risk: jax.vmap(partial(act, risk=risk))(keys) for risk in levels}

    state, keys = learned(jax.random.key(0)), jax.random.split(jax.random.key(0), 10)
    indifferent = take(keys, state, {"mean_minus_std": 0.0, "cvar": 1.0})
    averse = take(keys, state, {"mean_minus_std": 1.0, "cvar": 0.2})
    for risk in averse:
        assert (indifferent[risk] > 0).all()  # this is the mean
        assert (averse[risk] < 0).all()


# --- What cannot be.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 99}, "capacity is 99, less than the 100 steps .* point_mass"),
        ({"propagation": "ts2"}, "propagation is 'ts2', must be one of: expectation, "),
        ({"risk": "none"}, "risk is 'none', must be one of: mean, "),
        (
            {"planner": "newton"},
            "planner is 'newton', must be one of: random_shooting, ",
        ),
        ({"num_particles": 0}, "num_particles is 0"),
        ({"num_particles": 9}, "num_particles is 9, .* multiple of the 5 members"),
        ({"risk": "cvar", "risk_level": 0.0}, "risk_level is 0.0, must be positive"),
        ({"risk": "cvar", "risk_level": 1.5}, "risk_level is 1.5"),
        ({"plan": mpc.Config(horizon=0)}, "horizon is 0"),
        (
            {"model": models.Config(ensemble=ensemble.Config(num_members=0))},
            "num_members is 0",
        ),
    ],
)
def test_what_cannot_be(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        pets.make(point_mass.make(), pets.Config(**change))


def test_expectation_takes_any_number_of_particles():
    config = pets.Config(propagation="expectation", num_particles=9)
    assert isinstance(pets.make(point_mass.make(), config), Algorithm)
