"""Gaussian-process dynamics, one process per output (PILCO; Rasmussen and Williams).

    f_e ~ GP(0, k_e),   change_e = f_e(inputs) + noise_e

The inputs are the observation, with sin and cos in place of its angles, and the action;
the outputs are the changes of the observation, and the reward where it is learned; k_e
has a length scale for each input.  The hyperparameters maximise the marginal likelihood
(Rasmussen and Williams, "Gaussian processes for machine learning", 2006, Eq. (5.8)), by
BFGS from several starts, less PILCO's penalties on signal-to-noise ratios above
`max_snr` and on length scales far from the spread of the data.  Deviation: the same for
the signal, without which a constant output has no optimum.

Of more rows than `max_exact` so many are inducing inputs, those farthest from each
other; the posterior given all rows is that of the deterministic training conditional
(Quinonero-Candela and Rasmussen, "A unifying view of sparse approximate Gaussian
process regression", 2005, Sec. 5), whose moments have the form of the exact one's.
The hyperparameters are those of the inducing rows by themselves: the likelihood of a
sparse process rewards those that explain the noise by where its inducing inputs lie.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from mbrl_jax import replay as replays
from mbrl_jax.ops import bfgs, checks, moments
from mbrl_jax.ops.moments import BLOCK, Kernels
from mbrl_jax.replay import Replay
from mbrl_jax.types import Array, Gaussian, Key, Metrics, Model

POWER = 30  # of the penalties: next to nothing within their limits, a wall at them
MOST_JITTERS = 10  # each ten times the one before
LOG_2_PI = 1.8378770664093453


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    kernel: str = "squared_exponential"  # or matern52, which has no moments
    max_exact: int = 300  # rows; of more, so many are inducing (in whole blocks of 64)
    num_restarts: int = 2  # of the search for hyperparameters
    max_evaluations: int = 100  # of a search, per fit
    max_snr: float = 1000.0  # the signal's std by the noise's, a penalty above
    max_scale: float = 100.0  # of signal and length scales by the data's std, and back
    angles: tuple[int, ...] = ()  # entries of obs seen as sin and cos
    learn_reward: bool = False  # predict the reward, even if it is known


class Hyper(NamedTuple):
    """Logarithms, in units of the data's own spread."""

    lengthscales: Array  # [..., I]
    signal: Array  # [...], its std
    noise: Array  # [...], its std


class State(NamedTuple):
    hyper: Hyper  # [G, ...]
    kernels: Kernels  # of the posterior, in the data's units
    noise_var: Array  # [G]


class Data(NamedTuple):
    """What the processes are fitted to, in units of its own spread."""

    inputs: Array  # [N, I]
    targets: Array  # [N, G]
    valid: Array  # [N] bool; the other rows are 0
    input_std: Array  # [I], 1 where it is 0
    target_std: Array  # [G], about 0; 1 where it is 0


def make(obs_size: int, action_size: int, config: Config = Config()) -> Model:
    """The model.  Raises ValueError for a configuration that cannot be."""
    validate(config, obs_size)
    num_targets = obs_size + config.learn_reward  # G
    see = partial(inputs_of, config.angles)
    blank = jnp.zeros(obs_size), jnp.zeros(action_size)
    num_inputs = jax.eval_shape(see, *blank).shape[0]  # I

    def init(key: Key) -> State:
        """The prior."""
        del key
        one = jnp.ones(num_targets)
        hyper = Hyper(jnp.zeros((num_targets, num_inputs)), 0 * one, _log_noise(one))
        number = num_rows(config)
        kernels = Kernels(
            jnp.zeros((number, num_inputs)),
            jnp.zeros((num_targets, number)),
            jnp.ones((num_targets, num_inputs)),
            one,
            jnp.zeros((num_targets, number, number)),
            jnp.zeros((), jnp.int32),
        )
        return State(hyper, kernels, jnp.exp(2 * hyper.noise))

    def fit(key: Key, state: State, replay: Replay) -> tuple[State, Metrics]:
        every = in_own_units(see, replay, config)
        rows = farthest(every, num_rows(config))
        keys = jax.random.split(key, num_targets)

        def one(key: Key, hyper: Hyper, y: Array, every_y: Array) -> tuple:
            hyper, loss = hyperparameters(key, hyper, y, rows, config)
            return (
                hyper,
                loss,
                *condition(hyper, y, rows, every, every_y, config.kernel),
            )

        hyper, losses, weights, precision, num_jitters = jax.vmap(one)(
            keys, state.hyper, rows.targets.T, every.targets.T
        )
        lengths, signal, noise = jax.tree.map(jnp.exp, hyper)
        std = rows.target_std
        kernels = Kernels(
            rows.inputs * rows.input_std[None],
            weights / std[:, None],
            lengths * rows.input_std[None],
            (signal * std) ** 2,
            precision / std[:, None, None] ** 2,
            rows.valid.sum(dtype=jnp.int32),
        )
        return State(hyper, kernels, (noise * std) ** 2), {
            "model/loss": losses.mean(),
            "model/signal_to_noise": (signal / noise).mean(),
            "model/num_jitters": num_jitters.sum(),
        }

    def members(state: State) -> State:
        return jax.tree.map(lambda x: x[None], state)

    def predict(member: State, obs: Array, action: Array) -> Gaussian:
        mean, var = posterior(config.kernel, member.kernels, see(obs, action))
        origin = jnp.concatenate([obs, jnp.zeros(num_targets - obs_size)])
        return Gaussian(origin + mean, jnp.sqrt(var + member.noise_var))

    return Model(init, fit, members, predict)


def validate(config: Config, obs_size: int) -> None:
    checks.one_of(config, "kernel", KERNELS)
    checks.at_least(config, 1, "max_exact", "num_restarts", "max_evaluations")
    checks.at_least(config, 2, "max_snr", "max_scale")
    if not set(config.angles) <= set(range(obs_size)):
        raise ValueError(f"angles are {config.angles}, of an obs of size {obs_size}")


def num_rows(config: Config) -> int:
    """Of the posterior, [N]."""
    number = config.max_exact
    return number if number <= BLOCK else -(-number // BLOCK) * BLOCK


def inputs_of(angles: tuple[int, ...], obs: Array, action: Array) -> Array:
    """[I]"""
    return jnp.concatenate([moments.features(obs, angles), action])


def in_own_units(
    see: Callable[[Array, Array], Array], replay: Replay, config: Config
) -> Data:
    rows, valid = replay.data, replays.valid(replay)
    inputs = jax.vmap(see)(rows.obs, rows.action)
    targets = rows.next_obs - rows.obs
    if config.learn_reward:
        targets = jnp.column_stack([targets, rows.reward])
    keep = lambda x: jnp.where(valid[:, None], x, 0)
    inputs, targets = keep(inputs), keep(targets)
    number = jnp.maximum(valid.sum(), 1)
    away = keep(inputs - inputs.sum(axis=0)[None] / number)

    def spread(x: Array) -> Array:
        std = jnp.sqrt((x**2).sum(axis=0) / number)
        return jnp.where(std > 0, std, 1.0)

    input_std, target_std = spread(away), spread(targets)
    return Data(
        inputs / input_std[None],
        targets / target_std[None],
        valid,
        input_std,
        target_std,
    )


def farthest(data: Data, number: int) -> Data:
    """All rows, or the `number` of them that are farthest from each other, found
    greedily; those that count come first."""
    if len(data.inputs) <= number:
        rest = number - len(data.inputs)
        return data._replace(
            inputs=jnp.pad(data.inputs, ((0, rest), (0, 0))),
            targets=jnp.pad(data.targets, ((0, rest), (0, 0))),
            valid=jnp.pad(data.valid, (0, rest)),
        )

    def pick(nearest: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        at = jnp.argmax(nearest)
        away = jnp.square(data.inputs - data.inputs[at][None]).sum(axis=1)
        return jnp.minimum(nearest, away).at[at].set(-1), (at, nearest[at] >= 0)

    # from those that were picked; the same row twice counts twice, as long as it fits
    far = jnp.where(data.valid, jnp.inf, -1.0)
    _, (rows, there) = jax.lax.scan(pick, far, length=number)
    keep = lambda x: jnp.where(there[:, None], x[rows], 0)
    inputs, targets = keep(data.inputs), keep(data.targets)
    return Data(inputs, targets, there, data.input_std, data.target_std)


def hyperparameters(
    key: Key, last: Hyper, y: Array, data: Data, config: Config
) -> tuple[Hyper, Array]:
    """Of one output y [N], and their loss; the best of the last ones and of several
    searches, the first of which starts from them."""
    first, unravel = ravel_pytree(last)
    anew, _ = ravel_pytree(Hyper(0 * last.lengthscales, 0 * last.signal, _log_noise(1)))
    noise = jax.random.normal(key, (config.num_restarts - 1, len(first)), first.dtype)
    starts = jnp.concatenate([first[None], anew[None] + noise])

    def loss(hyper: Hyper) -> Array:
        value = negative_log_likelihood(hyper, y, data, config.kernel)
        return value + penalty(hyper, config, len(y))

    search = lambda start: bfgs.minimise(loss, unravel(start), config.max_evaluations)
    found = bfgs.best(jax.vmap(search)(starts))
    return found.params, found.loss


def penalty(hyper: Hyper, config: Config, num_rows: int) -> Array:
    """PILCO's, on what is too large to be believed; and less signal-to-noise than the
    precision of the numbers bears."""
    eps = jnp.finfo(hyper.noise.dtype).eps
    max_snr = jnp.minimum(config.max_snr, (10 * num_rows * eps) ** -0.5)
    ratio = (hyper.signal - hyper.noise) / jnp.log(max_snr)
    scales = jnp.append(hyper.lengthscales, hyper.signal) / jnp.log(config.max_scale)
    return ratio**POWER + (scales**POWER).sum()


def negative_log_likelihood(hyper: Hyper, y: Array, data: Data, kernel: str) -> Array:
    """Rasmussen and Williams (2006), Eq. (5.8)."""
    cov = _cov(hyper, data.inputs, data.valid, kernel)
    return _log_loss(cov, y) + data.valid.sum() * LOG_2_PI / 2


@jax.custom_vjp
def _log_loss(cov: Array, y: Array) -> Array:
    """y' cov^-1 y / 2 + log det(cov) / 2."""
    return _log_loss_forward(cov, y)[0]


def _log_loss_forward(cov: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    inverse, log_det = _inverse(cov)
    alpha = inverse @ y
    return (y @ alpha + log_det) / 2, (inverse, alpha)


def _log_loss_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """Eq. (5.9): several times as fast as differentiating the factorisation."""
    inverse, alpha = kept
    return g * (inverse - jnp.outer(alpha, alpha)) / 2, g * alpha


_log_loss.defvjp(_log_loss_forward, _log_loss_backward)


def _inverse(cov: Array) -> tuple[Array, Array]:
    """And the log of the determinant; NaN where `cov` is not definite."""
    half = _half_inverse(cov)
    return half.T @ half, -2 * jnp.log(jnp.diag(half)).sum()


@jax.custom_batching.sequential_vmap
def _half_inverse(cov: Array) -> Array:
    """L^-1 of cov = L L', so that cov^-1 = L^-T L^-1; NaN where that is not definite.

    One after the other: on a CPU, two batches of triangular solves at once can wait for
    each other for ever (jaxlib 0.10, in a pool of two threads).
    """
    root = jnp.linalg.cholesky(cov)
    return solve_triangular(root, jnp.eye(len(root), dtype=root.dtype), lower=True)


def condition(
    hyper: Hyper, y: Array, rows: Data, every: Data, every_y: Array, kernel: str
) -> tuple[Array, Array, Array]:
    """Weights [N] and precision [N, N] of the posterior of one output at `rows`, given
    those, or `every` row if more of these count; and how often noise had to be added
    for it to exist."""
    # inducing outputs are taken for noisy: without noise they would be almost singular
    half, num_jitters = _safe_half_inverse(_cov(hyper, rows.inputs, rows.valid, kernel))

    def exact() -> tuple[Array, Array]:
        precision = half.T @ half
        return precision @ y, precision

    def sparse() -> tuple[Array, Array]:
        """With A = L^-1 cross / noise and B = 1 + A A', the precision is
        L^-T (1 - B^-1) L^-1: this never forms cov + cross cross' / noise^2, whose
        condition number is beyond double precision where the noise is small."""
        lengths, signal, noise = jax.tree.map(jnp.exp, hyper)
        few, many = rows.inputs / lengths[None], every.inputs / lengths[None]
        cross = signal**2 * KERNELS[kernel](few, many)
        cross = jnp.where(jnp.outer(rows.valid, every.valid), cross, 0) / noise
        A, one = half @ cross, jnp.eye(len(half), dtype=half.dtype)
        inverse, _ = _inverse(one + A @ A.T)  # of B
        weights = half.T @ (inverse @ (A @ every_y)) / noise
        return weights, half.T @ (one - inverse) @ half

    if len(every.inputs) <= len(rows.inputs):
        weights, precision = exact()
    else:
        few = every.valid.sum() <= len(rows.inputs)
        weights, precision = jax.lax.cond(few, exact, sparse)
    precision = jnp.where(jnp.outer(rows.valid, rows.valid), precision, 0)
    return weights, precision, num_jitters


def _safe_half_inverse(cov: Array) -> tuple[Array, Array]:
    """Of `cov` with as little noise as makes it definite, and the number of trials."""
    least = jnp.finfo(cov.dtype).eps * jnp.diag(cov).max()
    eye = jnp.eye(len(cov), dtype=cov.dtype)

    def more(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        number = carry[1] + 1
        return _half_inverse(cov + least * 10.0**number * eye), number

    broken = lambda carry: ~jnp.isfinite(carry[0]).all() & (carry[1] < MOST_JITTERS)
    first = _half_inverse(cov), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(broken, more, first)


def posterior(kernel: str, f: Kernels, x: Array) -> tuple[Array, Array]:
    """Mean [G] and variance [G], that of observations not included, at x [I]."""

    def one(weights: Array, lengths: Array, signal: Array, precision: Array) -> tuple:
        scaled = f.inputs / lengths[None]
        k = signal * KERNELS[kernel]((x / lengths)[None], scaled)[0]
        return k @ weights, jnp.maximum(signal - k @ precision @ k, 0)

    assert f.precision is not None
    return jax.vmap(one)(f.weights, f.lengthscales, f.signal_var, f.precision)


def _cov(hyper: Hyper, inputs: Array, valid: Array, kernel: str) -> Array:
    """Of noisy observations at `inputs` [N, I]; of the others that of unit noise."""
    lengths, signal, noise = jax.tree.map(jnp.exp, hyper)
    scaled = inputs / lengths[None]
    cov = signal**2 * KERNELS[kernel](scaled, scaled)
    cov = jnp.where(jnp.outer(valid, valid), cov, 0)
    return cov + jnp.diag(jnp.where(valid, noise**2, 1.0))


def squared_exponential(a: Array, b: Array) -> Array:
    """[N, I], [M, I] -> [N, M]; 1 at a distance of 0."""
    return jnp.exp(-_square_distances(a, b) / 2)


def matern52(a: Array, b: Array) -> Array:
    """Rasmussen and Williams (2006), Eq. (4.17)."""
    square = 5 * _square_distances(a, b)
    distance = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return (1 + distance + square / 3) * jnp.exp(-distance)


KERNELS = {"squared_exponential": squared_exponential, "matern52": matern52}


def _square_distances(a: Array, b: Array) -> Array:
    return jnp.square(a[:, None] - b[None]).sum(axis=-1)


def _log_noise(one: Array | float) -> Array:
    """Where the search begins: a tenth of the signal."""
    return jnp.log(0.1 * jnp.asarray(one, float))
