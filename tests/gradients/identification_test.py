import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax import envs
from mbrl_jax.envs import systems
from mbrl_jax.envs.systems import ParametricSystem, Values
from mbrl_jax.gradients import identification
from mbrl_jax.gradients.identification import Fit
from mbrl_jax.types import Array, Key

NOISE = 0.01
KEY, TEN = jax.random.key(0), (10, 100)  # episodes of so many steps
PENDULUM = {"mass": 1.0, "length": 1.0, "damping": 0.1}
CARTPOLE = {"cart_mass": 0.5, "pole_mass": 0.5, "pole_centre": 0.25}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@functools.partial(jax.jit, static_argnums=(1, 3))
def episodes(
    key: Key, name: str, true: Values, shape: tuple[int, int], push: float = 1.0
) -> tuple[Array, Array]:
    """Noisy obs [E, T + 1, O] and action [E, T, A], of the limit times `push`."""
    system, env = systems.own(name), envs.make(name)
    start_key, action_key, noise_key = jax.random.split(key, 3)
    reset = lambda key: system.place(env.reset(key).obs)
    starts = jax.vmap(reset)(jax.random.split(start_key, shape[0]))
    uniform = jax.random.uniform(action_key, (*shape, env.action_size), minval=-1)
    action = push * env.action_limit * uniform
    run = lambda start, action: identification.simulate(system, true, start, action)
    obs = jax.vmap(run)(starts, action)
    return obs + NOISE * jax.random.normal(noise_key, obs.shape), action


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def fit(
    name: str,
    guess: Values,
    obs: Array,
    action: Array,
    horizon: int,
    fit_starts: bool = True,
) -> Fit:
    """Tests with data of the same shapes share a program."""
    data = identification.windows(obs, action, horizon, shared=not fit_starts)
    scale = jnp.full(obs.shape[-1], NOISE)
    return identification.fit(
        systems.own(name), guess, data, scale, fit_starts=fit_starts
    )


@functools.cache
def fit_of_ten_episodes(name: str) -> Fit:
    true = {"pendulum": PENDULUM, "cartpole_swingup": CARTPOLE}[name]
    data = episodes(KEY, name, true, TEN)
    return jax.tree.map(np.asarray, fit(name, guess_of(true), *data, 20))


def guess_of(true: dict[str, float]) -> dict[str, float]:
    """Wrong by factors of 1.5 and 1 / 1.5, in turn."""
    return {name: x * 1.5 ** (-1) ** i for i, (name, x) in enumerate(true.items())}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "true"), [("pendulum", PENDULUM), ("cartpole_swingup", CARTPOLE)]
)
def test_ten_noisy_episodes_give_the_parameters_within_one_percent(
    name: str, true: dict[str, float]
):
    found = fit_of_ten_episodes(name)
    assert found.converged
    assert found.noise == pytest.approx(1, abs=0.05)
    for parameter, x in true.items():
        assert found.estimate[parameter] == pytest.approx(x, rel=0.01)
        assert found.low[parameter] < found.estimate[parameter] < found.high[parameter]
        assert found.high[parameter] - found.low[parameter] < 0.02 * x
        assert found.identifiable[parameter]


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say_unlike_those_of_one_step():
    """200 recordings of 4 episodes of 20 steps; 95 % within 90 to 99 %."""

    def run(key: Key) -> tuple[Fit, Fit]:
        obs, action = episodes(key, "pendulum", PENDULUM, (4, 20))
        guess = guess_of(PENDULUM)
        several = fit("pendulum", guess, obs, action, 20)
        return several, fit("pendulum", guess, obs, action, 1, False)

    keys = jax.random.split(jax.random.key(1), 200)
    several, single = jax.jit(jax.vmap(run))(keys)
    assert several.converged.mean() > 0.98
    np.testing.assert_allclose(several.noise.mean(), 1, rtol=0.02)
    for name, x in PENDULUM.items():
        covered = (several.low[name] < x) & (x < several.high[name])
        assert 0.9 <= covered.mean() <= 0.99, name
        # From noisy starts one-step predictions are off by more than the noise.
        error = [
            np.sqrt(((y.estimate[name] - x) ** 2).mean()) for y in (several, single)
        ]
        assert error[0] < 0.7 * error[1], name
        std = np.std(np.log(several.estimate[name]))
        stds = jnp.sqrt(jnp.diagonal(several.covariance, axis1=1, axis2=2))
        said = stds[:, sorted(PENDULUM).index(name)]
        assert std == pytest.approx(float(said.mean()), rel=0.2)


def test_one_step_is_right_where_the_recording_has_no_noise():
    obs, action = episodes(jax.random.key(0), "pendulum", PENDULUM, (2, 30))
    system = systems.own("pendulum")
    run = functools.partial(identification.simulate, system, PENDULUM)
    place_and_run = jax.vmap(lambda obs, action: run(system.place(obs), action))
    clean = jax.jit(place_and_run)(obs[:, 0], action)
    for horizon in (1, 5):
        found = fit("pendulum", guess_of(PENDULUM), clean, action, horizon, False)
        for name, x in PENDULUM.items():
            assert found.estimate[name] == pytest.approx(x, rel=1e-6)


def test_without_torque_the_mass_is_unknown_and_the_length_is_not():
    true = {"mass": 1.0, "length": 1.0}
    obs, action = episodes(KEY, "pendulum", true, TEN, 0.0)
    found = fit("pendulum", guess_of(true), obs, action, 20)
    assert not found.identifiable["mass"]
    assert found.low["mass"] == 0
    assert found.high["mass"] == jnp.inf
    assert found.direction_std == jnp.inf
    assert abs(found.direction["mass"]) == pytest.approx(1, abs=1e-3)
    assert found.identifiable["length"]
    assert found.low["length"] < 1 < found.high["length"] < 1.02


def test_an_unknown_combination_is_named():
    """Only M + m, m c and I + m c^2 matter, of M, m, c and I."""
    true = {**CARTPOLE, "pole_inertia": 0.5**3 / 12}
    obs, action = episodes(jax.random.key(0), "cartpole_swingup", true, (4, 40))
    found = fit("cartpole_swingup", guess_of(true), obs, action, 20)
    assert not any(found.identifiable.values())
    cart, pole, centre, inertia = (found.estimate[name] for name in true)
    expected = np.array([-pole / cart, 1.0, -1.0, pole * centre**2 / inertia])
    expected /= np.linalg.norm(expected)
    direction = np.array([found.direction[name] for name in true])
    direction *= np.sign(direction @ expected)
    np.testing.assert_allclose(direction, expected, atol=1e-3)
    assert cart + pole == pytest.approx(1, rel=0.01)
    assert pole * centre == pytest.approx(0.125, rel=0.03)


def test_a_damping_of_zero_is_told_from_large_ones_only():
    """Its interval ends at 0 on one side, and is no infinite one."""
    true = {"mass": 1.0, "length": 1.0, "damping": 1e-9}
    obs, action = episodes(KEY, "pendulum", true, TEN)
    guess = {"mass": 1.2, "length": 1.0, "damping": 0.1}
    found = fit("pendulum", guess, obs, action, 20)
    assert not found.identifiable["damping"]
    assert found.low["damping"] == 0
    assert 0 < found.high["damping"] < 0.01
    assert found.identifiable["mass"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pendulum", "cartpole_swingup", "acrobot", "reacher"])
def test_gradients_agree_with_finite_differences(name: str):
    names = {
        "pendulum": ["mass", "length", "damping", "gravity"],
        "cartpole_swingup": ["cart_mass", "pole_inertia", "cart_damping", "gear"],
        "acrobot": ["links.lengths.0", "links.masses.1", "links.inertias.0", "gear"],
        "reacher": ["links.masses.0", "links.centres.1", "damping", "gear"],
    }[name]
    system = systems.own(name)
    values = systems.constants(system.parameters, names)
    values = {name: 1.1 * jnp.asarray(x) for name, x in values.items()}
    obs, action = episodes(jax.random.key(0), name, {}, (2, 12))
    data = identification.windows(obs, action, 12)
    start = jax.vmap(system.place)(data.obs[:, 0])
    offsets = 0.05 * jax.random.normal(jax.random.key(1), start.shape)
    scale = jnp.ones(obs.shape[-1])

    def loss(values: Values, offsets: Array) -> Array:
        return identification.loss(system, values, data, scale, offsets)

    program = jax.jit(jax.value_and_grad(loss, (0, 1)))
    by_values, by_offsets = program(values, offsets)[1]
    loss = lambda *at: float(program(*at)[0])
    for parameter in names:
        low, high = (
            loss({**values, parameter: values[parameter] + h}, offsets)
            for h in (-1e-5, 1e-5)
        )
        expected = (high - low) / 2e-5
        assert by_values[parameter] == pytest.approx(expected, rel=1e-5, abs=1e-8)
    ahead = [loss(values, offsets + h * by_offsets) for h in (-1e-6, 1e-6)]
    slope = (ahead[1] - ahead[0]) / 2e-6
    assert (by_offsets**2).sum() == pytest.approx(slope, rel=1e-5)


def test_plain_gradient_descent_comes_to_the_same():
    true = {"mass": 1.0, "length": 1.0}
    obs, action = episodes(KEY, "pendulum", true, (4, 20))
    best = fit("pendulum", guess_of(true), obs, action, 20)
    system, data = systems.own("pendulum"), identification.windows(obs, action, 20)
    rate = optax.cosine_decay_schedule(0.05, 1500)
    found, losses = jax.jit(
        lambda guess, data: identification.descend(
            system, guess, data, jnp.full(3, NOISE), optax.adam(rate), 1500
        )
    )(guess_of(true), data)
    for name in true:
        assert found[name] == pytest.approx(float(best.estimate[name]), rel=1e-3)
    assert losses[-1] < 1.001 * best.losses[-1] / data.obs.size


def test_windows_have_nothing_in_common_unless_they_share_their_ends():
    obs = jnp.arange(2 * 11).reshape(2, 11, 1)
    action = jnp.arange(2 * 10).reshape(2, 10, 1)
    apart = identification.windows(obs, action, 3)
    np.testing.assert_array_equal(apart.obs[:, 0, 0], [0, 11, 4, 15])
    np.testing.assert_array_equal(apart.obs[0, :, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(apart.action[2, :, 0], [4, 5, 6])
    shared = identification.windows(obs, action, 3, shared=True)
    np.testing.assert_array_equal(shared.obs[:, 0, 0], [0, 11, 3, 14, 6, 17])
    np.testing.assert_array_equal(shared.obs[4, :, 0], [6, 7, 8, 9])
    every = identification.windows(obs, action, 1, shared=True)
    assert every.obs.shape == (20, 2, 1)


def linear() -> ParametricSystem:
    same = lambda x: x
    step = lambda p, x, a: p["rate"] * x + a
    return ParametricSystem({"rate": 0.5}, step, same, same)


@pytest.mark.parametrize(
    ("shapes", "horizon", "names", "message"),
    [
        (((2, 5, 1), (2, 5, 1)), 2, ["rate"], r"obs must be \[E, T \+ 1, O\]"),
        (((2, 6, 1), (2, 5, 1)), 6, ["rate"], "horizon is 6, must be in 1 to 5"),
        (((2, 6, 1), (2, 5, 1)), 0, ["rate"], "horizon is 0, must be in 1 to 5"),
        (((2, 6, 1), (2, 5, 1)), 5, ["rat"], "unknown parameter 'rat'.*: rate"),
        (((1, 2, 1), (1, 1, 1)), 1, ["rate"], "2 observations cannot tell 2 unknowns"),
    ],
)
def test_what_cannot_be_is_one_error(shapes, horizon: int, names, message: str):
    obs, action = (jnp.ones(shape) for shape in shapes)

    def run() -> None:
        data = identification.windows(obs, action, horizon)
        identification.fit(linear(), dict.fromkeys(names, 0.3), data, jnp.ones(1))

    with pytest.raises(ValueError, match=message):
        run()


def test_a_linear_system_by_hand():
    """x' = rate x: with recorded starts, the estimate is a ratio of sums."""
    rng = np.random.default_rng(0)
    obs, action = jnp.array(rng.uniform(1, 2, (3, 5, 1))), jnp.zeros((3, 4, 1))
    data = identification.windows(obs, action, 1, shared=True)
    found = jax.jit(
        lambda data: identification.fit(
            linear(), {"rate": 0.3}, data, jnp.full(1, 0.1), fit_starts=False
        )
    )(data)
    data = jax.tree.map(np.asarray, data)
    x, y = data.obs[:, 0, 0], data.obs[:, 1, 0]
    rate = float((x * y).sum() / (x * x).sum())
    std = float(np.sqrt(((y - rate * x) ** 2).sum() / 11 / (x * x).sum()))
    assert found.estimate["rate"] == pytest.approx(rate, rel=1e-6)
    assert found.high["rate"] - rate == pytest.approx(1.96 * std, rel=1e-3)
    assert rate - found.low["rate"] == pytest.approx(1.96 * std, rel=1e-3)


misfit = jax.jit(identification.misfit, static_argnums=1)


def test_normal_noise_is_no_misfit():
    noise = np.random.default_rng(0).normal(size=(300, 12, 11, 3))
    misfits = np.array([misfit(x, 0) for x in noise])
    assert misfits.max() < 5
    assert misfits.mean() < 2


@pytest.mark.parametrize("fault", ["a trend", "a window", "a dimension"])
def test_what_is_no_independent_noise_is_misfit(fault: str):
    errors = np.random.default_rng(1).normal(size=(12, 11, 3))
    if fault == "a trend":
        errors += np.sin(np.arange(11) / 2)[:, None]
    elif fault == "a window":
        errors[3] *= 3
    else:
        errors[:, 1:, 1] += errors[:, :-1, 1].copy()
    assert misfit(errors, 0) > 5


def test_what_a_wrong_model_leaves_is_misfit():
    """The pendulum is damped, and the model is not."""
    right = fit_of_ten_episodes("pendulum")
    data = episodes(KEY, "pendulum", PENDULUM, TEN)
    wrong = fit("pendulum", {"mass": 1.5, "length": 0.7}, *data, 20)
    assert wrong.converged
    misfits = [misfit(x.residuals / x.noise, 2) for x in (right, wrong)]
    assert misfits[0] < 4
    assert misfits[1] > 10
