"""ME-TRPO on probes, by every learner; `contract_test.py` has the rest."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from mbrl_jax import actor_critic, envs, rollout
from mbrl_jax.algorithms import me_trpo
from mbrl_jax.models import ensemble
from mbrl_jax.types import PyTree

CONFIG = me_trpo.Config(
    capacity=400,
    num_episodes=40,
    num_rollouts=60,
    horizon=1,
    num_updates=10,
    num_rounds=10,
    net=actor_critic.Config(hidden_sizes=(16,), init_std=0.5),
    model=ensemble.Config(num_members=3, hidden_sizes=(16,), num_epochs=30),
)


def train(env: str, config: me_trpo.Config, num_steps: int) -> tuple[PyTree, list[Any]]:
    algorithm, key, metrics = (
        me_trpo.make(envs.make(env), config),
        jax.random.key(0),
        [],
    )
    state, step = jax.jit(algorithm.init)(key), jax.jit(algorithm.step)
    for i in range(num_steps):
        state, found = step(jax.random.fold_in(key, i), state)
        metrics.append(jax.device_get(found))
    return state, metrics


@pytest.mark.parametrize("learner", ["a2c", "natural_gradient", "reinforce"])
def test_every_learner_fits_in(learner: str):
    config = dataclasses.replace(CONFIG, learner=learner)
    algorithm, key = me_trpo.make(envs.make("probe5"), config), jax.random.key(0)
    before = jax.eval_shape(algorithm.init, key)
    after, _ = jax.eval_shape(algorithm.step, key, before)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, before)


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["trpo", "ppo"])
def test_learners_learn_in_the_model(learner: str):
    """The best action is obs / 2, worth 1; actions of 0 are worth 0.75."""
    ppo = dataclasses.replace(CONFIG.ppo, learning_rate=5e-3)
    config = dataclasses.replace(CONFIG, learner=learner, ppo=ppo)
    state, metrics = train("probe5", config, 8)
    assert [int(x["env_steps"]) for x in metrics] == [40 * i for i in range(1, 9)]
    assert metrics[0]["imagined/rounds"] > 0
    env = envs.make("probe5")
    policy = me_trpo.make(env, config).policy(state)
    evaluated, _ = rollout.evaluate(jax.random.key(1), env, policy, 8)
    assert evaluated["eval/return_min"] > 0.97


@pytest.mark.slow
def test_a_round_that_made_nothing_better_is_undone():
    """Where every action is as good, the first one is, and ends it."""
    state, (metrics,) = train("probe1", CONFIG, 1)
    fresh = me_trpo.make(envs.make("probe1"), CONFIG).init(jax.random.key(0))
    assert metrics["imagined/rounds"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.learner, fresh.learner)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"learner": "sac"}, "learner is 'sac', must be one of: a2c"),
        (
            {"num_rollouts": 61},
            "num_rollouts is 61, must be a multiple of the 3 members",
        ),
        ({"min_improved": 1.5}, "min_improved is 1.5, must be from 0 to 1"),
        ({"num_rounds": 0}, "num_rounds is 0, must be at least 1"),
    ],
)
def test_what_cannot_be_is_said_early(changes: dict[str, Any], fault: str):
    with pytest.raises(ValueError, match=fault):
        me_trpo.make(envs.make("probe5"), dataclasses.replace(CONFIG, **changes))
