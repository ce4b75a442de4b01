"""Environments that fail, for `--env=benchmarks.robustness.faulty:NAME`.

Those that break do so after as many steps as FAULTY_AFTER says, never if it says 0: so
a run can be gone on with when the fault is mended.
"""

import functools
import os
import time
from typing import Any

import gymnasium as gym
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs import gymnasium
from mbrl_jax.types import Env
from tests.contract_test import SHORT, with_faults

AFTER = "FAULTY_AFTER"
READINGS = {"nan": np.nan, "inf": np.inf, "huge": 1e30}


class Simulator:
    """A point that is pushed, with a fault."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    spec = None

    def __init__(self, fault: str) -> None:
        self.fault, self.left = fault, int(os.environ.get(AFTER, "0")) or 10**9

    def reset(self, *, seed: int) -> tuple[Any, dict[str, Any]]:
        if self.left <= 0 and self.fault == "reset_raises":
            raise OSError("the cable is out")
        self.seed, self.time = seed, 0
        self.obs = np.random.default_rng(seed).normal(size=2)
        return self.obs, {}

    def step(self, action: np.ndarray) -> Any:
        self.left, self.time = self.left - 1, self.time + 1
        self.obs = self.obs + 0.1 * np.array([self.obs[1], action[0]])
        obs, reward = self.obs, -float(abs(self.obs[0]))
        if self.left <= 0:
            if self.fault == "step_raises":
                raise ZeroDivisionError("division\nby zero")
            if self.fault == "silent":
                time.sleep(3600)
            if self.fault == "nothing":
                return None
            if self.fault == "wrong_shape":
                obs = np.zeros(3)
        if self.seed % 2 and self.time == 2:  # the same again if it is replayed
            obs = np.full(2, READINGS[self.fault]) if self.fault in READINGS else obs
            reward = np.nan if self.fault == "nan_reward" else reward
        return obs, reward, False, False, {}


BREAK = ("reset_raises", "step_raises", "nothing", "wrong_shape")
LIE = (*READINGS, "nan_reward")  # at the second step of every other episode


def _hosted(fault: str) -> Env:
    return gymnasium.adapt(Simulator(fault), name=fault, episode_length=4)


def _fail(*arguments: Any) -> Any:
    raise KeyError("no such joint")


for _fault in (*BREAK, *LIE, "silent"):
    globals()[_fault] = functools.partial(_hosted, _fault)


def all_readings() -> Env:
    """1e30, then NaN, then a reward of inf, in every episode, inside jax."""
    return with_faults(SHORT, jnp.bool_(True))


REFUSED = {
    "make_raises": _fail,
    "traced_reset_raises": lambda: SHORT._replace(reset=_fail),
    "traced_step_raises": lambda: SHORT._replace(step=_fail),
    "traced_wrong_shape": lambda: SHORT._replace(obs_size=7),
    "no_env": lambda: {"name": "env"},
}
globals().update(REFUSED)
