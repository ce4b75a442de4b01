"""Bayesian networks: masks by hand, the divergence, what is learned, and how surely."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.models import bnn, propagation
from mbrl_jax.models.diagnostics import LEVELS, diagnose
from mbrl_jax.rollout import Episode
from mbrl_jax.types import Array, Env, Gaussian, Model, Transition

CAPACITY = 512
KINDS = ["dropout", "concrete_dropout", "svgd"]
TINY = bnn.Config(
    num_members=3,
    hidden_sizes=(6, 5),
    dropout=0.3,
    batch_size=8,
    num_updates=20,
    learn_reward=True,
)


def filled(
    obs: np.ndarray,
    change: np.ndarray,
    unused: float = 0.0,
    reward: np.ndarray | float = 0.0,
    terminal: np.ndarray | bool = False,
) -> replay.Replay:
    """A buffer of rows obs [N, O] -> obs + change, without actions to speak of."""
    num = len(obs)
    blank = np.zeros(num)
    rows = Transition(
        obs, blank[:, None], blank + reward, obs + change, blank + terminal, blank
    )
    pad = lambda x: jnp.concatenate(
        [jnp.asarray(x), jnp.full((CAPACITY - num, *x.shape[1:]), unused)]
    )
    data = jax.tree.map(pad, rows)
    data = data._replace(terminal=data.terminal > 0, truncated=data.truncated > 0)
    number = jnp.arange(1, CAPACITY + 1, dtype=jnp.int32)
    size = jnp.int32(num)
    return replay.Replay(data, size % CAPACITY, size, number, size)


@cache
def make(config: bnn.Config, obs_size: int = 1) -> tuple[Model, Callable[..., Any]]:
    model = bnn.make(obs_size, 1, config)
    jitted = model._replace(init=jax.jit(model.init), members=jax.jit(model.members))
    return jitted, jax.jit(model.fit)


@cache
def predictor(model: Model) -> Callable[[Any, Array], Gaussian]:
    one = jax.vmap(model.predict, in_axes=(None, 0, None))
    every = jax.vmap(one, in_axes=(0, None, None))
    return jax.jit(lambda members, obs: every(members, obs, jnp.zeros(1)))


sampled = jax.jit(bnn.sample_members, static_argnums=2)


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- Masks.


def by_hand(state: bnn.State, member: int, obs: np.ndarray) -> np.ndarray:
    """The mean change of obs [O], action 0, by the unit statistics before any fit."""
    layers = jax.tree.map(lambda x: np.asarray(x[0]), state.params["layers"])
    x = np.append(obs, 0.0)
    for i, mask in enumerate(state.masks):
        x = x @ layers[f"Dense_{i}"]["kernel"] + layers[f"Dense_{i}"]["bias"]
        x = x / (1 + np.exp(-x)) * np.asarray(mask)[member]
    last = layers[f"Dense_{len(state.masks)}"]
    return x @ last["kernel"] + last["bias"]


def test_a_particle_keeps_its_mask_for_the_whole_rollout():
    """TS-infinity: each follows one function, but for the least noise that there is."""
    model, _ = make(dataclasses.replace(TINY, learn_reward=False), 2)
    state = model.init(jax.random.key(0))
    params = {**state.params, "log_var": state.params["log_var"] - 1e9}
    targets = state.targets._replace(std=3 * state.targets.std)
    state = state._replace(params=params, targets=targets)
    start = np.array([[0.5, -1.0]] * 6, np.float32)

    @jax.jit
    def path(state: bnn.State) -> Array:
        step, alive = propagation.ts_inf(model, state), jnp.ones(6, bool)

        def move(now: Array, key: Array) -> tuple[Array, Array]:
            now = step(key, now, jnp.zeros(1), alive)
            return now, now

        keys = jax.random.split(jax.random.key(1), 4)
        return jax.lax.scan(move, jnp.asarray(start), keys)[1]

    before = start
    for now in np.asarray(path(state)):
        moved = np.stack([by_hand(state, i // 2, x) for i, x in enumerate(before)])
        noise = (now - before - 3 * moved) / (3 * np.exp(-5))
        assert np.abs(noise).max() < 5  # standard normal
        others = np.stack([by_hand(state, 2 - i // 2, x) for i, x in enumerate(before)])
        assert np.abs(now - before - 3 * others)[[0, 1, 4, 5]].max() > 0.3
        before = now


def test_masks_keep_the_expected_output():
    """Which is linear in the mask of the last hidden layer, here the only one."""
    config = dataclasses.replace(TINY, hidden_sizes=(5,), dropout=0.4)
    model, _ = make(config)
    state = model.init(jax.random.key(0))
    others = sampled(jax.random.key(1), state, 4000)
    mask = np.asarray(others.masks[0])
    assert mask.shape == (4000, 5)
    np.testing.assert_allclose(np.unique(mask), [0, 1 / 0.6], rtol=1e-6)
    np.testing.assert_allclose((mask > 0).mean(axis=0), 0.6, atol=0.04)
    obs = jnp.array([[-2.0], [1.0]])
    found = predictor(model)(others, obs).mean
    whole = others._replace(masks=(jnp.ones_like(others.masks[0]),))
    expected = predictor(model)(whole, obs).mean[0]
    spread = found.std(axis=0) / np.sqrt(4000)
    assert (spread > 0).all()
    assert (abs(found.mean(axis=0) - expected) < 4 * spread).all()


def test_relaxed_masks_are_those_of_the_paper_and_near_plain_ones():
    key, rate, temperature = jax.random.key(0), jnp.array(0.3), 0.1
    draw = jax.jit(bnn.relaxed_mask, static_argnums=3)
    mask = np.asarray(draw(temperature, key, rate, 20_000))
    u = np.asarray(jax.random.uniform(key, (20_000,), jnp.float32, 1.2e-7, 1 - 1.2e-7))
    u = u.astype(float)
    odds = (np.log(0.3) - np.log(0.7) + np.log(u) - np.log(1 - u)) / temperature
    np.testing.assert_allclose(mask, (1 - 1 / (1 + np.exp(-odds))) / 0.7, atol=1e-3)
    np.testing.assert_allclose(mask.mean(), 1, atol=0.03)
    np.testing.assert_allclose((mask > 0.5 / 0.7).mean(), 0.7, atol=0.02)
    # the rate has a gradient through them: more is left out
    kept = lambda rate: (bnn.relaxed_mask(temperature, key, rate, 5) * (1 - rate)).sum()
    slope = jax.jit(jax.grad(kept))(rate)
    assert slope < 0


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_drawn_anew_by_the_key(kind: str):
    model, _ = make(dataclasses.replace(TINY, kind=kind))
    state = model.init(jax.random.key(0))
    one, again, other = (sampled(jax.random.key(seed), state, 7) for seed in (0, 0, 1))
    assert all(len(x) == 7 for x in leaves(one))
    shape = lambda x: x.shape[1:]
    assert jax.tree.map(shape, one) == jax.tree.map(shape, model.members(state))
    assert_same(one, again)
    assert any((a != b).any() for a, b in zip(leaves(one), leaves(other), strict=True))
    kernels = np.asarray(one.params["layers"]["Dense_0"]["kernel"])
    if kind == "svgd":  # each is one of the particles, nothing is left out
        particles = np.asarray(state.params["layers"]["Dense_0"]["kernel"])
        assert len(particles) == TINY.num_members
        for kernel in kernels:
            assert (kernel == particles).all(axis=(1, 2)).sum() == 1
        assert all((mask == 1).all() for mask in leaves(one.masks))
    else:
        assert (kernels == kernels[:1]).all()
        assert any((mask == 0).any() for mask in leaves(one.masks))


# --- The divergence from the prior.

KERNELS = [np.full((2, 3), 0.5), np.full((3, 4), -2.0), np.full((4, 1), 1.0)]
RATES = np.array([0.2, 0.6])


def divergence(rates: np.ndarray, length_scale: float = 0.7) -> float:
    """Gal, Hron and Kendall (2017), Eq. (3), and the entropy below it."""
    value = 0.0
    for kernel, rate in zip(KERNELS, [0.0, *rates], strict=True):
        mean = kernel / (1 - rate)  # of a weight that is not left out
        value += length_scale**2 * (1 - rate) / 2 * (mean**2).sum()
        if rate > 0:
            entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
            value -= kernel.shape[0] * entropy
    return value


@pytest.mark.usefixtures("double")
def test_the_divergence_and_its_gradient():
    kernels = [jnp.asarray(x) for x in KERNELS]
    of_rates = lambda rates: bnn.divergence(kernels, rates, 0.7)
    found, slope = jax.jit(jax.value_and_grad(of_rates))(jnp.asarray(RATES))
    np.testing.assert_allclose(found, divergence(RATES), rtol=1e-12)
    h = 1e-6
    for i in range(2):
        step = h * np.eye(2)[i]
        expected = (divergence(RATES + step) - divergence(RATES - step)) / (2 * h)
        np.testing.assert_allclose(slope[i], expected, rtol=1e-6)


@pytest.mark.usefixtures("double")
def test_without_weights_half_of_the_units_are_best_left_out():
    """Where the entropy is largest, log 2 a unit."""
    kernels = [jnp.zeros_like(x) for x in map(jnp.asarray, KERNELS)]
    half = jnp.full(2, 0.5)
    found, slope = jax.value_and_grad(bnn.divergence, argnums=1)(kernels, half, 1.0)
    np.testing.assert_allclose(found, -(3 + 4) * np.log(2))
    np.testing.assert_allclose(slope, 0, atol=1e-12)


# --- What is learned: change = sin(3 x) + noise, a reward, an end.

SINE = bnn.Config(
    num_members=8,
    hidden_sizes=(24, 24),
    learning_rate=3e-3,
    num_updates=900,
    batch_size=32,
    learn_reward=True,
    learn_terminal=True,
)
NOISE = 0.1
ON_DATA = np.linspace(-0.9, 0.9, 37)[:, None]


def sine(number: int, noise: float, seed: int = 0) -> replay.Replay:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (number, 1))
    change = np.sin(3 * x) + noise * rng.normal(size=x.shape)
    return filled(x, change, reward=100 * x[:, 0] ** 2, terminal=x[:, 0] > 0.3)


@cache
def fitted(kind: str) -> tuple[Model, bnn.State, dict[str, Array]]:
    model, fit = make(dataclasses.replace(SINE, kind=kind))
    start = model.init(jax.random.key(0))
    return model, *fit(jax.random.key(1), start, sine(500, NOISE))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(kind: str):
    """The change, the reward in its own unit, the end; and the noise of both."""
    model, state, metrics = fitted(kind)
    mean, std = predictor(model)(model.members(state), jnp.asarray(ON_DATA))
    assert mean.shape == (8, len(ON_DATA), 3)
    change = mean[..., 0].mean(axis=0) - ON_DATA[:, 0]
    np.testing.assert_allclose(change, np.sin(3 * ON_DATA[:, 0]), atol=0.2)
    np.testing.assert_allclose(
        mean[..., 1].mean(axis=0), 100 * ON_DATA[:, 0] ** 2, atol=15
    )
    ends = mean[..., 2].mean(axis=0) > 0
    clear = abs(ON_DATA[:, 0] - 0.3) > 0.1
    np.testing.assert_array_equal(ends[clear], (ON_DATA[:, 0] > 0.3)[clear])
    assert std[..., 0].min() > 0.8 * NOISE
    assert std[..., 0].max() < 2 * NOISE
    np.testing.assert_array_equal(std[..., 2], 0)
    assert metrics["model/skipped_updates"] == 0


@pytest.mark.slow
def test_the_rate_of_dropout_is_learned():
    """From 0.05: nothing is left out where data tell the function, almost half where
    there are few, under a prior that keeps the network from learning their noise."""
    config = dataclasses.replace(
        SINE, kind="concrete_dropout", length_scale=1.0, learn_terminal=False
    )
    model, fit = make(dataclasses.replace(config, learn_reward=False))
    start, key = model.init(jax.random.key(0)), jax.random.key(1)
    few, many = (fit(key, start, sine(*x))[0].rates for x in ((20, 0.3), (500, 0.0)))
    assert (few > 0.3).all()
    assert (many < 0.01).all()
    assert (fitted("dropout")[1].rates == np.float32(SINE.dropout)).all()


def episodes(model: Model, number: int = 400) -> Episode:
    rows = jax.tree.map(lambda x: x[:number][None], sine(number, NOISE, seed=1).data)
    return Episode(rows, jnp.ones((1, number), bool))


ENV = Env("sine", None, None, 1, 1, 1.0, 5)  # type: ignore[arg-type]  # not stepped


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_calibrated_where_it_was_not_fitted(kind: str):
    """Against chance, the spread of the changes, and against a model of a third, or of
    three times, the std."""
    model, state, _ = fitted(kind)
    data = episodes(model)

    def found(scale: float) -> dict[str, Array]:
        def predict(obs: Array, action: Array) -> Gaussian:
            every = jax.vmap(model.predict, in_axes=(0, None, None))
            mean, std = every(model.members(state), obs, action)
            middle = mean.mean(axis=0)[None]
            return Gaussian(middle + scale * (mean - middle), scale * std)

        return diagnose(ENV, predict, data, horizon=1)

    every = jax.jit(jax.vmap(found))(jnp.array([1 / 3, 1.0, 3.0]))
    nll = every["model/nll"]
    miss = abs(every["model/coverage"] - jnp.array(LEVELS)[None]).mean(axis=1)
    chance = 0.5 * np.log(2 * np.pi * np.e)
    assert nll[1] < chance - 0.5
    assert nll[1] < min(nll[0], nll[2]) - 0.1
    assert miss[1] < 0.12
    assert miss[1] < 0.6 * min(miss[0], miss[2])


def test_particles_know_what_they_do_not_know():
    model, state, _ = fitted("svgd")
    spread = lambda x: (
        predictor(model)(model.members(state), jnp.asarray(x)[:, None])
        .mean[..., 0]
        .std(axis=0)
    )
    far, near = spread([-6.0, -5.0, 5.0, 6.0]), spread(ON_DATA[:, 0])
    assert far.min() > 10 * near.mean()


# --- How a fit goes about it, on a small network.

ROWS = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
X, CHANGE = ROWS[:, :1], ROWS[:, 1:]


@pytest.mark.parametrize("kind", ["dropout", "svgd"])
def test_bad_rows_and_unused_slots_are_not_read(kind: str):
    """The fit is that of the other rows alone; new masks come of the key.  The reward
    never changed, and is predicted so, without noise."""
    model, fit = make(dataclasses.replace(TINY, kind=kind))
    key, start = jax.random.key(2), model.init(jax.random.key(0))
    x, change = X.copy(), CHANGE.copy()
    x[3, 0], change[7, 0] = np.nan, -np.inf
    found, metrics = fit(key, start, filled(x, change, np.nan, reward=0.7))
    good = np.delete(np.arange(40), [3, 7])
    alone, _ = fit(key, start, filled(x[good], change[good], reward=0.7))
    assert metrics["model/skipped_updates"] == 0
    for a, b in zip(leaves(found), leaves(alone), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    mean, std = predictor(model)(model.members(found), jnp.asarray(ON_DATA))
    np.testing.assert_allclose(mean[..., 1], 0.7, rtol=1e-6)
    np.testing.assert_array_equal(std[..., 1], 0)
    assert (std[..., 0] > 0).all()
    if kind != "svgd":
        for old, new in zip(start.masks, found.masks, strict=True):
            assert (old != new).any()


def test_a_broken_particle_does_not_spread():
    """It stays, and its updates are counted."""
    model, fit = make(dataclasses.replace(TINY, kind="svgd"))
    start = model.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x.at[1].set(jnp.nan), start.params)
    state, metrics = fit(
        jax.random.key(0), start._replace(params=params), filled(X, CHANGE)
    )
    for x in leaves(state.params):
        assert np.isfinite(x[[0, 2]]).all()
        assert (x[[0, 2]] != 0).any()
    assert metrics["model/skipped_updates"] == TINY.num_updates
    np.testing.assert_array_equal(state.opt_state.num_skipped, [0, TINY.num_updates, 0])


@pytest.mark.slow
def test_a_cold_start_forgets_the_old_weights():
    data, starts = filled(X, CHANGE), [jax.random.key(seed) for seed in (0, 1)]
    for warm in (False, True):
        model, fit = make(dataclasses.replace(TINY, warm_start=warm))
        one, two = (fit(jax.random.key(2), model.init(x), data)[0] for x in starts)
        pairs = zip(leaves(one.params), leaves(two.params), strict=True)
        assert any((a != b).any() for a, b in pairs) == warm


def test_angles_are_seen_as_sin_and_cos():
    """The change is that of the angle itself."""
    model, _ = make(dataclasses.replace(TINY, angles=(1,)), 2)
    state = model.init(jax.random.key(0))
    assert state.inputs.mean.shape == (2 + 1 + 1,)
    turn = jnp.array([[0.0, 2 * jnp.pi, 0.0]])  # the reward does not turn
    obs = jnp.array([[0.3, 0.4], [0.5, -2.0]])
    members = model.members(state)
    here, there = (predictor(model)(members, x) for x in (obs, obs + turn[:, :2]))
    np.testing.assert_allclose(there.mean, here.mean + turn[None], atol=1e-5)


def test_a_rate_may_be_traced():
    def masks(dropout: Array) -> Array:
        model = bnn.make(1, 1, dataclasses.replace(TINY, dropout=dropout))
        return model.init(jax.random.key(0)).masks[0]

    none, some = jax.jit(jax.vmap(masks))(jnp.array([0.0, 0.9]))
    assert (none == 1).all()
    assert (some == 0).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x64", [False, True])
def test_a_fit_keeps_the_types_of_the_state(kind: str, x64: bool):
    with jax.enable_x64(x64):
        model = bnn.make(1, 1, dataclasses.replace(TINY, kind=kind))
        state = jax.eval_shape(model.init, jax.random.key(0))
        data = jax.eval_shape(lambda: replay.init(1, 1, 64))
        after, _ = jax.eval_shape(model.fit, jax.random.key(0), state, data)
        assert after == state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "laplace"}, "kind is 'laplace', must be one of: dropout, concrete_"),
        ({"num_members": 0}, "num_members is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_updates": 0}, "num_updates is 0"),
        ({"hidden_sizes": ()}, r"hidden_sizes is \(\)"),
        ({"dropout": 1.0}, "dropout is 1.0, must be from 0 to"),
        ({"kind": "concrete_dropout", "dropout": 0.0}, "dropout is 0.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"length_scale": -1.0}, "length_scale is -1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"angles": (1,)}, r"angles are \(1,\), of an obs of size 1"),
    ],
)
def test_what_cannot_be(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        bnn.make(1, 1, bnn.Config(**change))
