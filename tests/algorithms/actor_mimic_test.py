"""Actor-Mimic, of experts that are tables seen through random features."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.algorithms import actor_mimic
from mbrl_jax.envs import grid, multi_task
from mbrl_jax.networks import MLP, features
from mbrl_jax.types import Array, Policy
from mbrl_jax.value_learning import distillation

HALL = grid.make("hall", grid.parse("SSSSS"), episode_length=6)
YARD = grid.make("yard", grid.parse("SS\nSS\nSS"), episode_length=6)
BOTH = multi_task.make([HALL, YARD])
DISTIL = distillation.Config(
    capacity=150, interval=50, num_updates=200, batch_size=16, learning_rate=5e-3
)
CONFIG = actor_mimic.Config(hidden_sizes=(32,), distil=DISTIL)


def expert(size: int, num_features: int) -> Policy:
    """Of so many cells and features, its values a linear function of these."""
    keys = jax.random.split(jax.random.key(size))
    inside = jax.random.normal(keys[0], (size, num_features))
    out = jax.random.normal(keys[1], (num_features, 4))
    return Policy(
        lambda: (),
        None,  # type: ignore[arg-type]  # it never acts
        lambda obs: obs @ inside @ out,
        lambda obs: obs @ inside,
    )


EXPERTS = [expert(5, 3), expert(6, 2)]  # features need not be as many


def observed(task: int) -> Array:
    """All observations of a task, [S, O]."""
    size = BOTH.tasks[task].obs_size
    return jnp.pad(jnp.eye(size), ((0, 0), (0, 8 - size))).at[:, 6 + task].set(1)


@functools.cache
def learned(weight: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The student's policy, and its features as mapped to the expert's, by task [S]."""
    config = dataclasses.replace(CONFIG, feature_weight=weight)
    algorithm = actor_mimic.make(BOTH, config, EXPERTS)

    @jax.jit
    def run(key: Array) -> actor_mimic.State:
        keys = jax.random.split(key, 4)
        step = lambda state, key: (algorithm.step(key, state)[0], None)
        return jax.lax.scan(step, algorithm.init(keys[0]), keys[1:])[0]

    params = run(jax.random.key(0)).params
    network = MLP((32,), 4, jax.nn.relu)
    policies, mapped = [], []
    for task in range(2):
        obs = observed(task)
        out = jax.vmap(lambda x: network.apply(params["network"], x))(obs)
        hidden = jax.vmap(lambda x: features(network, params["network"], x))(obs)
        policies.append(np.asarray(jax.nn.softmax(out)))
        f = params["maps"][task]["params"]
        mapped.append(np.asarray(hidden @ f["kernel"] + f["bias"][None]))
    return policies, mapped


def test_it_acts_as_its_experts_by_the_softmax_of_their_values():
    policies, _ = learned(0.01)
    for task, found in enumerate(policies):
        size = BOTH.tasks[task].obs_size
        values = jax.vmap(EXPERTS[task].values)(jnp.eye(size))
        np.testing.assert_allclose(found, jax.nn.softmax(values), atol=0.05)


def test_its_features_hold_what_the_experts_do():
    """If they have a weight; and then the maps are learned, one for each expert."""
    errors = {}
    for weight in (0.0, 0.01):
        _, mapped = learned(weight)
        errors[weight] = [
            np.square(found - jax.vmap(own.features)(jnp.eye(len(found)))).mean()
            for found, own in zip(mapped, EXPERTS, strict=True)
        ]
    assert max(errors[0.01]) < 0.02
    assert min(errors[0.0]) > 0.2


def test_features_are_those_before_the_last_layer():
    network = MLP((7, 5), 3, jax.nn.relu)
    params = network.init(jax.random.key(0), jnp.zeros(4))
    assert set(params) == {"params"}
    x = jax.random.normal(jax.random.key(1), (4,))
    last = params["params"]["Dense_2"]
    found = features(network, params, x)
    assert found.shape == (5,)
    assert (found >= 0).all()
    np.testing.assert_allclose(
        found @ last["kernel"] + last["bias"], network.apply(params, x), rtol=1e-5
    )


def test_what_cannot_be():
    blind = [policy._replace(features=None) for policy in EXPERTS]
    with pytest.raises(ValueError, match="teacher of hall does not tell its features"):
        actor_mimic.make(BOTH, CONFIG, blind)
    for field in ("temperature", "feature_weight"):
        with pytest.raises(ValueError, match=f"{field} is -1.0, must be"):
            actor_mimic.make(BOTH, dataclasses.replace(CONFIG, **{field: -1.0}))
