"""Embed to Control: pictures whose code moves as a locally linear system.

    q(z | x) = N(mu(x), diag sigma(x)^2)                                the encoder
    A(z) = I + v(z) r(z)^T,  B(z),  o(z)                                the transition
    z_hat' = A z + B u + o ~ N(A mu + B u + o, A diag sigma^2 A^T) = q_hat
    p(x | z): each pixel by itself, of the chance that the decoder says

    loss = -log p(x | z) - log p(x' | z_hat') + KL(q(z | x) || N(0, I))
           + transition_weight KL(q_hat || q(z' | x'))

(Watter et al., 2015, "Embed to control", arXiv 1506.07365, Sec. 2.)  z and z' are
encoded by the same network.  Likelihoods are summed over the pixels, or the divergences
would outweigh them.  Deviations: no noise is added in the transition.  Without `joint`
the code is that of a variational autoencoder of single pictures, and the transition is
fitted to what it gives: the paper's comparison.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks, normalize
from mbrl_jax.ops.normalize import Statistics
from mbrl_jax.types import Array, Gaussian, Key, Params

FIRST_STD = 0.1  # of codes, before anything is learned
LEAST = 1e-6  # of |1 + v^T r|, the determinant of A


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    latent_size: int = 2  # Z
    encoder_sizes: tuple[int, ...] = (150, 150)  # hidden layers, ReLU
    transition_sizes: tuple[int, ...] = (100, 100)
    decoder_sizes: tuple[int, ...] = (200, 200)
    transition_weight: float = 0.25  # of the divergence between z_hat' and z'
    joint: bool = True  # False: an autoencoder first, the transition apart from it


class Step(NamedTuple):
    """The transition at one z: A = I + v r^T."""

    v: Array  # [Z]
    r: Array  # [Z]
    B: Array  # [Z, A]
    o: Array  # [Z]

    def __call__(self, z: Array, action: Array) -> Array:
        return z + self.v * (self.r @ z) + self.B @ action + self.o


class Latent(NamedTuple):
    """Functions for one example; obs [O] in [0, 1], actions in units of their limit.

    The encoder sees pictures in units of `pixels`, the statistics of those so far.
    """

    init: Callable[[Key], Params]
    encode: Callable[[Params, Statistics, Array], Gaussian]  # obs -> q(z | x) [Z]
    decode: Callable[[Params, Array], Array]  # z -> chance of each pixel [O]
    transition: Callable[[Params, Array], Step]  # at z
    loss: Callable[
        [Params, Statistics, Key, Array, Array, Array], tuple[Array, dict[str, Array]]
    ]
    # (params, pixels, key, obs, action, next_obs) -> [], and its terms


def make(obs_size: int, action_size: int, config: Config = Config()) -> Latent:
    """Raises ValueError for what cannot be."""
    validate(config)
    size = config.latent_size
    # large enough that the decoder hears of the code before the prior silences it; not
    # orthogonal: of many models at once, jaxlib's factorisations wait for each other
    loud = nn.initializers.he_normal()
    network: Any = partial(MLP, activation=nn.relu)
    encoder = network(config.encoder_sizes, 2 * size, kernel_init=loud)
    # and this one not: at first every place moves alike, so that codes do not fold
    moving = network(config.transition_sizes, size * (3 + action_size))
    decoder = network(config.decoder_sizes, obs_size, kernel_init=loud)

    def init(key: Key) -> Params:
        keys = jax.random.split(key, 3)
        return {
            "encoder": encoder.init(keys[0], jnp.zeros(obs_size)),
            "transition": moving.init(keys[1], jnp.zeros(size)),
            "decoder": decoder.init(keys[2], jnp.zeros(size)),
        }

    def encode(params: Params, pixels: Statistics, obs: Array) -> Gaussian:
        seen = normalize.normalise(pixels, obs)
        mean, log_std = jnp.split(encoder.apply(params["encoder"], seen), 2)
        return Gaussian(mean, FIRST_STD * jnp.exp(jnp.clip(log_std, -10, 5)))

    def logits(params: Params, z: Array) -> Array:
        return decoder.apply(params["decoder"], z)

    def transition(params: Params, z: Array) -> Step:
        v, r, o, B = jnp.split(
            moving.apply(params["transition"], z), [size, 2 * size, 3 * size]
        )
        return Step(v, r, B.reshape(size, action_size), o)

    def loss(
        params: Params,
        pixels: Statistics,
        key: Key,
        obs: Array,
        action: Array,
        next_obs: Array,
    ) -> tuple[Array, dict[str, Array]]:
        now, after = (encode(params, pixels, x) for x in (obs, next_obs))
        z = now.mean + now.std * jax.random.normal(key, now.mean.shape, obs.dtype)
        terms = {"reconstruction": nll(logits(params, z), obs), "prior": prior(now)}
        if not config.joint:  # the code is given
            now, z, after = jax.lax.stop_gradient((now, z, after))
        step = transition(params, z)
        seen = params if config.joint else jax.lax.stop_gradient(params)
        terms["prediction"] = nll(logits(seen, step(z, action)), next_obs)
        terms["transition"] = config.transition_weight * divergence(
            step(now.mean, action), now.std, step, after
        )
        return sum(terms.values(), jnp.zeros((), obs.dtype)), terms

    return Latent(
        init=init,
        encode=encode,
        decode=lambda params, z: jax.nn.sigmoid(logits(params, z)),
        transition=transition,
        loss=loss,
    )


def nll(logits: Array, pixels: Array) -> Array:
    """-log p(x | z) of pixels in [0, 1], summed; [O] -> []."""
    return (jax.nn.softplus(logits) - pixels * logits).sum()


def prior(code: Gaussian) -> Array:
    """KL(N(mean, diag std^2) || N(0, I)); []."""
    var = jnp.square(code.std)
    return 0.5 * (var + jnp.square(code.mean) - 1 - jnp.log(var)).sum()


def divergence(mean: Array, std: Array, step: Step, after: Gaussian) -> Array:
    """KL(N(mean, A diag std^2 A^T) || N(after.mean, diag after.std^2)); [].

    By A = I + v r^T without any matrix: its determinant is 1 + v^T r, and the diagonal
    of A S A^T is s + 2 v r s + v^2 sum r^2 s.
    """
    s, s_after = jnp.square(std), jnp.square(after.std)
    spread = s * (1 + 2 * step.v * step.r) + step.v**2 * (step.r**2 @ s)
    away = jnp.square(after.mean - mean)
    determinant = jnp.maximum(jnp.abs(1 + step.v @ step.r), LEAST)
    log_ratio = jnp.log(s_after / s).sum() - 2 * jnp.log(determinant)
    return 0.5 * (((spread + away) / s_after).sum() - len(mean) + log_ratio)


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.at_least(config, 1, "latent_size")
    checks.at_least(config, 0, "transition_weight")
