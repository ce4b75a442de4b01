"""One network that says what all members of a model say."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.algorithms import pets
from mbrl_jax.envs import point_mass, simulator
from mbrl_jax.models import by_name as models
from mbrl_jax.models import distilled, ensemble, propagation
from mbrl_jax.planners import mpc
from mbrl_jax.types import Array, Gaussian, Key, Metrics, Model, PyTree

ONES = jnp.ones(2), jnp.ones(1)


class Linear(NamedTuple):
    """A member: the next obs is obs + A (obs, action) + b, and noise."""

    A: Array  # [O, O + 1]
    b: Array  # [O]
    std: Array  # [O]


def linear(members: Linear) -> Model:
    """Fitting it changes nothing."""

    def predict(member: Linear, obs: Array, action: Array) -> Gaussian:
        x = jnp.concatenate([obs, action])
        return Gaussian(obs + member.A @ x + member.b, member.std)

    def fit(key: Key, state: PyTree, data: PyTree) -> tuple[PyTree, Metrics]:
        return state, {}

    return Model(lambda key: members, fit, lambda state: state, predict)


def three() -> Linear:
    """They disagree by an amount that is not the same everywhere."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(1, 2, 3)) + 0.2 * rng.normal(size=(3, 2, 3))
    std = np.array([[0.1, 0.4], [0.2, 0.4], [0.3, 0.4]])
    return Linear(*map(jnp.asarray, (A, rng.normal(size=(3, 2)), std)))


def data(number: int = 400) -> replay.Replay:
    rng = np.random.default_rng(1)
    empty = replay.init(2, 1, number)
    shift, scale = np.array([5.0, 0.0]), np.array([1.0, 3.0])
    rows = empty.data._replace(
        obs=jnp.asarray(shift + scale * rng.normal(size=(number, 2)), jnp.float32),
        action=jnp.asarray(rng.uniform(-1, 1, (number, 1)), jnp.float32),
    )
    return empty._replace(data=rows, size=jnp.int32(number))


def test_uncertainties_are_those_of_the_law_of_total_variance() -> None:
    members = three()
    said = distilled.every(linear(members), members, *ONES)
    np.testing.assert_allclose(
        said.aleatoric**2, [(0.01 + 0.04 + 0.09) / 3, 0.16], 1e-5
    )
    means = np.ones(2) + np.asarray(members.A).sum(axis=2) + np.asarray(members.b)
    np.testing.assert_allclose(said.means, means, rtol=1e-5)
    spread = ((means - means.mean(axis=0)) ** 2).mean(axis=0)
    np.testing.assert_allclose(said.epistemic**2, spread, rtol=1e-4)


@pytest.mark.slow
def test_a_linear_gaussian_ensemble_is_reproduced() -> None:
    """In places of the same kind that were never seen, and where a constant is."""
    members = three()
    members = members._replace(A=members.A.at[:, 0].multiply(3.0))
    taught = linear(members)
    config = distilled.Config(num_updates=3000, hidden_sizes=(32, 32))
    model = distilled.make(taught, 2, 1, config)
    key = jax.random.key(0)
    state, metrics = jax.jit(model.fit)(key, model.init(key), data())
    noise = jax.random.normal(key, (99, 2))
    obs = jnp.array([[5.0, 0.0]]) + jnp.array([[1.0, 3.0]]) * noise
    action = jax.random.uniform(key, (99, 1), minval=-1)
    found = jax.vmap(lambda *x: distilled.recalled(model, state, *x))(obs, action)
    known = jax.vmap(lambda *x: distilled.every(taught, members, *x))(obs, action)
    total = jnp.sqrt(known.aleatoric**2 + known.means.std(axis=1) ** 2)
    errors = (found.means - known.means) / total[:, None]
    assert jnp.sqrt(jnp.square(errors).mean()) < 0.1
    np.testing.assert_allclose(found.aleatoric, known.aleatoric, rtol=0.05)
    ratio = found.means.std(axis=1) / known.means.std(axis=1)
    assert jnp.abs(jnp.log(ratio)).mean() < 0.1
    assert metrics["distilled/skipped_updates"] == 0
    # members: their mean is that of the ensemble, about which they lie evenly
    each = jax.vmap(model.predict, (0, None, None))(model.members(state), *ONES)
    own = distilled.recalled(model, state, *ONES)
    np.testing.assert_allclose(
        each.mean.mean(axis=0), own.means.mean(axis=0), rtol=1e-4
    )
    signs = state.weights @ (own.means - own.means.mean(axis=0)[None])
    away = each.mean - each.mean.mean(axis=0)[None]
    np.testing.assert_allclose(away, signs / np.sqrt(3), atol=1e-4)


def test_weights_are_normal_but_for_their_moments() -> None:
    for number in (2, 7):
        w = distilled.draw(jax.random.key(0), number, 5)
        np.testing.assert_allclose(w.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(w.std(axis=0), 1, rtol=1e-4)
    assert not distilled.draw(jax.random.key(0), 1, 5).any()


def known(config: distilled.Config, means: Array, std: float) -> tuple[Model, Any]:
    """Distilled, of constants: each member's change of obs, in every entry."""
    model = distilled.make(linear(three()), 2, 1, config)
    state = model.init(jax.random.key(0))
    rows = jnp.concatenate([jnp.repeat(means, 2), jnp.full(2, jnp.log(std))])
    params = jax.tree.map(jnp.zeros_like, state.params)
    params["params"][f"Dense_{len(config.hidden_sizes)}"]["bias"] = rows
    return model, state._replace(params=params)


def test_a_particle_keeps_its_function_or_draws_another() -> None:
    """Constant disagreements add up: var H^2 e^2 with TS-infinity, H e^2 with TS1.

    A weight is +-1 of two members, so that e^2 is met on average over weights.
    """
    config = distilled.Config(num_updates=1, hidden_sizes=(4,))
    means, horizon = jnp.array([0.0, 1.0, 5.0]), 6
    model, state = known(config, means, 1e-6)

    def variance(key: Key, name: str) -> Array:
        weights = distilled.draw(key, 2, 3)
        step = propagation.PROPAGATIONS[name](model, state._replace(weights=weights))

        def move(obs: Array, key: Key) -> tuple[Array, None]:
            return step(key, obs, jnp.zeros(1), jnp.ones(4, bool)), None

        keys = jax.random.split(key, horizon)
        obs, _ = jax.lax.scan(move, jnp.zeros((4, 2)), keys)
        return obs.var(axis=0, ddof=0 if name == "ts_inf" else 1).mean()

    keys = jax.random.split(jax.random.key(1), 1000)
    found = {
        name: jax.jit(jax.vmap(lambda key, name=name: variance(key, name)))(keys).mean()
        for name in ("ts_inf", "ts1")
    }
    assert found["ts_inf"] == pytest.approx(horizon**2 * float(means.var()), rel=0.1)
    # four particles are dealt without replacement, and so pull apart a little more
    assert found["ts1"] == pytest.approx(horizon * float(means.var()) * 4 / 3, rel=0.15)


def test_noise_is_aleatoric() -> None:
    model, state = known(distilled.Config(num_updates=1), jnp.zeros(3), 0.3)
    for x in (
        model.members(state),
        jax.tree.map(lambda x: x[:1], model.members(state)),
    ):
        each = jax.vmap(model.predict, (0, None, None))(x, *ONES)
        np.testing.assert_allclose(each.std, 0.3, rtol=1e-5)
        np.testing.assert_allclose(each.mean, 1.0, rtol=1e-5)


def test_inputs_are_rows_with_noise_and_actions_of_others() -> None:
    rows, std = data(50), jnp.array([2.0, 0.5])
    config = distilled.Config(num_updates=1, batch_size=4000, jitter=0.0)
    ask = lambda config: distilled.queries(jax.random.key(0), rows, std, config)
    obs, action = map(np.asarray, ask(config))
    known_obs, known_action = np.asarray(rows.data.obs), np.asarray(rows.data.action)
    row = np.abs(obs[:, None] - known_obs[None]).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(obs, known_obs[row])
    assert len(set(row)) == 50
    assert np.isin(action, known_action).all()
    assert (action == known_action[row]).mean() < 0.1
    noisy, same = ask(dataclasses.replace(config, jitter=0.3))
    np.testing.assert_array_equal(same, action)
    np.testing.assert_allclose((noisy - obs).std(axis=0), [0.6, 0.15], rtol=0.1)


# --- In PETS.

ENV = simulator.time_limit(point_mass.make(), 4)
CONFIG = pets.Config(
    capacity=8,
    num_particles=2,
    planner="random_shooting",
    plan=mpc.Config(horizon=2, num_samples=9),
    model=models.Config(
        ensemble=ensemble.Config(
            num_members=3, hidden_sizes=(8,), batch_size=4, num_epochs=2
        )
    ),
    distil=distilled.Config(num_updates=3, hidden_sizes=(8,), batch_size=4),
)


def test_pets_plans_in_the_one_network_alone() -> None:
    algorithm = pets.make(ENV, CONFIG)
    state = jax.jit(algorithm.init)(jax.random.key(0))

    @jax.jit
    def act(model: distilled.State) -> Array:
        policy = algorithm.policy(state._replace(model=model))
        obs = ENV.reset(jax.random.key(2)).obs
        return policy.act(jax.random.key(3), obs, policy.init())[0]

    broken = lambda tree: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)
    action = act(state.model)
    without = state.model.taught._replace(params=broken(state.model.taught.params))
    np.testing.assert_array_equal(act(state.model._replace(taught=without)), action)
    blind = state.model._replace(params=broken(state.model.params))
    assert (act(blind) != action).any()
    assert algorithm.predict is not None
    found = jax.eval_shape(algorithm.predict, state, jnp.zeros(6), jnp.zeros(2))
    assert found.mean.shape == found.std.shape == (2, 6)  # its members


@pytest.mark.slow
def test_pets_puts_each_fit_into_the_one_network() -> None:
    algorithm = pets.make(ENV, CONFIG)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    step = jax.jit(algorithm.step)
    kernels = lambda params: jax.tree.leaves(params)[-1]
    for key in jax.random.split(jax.random.key(1)):
        before, (state, metrics) = state.model, step(key, state)
        assert (kernels(before.params) != kernels(state.model.params)).any()
        assert (
            kernels(before.taught.params) != kernels(state.model.taught.params)
        ).any()
        assert np.isfinite(metrics["distilled/loss"])
        assert "model/holdout_mse" in metrics


def test_it_learns_from_the_members_that_were_just_fitted() -> None:
    """Not from those of before: what is known is known at once."""
    later = three()._replace(b=three().b + 100)
    model = distilled.make(
        linear(three())._replace(fit=lambda key, state, data: (later, {})),
        *(2, 1),
        distilled.Config(num_updates=2, hidden_sizes=(8,)),
    )
    key = jax.random.key(0)
    state, _ = model.fit(key, model.init(key), data())
    np.testing.assert_array_equal(state.taught.b, later.b)
    np.testing.assert_allclose(
        state.targets.mean.mean(),
        jax.vmap(
            lambda *x: distilled.every(linear(later), later, *x).means - x[0][None]
        )(data().data.obs, data().data.action).mean(),
        rtol=1e-3,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_updates": -1}, "distil.num_updates is -1"),
        ({"num_members": 0}, "distil.num_members is 0"),
        ({"tolerance": 0.0}, "distil.tolerance is 0.0"),
        ({"jitter": -0.1}, "distil.jitter is -0.1"),
        ({"num_members": 4}, "num_particles is 2, .* multiple of the 4 members"),
    ],
)
def test_what_cannot_be(change: dict[str, Any], message: str) -> None:
    distil = dataclasses.replace(CONFIG.distil, **change)
    with pytest.raises(ValueError, match=message):
        pets.make(ENV, dataclasses.replace(CONFIG, distil=distil))
