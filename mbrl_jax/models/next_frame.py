"""SimPLe's video model: the next frame, pixel by pixel, with a discrete latent.

    bits = e(frames, action, next frame), with noise, made 0 or 1              Sec. 4.2
    p(each pixel of the next frame | frames, action, bits)     a softmax over its levels
    p(reward | ...), of its sign: -1, 0 or 1;  p(an end | ...)
    p(bits | frames, action), one after the other, by a recurrent network

    loss = max(-log p(pixel), `clipped`), mean over pixels, - log p(reward) - log p(end)
           - log p(bits), which are given

(Kaiser et al., 2020, "Model-based reinforcement learning for Atari", arXiv 1903.00374.)
Bits are made by the noisy saturating sigmoid of semantic hashing (Kaiser and Bengio,
2018): the sigmoid of the noisy logits, or, for half of them, that rounded, with the
gradient of the sigmoid.  The model is trained on sequences, in which it sees its own
frames in place of the true ones as often as it is told (scheduled sampling).

Deviations: few convolutions of full size in place of 74 million parameters; ends are
predicted; the network of the bits sees the frames as well.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax.networks import Convolution
from mbrl_jax.ops import checks, raster
from mbrl_jax.types import Array, Env, Key, Metrics, Params, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    channels: tuple[int, ...] = (32, 32, 32)  # of the convolutions, 3 x 3, ReLU
    num_levels: int = 256  # of a pixel, evenly over its bytes
    num_bits: int = 8  # of the latent; 0: what follows is certain
    num_hidden: int = 32  # of the recurrent network that predicts them
    clipped: float = 0.03  # nats of a pixel, below which it is good enough


class Prediction(NamedTuple):
    """Logits of what one step brings."""

    pixels: Array  # [height, width, channels, levels]
    reward: Array  # [3] of -1, 0 and 1
    terminal: Array  # []


class NextFrame(NamedTuple):
    """Functions for one example; obs uint8 [height, width, num_frames channels], an
    action [A] in units of its limit or one-hot."""

    init: Callable[[Key], Params]
    predict: Callable[[Params, Array, Array, Array], Prediction]
    # (params, obs, action, bits [L])
    draw_bits: Callable[[Params, Key, Array, Array], Array]
    # (params, key, obs, action) -> [L] of 0 and 1
    loss: Callable[
        [Params, Key, Transition, Array, float | Array], tuple[Array, Metrics]
    ]
    # (params, key, steps [T, ...] as they came, valid [T], share of own frames) -> []
    step: Callable[[Params, Key, Array, Array], tuple[Array, Array, Array]]
    # (params, key, obs, action) -> next obs, reward [], terminal [] bool


class _Body(nn.Module):
    """Features of every pixel, which an action and bits shift and scale."""

    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, picture: Array, told: Array) -> Array:
        dtype = jnp.result_type(float)
        x = picture
        for channels in self.channels:
            convolution: Any = Convolution(channels)
            x = convolution(x)
            scale, shift = jnp.split(nn.Dense(2 * channels, param_dtype=dtype)(told), 2)
            x = nn.relu(x * (1 + scale[None, None]) + shift[None, None])
        return x


class _Next(nn.Module):
    config: Config
    num_channels: int  # of a frame

    @nn.compact
    def __call__(self, picture: Array, told: Array) -> Prediction:
        dtype, config = jnp.result_type(float), self.config
        body: Any = _Body(config.channels)
        x = body(picture, told)
        size = self.num_channels * config.num_levels
        pixels = nn.Dense(size, param_dtype=dtype)(x)
        # a game's rewards hang on few pixels, wherever they are
        seen = jnp.concatenate([x.max(axis=(0, 1)), x.mean(axis=(0, 1))])
        seen = nn.relu(nn.Dense(config.channels[-1], param_dtype=dtype)(seen))
        rest = nn.Dense(4, param_dtype=dtype)(seen)
        shape = (*x.shape[:2], self.num_channels, config.num_levels)
        return Prediction(pixels.reshape(shape), rest[:3], rest[3])


class _Posterior(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, pictures: Array, action: Array) -> Array:
        body: Any = _Body(self.config.channels[:2])
        x = body(pictures, action)
        seen = jnp.concatenate([x.max(axis=(0, 1)), x.reshape(-1)])
        return nn.Dense(self.config.num_bits, param_dtype=x.dtype)(seen)


class _Prior(nn.Module):
    """The logit of one more bit, from those before it."""

    config: Config

    @nn.compact
    def __call__(self, memory: Array, last: Array) -> tuple[Array, Array]:
        cell: Any = nn.GRUCell(self.config.num_hidden, param_dtype=last.dtype)
        memory, x = cell(memory, last[None])
        return memory, nn.Dense(1, param_dtype=last.dtype)(x)[0]


class _Context(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, picture: Array, action: Array) -> Array:
        body: Any = _Body(self.config.channels[:1])
        x = body(picture, action)
        return nn.tanh(nn.Dense(self.config.num_hidden, param_dtype=x.dtype)(x.ravel()))


def make(env: Env, config: Config = Config()) -> NextFrame:
    """Raises ValueError for what cannot be."""
    validate(config)
    if not env.obs_shape:
        raise ValueError(
            f"{env.name} shows vectors, and a model of the next frame needs pictures, "
            "as of pixels/NAME"
        )
    num_channels = env.obs_shape[-1] // env.num_frames
    num_bits, num_levels = config.num_bits, config.num_levels
    network: Any = _Next(config, num_channels)
    posterior: Any = _Posterior(config)
    prior: Any = _Prior(config)
    context: Any = _Context(config)

    def init(key: Key) -> Params:
        keys = jax.random.split(key, 4)
        picture = seen(env.blank_obs())
        action = jnp.zeros(env.num_actions or env.action_size)
        params = {
            "next": network.init(keys[0], picture, jnp.append(action, no_bits(picture)))
        }
        if num_bits:
            both = jnp.concatenate([picture, picture[..., :num_channels]], axis=-1)
            memory = jnp.zeros(config.num_hidden, picture.dtype)
            params["posterior"] = posterior.init(keys[1], both, action)
            params["context"] = context.init(keys[2], picture, action)
            params["prior"] = prior.init(keys[3], memory, picture[0, 0, 0])
        return params

    def no_bits(picture: Array) -> Array:
        return jnp.zeros(num_bits, picture.dtype)

    def predict(params: Params, obs: Array, action: Array, bits: Array) -> Prediction:
        return network.apply(params["next"], seen(obs), jnp.append(action, bits))

    def inferred(
        params: Params, key: Key, obs: Array, action: Array, frame: Array
    ) -> Array:
        """The bits [L] that tell which frame came."""
        both = jnp.concatenate([seen(obs), seen(frame)], axis=-1)
        logits = posterior.apply(params["posterior"], both, action)
        return hashed(key, logits)

    def prior_logits(params: Params, obs: Array, action: Array, bits: Array) -> Array:
        """Of each bit [L], given those before it."""
        memory = context.apply(params["context"], seen(obs), action)
        before = jnp.append(jnp.zeros(1, bits.dtype), bits[:-1])
        return jax.lax.scan(partial(prior.apply, params["prior"]), memory, before)[1]

    def draw_bits(params: Params, key: Key, obs: Array, action: Array) -> Array:
        if not num_bits:
            return no_bits(seen(obs))
        memory = context.apply(params["context"], seen(obs), action)

        def one(now: tuple[Array, Array], key: Key) -> tuple[tuple, Array]:
            memory, logit = prior.apply(params["prior"], *now)
            bit = jax.random.bernoulli(key, nn.sigmoid(logit)).astype(memory.dtype)
            return (memory, bit), bit

        start = memory, jnp.zeros((), memory.dtype)
        return jax.lax.scan(one, start, jax.random.split(key, num_bits))[1]

    def one_loss(
        params: Params, key: Key, obs: Array, data: Transition
    ) -> tuple[Metrics, Array]:
        """The terms of a step before which the model sees `obs`, and its frame."""
        frame = data.next_obs[..., -num_channels:]
        bits, terms = no_bits(seen(obs)), {}
        if num_bits:
            bits = inferred(params, key, obs, data.action, frame)
            given = jnp.round(bits)  # without a gradient
            logits = prior_logits(params, obs, data.action, given)
            terms["bits"] = optax.sigmoid_binary_cross_entropy(logits, given).sum()
        found = predict(params, obs, data.action, bits)
        pixels = optax.softmax_cross_entropy_with_integer_labels(
            found.pixels, level(frame, num_levels)
        )
        # nothing is seen after an end
        pixels = jnp.maximum(pixels, config.clipped).mean()
        terms["pixels"] = jnp.where(data.terminal, 0, pixels)
        sign = jnp.sign(data.reward).astype(jnp.int32) + 1
        terms["reward"] = optax.softmax_cross_entropy_with_integer_labels(
            found.reward, sign
        )
        terms["terminal"] = optax.sigmoid_binary_cross_entropy(
            found.terminal, data.terminal.astype(found.terminal.dtype)
        )
        return terms, shown(found, num_levels)

    def loss(
        params: Params, key: Key, data: Transition, valid: Array, own: float | Array
    ) -> tuple[Array, Metrics]:
        def step(obs: Array, x: tuple[Key, Transition]) -> tuple[Array, Metrics]:
            key, data = x
            coin_key, key = jax.random.split(key)
            terms, frame = one_loss(params, key, obs, data)
            guessed = pushed(obs, frame)
            follows = jax.random.bernoulli(coin_key, own)
            return jnp.where(follows, guessed, data.next_obs), terms

        keys = jax.random.split(key, len(valid))
        _, terms = jax.lax.scan(step, data.obs[0], (keys, data))
        mean = lambda x: jnp.where(valid, x, 0).sum() / jnp.maximum(valid.sum(), 1)
        terms = jax.tree.map(mean, terms)
        return sum(terms.values(), jnp.zeros(())), terms

    def step(
        params: Params, key: Key, obs: Array, action: Array
    ) -> tuple[Array, Array, Array]:
        bits = draw_bits(params, key, obs, action)
        found = predict(params, obs, action, bits)
        reward = found.reward.argmax() - 1.0
        next_obs = pushed(obs, shown(found, num_levels))
        return next_obs, reward, found.terminal > 0

    return NextFrame(init, predict, draw_bits, loss, step)


def seen(obs: Array) -> Array:
    """Bytes as networks see them, in [-0.5, 0.5]."""
    return raster.from_uint8(obs) - 0.5


def level(frame: Array, num_levels: int) -> Array:
    """Of each byte, int32 in range(num_levels)."""
    return frame.astype(jnp.int32) * num_levels // 256


def shown(found: Prediction, num_levels: int) -> Array:
    """The frame whose every pixel is the likeliest, uint8: the middle of its level."""
    width = 256 // num_levels
    return (found.pixels.argmax(axis=-1) * width + width // 2).astype(jnp.uint8)


def pushed(obs: Array, frame: Array) -> Array:
    """The picture after `frame` came, the oldest one gone."""
    return jnp.concatenate([obs[..., frame.shape[-1] :], frame], axis=-1)


def hashed(key: Key, logits: Array) -> Array:
    """Bits by semantic hashing, while they are learned: in [0, 1], half are whole."""
    noise_key, half_key = jax.random.split(key)
    noisy = logits + jax.random.normal(noise_key, logits.shape, logits.dtype)
    soft = jnp.clip(1.2 * nn.sigmoid(noisy) - 0.1, 0, 1)
    hard = soft + jax.lax.stop_gradient((noisy > 0) - soft)
    return jnp.where(jax.random.bernoulli(half_key, 0.5, logits.shape), hard, soft)


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.at_least(config, 1, "num_hidden")
    checks.at_least(config, 0, "num_bits", "clipped")
    if len(config.channels) < 2 or min(config.channels) < 1:
        raise ValueError(f"channels are {config.channels}, must be two or more, from 1")
    if config.num_levels < 2 or 256 % config.num_levels:
        raise ValueError(f"num_levels is {config.num_levels}, must divide 256")
