"""An ensemble in one network: its mean, and both of its uncertainties.

After every fit of the members, one network learns by least squares what each of them
says, on inputs like those that a planner asks about.  Of an input it gives

    f_m, m = 1..M   their means                       in a last layer that has them all
    a               std of the mean of their variances                      (aleatoric)

and so the mean f over the f_m, and e, their std (epistemic).  One network in place of
many is Hinton et al. (2015, arXiv 1503.02531), with what tells the uncertainties apart
Malinin et al. (2020, arXiv 1905.00076), by heads on one trunk Tran et al. (2020, arXiv
2001.04694).  It is a model like any other, whose member k is, with weights w_k drawn
at each fit,

    N(f + sum over m of w_km (f_m - f) / sqrt(M), a^2),    w_km standard normal

A particle that stays with a member (TS-infinity) keeps its weights for the whole
rollout, and follows one function: a draw from the Gaussian over functions with the mean
and the covariance of the ensemble, across inputs and entries alike.  An offset z e in
place of this sum, with a z for each particle, would err to the same side everywhere.
There may be fewer of these members than M: weights have mean 0 and variance 1 over
them, so that two are w and -w, where an ensemble needs a particle for each of its own.

Errors of means count in units of the members' own std, and `tolerance` more, so that
they are small where the members are sure.  Inputs are rows of the data, with normal
noise, since a planner goes beyond the data, and the actions of other rows, since it
asks what any action would do.  A fit starts from the parameters of the last one, Adam
anew.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import optimizers
from mbrl_jax import replay as replays
from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks, normalize
from mbrl_jax.replay import Replay
from mbrl_jax.types import Array, Gaussian, Key, Metrics, Model, Params, PyTree

MIN_STD = 1e-4  # that is told from none, in units of the targets' std


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    num_updates: int = 0  # gradient steps per fit; 0: no distillation
    num_members: int = 2  # of the one network: weights w
    hidden_sizes: tuple[int, ...] = (56, 56)  # units per hidden layer
    learning_rate: float = 3e-3  # of Adam, at first; falls to a hundredth
    max_norm: float = 10.0  # of a gradient, above which it is scaled down
    batch_size: int = 256  # inputs per gradient step
    jitter: float = 0.2  # std of the noise of obs, in units of their std
    tolerance: float = 0.003  # of errors of means, in units of the targets' std


class State(NamedTuple):
    taught: PyTree  # state of the model that is distilled
    params: Params
    inputs: normalize.Statistics  # of obs and action
    targets: normalize.Statistics  # of the change of obs, and what else is predicted
    weights: Array  # [K, M] w


class Member(NamedTuple):
    params: Params  # of a network whose last layer gives mean and log std
    inputs: normalize.Statistics
    targets: normalize.Statistics


class Said(NamedTuple):
    """By all members, of one step."""

    means: Array  # [M, D]
    aleatoric: Array  # [D] std

    @property
    def epistemic(self) -> Array:
        """Std [D]."""
        return self.means.std(axis=0)


def make(taught: Model, obs_size: int, action_size: int, config: Config) -> Model:
    """`taught` in one network.  Raises ValueError for what cannot be."""
    validate(config)
    num_inputs = obs_size + action_size
    example = jnp.zeros(obs_size), jnp.zeros(action_size)
    said = jax.eval_shape(
        lambda key: every(taught, taught.init(key), *example), jax.random.key(0)
    )
    num_taught, size = said.means.shape  # M, D
    network: Any = MLP(config.hidden_sizes, (num_taught + 1) * size)
    folded: Any = MLP(config.hidden_sizes, 2 * size)
    last_layer = f"Dense_{len(config.hidden_sizes)}"
    optimizer = optimizers.clipped_adam(
        config.learning_rate, config.max_norm, decay_steps=config.num_updates
    )

    def init(key: Key) -> State:
        taught_key, params_key, key = jax.random.split(key, 3)
        return State(
            taught.init(taught_key),
            network.init(params_key, jnp.zeros(num_inputs)),
            normalize.identity(num_inputs),
            normalize.identity(size),
            draw(key, config.num_members, num_taught),
        )

    def apply(params: Params, inputs: Array) -> tuple[Array, Array]:
        """Means [M, D], and log std [D], normalised."""
        rows = network.apply(params, inputs).reshape(num_taught + 1, size)
        return rows[:-1], rows[-1]

    def fit(key: Key, state: State, replay: Replay) -> tuple[State, Metrics]:
        taught_key, train_key, key = jax.random.split(key, 3)
        fitted, metrics = taught.fit(taught_key, state.taught, replay)
        data, rows = replay.data, replays.valid(replay)
        ask = lambda obs, action: _change(every(taught, fitted, obs, action), obs)
        changes = jax.vmap(ask)(data.obs, data.action).means.mean(axis=1)
        seen = jnp.concatenate([data.obs, data.action], axis=1)
        inputs = normalize.statistics(seen, rows)
        targets = normalize.statistics(changes, rows, constant_std=0.0)

        def loss(params: Params, obs: Array, action: Array) -> Array:
            said = _normalised(targets, ask(obs, action))
            x = normalize.normalise(inputs, jnp.concatenate([obs, action]))
            means, log_std = apply(params, x)
            var = jnp.square(said.aleatoric) + jnp.square(said.epistemic)
            unit = jnp.sqrt(var) + config.tolerance
            errors = jnp.square((means - said.means) / unit[None]).mean()
            return errors + jnp.square(log_std - jnp.log(said.aleatoric)).mean()

        def update(carry: tuple, key: Key) -> tuple[tuple, Array]:
            params, opt_state = carry
            obs, action = queries(key, replay, inputs.std[:obs_size], config)
            of = lambda params: jax.vmap(loss, (None, 0, 0))(params, obs, action).mean()
            value, gradient = jax.value_and_grad(of)(params)
            return optimizers.descend(optimizer, gradient, opt_state, params), value

        keys = jax.random.split(train_key, config.num_updates)
        start = state.params, optimizer.init(state.params)
        (params, opt_state), losses = jax.lax.scan(update, start, keys)
        weights = draw(key, config.num_members, num_taught)
        return State(fitted, params, inputs, targets, weights), {
            **metrics,
            "distilled/loss": losses[-max(1, config.num_updates // 10) :].mean(),
            "distilled/skipped_updates": opt_state.num_skipped,
        }

    def members(state: State) -> Member:
        own = jax.vmap(partial(_folded, last_layer, size), (None, 0))
        repeat = lambda x: jnp.broadcast_to(x, (len(state.weights), *x.shape))
        stats = jax.tree.map(repeat, (state.inputs, state.targets))
        return Member(own(state.params, state.weights), *stats)

    def predict(member: Member, obs: Array, action: Array) -> Gaussian:
        x = normalize.normalise(member.inputs, jnp.concatenate([obs, action]))
        mean, log_std = jnp.split(folded.apply(member.params, x), 2)
        y = normalize.denormalise(member.targets, Gaussian(mean, jnp.exp(log_std)))
        return Gaussian(_origin(obs, size) + y.mean, y.std)

    return Model(init, fit, members, predict)


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for a configuration that cannot be."""
    checks.at_least(config, 1, "num_updates", "num_members", "batch_size")
    checks.positive(config, "learning_rate", "max_norm", "tolerance")
    checks.at_least(config, 0, "jitter")


def every(model: Model, state: PyTree, obs: Array, action: Array) -> Said:
    """What the members of a model say."""
    predict = jax.vmap(model.predict, in_axes=(0, None, None))
    mean, std = predict(model.members(state), obs, action)
    return Said(mean, jnp.sqrt(jnp.square(std).mean(axis=0)))


def recalled(model: Model, state: State, obs: Array, action: Array) -> Said:
    """What the one network says that they say; `model` is what `make` gave."""
    num_taught = state.weights.shape[1]
    each = jnp.sqrt(num_taught) * jnp.eye(num_taught)
    return every(model, state._replace(weights=each), obs, action)


def draw(key: Key, number: int, num_taught: int) -> Array:
    """Weights [K, M], with mean 0 and variance 1 over the K; 0 for one alone."""
    w = jax.random.normal(key, (number, num_taught))
    w = w - w.mean(axis=0, keepdims=True)
    return w if number == 1 else w / w.std(axis=0, keepdims=True)


def queries(
    key: Key, replay: Replay, std: Array, config: Config
) -> tuple[Array, Array]:
    """Inputs [B, ...] to ask about; `std` [O] is that of the obs."""
    obs_key, action_key, key = jax.random.split(key, 3)
    obs = replays.sample(obs_key, replay, config.batch_size).obs
    action = replays.sample(action_key, replay, config.batch_size).action
    noise = jax.random.normal(key, obs.shape)
    return obs + config.jitter * std[None] * noise, action


def _folded(last_layer: str, size: int, params: Params, weights: Array) -> Params:
    """One member: the weighted sum of the heads is taken in the last layer, once for
    all inputs, since it is linear in them."""
    number = len(weights)
    shares = 1 / number + (weights - weights.mean()) / jnp.sqrt(number)  # [M]

    def fold(x: Array) -> Array:
        heads = x.reshape(*x.shape[:-1], number + 1, size)
        mean = jnp.einsum("m,...md->...d", shares, heads[..., :-1, :])
        return jnp.concatenate([mean, heads[..., -1, :]], axis=-1)

    layers = params["params"]
    return {"params": {**layers, last_layer: jax.tree.map(fold, layers[last_layer])}}


def _normalised(targets: normalize.Statistics, said: Said) -> Said:
    """In units of the targets' std."""
    targets = targets._replace(std=jnp.where(targets.std > 0, targets.std, 1.0))
    means = jax.vmap(normalize.normalise, (None, 0))(targets, said.means)
    return Said(means, jnp.maximum(said.aleatoric / targets.std, MIN_STD))


def _change(said: Said, obs: Array) -> Said:
    """Of the change of obs, in place of the next one."""
    origin = _origin(obs, said.means.shape[1])
    return said._replace(means=said.means - origin[None])


def _origin(obs: Array, size: int) -> Array:
    """What a change is from: obs, and 0 for what else is predicted."""
    return jnp.concatenate([obs, jnp.zeros(size - len(obs))])
