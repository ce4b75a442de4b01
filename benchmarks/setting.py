"""The setting that is measured: mbrl-lib's PETS on its continuous cartpole."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import envs, replay
from mbrl_jax.models import ensemble
from mbrl_jax.types import Env, Key, Model, PyTree, Transition


class Setting(NamedTuple):
    hidden_sizes: tuple[int, ...] = (200, 200, 200, 200)
    num_members: int = 7
    num_elites: int = 5
    num_samples: int = 350
    horizon: int = 15
    num_iterations: int = 5
    num_particles: int = 20


def env() -> Env:
    """obs [4], action [1]; the reward and the end of mbrl-lib's cartpole."""
    return envs.make("cartpole_balance")


def make_model(
    setting: Setting, batch_size: int = 256, num_epochs: int = 1
) -> tuple[Model, PyTree]:
    """The ensemble, and a state of it."""
    config = ensemble.Config(
        num_members=setting.num_members,
        num_elites=setting.num_elites,
        hidden_sizes=setting.hidden_sizes,
        batch_size=batch_size,
        num_epochs=num_epochs,
        max_holdout=0,
    )
    task = env()
    model = ensemble.make(task.obs_size, task.action_size, config)
    return model, jax.jit(model.init)(jax.random.key(0))


def layers(setting: Setting) -> list[tuple[int, int]]:
    """Inputs and outputs of each layer of a network."""
    task = env()
    sizes = [task.obs_size + task.action_size, *setting.hidden_sizes, 2 * task.obs_size]
    return list(itertools.pairwise(sizes))


def forward_flop(setting: Setting) -> float:
    """Of the matrix products of one prediction by one member."""
    return 2.0 * sum(inputs * outputs for inputs, outputs in layers(setting))


def gradient_flop(setting: Setting) -> float:
    """Of the matrix products of one row's gradient, for one member.

    Forward, by the weights, and by the inputs, but for the first layer's.
    """
    inputs, outputs = layers(setting)[0]
    return 3 * forward_flop(setting) - 2.0 * inputs * outputs


def plan_flop(setting: Setting) -> float:
    """Of the matrix products of one search for a plan."""
    rows = setting.num_samples * setting.num_particles * setting.horizon
    return rows * setting.num_iterations * forward_flop(setting)


def transitions(key: Key, size: int) -> Transition:
    """Made-up data [size, ...]."""
    task = env()
    obs_key, action_key = jax.random.split(key)
    obs = jax.random.normal(obs_key, (size, task.obs_size))
    action = jax.random.uniform(action_key, (size, task.action_size), minval=-1.0)
    next_obs = obs + 0.1 * jnp.sin(obs) + 0.1 * action.sum(axis=1, keepdims=True)
    never = jnp.zeros(size, bool)
    return Transition(obs, action, jnp.ones(size), next_obs, never, never)


def full_replay(key: Key, size: int) -> replay.Replay:
    task = env()
    empty = replay.init(task.obs_size, task.action_size, size)
    return replay.insert(empty, transitions(key, size), jnp.ones(size, bool))
