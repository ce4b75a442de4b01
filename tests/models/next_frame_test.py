"""SimPLe's video model: its loss term by term, its bits, and what it can learn."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax.envs import catch, pixels, planar
from mbrl_jax.models import next_frame
from mbrl_jax.types import Transition

ENV = pixels.make(catch.make(), pixels.Config(size=5, num_frames=2))
TINY = next_frame.Config(channels=(6, 5), num_levels=16, num_bits=0, num_hidden=4)
WITH_BITS = next_frame.Config(channels=(6, 5), num_levels=16, num_bits=3, num_hidden=4)
T = 3


def steps(seed: int = 0) -> Transition:
    """A sequence whose pictures follow each other; it ends with the last."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (T + 2, 5, 5, 1)).astype(np.uint8)
    stacks = np.concatenate([frames[:-1], frames[1:]], axis=-1)
    return jax.tree.map(
        jnp.asarray,
        Transition(
            stacks[:-1],
            np.eye(3, dtype=np.float32)[rng.integers(0, 3, T)],
            np.array([0.0, 3.0, -0.5], np.float32),
            stacks[1:],
            np.array([False, False, True]),
            np.zeros(T, bool),
        ),
    )


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("clipped", [0.0, 2.7])
def test_the_loss_is_that_of_its_parts(clipped: float):
    """Pixels of what comes next, cut at `clipped`, and not those of an end; the sign
    of the reward; the end; each a mean over the steps that are valid."""
    model = next_frame.make(ENV, dataclasses.replace(TINY, clipped=clipped))
    params, data = model.init(jax.random.key(0)), steps()
    valid = jnp.array([True, True, True])
    found, terms = jax.jit(model.loss)(params, jax.random.key(1), data, valid, 0.0)
    each: dict[str, list] = {"pixels": [], "reward": [], "terminal": []}
    for t in range(T):
        said = model.predict(params, data.obs[t], data.action[t], jnp.zeros(0))
        levels = np.asarray(data.next_obs[t, :, :, 1:]) // 16
        logs = np.take_along_axis(log_softmax(said.pixels), levels[..., None], -1)
        ends = bool(data.terminal[t])
        each["pixels"].append(0 if ends else np.maximum(-logs, clipped).mean())
        sign = int(np.sign(data.reward[t])) + 1
        each["reward"].append(-log_softmax(said.reward)[sign])
        chance = 1 / (1 + np.exp(-float(said.terminal)))
        each["terminal"].append(-np.log(chance if ends else 1 - chance))
    for name, values in each.items():
        np.testing.assert_allclose(terms[name], np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(found, sum(map(np.mean, each.values())), rtol=1e-4)
    two = jnp.array([True, True, False])
    _, terms = jax.jit(model.loss)(params, jax.random.key(1), data, two, 0.0)
    for name, values in each.items():
        np.testing.assert_allclose(terms[name], np.mean(values[:2]), rtol=1e-4)


def test_its_own_frames_are_seen_as_often_as_is_said():
    """With a share of 1 the second step sees what the first one said."""
    model, data = next_frame.make(ENV, TINY), steps()
    params, valid = model.init(jax.random.key(0)), jnp.array([False, True, False])
    loss = jax.jit(
        lambda data, own: model.loss(params, jax.random.key(1), data, valid, own)[1][
            "pixels"
        ]
    )
    nothing = jnp.zeros(0)
    said = model.predict(params, data.obs[0], data.action[0], nothing)
    frame = next_frame.shown(said, 16)
    assert (frame != data.next_obs[0, :, :, 1:]).any()
    guessed = next_frame.pushed(data.obs[0], frame)
    np.testing.assert_array_equal(guessed[..., 0], data.obs[0, :, :, 1])
    other = data._replace(next_obs=data.next_obs.at[0].set(guessed))
    assert loss(data, 1.0) == loss(other, 0.0)
    assert abs(loss(data, 1.0) - loss(data, 0.0)) > 1e-5


def test_levels_are_bytes_and_their_middles():
    every = jnp.arange(256, dtype=jnp.uint8)
    for num_levels in (256, 64, 2):
        levels = next_frame.level(every, num_levels)
        assert (levels[0], levels[-1]) == (0, num_levels - 1)
        one_hot = jax.nn.one_hot(levels, num_levels)
        prediction = next_frame.Prediction(one_hot, jnp.zeros(3), jnp.zeros(()))
        back = np.asarray(next_frame.shown(prediction, num_levels)).astype(int)
        assert np.abs(back - np.arange(256)).max() <= 128 // num_levels


def test_bits_are_noisy_sigmoids_half_of_them_rounded_with_a_gradient():
    logits = jnp.full(4000, 0.4)
    bits, vjp = jax.vjp(partial(next_frame.hashed, jax.random.key(0)), logits)
    bits, gradient = np.asarray(bits), np.asarray(vjp(jnp.ones(4000))[0])
    whole = (bits == 0) | (bits == 1)
    inner = bits[~whole]
    assert 0.5 < whole.mean() < 0.6  # half, and those beyond the sigmoid's ends
    assert (np.abs(inner - 0.6) < 0.6).all()
    # of a rounded one, the chance that logit and noise are above 0
    assert abs(bits[whole].mean() - 0.655) < 0.05
    assert (gradient >= 0).all()
    assert (gradient[whole] > 0).mean() > 0.8


def test_each_bit_is_given_those_before_it():
    """What is drawn has the chances that the loss scores."""
    model = next_frame.make(ENV, WITH_BITS)
    params, data = model.init(jax.random.key(0)), steps()
    params = jax.tree.map(lambda x: 2 * x, params)
    obs, action = data.obs[0], data.action[0]
    draw = jax.jit(jax.vmap(lambda key: model.draw_bits(params, key, obs, action)))
    bits = np.asarray(draw(jax.random.split(jax.random.key(2), 4000))).astype(int)
    found = np.bincount(bits @ [4, 2, 1], minlength=8) / 4000
    network: Any = next_frame._Prior(WITH_BITS)
    context: Any = next_frame._Context(WITH_BITS)
    first = context.apply(params["context"], next_frame.seen(obs), action)
    for code in range(8):
        memory, last, chance = first, jnp.zeros(()), 1.0
        for bit in (code >> 2 & 1, code >> 1 & 1, code & 1):
            memory, logit = network.apply(params["prior"], memory, last)
            one = 1 / (1 + np.exp(-float(logit)))
            chance, last = chance * (one if bit else 1 - one), jnp.array(float(bit))
        assert abs(found[code] - chance) < 0.03


def test_the_bits_tell_what_came_and_their_network_leaves_them_alone():
    model = next_frame.make(ENV, WITH_BITS)
    params, data = model.init(jax.random.key(0)), steps()
    valid = jnp.array([True, False, False])

    def term(params: Any, name: str, data: Transition) -> jax.Array:
        return model.loss(params, jax.random.key(1), data, valid, 0.0)[1][name]

    other = data._replace(next_obs=255 - data.next_obs)
    of = jax.jit(lambda data: term(params, "reward", data))
    assert abs(of(data) - of(other)) > 1e-6  # by the bits alone
    size = lambda tree: float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(tree)))
    gradient = jax.jit(jax.grad(term), static_argnums=1)
    by_bits = gradient(params, "bits", data)
    assert size(by_bits["prior"]) > 0
    assert size(by_bits["context"]) > 0
    assert size(by_bits["posterior"]) == 0
    assert size(gradient(params, "pixels", data)["posterior"]) > 0


@pytest.mark.slow
def test_of_two_futures_one_with_bits_knows_both():
    """A frame turns dark or bright, by chance: without bits a model says one of them
    (or neither); with bits it draws both, about as often as they come."""
    dark, bright = (jnp.full((5, 5, 1), x, jnp.uint8) for x in (20, 230))
    obs, action = steps().obs[0], jnp.array([0.0, 1.0, 0.0])

    def row(is_bright: jax.Array) -> Transition:
        frame = jnp.where(is_bright, bright, dark)
        after = next_frame.pushed(obs, frame)
        flag = jnp.zeros((), bool)
        data = Transition(obs, action, jnp.zeros(()), after, flag, flag)
        return jax.tree.map(lambda x: x[None], data)

    rows = jax.vmap(row)(jnp.arange(16) < 12)

    def frames(num_bits: int) -> np.ndarray:
        """What a trained model shows, 200 times: the mean of each frame."""
        config = next_frame.Config((16, 16), 16, num_bits, 4)
        model, optimizer = next_frame.make(ENV, config), optax.adam(1e-2)
        params = model.init(jax.random.key(0))

        def loss(params: Any, key: Any) -> jax.Array:
            one = lambda key, row: model.loss(params, key, row, jnp.ones(1, bool), 0.0)[
                0
            ]
            return jax.vmap(one)(jax.random.split(key, 16), rows).mean()

        def update(carry: Any, key: Any) -> tuple[Any, None]:
            updates, opt_state = optimizer.update(
                jax.grad(loss)(carry[0], key), carry[1]
            )
            return (optax.apply_updates(carry[0], updates), opt_state), None

        keys = jax.random.split(jax.random.key(1), 200)
        start = params, optimizer.init(params)
        (params, _), _ = jax.jit(lambda c: jax.lax.scan(update, c, keys))(start)
        draw = lambda key: model.step(params, key, obs, action)[0][..., 1].mean()
        keys = jax.random.split(jax.random.key(2), 200)
        return np.asarray(jax.jit(jax.vmap(draw))(keys))

    certain, drawn = frames(0), frames(3)
    assert np.ptp(certain) == 0
    near = lambda x, value: np.abs(x - value) < 10
    assert (near(drawn, 20) | near(drawn, 230)).mean() > 0.9
    assert 0.6 < near(drawn, 230).mean() < 0.9  # 12 of 16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (next_frame.Config(num_levels=10), "num_levels is 10, must divide 256"),
        (next_frame.Config(channels=(4,)), r"channels are \(4,\), must be two or more"),
        (next_frame.Config(num_bits=-1), "num_bits is -1"),
    ],
)
def test_what_cannot_be_is_an_early_error(config: next_frame.Config, message: str):
    with pytest.raises(ValueError, match=message):
        next_frame.make(ENV, config)


def test_vectors_are_no_pictures():
    with pytest.raises(ValueError, match="planar shows vectors"):
        next_frame.make(planar.make())
