"""Any model in any algorithm that takes one."""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.algorithms import mba, pets, svg
from mbrl_jax.envs import point_mass, simulator
from mbrl_jax.models import bnn, by_name, ensemble, gaussian_process, outcomes
from mbrl_jax.planners import mpc
from mbrl_jax.types import Model

ENV = simulator.time_limit(point_mass.make(), 4)
BLIND = ENV._replace(reward=None)
SMALL = by_name.Config(
    ensemble=ensemble.Config(
        num_members=3, num_elites=2, hidden_sizes=(8,), batch_size=4, num_epochs=3
    ),
    gaussian_process=gaussian_process.Config(
        max_exact=8, num_restarts=1, max_evaluations=3
    ),
    bnn=bnn.Config(num_members=2, hidden_sizes=(8,), batch_size=4, num_updates=5),
)
MEMBERS = {"ensemble": 2, "gaussian_process": 1, "bnn": 2}
STATES: dict[str, Any] = {
    "ensemble": ensemble.State,
    "gaussian_process": gaussian_process.State,
    "bnn": bnn.State,
}
ALGORITHMS = (
    *("bptt", "dyna", "maac", "mba", "mbpo", "mbrl_v05", "mbrl_v10", "mbrl_v15"),
    *("me_trpo", "mve", "nagabandi", "pets", "steve", "svg"),
)


def named(name: str) -> by_name.Config:
    return dataclasses.replace(SMALL, name=name)


@pytest.mark.parametrize(
    "name",
    [pytest.param("ensemble", marks=pytest.mark.slow), "gaussian_process", "bnn"],
)
def test_pets_steps_with_any_model(name: str):
    """With a reward that only the simulator knows.  It fits what it was given."""
    config = pets.Config(
        capacity=8,
        num_particles=4,
        planner="cem",
        plan=mpc.Config(horizon=2, num_samples=4, num_elites=2, num_iterations=1),
        model=named(name),
    )
    algorithm = pets.make(BLIND, config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    assert isinstance(state.model, STATES[name])
    step = jax.jit(algorithm.step)
    for key in jax.random.split(jax.random.key(1)):
        before, (state, metrics) = state.model, step(key, state)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))
        pairs = zip(*map(jax.tree.leaves, (before, state.model)), strict=True)
        assert any((a != b).any() for a, b in pairs)
    assert metrics["env_steps"] == 8
    assert algorithm.predict is not None
    mean, std = algorithm.predict(state, jnp.zeros(6), jnp.zeros(2))
    assert mean.shape == std.shape == (MEMBERS[name], 6 + 1)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_takes_any_model(algorithm: str):
    """Its state has the model's, and keeps its shapes and types.  Of ensembles, see the
    contract; every other algorithm takes a process here, the rest a Bayesian network,
    which is half the time: none of them asks for a model's name."""
    name = ("gaussian_process", "bnn")[ALGORITHMS.index(algorithm) % 2]
    module = importlib.import_module(f"mbrl_jax.algorithms.{algorithm}")
    field = "network" if algorithm == "mba" else "model"
    config = dataclasses.replace(module.Config(), **{field: named(name)})
    if algorithm == "mba":
        config = dataclasses.replace(config, model="network")
    made, key = module.make(ENV, config), jax.random.key(0)
    before = jax.eval_shape(made.init, key)
    after, _ = jax.eval_shape(made.step, key, before)
    assert after == before
    is_state = lambda x: isinstance(x, tuple(STATES.values()))
    found = [x for x in jax.tree.leaves(before, is_leaf=is_state) if is_state(x)]
    assert [type(x) for x in found] == [STATES[name]]


@pytest.mark.parametrize("name", MEMBERS)
def test_the_number_of_members(name: str):
    model = by_name.make(6, 2, named(name))
    state = jax.eval_shape(model.init, jax.random.key(0))
    members = jax.eval_shape(model.members, state)
    number = by_name.num_members(named(name))
    assert {x.shape[0] for x in jax.tree.leaves(members)} == {number}
    assert number == MEMBERS[name]
    by_name.shares(named(name), "num_particles", 3 * number)
    if number > 1:
        with pytest.raises(ValueError, match="num_particles is 3, must be a multiple"):
            by_name.shares(named(name), "num_particles", 3)


def test_the_ensemble_by_name_is_the_ensemble():
    own = dataclasses.replace(SMALL.ensemble, learn_reward=True)
    models = by_name.make(1, 1, by_name.Config(ensemble=own)), ensemble.make(1, 1, own)
    one, two = (model.init(jax.random.key(0)) for model in models)
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("told", [False, True])
def test_what_is_not_known_is_learned(name: str, told: bool):
    config = named(name)
    if told:
        config = by_name.learning(config, True, name != "gaussian_process")
    expected = 6 + told + (told and name != "gaussian_process")
    assert size(outcomes.learned(ENV, config)[0]) == expected
    assert size(outcomes.learned(BLIND, config)[0]) == expected + (not told)
    if name != "gaussian_process":
        blind = ENV._replace(terminal=None)
        assert size(outcomes.learned(blind, config)[0]) == expected + (not told)


def size(model: Model) -> int:
    """D."""
    state = jax.eval_shape(model.init, jax.random.key(0))
    one = jax.eval_shape(
        lambda x: jax.tree.map(lambda x: x[0], model.members(x)), state
    )
    return jax.eval_shape(model.predict, one, np.zeros(6), np.zeros(2)).mean.shape[0]


BROKEN = by_name.Config(bnn=bnn.Config(batch_size=0))  # not even in use


def test_what_cannot_be():
    with pytest.raises(ValueError, match="name is 'cnn', must be one of: ensemble, ga"):
        pets.make(ENV, pets.Config(capacity=8, model=by_name.Config(name="cnn")))
    with pytest.raises(ValueError, match=r"bnn.batch_size is 0, must be at least 1"):
        pets.make(ENV, pets.Config(capacity=8, model=BROKEN))
    with pytest.raises(ValueError, match=r"network.bnn.batch_size is 0"):
        mba.make(ENV, mba.Config(network=BROKEN))
    angles = by_name.Config(bnn=bnn.Config(angles=(6,)))
    with pytest.raises(ValueError, match=r"bnn.angles are \(6,\), of an obs of size 6"):
        pets.make(ENV, pets.Config(capacity=8, model=angles))
    config = pets.Config(capacity=8, num_particles=3, model=named("bnn"))
    with pytest.raises(ValueError, match=r"num_particles is 3, .* of the 2 members"):
        pets.make(ENV, config)
    ends = by_name.Config(name="bnn", bnn=bnn.Config(learn_terminal=True))
    with pytest.raises(ValueError, match=r"model.bnn.learn_terminal: SVG takes ends"):
        svg.make(ENV, svg.Config(model=ends))


def test_a_gaussian_process_does_not_learn_terminations():
    blind = ENV._replace(terminal=None)
    message = "only the simulator of point_mass knows its terminations, and Gaussian p"
    with pytest.raises(ValueError, match=message):
        pets.make(blind, pets.Config(capacity=8, model=named("gaussian_process")))
    # SVG takes them from the data
    svg.make(blind, svg.Config(model=named("gaussian_process")))
