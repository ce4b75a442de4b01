"""Deep spatial autoencoder: a picture as a few points that move as its objects do.

    s_c = softmax over all pixels of (scores of channel c) / temperature
    f_c = (E[x], E[y]) under s_c                                    the points, [P, 2]
    presence_c = the mass of s_c near f_c
    h(f) = W f + b, a small grey picture                            the decoder
    loss = |h(f_t) - grey small I_t|^2 + slowness |(f_t+1 - f_t) - (f_t - f_t-1)|^2
           + decay |W|^2

(Finn et al., 2016, "Deep spatial autoencoders for visuomotor learning", arXiv
1509.06113, Sec. IV.)  The scores are those of three convolutions with ReLU between
them, the last with a channel per point; the temperature is learned.  The decoder sees
nothing but the points, and is linear, so they have to say where things are.

Points are in a square of +-1 around the picture, x to the right and y up
(`ops/spatial.py`).  Deviations: pictures are in units of the pixels' deviation, and
there is no batch normalisation; large weights of the decoder cost something, or points
would shrink to be slow; the presence is the mass within `reach`, not of one pixel.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers
from mbrl_jax.envs import pixels
from mbrl_jax.models import footage
from mbrl_jax.models.footage import Footage
from mbrl_jax.networks import Convolution
from mbrl_jax.ops import checks, spatial
from mbrl_jax.ops.normalize import Statistics
from mbrl_jax.types import Array, Key, Params, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    num_points: int = 16  # P
    channels: tuple[int, ...] = (16, 16)  # of the convolutions before the last one
    kernel_sizes: tuple[int, ...] = (5, 3, 3)  # pixels, odd
    stride: int = 2  # of the first convolution
    temperature: float = 0.1  # of the softmax, at first
    decoded_size: int = 16  # pixels, of each side; divides that of the picture
    slowness: float = 100.0  # of the points' change of velocity, next to the pixels
    decay: float = 0.03  # of the decoder's weights
    reach: float = 0.2  # of a point's presence, in units of half a picture


class Points(NamedTuple):
    """What is seen in a picture."""

    place: Array  # [P, 2] x to the right, y up, within +-1
    presence: Array  # [P] in [0, 1]


class SpatialAutoencoder(NamedTuple):
    """Functions for one example; images [H, W, C] in [0, 1], C 1 or 3.

    The encoder sees them in units of `pixels`, the statistics [C] of pixels so far.
    """

    init: Callable[[Key], Params]
    encode: Callable[[Params, Statistics, Array], Points]
    decode: Callable[[Params, Statistics, Array], Array]  # place [P, 2] -> grey [D, D]
    loss: Callable[[Params, Statistics, Array], tuple[Array, dict[str, Array]]]
    # (params, pixels, three images in a row [3, H, W, C]) -> [], and its terms


class _Scores(nn.Module):
    """[H, W, C] -> [H / stride, W / stride, P]."""

    channels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layers = zip(self.channels, self.kernel_sizes, strict=True)
        for i, (number, size) in enumerate(layers):
            x = nn.relu(x) if i else x
            stride, last = 1 if i else self.stride, i == len(self.channels) - 1
            # the same for all pixels makes no difference to a softmax
            convolution: Any = Convolution(number, size, stride, bias=not last)
            x = convolution(x)
        return x


def make(
    image_shape: tuple[int, int, int], config: Config = Config()
) -> SpatialAutoencoder:
    """For images of that shape (H, W, C).  Raises ValueError for what cannot be."""
    validate(image_shape, config)
    P, D = config.num_points, config.decoded_size
    channels = (*config.channels, P)
    scores: Any = _Scores(channels, config.kernel_sizes, config.stride)
    decoder: Any = nn.Dense(D * D, param_dtype=jnp.result_type(float))

    def init(key: Key) -> Params:
        keys = jax.random.split(key)
        return {
            "scores": scores.init(keys[0], jnp.zeros(image_shape)),
            "log_temperature": jnp.log(jnp.zeros(()) + config.temperature),
            "decoder": decoder.init(keys[1], jnp.zeros(2 * P)),
        }

    def encode(params: Params, pixels: Statistics, image: Array) -> Points:
        seen = (image - pixels.mean[None, None]) / pixels.std[None, None]
        maps = jnp.moveaxis(scores.apply(params["scores"], seen), 2, 0)  # [P, h, w]
        temperature = jnp.exp(params["log_temperature"])

        def point(scores: Array) -> tuple[Array, Array]:
            mass = spatial.softmax(scores, temperature)
            place = spatial.expected_place(mass)
            return place, spatial.presence(mass, place, config.reach)

        return Points(*jax.vmap(point)(maps))

    def drawn(params: Params, place: Array) -> Array:
        """In units of a deviation."""
        return decoder.apply(params["decoder"], place.ravel()).reshape(D, D)

    def decode(params: Params, pixels: Statistics, place: Array) -> Array:
        return grey(pixels.mean) + grey(pixels.std) * drawn(params, place)

    def loss(
        params: Params, pixels: Statistics, images: Array
    ) -> tuple[Array, dict[str, Array]]:
        places = jax.vmap(lambda x: encode(params, pixels, x).place)(images)
        aims = jax.vmap(lambda x: downsampled(grey(x), D))(images)
        aims = (aims - grey(pixels.mean)) / grey(pixels.std)
        weights = params["decoder"]["params"]["kernel"]
        gaps = jax.vmap(lambda place: drawn(params, place))(places) - aims
        terms = {
            "reconstruction": jnp.square(gaps).sum() / len(images),
            "slowness": config.slowness
            * jnp.square(spatial.acceleration(places)).sum(),
            "decay": config.decay * jnp.square(weights).sum(),
        }
        return sum(terms.values(), jnp.zeros((), images.dtype)), terms

    return SpatialAutoencoder(init, encode, decode, loss)


def fit(
    key: Key,
    model: SpatialAutoencoder,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: PyTree,
    seen: Footage,
    *,
    num_updates: int,
    batch_size: int,
) -> tuple[Params, PyTree, dict[str, Array]]:
    """Steps down the loss at random triples; and its terms in the last tenth."""
    units = footage.statistics(seen)

    def loss(params: Params, images: Array) -> tuple[Array, dict[str, Array]]:
        total, terms = jax.vmap(lambda x: model.loss(params, units, x))(images)
        return total.mean(), jax.tree.map(jnp.mean, terms)

    def update(
        carry: tuple[Params, PyTree], key: Key
    ) -> tuple[tuple[Params, PyTree], dict[str, Array]]:
        images = footage.triples(key, seen, batch_size)
        gradient, terms = jax.grad(loss, has_aux=True)(carry[0], images)
        return optimizers.descend(optimizer, gradient, carry[1], carry[0]), terms

    keys = jax.random.split(key, num_updates)
    (params, opt_state), terms = jax.lax.scan(update, (params, opt_state), keys)
    last = max(1, num_updates // 10)
    return params, opt_state, jax.tree.map(lambda x: x[-last:].mean(), terms)


def grey(colour: Array) -> Array:
    """The luminance: [..., C] -> [...]."""
    if colour.shape[-1] == 1:
        return colour[..., 0]
    return colour @ jnp.array(pixels.LUMINANCE, colour.dtype)


def downsampled(image: Array, size: int) -> Array:
    """Means of squares: [H, W] -> [size, size]."""
    height, width = image.shape
    blocks = image.reshape(size, height // size, size, width // size)
    return blocks.mean(axis=(1, 3))


def validate(image_shape: tuple[int, int, int], config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.at_least(config, 1, "num_points", "stride", "decoded_size")
    checks.at_least(config, 0, "slowness", "decay")
    checks.positive(config, "reach", "temperature")
    height, width, number = image_shape
    if number not in (1, 3):
        raise ValueError(f"pictures have {number} channels, must have 1 or 3")
    if len(config.kernel_sizes) != len(config.channels) + 1:
        raise ValueError(
            f"kernel_sizes are {len(config.kernel_sizes)}, must be one more than the "
            f"{len(config.channels)} channels"
        )
    if even := [size for size in config.kernel_sizes if size % 2 == 0]:
        raise ValueError(f"kernel_sizes has {even[0]}, must be odd")
    for name in ("decoded_size", "stride"):
        part = getattr(config, name)
        if height % part or width % part:
            raise ValueError(
                f"{name} is {part}, must divide the {height} and {width} pixels of a "
                "picture"
            )
