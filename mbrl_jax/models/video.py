"""Video prediction by flow: the next picture is the last one, moved by an action.

    kernels, masks = network(I_t, I_0, u_t)
    I_{t+1} = sum_i mask_i (kernel_i * I_t) + mask I_t [+ mask I_0]
    P_{t+1} = the same with the distribution of a designated pixel in place of I

`dna`: one kernel for each pixel; `cdna`: a few for the whole picture (Finn, Goodfellow
and Levine, 2016, arXiv 1605.07157).  With `skip` the picture that a sequence began with
is one of the parts, so that what something has passed in front of can come back: SNA
(Ebert et al., 2017, arXiv 1710.05268, Sec. 4).  Fitted to sequences of pictures by the
squared error of futures that are made of predictions (2016, Sec. 4).

Deviations: a small network without a recurrent state, halved once and brought back to
size; no pixels are made up from nothing.  The paper has the skip with `cdna`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mbrl_jax.networks import Convolution
from mbrl_jax.ops import checks, flow
from mbrl_jax.types import Array, Key, Params

KERNELS = ("dna", "cdna")
STILL = 3.0  # logit of a kernel's centre before anything is learned


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    kernels: str = "dna"  # or cdna
    skip: bool = True  # SNA
    kernel_size: int = 5  # pixels; nothing moves more than half of that in a step
    num_kernels: int = 8  # of cdna
    num_channels: int = 32  # of each hidden layer
    num_layers: int = 4  # L convolutions; a pixel knows of 2 L - 2 around it


class Scene(NamedTuple):
    """A picture [H, W, C], or a distribution [H, W, 1], and where it came from."""

    now: Array  # [H, W, C]
    first: Array  # [H, W, C] that of the beginning


class Flow(NamedTuple):
    kernels: Array  # [H, W, K] of each pixel, or [N, K] of all; K = kernel_size^2
    masks: Array  # [H, W, N + 1 or 2]: of what is moved, what stays, the first picture


class Video(NamedTuple):
    """Functions for one example: pictures [H, W, C] in [0, 1], actions in units of
    their limit."""

    init: Callable[[Key], Params]
    flow: Callable[[Params, Scene, Array], Flow]  # of the pictures, action [A]
    loss: Callable[[Params, Array, Array, Array], Array]
    # (params, pictures [T + 1, H, W, C], actions [T, A], valid [T]) -> []


def make(
    shape: tuple[int, int, int], action_size: int, config: Config = Config()
) -> Video:
    """Of pictures of the `shape` (H, W, C).  Raises ValueError for what cannot be."""
    validate(config)
    if shape[0] % 2 or shape[1] % 2:
        raise ValueError(f"pictures are {shape[0]} by {shape[1]}, must have even sides")
    network: Any = _Network(config)

    def init(key: Key) -> Params:
        blank = jnp.zeros(shape)
        return network.init(key, Scene(blank, blank), jnp.zeros(action_size))

    def loss(params: Params, pictures: Array, actions: Array, valid: Array) -> Array:
        def ahead(scene: Scene, x: tuple[Array, Array, Array]) -> tuple[Scene, Array]:
            action, after, valid = x
            scene = moved(network.apply(params, scene, action), scene)
            error = jnp.square(scene.now - after).mean()
            return scene, jnp.where(valid, error, 0)

        start = Scene(pictures[0], pictures[0])
        _, errors = jax.lax.scan(ahead, start, (actions, pictures[1:], valid))
        return errors.sum() / jnp.maximum(valid.sum(), 1)

    return Video(init, network.apply, loss)


def moved(by: Flow, scene: Scene, *, repeat_edges: bool = True) -> Scene:
    """A step on.  Of a distribution `repeat_edges` is False, see `flow.around`."""
    size = round(by.kernels.shape[-1] ** 0.5)
    parts = flow.around(scene.now, size, repeat_edges=repeat_edges)
    if by.kernels.ndim == 3:
        carried = flow.of_each_pixel(parts, by.kernels)[None]
    else:
        carried = flow.of_all_pixels(parts, by.kernels)
    images = jnp.concatenate([carried, scene.now[None], scene.first[None]])
    images = images[: by.masks.shape[-1]]  # the first one with a skip only
    return scene._replace(now=flow.composite(images, by.masks))


def track(by: Flow, scene: Scene) -> Scene:
    """As `moved`, of a distribution [H, W, 1].  What is more than 1 in all is cut down
    to that; what is less is out of sight, and may come back by the skip."""
    after = moved(by, scene, repeat_edges=False)
    return after._replace(now=after.now / jnp.maximum(after.now.sum(), 1))


class _Network(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, scene: Scene, action: Array) -> Flow:
        config, dtype = self.config, jnp.result_type(float)
        dense = partial(nn.Dense, param_dtype=dtype)
        height, width, _ = scene.now.shape
        tiled = jnp.broadcast_to(action[None, None], (height, width, action.size))
        x = jnp.concatenate([*(scene if config.skip else scene[:1]), tiled], axis=-1)
        for i in range(config.num_layers):
            layer: Any = Convolution(config.num_channels, stride=1 if i else 2)
            x = nn.relu(layer(x))

        area = config.kernel_size**2
        still = STILL * (jnp.arange(area) == area // 2).astype(dtype)
        if config.kernels == "dna":
            num_images = 1
        else:
            num_images = config.num_kernels
            code = nn.relu(dense(4 * config.num_channels)(x.reshape(-1)))
            kernels = dense(num_images * area)(jnp.concatenate([code, action]))
            kernels = kernels.reshape(num_images, area)
        num_masks = num_images + 1 + config.skip

        each = num_masks + (area if config.kernels == "dna" else 0)
        x = dense(4 * each)(x).reshape(height // 2, width // 2, 2, 2, each)
        x = x.transpose(0, 2, 1, 3, 4).reshape(height, width, each)  # back to size
        if config.kernels == "dna":
            kernels = x[..., num_masks:]
        kernels = jax.nn.softmax(kernels + still.reshape(*[1] * (kernels.ndim - 1), -1))
        return Flow(kernels, jax.nn.softmax(x[..., :num_masks]))


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.one_of(config, "kernels", KERNELS)
    checks.at_least(config, 1, "num_kernels", "num_channels", "num_layers")
    if config.kernel_size < 3 or config.kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size is {config.kernel_size}, must be odd and at least 3"
        )
