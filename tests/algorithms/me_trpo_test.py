"""ME-TRPO on probes, by every learner; `contract_test.py` has the rest."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from mbrl_jax import envs, rollout
from mbrl_jax.algorithms import me_trpo
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble
from mbrl_jax.policy_gradient import actor_critic

CONFIG = me_trpo.Config(
    capacity=400,
    num_episodes=40,
    num_rollouts=60,
    horizon=1,
    num_updates=10,
    num_rounds=10,
    net=actor_critic.Config(hidden_sizes=(16,), init_std=0.5),
    model=models.Config(
        ensemble=ensemble.Config(num_members=3, hidden_sizes=(16,), num_epochs=30)
    ),
)


@pytest.mark.parametrize("learner", ["a2c", "natural_gradient", "reinforce"])
def test_every_learner_fits_in(learner: str):
    config = dataclasses.replace(CONFIG, learner=learner)
    algorithm, key = me_trpo.make(envs.make("probe5"), config), jax.random.key(0)
    before = jax.eval_shape(algorithm.init, key)
    after, _ = jax.eval_shape(algorithm.step, key, before)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, before)


TASKS = ("probe1", "probe5")


def config_of(learner: str) -> me_trpo.Config:
    ppo = dataclasses.replace(CONFIG.ppo, learning_rate=5e-3)
    return dataclasses.replace(CONFIG, learner=learner, ppo=ppo)


@pytest.fixture
def of_task(trained: Callable) -> Callable[[str, str], Any]:
    """What came of a learner in a probe, learned together with the other one."""

    def pick(learner: str, task: str) -> Any:
        found = trained(me_trpo, config_of(learner), 8, TASKS)
        return jax.tree.map(lambda x: x[TASKS.index(task)], found)

    return pick


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["trpo", "ppo"])
def test_learners_learn_in_the_model(of_task: Callable, learner: str):
    """The best action is obs / 2, worth 1; actions of 0 are worth 0.75."""
    _, state, metrics = of_task(learner, "probe5")
    np.testing.assert_array_equal(metrics["env_steps"], 40 * np.arange(1, 9))
    assert metrics["imagined/rounds"][0] > 0
    env = envs.make("probe5")
    policy = me_trpo.make(env, config_of(learner)).policy(state)
    evaluate = jax.jit(lambda key: rollout.evaluate(key, env, policy, 8)[0])
    assert evaluate(jax.random.key(1))["eval/return_min"] > 0.97


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["trpo", "ppo"])
def test_a_round_that_made_nothing_better_is_undone(of_task: Callable, learner: str):
    """Where every action is as good, the first one is, and ends it."""
    first, state, metrics = of_task(learner, "probe1")
    np.testing.assert_array_equal(metrics["imagined/rounds"], 0)
    jax.tree.map(np.testing.assert_array_equal, state.learner, first.learner)


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
