"""Ensembles of networks (PETS, Chua et al., 2018, Sec. 4; MBPO, Janner et al., 2019).

Probabilistic networks output a mean and a variance and are trained by maximum
likelihood; deterministic ones output a mean, are trained by least squares, and predict
a std of 0.  With one member or several, these are the paper's D, P, DE and PE:

    draw a holdout set; draw each member's rows with replacement from the rest
    repeat, until no member's holdout error has improved for `patience` epochs:
        one epoch of Adam for each member; keep each member's best parameters
    the elites are the members with the smallest holdout error

Deviations: targets are normalised as well as inputs (PETS: inputs); an epoch draws its
batches with replacement from a member's rows instead of shuffling them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import replay as replays
from mbrl_jax.networks import MLP, GaussianMLP
from mbrl_jax.ops import checks, finite, normalize
from mbrl_jax.replay import Replay
from mbrl_jax.types import Array, Gaussian, Key, Metrics, Model, Params

IMPROVEMENT = 0.01  # a holdout error is better if lower by this fraction (MBPO)
BOUND_WEIGHT = 0.01  # of the spread of the variance bounds in the loss (PETS)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    probabilistic: bool = True  # predict a variance too
    num_members: int = 5  # M, ensemble size
    num_elites: int = 0  # members that predict, of least holdout error; 0: all
    hidden_sizes: tuple[int, ...] = (64, 64)  # units per hidden layer
    learning_rate: float = 1e-3  # of Adam
    weight_decay: tuple[float, ...] = (0.0,)  # L2 penalty: one for all, or per layer
    batch_size: int = 64  # rows per gradient step and member
    num_epochs: int = 300  # per fit, at most
    patience: int = 20  # epochs without improvement after which a fit stops
    holdout_fraction: float = 0.1  # of the data, for early stopping and elites
    max_holdout: int = 500  # rows at most; 0: no holdout, no early stopping
    warm_start: bool = True  # a fit goes on from the weights of the last one
    learn_reward: bool = False  # predict the reward, even if it is known
    learn_terminal: bool = False  # predict terminations, even if they are known


class State(NamedTuple):
    params: Params  # [M, ...]
    opt_state: optax.OptState  # [M, ...]
    inputs: normalize.Statistics  # of obs and action
    targets: normalize.Statistics  # of the change of obs, and of the reward
    elites: Array  # [num_elites] int32


class Member(NamedTuple):
    params: Params
    inputs: normalize.Statistics
    targets: normalize.Statistics


class ModelData(NamedTuple):
    """Normalised data."""

    inputs: Array  # [..., O + A]
    targets: Array  # [..., G], the change of obs, and the reward where it is learned
    terminal: Array  # [...] 1 at a termination, else 0


class Training(NamedTuple):
    """The variables of the loop over epochs."""

    params: Params  # [M, ...]
    opt_state: optax.OptState  # [M, ...]
    best: Params  # [M, ...]
    best_errors: Array  # [M]
    losses: Array  # [M], of the last batch
    stale: Array  # [] epochs since the last improvement
    epoch: Array  # []


def make(obs_size: int, action_size: int, config: Config = Config()) -> Model:
    """The model.  Raises ValueError for a configuration that cannot be."""
    validate(config)
    num_targets = obs_size + config.learn_reward  # G
    output_size = num_targets + config.learn_terminal  # D
    kind = GaussianMLP if config.probabilistic else MLP
    network: Any = kind(config.hidden_sizes, output_size)
    adam = optax.adam(config.learning_rate)
    optimizer = finite.skip_non_finite(adam, config.num_members)

    def init(key: Key) -> State:
        x = jnp.zeros(obs_size + action_size)
        keys = jax.random.split(key, config.num_members)
        params = jax.vmap(lambda key: network.init(key, x))(keys)
        return State(
            params,
            optimizer.init(params),
            normalize.identity(obs_size + action_size),
            normalize.identity(num_targets),
            jnp.arange(num_elites(config)),
        )

    def apply(params: Params, inputs: Array) -> tuple[Array, Array]:
        """Mean and log-variance, normalised, [..., D]."""
        if config.probabilistic:
            return network.apply(params, inputs)
        mean = network.apply(params, inputs)
        return mean, jnp.full_like(mean, -jnp.inf)

    def errors(params: Params, rows: ModelData) -> Array:
        """The mean squared error of each row, []."""
        mean, _ = apply(params, rows.inputs)
        return jnp.square(mean[:, :num_targets] - rows.targets).mean(axis=1)

    def loss(params: Params, rows: ModelData) -> Array:
        mean, log_var = apply(params, rows.inputs)
        terms = jnp.square(mean[:, :num_targets] - rows.targets)
        if config.probabilistic:
            log_var = log_var[:, :num_targets]
            terms = terms * jnp.exp(-log_var) + log_var  # Chua et al. (2018), Eq. (1)
        value = terms.mean() + _penalty(params, config)
        if config.learn_terminal:
            logits = mean[:, num_targets]
            value += optax.sigmoid_binary_cross_entropy(logits, rows.terminal).mean()
        return value

    def fit(key: Key, state: State, replay: Replay) -> tuple[State, Metrics]:
        init_key, split_key, rows_key, train_key = jax.random.split(key, 4)
        if not config.warm_start:
            state = init(init_key)
        (inputs, targets), data, _ = normalised(replay, config.learn_reward)
        order, num_held, num_train = _split(split_key, replay, config)
        take = lambda index: jax.tree.map(lambda x: x[index], data)
        holdout = take(order[: config.max_holdout])
        held = jnp.arange(holdout.terminal.shape[0]) < num_held
        own_rows = jax.random.randint(  # [M, C], each member's bootstrap
            rows_key, (config.num_members, replay.capacity), 0, num_train
        )
        if config.num_members == 1:  # a single network sees all the data
            own_rows = jnp.arange(replay.capacity)[None]

        def batch(key: Key) -> ModelData:  # [M, B, ...]
            shape = (config.num_members, config.batch_size)
            at = jax.random.randint(key, shape, 0, num_train)
            drawn = jnp.take_along_axis(own_rows, at, axis=1)
            return take(order[num_held + drawn])

        def update(i: Array, carry: tuple) -> tuple:
            key, params, opt_state, _ = carry
            rows = batch(jax.random.fold_in(key, i))
            losses, grads = jax.vmap(jax.value_and_grad(loss))(params, rows)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return key, optax.apply_updates(params, updates), opt_state, losses

        def epoch(training: Training) -> Training:
            key = jax.random.fold_in(train_key, training.epoch)
            num_updates = -(-num_train // config.batch_size)
            carry = (key, training.params, training.opt_state, training.losses)
            _, params, opt_state, losses = jax.lax.fori_loop(
                0, num_updates, update, carry
            )
            error = jax.vmap(errors, in_axes=(0, None))(params, holdout)  # [M, R]
            error = jnp.where(held[None], error, 0).sum(axis=1)
            error = error / jnp.maximum(num_held, 1)
            return _keep_best(training, params, opt_state, error, losses, num_held)

        trained = _train(state, epoch, config)
        elites = jnp.argsort(trained.best_errors)[: num_elites(config)]
        skipped = trained.opt_state.num_skipped - state.opt_state.num_skipped
        return State(trained.best, trained.opt_state, inputs, targets, elites), {
            "model/train_loss": trained.losses.mean(),
            "model/holdout_mse": trained.best_errors.mean(),
            "model/num_epochs": trained.epoch,
            "model/skipped_updates": skipped.sum(),
        }

    def members(state: State) -> Member:
        params = state.params
        if num_elites(config) < config.num_members:
            params = jax.tree.map(lambda x: x[state.elites], params)
        repeat = lambda x: jnp.broadcast_to(x, (num_elites(config), *x.shape))
        return Member(params, *jax.tree.map(repeat, (state.inputs, state.targets)))

    def predict(member: Member, obs: Array, action: Array) -> Gaussian:
        inputs = jnp.concatenate([obs, action])
        mean, log_var = apply(member.params, normalize.normalise(member.inputs, inputs))
        change = normalize.denormalise(
            member.targets,
            Gaussian(mean[:num_targets], jnp.exp(0.5 * log_var[:num_targets])),
        )
        return outcome(obs, change, mean[num_targets:])

    return Model(init, fit, members, predict)


def num_elites(config: Config) -> int:
    """How many members predict."""
    return config.num_elites or config.num_members


def validate(config: Config) -> None:
    """Raises ValueError, naming the fields, for a configuration that cannot be."""
    checks.at_least(config, 1, "num_members", "batch_size", "num_epochs", "patience")
    checks.at_least(config, 0, "num_elites", "max_holdout")
    checks.at_most(config, "num_elites", "num_members")
    checks.positive(config, "learning_rate")
    checks.within(config, 0, 1, "holdout_fraction")
    if not config.hidden_sizes or min(config.hidden_sizes) < 1:
        raise ValueError(f"hidden_sizes is {config.hidden_sizes}, must be positive")
    num_layers = len(config.hidden_sizes) + 1
    if len(config.weight_decay) not in (1, num_layers):
        raise ValueError(
            f"weight_decay has {len(config.weight_decay)} entries, must have 1, or one "
            f"for each of the {num_layers} layers"
        )
    if any(isinstance(x, int | float) and not x >= 0 for x in config.weight_decay):
        raise ValueError(f"weight_decay is {config.weight_decay}, must be at least 0")


def outcome(obs: Array, change: Gaussian, logits: Array) -> Gaussian:
    """What a model predicts [D], of the change of obs, and the reward where learned,
    [G], and the logit of a termination, empty unless these are learned."""
    origin = jnp.concatenate([obs, jnp.zeros(len(change.mean) - len(obs))])
    return Gaussian(
        jnp.concatenate([origin + change.mean, logits]),
        jnp.concatenate([change.std, jnp.zeros_like(logits)]),
    )


def joined(obs: Array, action: Array) -> Array:
    """What a network is shown, [O + A]."""
    return jnp.concatenate([obs, action])


def normalised(
    replay: Replay,
    learn_reward: bool,
    see: Callable[[Array, Array], Array] = joined,
) -> tuple[tuple[normalize.Statistics, normalize.Statistics], ModelData, Array]:
    """The statistics of inputs and targets, all the data, normalised by them, and which
    rows are data, [C] bool."""
    data = replay.data
    valid = replays.valid(replay)
    inputs = jax.vmap(see)(data.obs, data.action)
    targets = data.next_obs - data.obs
    if learn_reward:
        targets = jnp.concatenate([targets, data.reward[:, None]], axis=1)
    # a row that is not finite teaches nothing: it becomes the mean of the others
    good = finite.usable((inputs, targets), num_batch_axes=1)

    def by_own(x: Array, constant_std: float) -> tuple[normalize.Statistics, Array]:
        x = jnp.where(good[:, None], x, 0)
        stats = normalize.statistics(x, valid & good, constant_std)
        scale = jnp.where(stats.std > 0, stats.std, 1.0)
        x = jax.vmap(normalize.normalise, (None, 0))(stats._replace(std=scale), x)
        return stats, jnp.where(good[:, None], x, 0)

    input_stats, inputs = by_own(inputs, 1.0)
    # what never changed is predicted so, without noise of a unit that no data chose
    target_stats, targets = by_own(targets, 0.0)
    terminal = data.terminal.astype(inputs.dtype)
    rows = ModelData(inputs, targets, terminal)
    return (input_stats, target_stats), rows, valid & good


def _penalty(params: Params, config: Config) -> Array:
    """Weight decay, and the pull on the variance bounds (PETS, App. A.1)."""
    kernels = {}
    penalty = jnp.zeros(())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [entry.key for entry in path]
        if names[-1] == "kernel":
            kernels[int(names[-2].removeprefix("Dense_"))] = leaf
        elif names[-1] == "max_log_var":
            penalty += BOUND_WEIGHT * leaf.sum()
        elif names[-1] == "min_log_var":
            penalty -= BOUND_WEIGHT * leaf.sum()
    for layer, kernel in kernels.items():
        decay = config.weight_decay[layer if len(config.weight_decay) > 1 else 0]
        penalty += 0.5 * decay * jnp.square(kernel).sum()
    return penalty


def _split(key: Key, replay: Replay, config: Config) -> tuple[Array, Array, Array]:
    """The valid rows in a random order [C]: first the holdout, then the rest.

    Returns the order and both counts.  One row at least is left to train on.
    """
    rank = jax.random.uniform(key, (replay.capacity,))
    rank = jnp.where(jnp.arange(replay.capacity) < replay.size, rank, jnp.inf)
    num_held = (config.holdout_fraction * replay.size).astype(jnp.int32)
    num_held = jnp.clip(num_held, 0, jnp.minimum(config.max_holdout, replay.size - 1))
    return jnp.argsort(rank), num_held, replay.size - num_held


def _train(
    state: State, epoch: Callable[[Training], Training], config: Config
) -> Training:
    """Runs epochs until none has improved any member for long, or all are done."""

    def unfinished(training: Training) -> Array:
        fresh = training.stale < config.patience
        return (training.epoch < config.num_epochs) & fresh

    nothing = jnp.zeros((), jnp.int32)
    errors = jnp.full(config.num_members, jnp.inf)
    start = Training(
        state.params,
        state.opt_state,
        state.params,
        errors,
        jnp.zeros_like(errors),
        nothing,
        nothing,
    )
    return jax.lax.while_loop(unfinished, epoch, start)


def _keep_best(
    training: Training,
    params: Params,
    opt_state: optax.OptState,
    errors: Array,
    losses: Array,
    num_held: Array,
) -> Training:
    """Books an epoch: each member's parameters of least holdout error are kept.

    Without a holdout there is nothing to judge by: the last parameters are kept.
    """
    better = errors < (1 - IMPROVEMENT) * training.best_errors  # [M]
    better |= num_held == 0

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 1)), new, old)

    return Training(
        params,
        opt_state,
        jax.tree.map(keep, params, training.best),
        jnp.where(better, errors, training.best_errors),
        losses,
        jnp.where(better.any(), 0, training.stale + 1),
        training.epoch + 1,
    )
