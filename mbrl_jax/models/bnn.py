"""Bayesian networks for the dynamics: dropout, concrete dropout, Stein particles.

A posterior over the weights of one network, of which `num_members` samples predict:

    dropout           a member is a mask that leaves out hidden units, drawn after each
                      fit (Gal and Ghahramani, 2016, arXiv 1506.02142)
    concrete_dropout  so too, and each layer's rate of dropout is learned, by gradients
                      through relaxed masks (Gal, Hron and Kendall, 2017, arXiv
                      1705.07832)
    svgd              a member is a network, one of the particles of Stein variational
                      gradient descent (Liu and Wang, 2016, arXiv 1608.04471)

    `num_updates` times: Adam, on a batch, down the negative log-likelihood of a row
        plus the divergence from the prior by the number of rows; of dropout with a new
        mask for each row, of svgd along Stein's direction

What a member does not know but all data share is its noise, one std for each output.
A particle that stays with a member (TS-infinity) keeps its mask for the whole rollout,
and so follows one function, as in Deep PILCO (Gal, McAllister and Rasmussen, 2016);
`sample_members` draws others.  Deviations: inputs are never left out, since a model of
dynamics has few; the prior is on kernels only; members are drawn from plain masks where
the relaxed ones were learned from; particles share their batches and move by Adam.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.special import entr, logit

from mbrl_jax import optimizers
from mbrl_jax.models import ensemble
from mbrl_jax.models.gaussian_process import inputs_of
from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks, finite, normalize, stein
from mbrl_jax.replay import Replay
from mbrl_jax.types import Array, Gaussian, Key, Metrics, Model, Params

MIN_LOG_VAR = -10.0  # of the noise, in units of the targets' variance, as an ensemble's
SPEED = 10.0  # of noise and rates against weights: Adam takes them too little far


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    kind: str = "dropout"  # dropout, concrete_dropout or svgd
    num_members: int = 10  # M, masks, or particles of svgd
    hidden_sizes: tuple[int, ...] = (64, 64)  # units per hidden layer
    dropout: float = 0.05  # rate at which units are left out; concrete: the first one
    temperature: float = 0.1  # of the relaxed masks of concrete dropout
    # of the prior: a weight has a std of one over it; with 1, noise of few data is not
    # taken for signal
    length_scale: float = 0.1
    learning_rate: float = 1e-3  # of Adam
    batch_size: int = 64  # rows per gradient step
    num_updates: int = 2000  # gradient steps per fit
    warm_start: bool = True  # a fit goes on from the weights of the last one
    angles: tuple[int, ...] = ()  # entries of obs seen as sin and cos
    learn_reward: bool = False  # predict the reward, even if it is known
    learn_terminal: bool = False  # predict terminations, even if they are known


class State(NamedTuple):
    params: Params  # [K, ...], of M particles, or of the one network under the masks
    opt_state: optax.OptState  # [K, ...]
    rates: Array  # [L] of dropout, of each hidden layer; 0 of svgd
    masks: tuple[Array, ...]  # of each hidden layer, [M, units]
    inputs: normalize.Statistics
    targets: normalize.Statistics  # of the change of obs, and of the reward


class Member(NamedTuple):
    params: Params
    masks: tuple[Array, ...]  # of each hidden layer, [units]
    inputs: normalize.Statistics
    targets: normalize.Statistics


class _Posterior(NamedTuple):
    """What is special of a kind."""

    num_networks: int  # K
    start: dict[str, Array]  # what is learned besides weights and noise
    rates: Callable[[Params], Array]  # of one network -> [L]
    mask: Callable[[Key, Array, int], Array]  # (key, rate, units) -> [units], to train
    descent: Callable[[Params, Params, Array], Params]
    # ([K, ...], gradients of the losses, number of rows) -> what Adam is given


def make(obs_size: int, action_size: int, config: Config = Config()) -> Model:
    """The model.  Raises ValueError for a configuration that cannot be."""
    validate(config, obs_size)
    num_targets = obs_size + config.learn_reward  # G
    network = MLP(config.hidden_sizes, num_targets + config.learn_terminal)
    see = partial(inputs_of, config.angles)
    blank = jnp.zeros(obs_size), jnp.zeros(action_size)
    num_inputs = jax.eval_shape(see, *blank).shape[0]  # I
    posterior = _KINDS[config.kind](config)
    adam = optax.adam(config.learning_rate)
    optimizer = finite.skip_non_finite(adam, posterior.num_networks)

    def fresh(key: Key) -> Params:
        """One network."""
        layers = network.init(key, jnp.zeros(num_inputs))["params"]
        noise = jnp.zeros(num_targets)  # as large as the targets themselves
        return {"layers": layers, "log_var": noise, **posterior.start}

    def init(key: Key) -> State:
        params_key, masks_key = jax.random.split(key)
        keys = jax.random.split(params_key, posterior.num_networks)
        params = jax.vmap(fresh)(keys)
        rates = _first_rates(posterior, params)
        return State(
            params,
            optimizer.init(params),
            rates,
            _draw_masks(masks_key, rates, config.hidden_sizes, config.num_members),
            normalize.identity(num_inputs),
            normalize.identity(num_targets),
        )

    def apply(params: Params, masks: tuple[Array, ...], inputs: Array) -> Array:
        """The mean, normalised, and the logit of a termination, [D]."""
        return jnp.asarray(network.apply({"params": params["layers"]}, inputs, masks))

    def log_loss(params: Params, masks: tuple, row: ensemble.ModelData) -> Array:
        """The negative log-likelihood of a row, up to a constant."""
        y, log_var = apply(params, masks, row.inputs), _log_var(params)
        errors = jnp.square(y[:num_targets] - row.targets) * jnp.exp(-log_var)
        value = (errors + log_var).sum() / 2
        if config.learn_terminal:
            value += optax.sigmoid_binary_cross_entropy(y[num_targets], row.terminal)
        return value

    def loss(
        params: Params, keys: Key, rows: ensemble.ModelData, number: Array
    ) -> Array:
        """That of the rows, and the divergence from the prior as each bears it."""
        rates = posterior.rates(params)
        masks = jax.vmap(partial(_each, posterior.mask), (0, None, None))(
            keys, rates, config.hidden_sizes
        )
        fits = jax.vmap(log_loss, in_axes=(None, 0, 0))(params, masks, rows)
        layers = (f"Dense_{i}" for i in range(len(config.hidden_sizes) + 1))
        kernels = [params["layers"][name]["kernel"] for name in layers]
        prior = divergence(kernels, rates, config.length_scale)
        return fits.mean() + prior / number

    def fit(key: Key, state: State, replay: Replay) -> tuple[State, Metrics]:
        init_key, train_key, masks_key = jax.random.split(key, 3)
        if not config.warm_start:
            state = init(init_key)
        stats, data, good = ensemble.normalised(replay, config.learn_reward, see)
        order, number = jnp.argsort(~good), jnp.maximum(good.sum(), 1)

        def update(carry: tuple, key: Key) -> tuple[tuple, Array]:
            params, opt_state = carry
            rows_key, keys = jax.random.split(key)
            at = jax.random.randint(rows_key, (config.batch_size,), 0, number)
            rows = jax.tree.map(lambda x: x[order[at]], data)
            keys = jax.random.split(keys, config.batch_size)
            losses, grads = jax.vmap(jax.value_and_grad(loss), (0, None, None, None))(
                params, keys, rows, number
            )
            grads = posterior.descent(params, grads, number)
            after = optimizers.descend(optimizer, grads, opt_state, params)
            return after, losses.mean()

        keys = jax.random.split(train_key, config.num_updates)
        (params, opt_state), losses = jax.lax.scan(
            update, (state.params, state.opt_state), keys
        )
        rates = _first_rates(posterior, params)
        size = config.num_members
        masks = _draw_masks(masks_key, rates, config.hidden_sizes, size)
        skipped = opt_state.num_skipped - state.opt_state.num_skipped
        return State(params, opt_state, rates, masks, *stats), {
            "model/train_loss": losses[-max(1, config.num_updates // 10) :].mean(),
            "model/noise_std": jnp.exp(0.5 * jax.vmap(_log_var)(params)).mean(),
            "model/dropout": rates.mean(),
            "model/skipped_updates": skipped.sum(),
        }

    def members(state: State) -> Member:
        own = jnp.arange(config.num_members) % posterior.num_networks
        return _members(state, own, state.masks)

    def predict(member: Member, obs: Array, action: Array) -> Gaussian:
        inputs = normalize.normalise(member.inputs, see(obs, action))
        y = apply(member.params, member.masks, inputs)
        noise = jnp.exp(0.5 * _log_var(member.params))
        change = normalize.denormalise(member.targets, Gaussian(y[:num_targets], noise))
        return ensemble.outcome(obs, change, y[num_targets:])

    return Model(init, fit, members, predict)


def validate(config: Config, obs_size: int) -> None:
    """Raises ValueError, naming the fields, for a configuration that cannot be."""
    checks.one_of(config, "kind", _KINDS)
    checks.at_least(config, 1, "num_members", "batch_size", "num_updates")
    checks.at_least(config, 0, "length_scale")
    checks.positive(config, "learning_rate", "temperature")
    checks.within(config, 0, 0.99, "dropout")
    if config.kind == "concrete_dropout":
        checks.positive(config, "dropout")  # 0 cannot be left
    if not config.hidden_sizes or min(config.hidden_sizes) < 1:
        raise ValueError(f"hidden_sizes is {config.hidden_sizes}, must be positive")
    if not set(config.angles) <= set(range(obs_size)):
        raise ValueError(f"angles are {config.angles}, of an obs of size {obs_size}")


def sample_members(key: Key, state: State, number: int) -> Member:
    """Other samples of the posterior, with a leading axis: new masks, or particles of
    svgd with replacement.  To be drawn anew for each step of an optimiser."""
    own_key, masks_key = jax.random.split(key)
    num_networks = state.params["log_var"].shape[0]
    own = jax.random.randint(own_key, (number,), 0, num_networks)
    sizes = tuple(mask.shape[1] for mask in state.masks)
    return _members(state, own, _draw_masks(masks_key, state.rates, sizes, number))


def divergence(kernels: list[Array], rates: Array, length_scale: float) -> Array:
    """Of weights with dropout from the prior N(0, 1 / length_scale^2), in nats, up to a
    constant (Gal, Hron and Kendall, 2017, Eq. (3)).

    `rates` [L] are of the inputs of all layers but the first; the means of the weights
    are the kernels by the share that is kept, as masks are scaled.
    """
    total = jnp.zeros(())
    for kernel, rate in zip(kernels, [0.0, *rates], strict=True):
        total += length_scale**2 / 2 * jnp.square(kernel).sum() / (1 - rate)
    for kernel, rate in zip(kernels[1:], rates, strict=True):
        total -= len(kernel) * (entr(rate) + entr(1 - rate))
    return total


def hard_mask(key: Key, rate: Array, size: int) -> Array:
    """0 for what is left out, and so much for the others that the mean is 1."""
    kept = jax.random.uniform(key, (size,), rate.dtype) >= rate
    return kept / (1 - rate)


def relaxed_mask(temperature: float, key: Key, rate: Array, size: int) -> Array:
    """As `hard_mask`, with values in between, differentiable (ibid., Eq. (5))."""
    tiny = jnp.finfo(rate.dtype).eps
    u = jax.random.uniform(key, (size,), rate.dtype, tiny, 1 - tiny)
    left_out = jax.nn.sigmoid((logit(rate) + logit(u)) / temperature)
    return (1 - left_out) / (1 - rate)


def _dropout(config: Config) -> _Posterior:
    rates = _of_each_layer(config, config.dropout)
    return _Posterior(1, {}, lambda params: rates, hard_mask, _downhill)


def _concrete_dropout(config: Config) -> _Posterior:
    start = _of_each_layer(config, logit(config.dropout) / SPEED)
    mask = partial(relaxed_mask, config.temperature)
    rates = lambda params: jax.nn.sigmoid(SPEED * params["logits"])
    return _Posterior(1, {"logits": start}, rates, mask, _downhill)


def _svgd(config: Config) -> _Posterior:
    rates = _of_each_layer(config, 0.0)
    whole = lambda key, rate, size: jnp.ones(size, rate.dtype)
    return _Posterior(config.num_members, {}, lambda params: rates, whole, _steined)


_KINDS: dict[str, Callable[[Config], _Posterior]] = {
    "dropout": _dropout,
    "concrete_dropout": _concrete_dropout,
    "svgd": _svgd,
}


def _of_each_layer(config: Config, x: float | Array) -> Array:
    """Of the hidden ones, [L]."""
    return jnp.full(len(config.hidden_sizes), x, jnp.result_type(float))


def _downhill(params: Params, grads: Params, number: Array) -> Params:
    return grads


def _steined(params: Params, grads: Params, number: Array) -> Params:
    """`grads` are those of the negative log-posterior by the number of rows."""
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], params))
    rows = lambda tree: jax.vmap(lambda x: ravel_pytree(x)[0])(tree)
    phi = stein.direction(rows(params), -number * rows(grads))
    return jax.vmap(unravel)(-phi / number)


def _first_rates(posterior: _Posterior, params: Params) -> Array:
    return posterior.rates(jax.tree.map(lambda x: x[0], params))


def _log_var(params: Params) -> Array:
    """Of the noise, normalised, [G]."""
    return jnp.logaddexp(SPEED * params["log_var"], MIN_LOG_VAR)


def _each(
    mask: Callable[[Key, Array, int], Array],
    key: Key,
    rates: Array,
    sizes: tuple[int, ...],
) -> tuple[Array, ...]:
    """A mask for each hidden layer."""
    keys = jax.random.split(key, len(sizes))
    return tuple(mask(*x) for x in zip(keys, rates, sizes, strict=True))


def _draw_masks(
    key: Key, rates: Array, sizes: tuple[int, ...], number: int
) -> tuple[Array, ...]:
    """`number` of them."""
    keys = jax.random.split(key, number)
    return jax.vmap(lambda key: _each(hard_mask, key, rates, sizes))(keys)


def _members(state: State, own: Array, masks: tuple[Array, ...]) -> Member:
    """The networks with the numbers `own` [N], under the masks [N, ...]."""
    params = jax.tree.map(lambda x: x[own], state.params)
    repeat = lambda x: jnp.broadcast_to(x, (len(own), *x.shape))
    stats = jax.tree.map(repeat, (state.inputs, state.targets))
    return Member(params, masks, *stats)
