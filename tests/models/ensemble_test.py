import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.models import ensemble
from mbrl_jax.types import Array, Gaussian, Model, Transition

TRACES: list[str] = []


def filled(
    obs: Array,
    change: Array,
    capacity: int,
    reward: Array | float = 0.0,
    terminal: Array | bool = False,
    unused: float = 0.0,
) -> replay.Replay:
    """A buffer of rows obs [N, 1] -> obs + change, without actions to speak of."""
    num = obs.shape[0]
    blank = jnp.zeros(num)
    rows = Transition(
        obs, blank[:, None], blank + reward, obs + change, blank + terminal, blank
    )
    pad = lambda x: jnp.concatenate(
        [x, jnp.full((capacity - num, *x.shape[1:]), unused)]
    )
    data = jax.tree.map(pad, rows)
    data = data._replace(terminal=data.terminal > 0, truncated=data.truncated > 0)
    number = jnp.arange(1, capacity + 1, dtype=jnp.int32)
    return replay.Replay(
        data, jnp.int32(num % capacity), jnp.int32(num), number, jnp.int32(num)
    )


@cache
def make(config: ensemble.Config) -> tuple[Model, Callable[..., Any]]:
    """The model, and its fit, compiled once for all values of its floats."""

    def fit(
        key: Array,
        state: ensemble.State,
        data: replay.Replay,
        learning_rate: float = config.learning_rate,
        weight_decay: tuple[float, ...] = config.weight_decay,
        holdout_fraction: float = config.holdout_fraction,
    ) -> Any:
        TRACES.append("fit")
        floats = {
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "holdout_fraction": holdout_fraction,
        }
        return ensemble.make(1, 1, dataclasses.replace(config, **floats)).fit(
            key, state, data
        )

    return ensemble.make(1, 1, config), jax.jit(fit)


def predict(model: Model, state: ensemble.State, obs: np.ndarray | Array) -> Gaussian:
    """Of every predicting member for every obs [N], [M, N, D]."""
    prediction = predictor(model)(state, jnp.asarray(obs, jnp.float32)[:, None])
    return jax.tree.map(np.asarray, prediction)


@cache
def predictor(model: Model) -> Callable[[ensemble.State, Array], Gaussian]:
    one = jax.vmap(model.predict, in_axes=(None, 0, None))
    every = jax.vmap(one, in_axes=(0, None, None))
    return jax.jit(lambda state, obs: every(model.members(state), obs, jnp.zeros(1)))


# --- A known function: change = sin(3 x) + std(x) * noise, seen for x in [-1, 1].

CAPACITY = 1024
SINE = ensemble.Config(
    num_members=5, hidden_sizes=(32, 32), learning_rate=3e-3, num_epochs=150
)
KINDS = {
    "D": dataclasses.replace(SINE, probabilistic=False, num_members=1),
    "P": dataclasses.replace(SINE, num_members=1),
    "DE": dataclasses.replace(SINE, probabilistic=False),
    "PE": dataclasses.replace(SINE, learn_reward=True, learn_terminal=True),
}
ON_DATA = np.linspace(-0.9, 0.9, 37)


def mean_of(x: np.ndarray) -> np.ndarray:
    return np.sin(3 * x)


def std_of(x: np.ndarray) -> np.ndarray:
    return 0.05 + 0.25 / (1 + np.exp(-8 * x))


def reward_of(x: np.ndarray) -> np.ndarray:
    return 100 * x**2


def sine() -> replay.Replay:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (900, 1))
    change = mean_of(x) + std_of(x) * rng.normal(size=x.shape)
    f32 = lambda x: jnp.asarray(x, jnp.float32)
    reward = f32(reward_of(x[:, 0]))
    return filled(f32(x), f32(change), CAPACITY, reward, jnp.asarray(x[:, 0] > 0.3))


@cache
def fitted(kind: str) -> tuple[Model, ensemble.State, dict[str, Array]]:
    model, fit = make(KINDS[kind])
    state, metrics = fit(jax.random.key(1), model.init(jax.random.key(0)), sine())
    return model, state, metrics


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_the_mean(kind: str):
    model, state, metrics = fitted(kind)
    prediction = predict(model, state, ON_DATA)
    mean = prediction.mean[..., 0].mean(axis=0) - ON_DATA
    np.testing.assert_allclose(mean, mean_of(ON_DATA), atol=0.1)  # of -1 to 1
    assert 1 <= metrics["model/num_epochs"] <= SINE.num_epochs
    assert metrics["model/skipped_updates"] == 0


@pytest.mark.parametrize("kind", ["P", "PE"])
def test_probabilistic_kinds_learn_the_noise(kind: str):
    """It grows six-fold.  A fit stops once the means are good, with some noise left."""
    model, state, _ = fitted(kind)
    std = predict(model, state, ON_DATA).std[..., 0].mean(axis=0)
    np.testing.assert_allclose(std, std_of(ON_DATA), rtol=0.6)
    np.testing.assert_allclose(std.mean(), std_of(ON_DATA).mean(), rtol=0.2)
    assert std[-5:].mean() > 3.5 * std[:5].mean()


@pytest.mark.parametrize("kind", ["D", "DE"])
def test_deterministic_kinds_claim_no_noise(kind: str):
    model, state, _ = fitted(kind)
    np.testing.assert_array_equal(predict(model, state, ON_DATA).std, 0)


@pytest.mark.parametrize("kind", ["DE", "PE"])
def test_an_ensemble_knows_what_it_does_not_know(kind: str):
    """Its members disagree ten times more where there are no data."""
    model, state, _ = fitted(kind)
    near = predict(model, state, ON_DATA).mean[..., 0].std(axis=0)
    far = (
        predict(model, state, np.array([-6.0, -5.0, 5.0, 6.0])).mean[..., 0].std(axis=0)
    )
    assert far.min() > 10 * near.mean()


def test_rewards_and_terminations_are_learned():
    """In their own units and as a logit; both without noise."""
    model, state, _ = fitted("PE")
    prediction = predict(model, state, ON_DATA)
    assert prediction.mean.shape == (5, len(ON_DATA), 3)
    reward = prediction.mean[..., 1].mean(axis=0)
    np.testing.assert_allclose(reward, reward_of(ON_DATA), atol=5)  # of 0 to 81
    ends = prediction.mean[..., 2].mean(axis=0) > 0
    clear = np.abs(ON_DATA - 0.3) > 0.05
    np.testing.assert_array_equal(ends[clear], (ON_DATA > 0.3)[clear])
    np.testing.assert_array_equal(prediction.std[..., 2], 0)


def test_the_variance_stays_between_its_bounds():
    """Far from all data, too, where a network's output is large."""
    model, state, _ = fitted("PE")
    std = predict(model, state, np.array([-1e4, -30.0, 0.0, 30.0, 1e4])).std[..., :2]
    bounds = [state.params["params"][f"{name}_log_var"] for name in ("min", "max")]
    low, high = (
        jnp.exp(0.5 * x[:, None, :2]) * state.targets.std[None, None] for x in bounds
    )
    assert (std >= 0.999 * low).all()
    assert (std <= 1.01 * high).all()
    assert (low < high).all()


def test_the_loss_pulls_the_bounds_of_the_variance_together():
    """The variance of a logit is not in the loss: its bounds feel nothing but the
    pull, and Adam moves both by as much."""
    _, state, _ = fitted("PE")
    low, high = (
        np.asarray(state.params["params"][f"{name}_log_var"])[:, 2]
        for name in ("min", "max")
    )
    assert (high < 0.5).all()
    assert (low > -10).all()
    np.testing.assert_allclose(low + 10, 0.5 - high, atol=1e-3)


def test_the_penalty_is_a_hundredth_of_the_spread_of_the_bounds():
    model, config = make(KINDS["PE"])[0], KINDS["PE"]
    state = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape[1:]), state.params)
    slope = jax.grad(ensemble._penalty)(params, config)["params"]
    np.testing.assert_allclose(slope["max_log_var"], np.full(3, 0.01), rtol=1e-6)
    np.testing.assert_allclose(slope["min_log_var"], np.full(3, -0.01), rtol=1e-6)


# --- How a fit goes about it, on a small ensemble.

TINY = ensemble.Config(
    probabilistic=False,
    num_members=3,
    num_elites=2,
    hidden_sizes=(16,),
    learning_rate=0.01,
    weight_decay=(0.0, 0.0),
    batch_size=8,
    num_epochs=60,
    patience=10,
    max_holdout=20,
)
ROWS = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
NOISE = jnp.asarray(ROWS[:, :1]), jnp.asarray(ROWS[:, 1:])  # nothing to be learned


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def constant_members(state: ensemble.State, outputs: list[float]) -> ensemble.State:
    """Member m predicts the same, outputs[m], for every input."""
    layers = jax.tree.map(jnp.zeros_like, state.params)
    layers["params"]["Dense_1"]["bias"] = jnp.array(outputs)[:, None]
    return state._replace(params=layers)


@pytest.mark.parametrize("bad", [10.0, jnp.nan])
def test_elites_have_the_least_holdout_error(bad: float):
    """Targets are normalised, so the error of a constant c is 1 + c^2."""
    model, fit = make(TINY)
    state = constant_members(model.init(jax.random.key(0)), [2.0, bad, 0.0])
    state, _ = fit(jax.random.key(0), state, filled(*NOISE, 64), learning_rate=0.0)
    np.testing.assert_array_equal(state.elites, [2, 0])
    change = predict(model, state, np.zeros(1)).mean[:, 0, 0]  # of these two only
    expected = np.array([0.0, 2.0]) * ROWS[:, 1].std() + ROWS[:, 1].mean()
    np.testing.assert_allclose(change, expected, rtol=1e-4)


def test_a_holdout_stops_the_learning_of_noise():
    """Without it every epoch is used and the last parameters are kept."""
    model, fit = make(TINY)
    start, data = model.init(jax.random.key(0)), filled(*NOISE, 64)
    learned = []  # the share of the variance that is thought to be explained
    for fraction in (0.5, 0.0):
        state, metrics = fit(jax.random.key(0), start, data, holdout_fraction=fraction)
        assert (metrics["model/num_epochs"] == TINY.num_epochs) == (fraction == 0)
        change = predict(model, state, ROWS[:, 0]).mean[..., 0] - ROWS[:, 0]
        learned.append(change.var(axis=1).mean() / ROWS[:, 1].var())
    assert learned[0] < 0.05
    assert learned[1] > 0.2


def test_each_member_keeps_its_own_best_parameters():
    """Those of epochs 2 and 0: an improvement by less than 1 % is none."""
    errors = np.array([[5.0, 3.0], [4.0, 4.0], [2.0, 2.99], [3.0, 9.0]])
    zeros = jnp.zeros(2)
    training = ensemble.Training(
        params=zeros - 1,
        opt_state=zeros,
        best=zeros - 1,
        best_errors=zeros + jnp.inf,
        losses=zeros,
        stale=jnp.int32(0),
        epoch=jnp.int32(0),
    )
    stale = []
    for epoch, error in enumerate(errors):
        training = ensemble._keep_best(
            training, zeros + epoch, zeros, jnp.asarray(error), zeros, jnp.int32(1)
        )
        stale.append(int(training.stale))
    np.testing.assert_array_equal(training.best, [2, 0])
    np.testing.assert_array_equal(training.best_errors, [2, 3])
    np.testing.assert_array_equal(training.params, [3, 3])
    assert stale == [0, 0, 0, 1]


def test_a_single_network_learns_all_rows_of_a_small_buffer():
    """Too few for a holdout: the last parameters are kept, and every row is in them.

    They zigzag, so that the others say nothing about a row that a bootstrap left out.
    """
    model, fit = make(KINDS["D"])
    x, change = jnp.linspace(-2, 2, 5), (-1.0) ** jnp.arange(5)
    data, key = filled(x[:, None], change[:, None], CAPACITY), jax.random.key(0)
    state, metrics = fit(key, model.init(key), data, learning_rate=0.02)
    assert metrics["model/num_epochs"] == SINE.num_epochs
    np.testing.assert_allclose(
        predict(model, state, x).mean[0, :, 0] - x, change, atol=0.2
    )


def test_members_differ_by_their_bootstraps():
    """And by their initial parameters, which are the same here."""
    model, fit = make(TINY)
    state = model.init(jax.random.key(0))
    first = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), state.params)
    assert any((x[0] != x[1]).any() for x in leaves(state.params))
    state, _ = fit(jax.random.key(0), state._replace(params=first), filled(*NOISE, 64))
    kernel = np.asarray(state.params["params"]["Dense_1"]["kernel"])
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(kernel[i] - kernel[j]).max() > 1e-3


@pytest.mark.parametrize(
    ("decay", "shrunk"),
    [((0.0, 0.0), []), ((3.0, 0.0), [0]), ((0.0, 3.0), [1]), ((3.0, 3.0), [0, 1])],
)
def test_weight_decay_shrinks_the_kernels_of_its_layer(
    decay: tuple[float, ...], shrunk: list[int]
):
    model, fit = make(TINY)
    start = model.init(jax.random.key(0))
    state, _ = fit(jax.random.key(0), start, filled(*NOISE, 64), 0.01, decay, 0.0)

    def norms(state: ensemble.State) -> np.ndarray:
        layers = state.params["params"]
        kernels = [layers[f"Dense_{layer}"]["kernel"] for layer in range(2)]
        return np.array([np.linalg.norm(kernel) for kernel in kernels])

    ratio = norms(state) / norms(start)
    for layer in range(2):
        assert ratio[layer] < 0.5 if layer in shrunk else ratio[layer] > 0.9


def test_a_cold_start_forgets_the_old_weights():
    model, fit = make(dataclasses.replace(TINY, warm_start=False))
    data = filled(*NOISE, 64)
    starts = [model.init(jax.random.key(seed)) for seed in (0, 1)]
    cold = [fit(jax.random.key(0), start, data) for start in starts]
    assert_same(*cold)
    assert_same(fit(jax.random.key(0), cold[0][0], data), cold[0])
    _, fit = make(TINY)
    warm = [fit(jax.random.key(0), start, data)[0] for start in starts]
    assert any((a != b).any() for a, b in zip(*map(leaves, warm), strict=True))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_bad_rows_do_not_spread(bad: float):
    model, fit = make(TINY)
    start = model.init(jax.random.key(0))
    obs, change = NOISE
    broken = obs.at[3, 0].set(bad), change.at[7, 0].set(-bad)
    state, metrics = fit(jax.random.key(0), start, filled(*broken, 64))
    assert all(np.isfinite(x).all() for x in leaves(state))
    assert metrics["model/skipped_updates"] == 0
    _, rows, _ = ensemble.normalised(filled(*broken, 64), TINY.learn_reward)
    for x in (rows.inputs, rows.targets):
        assert not x[jnp.array([3, 7])].any()  # the mean
    good = np.delete(np.arange(40), [3, 7])
    alone, _ = fit(jax.random.key(0), start, filled(obs[good], change[good], 64))
    for found, expected in zip(
        leaves((state.inputs, state.targets)),
        leaves((alone.inputs, alone.targets)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_never_changed_is_predicted_without_noise():
    """No data say in which unit there could be any.  Here the reward is constant."""
    config = dataclasses.replace(TINY, probabilistic=True, learn_reward=True)
    model, fit = make(config)
    data = filled(*NOISE, 64, reward=0.7)
    state, _ = fit(jax.random.key(0), model.init(jax.random.key(0)), data)
    mean, std = predict(model, state, ON_DATA)
    np.testing.assert_allclose(mean[..., 1], 0.7, rtol=1e-6)
    np.testing.assert_array_equal(std[..., 1], 0)
    assert (std[..., 0] > 0).all()


@pytest.mark.parametrize("unused", [1e6, jnp.nan])
def test_unused_slots_are_not_read(unused: float):
    model, fit = make(TINY)
    start = model.init(jax.random.key(0))
    clean = fit(jax.random.key(0), start, filled(*NOISE, 64))
    assert_same(fit(jax.random.key(0), start, filled(*NOISE, 64, unused=unused)), clean)


def test_a_filling_buffer_does_not_recompile():
    model, fit = make(TINY)
    state = model.init(jax.random.key(0))
    fit(jax.random.key(0), state, filled(*NOISE, 64))
    before = len(TRACES)
    for num in (1, 2, 9, 39):
        data = filled(NOISE[0][:num], NOISE[1][:num], 64)
        state, metrics = fit(jax.random.key(num), state, data)
        assert all(np.isfinite(x).all() for x in leaves((state, metrics)))
    assert len(TRACES) == before


def test_same_key_same_fit():
    model, fit = make(TINY)
    start, data = model.init(jax.random.key(0)), filled(*NOISE, 64)
    one, again, other = (fit(jax.random.key(seed), start, data) for seed in (0, 0, 1))
    assert_same(one, again)
    assert any((a != b).any() for a, b in zip(leaves(one), leaves(other), strict=True))


@pytest.mark.parametrize("x64", [False, True])
def test_a_fit_keeps_the_types_of_the_state(x64: bool):
    with jax.enable_x64(x64):
        model = ensemble.make(1, 1, KINDS["PE"])
        state = jax.eval_shape(model.init, jax.random.key(0))
        data = jax.eval_shape(lambda: replay.init(1, 1, 64))
        after, _ = jax.eval_shape(model.fit, jax.random.key(0), state, data)
        assert after == state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_members": 0}, "num_members is 0"),
        ({"num_elites": -1}, "num_elites is -1"),
        ({"num_elites": 6}, "num_elites is 6, more than the 5 of num_members"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"hidden_sizes": ()}, r"hidden_sizes is \(\)"),
        ({"hidden_sizes": (8, 0)}, r"hidden_sizes is \(8, 0\)"),
        ({"weight_decay": (0.1, 0.1)}, "weight_decay has 2 entries, .* 3 layers"),
        ({"weight_decay": (-0.1,)}, r"weight_decay is \(-0.1,\), must be at least 0"),
        ({"max_holdout": -1}, "max_holdout is -1"),
        ({"holdout_fraction": 1.1}, "holdout_fraction is 1.1"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1, must be positive"),
    ],
)
def test_what_cannot_be(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ensemble.make(1, 1, ensemble.Config(**change))
