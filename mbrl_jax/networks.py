"""Flax modules."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mbrl_jax.ops import checks, raster
from mbrl_jax.types import Array, Params


def silu(x: Array) -> Array:
    """x * sigmoid(x) by way of tanh, which CPUs compute faster than exp and divide."""
    return 0.5 * x * (1.0 + jnp.tanh(0.5 * x))


# PETS, Chua et al. (2018): a normal truncated at two of its standard deviations.
_pets_init = nn.initializers.variance_scaling(0.25, "fan_in", "truncated_normal")


class MLP(nn.Module):
    """Hidden layers with an activation, then a linear layer.

    `masks`: what the units of each hidden layer are multiplied by, where given.
    """

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: Callable[[Array], Array] = silu
    kernel_init: Any = _pets_init  # of flax

    @nn.compact
    def __call__(self, x: Array, masks: tuple[Array, ...] = ()) -> Array:
        # flax's own default is float32, even where float64 is on
        layer = partial(
            nn.Dense, kernel_init=self.kernel_init, param_dtype=jnp.result_type(float)
        )
        for i, size in enumerate(self.hidden_sizes):
            x = self.activation(layer(size)(x))
            if masks:
                x = x * masks[i]
        self.sow("intermediates", "features", x)  # for `features`; else nothing
        return layer(self.output_size)(x)


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    channels: tuple[int, ...] = (16, 32, 32)  # of each convolution
    num_features: int = 50


class Convolution(nn.Module):
    """Of a picture [height, width, channels], whose edges are padded by zeros, with a
    `bias` or without: [height / stride, width / stride, C], both rounded up.

    As a product of all patches with a matrix: on CPUs, XLA's own convolution takes ten
    times as long inside a loop, and training is one.
    """

    channels: int  # C
    size: int = 3  # of a patch
    stride: int = 1
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rows, columns = (-(-side // self.stride) for side in x.shape[:2])
        before = (self.size - 1) // 2
        wide = jnp.pad(x, ((before, self.size), (before, self.size), (0, 0)))
        cut = lambda start, number: slice(
            start, start + self.stride * number, self.stride
        )
        sides = range(self.size)
        patches = [wide[cut(i, rows), cut(j, columns)] for i in sides for j in sides]
        dtype = jnp.result_type(float)
        layer = nn.Dense(self.channels, use_bias=self.bias, param_dtype=dtype)
        return layer(jnp.concatenate(patches, axis=-1))


class Encoder(nn.Module):
    """A picture, uint8 [height, width, channels], as features [F] in [-1, 1].

    Convolutions of 3 x 3, each of half the height and width of what it sees, then one
    layer, normalised: that of Yarats et al. (2021, "Image augmentation is all you
    need", App. C), with strides in place of size.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, picture: Array) -> Array:
        dtype = jnp.result_type(float)
        x = raster.from_uint8(picture) - 0.5
        for channels in self.config.channels:
            convolution: Any = Convolution(channels, stride=2)
            x = nn.relu(convolution(x))
        x = nn.Dense(self.config.num_features, param_dtype=dtype)(x.ravel())
        return nn.tanh(nn.LayerNorm(param_dtype=dtype)(x))


def validate(config: EncoderConfig) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.at_least(config, 1, "num_features")


def features(network: MLP, params: Params, x: Array) -> Array:
    """What the last layer of an MLP is a linear function of, [F]."""
    apply: Any = network.apply
    _, seen = apply(params, x, mutable="intermediates")
    return seen["intermediates"]["features"][0]


def with_trunk(params: Params, trunk: Params) -> Params:
    """The parameters of an MLP, its hidden layers those of another, `trunk`.

    Only the last layer stays as it is.  The trunk may know more inputs than the first
    layer takes, as that of several tasks, which is told which one it is: those behind
    are dropped.  Raises ValueError for layers that do not fit.
    """
    own, other = params["params"], trunk["params"]
    if len(own) != len(other):
        raise ValueError(f"{len(own)} layers cannot have a trunk of {len(other)}")
    hidden = {}
    for i in range(len(own) - 1):
        name = f"Dense_{i}"
        kernel, bias = other[name]["kernel"], other[name]["bias"]
        shape = own[name]["kernel"].shape
        kernel = kernel if i else kernel[: shape[0]]
        if kernel.shape != shape:
            raise ValueError(
                f"hidden layer {i} is {list(shape)}, of the trunk {list(kernel.shape)}"
            )
        hidden[name] = {"kernel": kernel, "bias": bias}
    return {**params, "params": {**own, **hidden}}


class GaussianMLP(nn.Module):
    """Mean and log-variance, kept softly between learned bounds (PETS, App. A.1)."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    min_log_var: float = -10.0  # where the bounds start
    max_log_var: float = 0.5

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        size = (self.output_size,)
        low = self.param(
            "min_log_var", nn.initializers.constant(self.min_log_var), size
        )
        high = self.param(
            "max_log_var", nn.initializers.constant(self.max_log_var), size
        )
        output = MLP(self.hidden_sizes, 2 * self.output_size, name="mlp")(x)
        mean, log_var = jnp.split(output, 2, axis=-1)
        low, high = (
            jnp.broadcast_to(low, mean.shape),
            jnp.broadcast_to(high, mean.shape),
        )
        log_var = high - nn.softplus(high - log_var)
        log_var = low + nn.softplus(log_var - low)
        return mean, log_var


class PolicyNetwork(nn.Module):
    """The mean of an action, and the logarithm of its std relative to a first one.

    Layer normalisation after each hidden layer, as in SHAC and Brax's APG.  The output
    layer starts small, so that all actions are near 0.
    """

    hidden_sizes: tuple[int, ...]
    action_size: int
    activation: Callable[[Array], Array] = nn.elu

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        dtype = jnp.result_type(float)
        init, layer = nn.initializers.orthogonal, partial(nn.Dense, param_dtype=dtype)
        for size in self.hidden_sizes:
            x = self.activation(layer(size, kernel_init=init())(x))
            x = nn.LayerNorm(param_dtype=dtype)(x)
        mean = layer(self.action_size, kernel_init=init(0.01))(x)
        zeros = nn.initializers.zeros_init()
        return mean, self.param("log_std", zeros, (self.action_size,), dtype)
