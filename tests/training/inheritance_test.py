"""What a run's networks take from another's, and what they do not."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, networks, replay
from mbrl_jax.algorithms import actor_mimic, dqn, mbpo, pets, ppo, sac, shac
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble
from mbrl_jax.ops import finite, normalize
from mbrl_jax.training import inheritance
from mbrl_jax.types import Algorithm, PyTree
from mbrl_jax.value_learning import distillation, off_policy

Leaves = Mapping[str, Any]


def leaves(state: PyTree) -> Leaves:
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in paths}


def stepped(state: PyTree) -> PyTree:
    """As after training: every float is another one, and so are targets."""
    rng = np.random.default_rng(0)

    def change(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return rng.normal(size=x.shape).astype(x.dtype)

    return jax.tree.map(change, state)


def started(new: PyTree, old: PyTree) -> tuple[Leaves, dict[str, inheritance.Taken]]:
    """Also checks what holds of any: only what is said to be taken differs, it is the
    other's bit for bit, and shapes alone tell what it will be."""
    there = inheritance.networks(old)
    state, found = inheritance.start_from(new, there)
    assert [*leaves(state)] == [*leaves(new)]
    own, before, after = inheritance.networks(new), leaves(new), leaves(state)
    sources = {
        own[place][name].leaf: there[taken.place][name].array
        for place, taken in found.items()
        for name in taken.names
    }
    for name, x in after.items():
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            continue
        np.testing.assert_array_equal(x, sources.get(name, before[name]))
        assert x.dtype == before[name].dtype
    abstract = inheritance.matches(jax.eval_shape(lambda: new), there)
    copies = [place for place in found if "target" in place or "before" in place]
    kept = {place: x for place, x in abstract.items() if place not in copies}
    assert kept == {place: x for place, x in found.items() if place not in copies}
    return after, found


def beginning(method: Algorithm, seed: int) -> PyTree:
    """State."""
    return jax.jit(method.init)(jax.random.key(seed))


def mlp(sizes: tuple[int, ...], inputs: int, outputs: int, seed: int) -> PyTree:
    network = networks.MLP(sizes, outputs)
    return network.init(jax.random.key(seed), jnp.zeros(inputs))


class Toy(NamedTuple):
    actor: PyTree
    critic: PyTree
    log: PyTree = ()


def layers(taken: inheritance.Taken) -> set[str]:
    return {name.rpartition(".")[0] for name in taken.names}


@pytest.mark.parametrize(
    ("sizes", "inputs", "outputs", "expected"),
    [
        ((5, 5), 3, 2, {"Dense_0", "Dense_1", "Dense_2"}),
        ((5, 5), 3, 1, {"Dense_0", "Dense_1"}),  # another head
        ((5, 5), 4, 2, set()),  # what is above a new layer would mean nothing
        ((5, 6), 3, 2, {"Dense_0"}),
        ((5,), 3, 5, {"Dense_0"}),  # the head is as large as a hidden layer there
        ((5, 5, 5), 3, 2, {"Dense_0", "Dense_1"}),
    ],
)
def test_layers_are_taken_from_the_input_on(
    sizes: tuple[int, ...], inputs: int, outputs: int, expected: set[str]
) -> None:
    old = Toy(mlp((5, 5), 3, 2, 1), mlp((5, 5), 3, 7, 2))
    new = Toy(mlp(sizes, inputs, outputs, 3), mlp((4,), 2, 1, 4))
    _, found = started(new, old)
    assert layers(found["actor"]) == expected
    assert found["actor"].place == "actor"  # never the critic's, which is as good
    assert not found["critic"].names


def test_a_head_the_size_of_a_hidden_layer_is_not_mixed_up() -> None:
    old = Toy(mlp((5,), 3, 5, 1), ())
    _, found = started(Toy(mlp((5, 5), 3, 2, 2), ()), old)
    assert layers(found["actor"]) == {"Dense_0"}


class Elsewhere(NamedTuple):
    params: PyTree
    critics: PyTree


def test_from_another_place_the_last_layer_is_new() -> None:
    old = Elsewhere(mlp((5,), 3, 2, 1), mlp((5,), 3, 2, 2))
    _, found = started(Toy(mlp((5,), 3, 2, 3), mlp((5,), 3, 2, 4)), old)
    assert [x.place for x in found.values()] == ["params", "critics"]
    assert all(layers(x) == {"Dense_0"} for x in found.values())


def test_a_layer_without_its_norm_is_another_layer() -> None:
    network = networks.PolicyNetwork((5,), 2)
    old = network.init(jax.random.key(0), jnp.zeros(3))
    _, found = started(Toy(mlp((5,), 3, 2, 3), ()), Toy(old, ()))
    assert not found["actor"].names


def test_a_float_of_another_size_does_not_fit() -> None:
    old = jax.tree.map(lambda x: np.asarray(x, np.float16), mlp((5,), 3, 2, 1))
    _, found = started(Toy(mlp((5,), 3, 2, 3), ()), Toy(old, ()))
    assert not found["actor"].names


ACTOR_MIMIC = actor_mimic.Config(
    hidden_sizes=(128, 128),
    distil=distillation.Config(
        capacity=200, collect=off_policy.Config(capacity=10, warmup=10)
    ),
)


def test_a_student_of_several_tasks_is_the_trunk_of_a_dqn() -> None:
    several, one = envs.make("detour1+detour2"), envs.make("detour4")
    student = actor_mimic.make(several, ACTOR_MIMIC)
    old = stepped(beginning(student, 0))
    new = beginning(dqn.make(one), 1)
    there = inheritance.networks(old)
    assert not inheritance.takes_a_layer(inheritance.matches(new, there))
    there = inheritance.without_tasks(there, one.obs_size, 2)
    state, found = inheritance.start_from(new, there)
    for place in ("learner.params", "learner.target"):
        assert found[place].place == "params.network"
        assert layers(found[place]) == {"Dense_0", "Dense_1"}
    # what it adds on average over the tasks, before the activation
    obs = jax.random.normal(jax.random.key(2), (one.obs_size,))
    first = old.params["network"]["params"]["Dense_0"]
    told = [
        jnp.concatenate([obs, task]) @ first["kernel"] + first["bias"]
        for task in jnp.eye(2)
    ]
    own = state.learner.params["params"]["Dense_0"]
    np.testing.assert_allclose(
        obs @ own["kernel"] + own["bias"], (told[0] + told[1]) / 2, atol=1e-4
    )
    np.testing.assert_array_equal(own["kernel"], first["kernel"][: one.obs_size])
    np.testing.assert_array_equal(
        state.learner.params["params"]["Dense_2"]["kernel"],
        new.learner.params["params"]["Dense_2"]["kernel"],
    )
    fresh = leaves(new.learner.opt_state)
    for name, x in leaves(state.learner.opt_state).items():
        np.testing.assert_array_equal(x, fresh[name])


@pytest.mark.parametrize("module", [sac, ppo, shac, pets])
def test_the_same_method_takes_all_its_networks(module: Any) -> None:
    env = envs.make("pendulum")
    method = module.make(env)
    one, other = beginning(method, 0), beginning(method, 1)
    after, found = started(one, stepped(other))
    assert not any(x.left for x in found.values())
    assert inheritance.takes_a_layer(found)
    for name in found:  # a target is what its network is now, not what it was
        if "target" in name and module is not pets:
            assert "target" not in found[name].place
    assert any("opt" in name for name in after)  # which `started` looks at


def test_statistics_come_with_their_network_and_alone_are_nothing() -> None:
    env = envs.make("pendulum")
    old = stepped(beginning(ppo.make(env), 0))
    after, _ = started(beginning(ppo.make(env), 1), old)
    for name in ("number", "mean", "squares"):
        np.testing.assert_array_equal(
            after[f"learner.agent.obs.{name}"], getattr(old.learner.agent.obs, name)
        )
    np.testing.assert_array_equal(
        after["learner.agent.actor.log_std"], old.learner.agent.actor["log_std"]
    )
    alone = {"agent.obs": inheritance.networks(old)["learner.agent.obs"]}
    matches = inheritance.matches(old, alone)
    assert matches["learner.agent.obs"].names
    assert not inheritance.takes_a_layer(matches)


def test_a_model_goes_where_the_model_is_and_its_past_copies_follow() -> None:
    env, config = (
        envs.make("pendulum"),
        ensemble.Config(
            num_members=7, num_elites=5, hidden_sizes=(8,), learn_reward=True
        ),
    )
    small = models.Config(ensemble=config)
    new = beginning(mbpo.make(env, mbpo.Config(model=small)), 0)
    planning = pets.make(env, pets.Config(num_particles=5, model=small))
    old = stepped(beginning(planning, 1))
    _, found = started(new, old)
    assert found["model_state.model.params"].place == "model.params"
    assert layers(found["model_state.model.params"]) == {"mlp.Dense_0"}
    assert found["model_state.model.inputs"].place == "model.inputs"
    assert found["model_state.model.targets"].place == "model.targets"
    assert not found["learner.actor"].names
    agent = stepped(beginning(sac.make(env), 2))
    _, found = started(new, agent)
    assert found["model_state.before.actor"] == found["learner.actor"]
    assert not found["learner.actor"].left
    assert found["model_state.before.target_critics"].place == "learner.critics"


def test_what_looks_like_a_network_and_is_none_stays() -> None:
    """Data, optimisers and simulators may hold dicts, too."""
    env = envs.make("pendulum")
    data = replay.init(3, 1, 4)
    strange: Any = {"params": {"Dense_0": {"kernel": jnp.ones((4, 2))}}}
    data = data._replace(data=strange)
    sim = env.reset(jax.random.key(0))._replace(sim={"params": jnp.ones(2)})
    guard = finite.GuardState({"mu": {"params": {"a_0": jnp.ones(2)}}}, jnp.zeros(()))
    assert not inheritance.networks((data, sim, guard))
    stats = normalize.running_stats(2)
    assert [*inheritance.networks((stats,))] == ["0"]


def test_first_layers_are_named() -> None:
    found = inheritance.networks(Toy(mlp((5,), 3, 1, 0), mlp((4,), 2, 1, 0)))
    assert inheritance.first_layers(found) == {"actor": [3, 5], "critic": [2, 4]}


def test_a_network_that_is_told_nothing_about_tasks_stays() -> None:
    dense = nn.Dense(4).init(jax.random.key(0), jnp.zeros(6))
    found = inheritance.networks(Toy(dense, ()))
    after = inheritance.without_tasks(found, 2, 2)
    for name, part in found["actor"].items():
        np.testing.assert_array_equal(after["actor"][name].array, part.array)
