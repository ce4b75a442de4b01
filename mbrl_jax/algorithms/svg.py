"""SVG: stochastic value gradients (Heess et al., 2015, arXiv 1510.09142).

Differentiate a learned model along real trajectories: the noise of policy and model
that explains what happened is inferred, so that going through the model again gives
exactly the real states, and its errors do not add up.

    repeat:
        run one episode by the noisy policy
        fit the model to all the data
        `num_updates` times:
            step the critic to r + discount target(next_obs)          Algorithm 2
            step the policy along the gradient of                     Eqs. (9), (10)
                sum_{t<horizon} discount^t r_t + discount^horizon critic(obs_horizon)
                on windows of `horizon` real steps, with the noise inferred

`horizon` 1 is SVG(1), with replay and importance weights (SVG(1)-ER); 0 is SVG(0): the
gradient of a critic Q(obs, action) at the policy's own action, without a model; -1 is
SVG(inf): whole episodes, the latest alone, without a critic; above 1 lies in between.

Deviations: the policy's mean is bounded by tanh, with a small cost on its argument, for
a policy that is saturated early has no gradient to come back by; its std stays as it
is; the critic's targets move slowly at every update, not now and then; weights of
windows are products, cut at `max_weight`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers, replay
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble, outcomes
from mbrl_jax.models.outcomes import Outcome
from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks, estimate, finite, normalize
from mbrl_jax.rollout import episode
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Gaussian,
    Key,
    Metrics,
    Params,
    Policy,
    PyTree,
    Transition,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    horizon: int = 1  # steps through the model: 0 SVG(0), 1 SVG(1), -1 SVG(inf)
    capacity: int = 20_000  # transitions kept
    num_updates: int = 200  # of policy and critic, after each episode
    batch_size: int = 128  # windows in an update; SVG(inf) takes one, the episode
    discount: float = 0.98
    learning_rate: float = 1e-3  # of Adam, for the policy
    critic_learning_rate: float = 3e-3
    max_norm: float = 1.0  # of a gradient, above which it is scaled down
    target_decay: float = 0.99  # weight of the OLD target critic
    max_weight: float = 5.0  # importance weights are cut here
    hidden_sizes: tuple[int, ...] = (64, 64)  # of the policy
    std: float = 0.5  # of the action, in units of its limit
    saturation_cost: float = 0.01  # of the mean's squared argument, in stds of reward
    critic_sizes: tuple[int, ...] = (128, 128)
    model: models.Config = models.Config(
        ensemble=ensemble.Config(num_members=1, num_epochs=20, patience=5)
    )


class _Logged(NamedTuple):
    """A transition, and how likely its action was."""

    obs: Array
    action: Array  # before it is clipped to the limit
    reward: Array
    next_obs: Array
    terminal: Array
    truncated: Array
    log_prob: Array  # []


class State(NamedTuple):
    model: PyTree
    replay: replay.Replay  # of _Logged
    latest: _Logged  # [T, ...] the last episode
    valid: Array  # [T] bool
    params: Params  # of the policy
    opt_state: optax.OptState
    critic: Params
    target: Params
    critic_opt_state: optax.OptState
    obs: normalize.Statistics
    reward_std: Array  # []
    env_steps: Array  # [] int32


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.continuous(env)
    checks.vectors(env)
    _validate(env, config)
    model, decode = outcomes.learned(env._replace(terminal=_never), config.model)
    network: Any = MLP(config.hidden_sizes, env.action_size)
    critic: Any = MLP(config.critic_sizes, 1)
    optimizer, critic_optimizer = (
        optimizers.clipped_adam(rate, config.max_norm)
        for rate in (config.learning_rate, config.critic_learning_rate)
    )
    of_action = config.horizon == 0  # whether the critic is a Q

    def init(key: Key) -> State:
        model_key, params_key, critic_key = jax.random.split(key, 3)
        data = replay.init(env.obs_size, env.action_size, config.capacity)
        logged: Any = _Logged(*data.data, jnp.zeros(config.capacity))
        inputs = jnp.zeros(env.obs_size + of_action * env.action_size)
        critic_params = critic.init(critic_key, inputs)
        params = network.init(params_key, jnp.zeros(env.obs_size))
        return State(
            model.init(model_key),
            data._replace(data=logged),
            jax.tree.map(lambda x: x[: env.episode_length], logged),
            jnp.zeros(env.episode_length, bool),
            params,
            optimizer.init(params),
            critic_params,
            critic_params,
            critic_optimizer.init(critic_params),
            normalize.identity(env.obs_size),
            jnp.ones(()),
            jnp.zeros((), jnp.int32),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        episode_key, fit_key, update_key = jax.random.split(key, 3)
        sampled = partial(sample, state, state.params)
        noisy = Policy(lambda: (), lambda key, obs, _: (sampled(key, obs), ()))
        transitions, valid = episode(episode_key, env, noisy)
        good = finite.usable(transitions, num_batch_axes=1)
        log_prob = jax.vmap(partial(log_density, state, state.params))(
            transitions.obs, transitions.action
        )
        logged: Any = _Logged(*transitions, log_prob)
        data = replay.insert(state.replay, logged, valid)
        fitted, metrics = model.fit(fit_key, state.model, data)
        rewards = normalize.statistics(data.data.reward[:, None], replay.valid(data))
        state = state._replace(
            model=fitted,
            replay=data,
            latest=finite.zeroed(~good, logged),
            valid=valid & (jnp.cumsum(~good) == 0),  # up to the first fault
            obs=normalize.statistics(data.data.obs, replay.valid(data)),
            reward_std=rewards.std[0],
            env_steps=state.env_steps + valid.sum(dtype=jnp.int32),
        )
        keys = jax.random.split(update_key, config.num_updates)
        state, seen = jax.lax.scan(update, state, keys)
        skipped = state.opt_state.num_skipped + state.critic_opt_state.num_skipped
        return state, {
            **metrics,
            **jax.tree.map(lambda x: x.sum() / config.num_updates, seen),
            "env_steps": state.env_steps,
            "episode/return": transitions.reward.sum(),
            "episode/length": valid.sum(),
            "episode/non_finite": (valid & ~good).sum(),
            "gradient/skipped_updates": skipped,
        }

    def update(state: State, key: Key) -> tuple[State, Metrics]:
        """One step of the critic, and one of the policy."""
        batch_key, member_key, critic_key, act_key = jax.random.split(key, 4)
        batch, valid = jax.tree.map(lambda x: x[None], (state.latest, state.valid))
        error = jnp.zeros(())
        if config.horizon >= 0:
            batch, valid = replay.sample_sequences(
                batch_key, state.replay, config.batch_size, max(config.horizon, 1)
            )
            first = jax.tree.map(lambda x: x[:, 0], batch)
            state, error = fit_critic(critic_key, state, first)
        members = model.members(state.model)
        number = models.num_members(config.model)
        which = jax.random.randint(member_key, (), 0, number)
        member = jax.tree.map(lambda x: x[which], members)
        objective = q_value if of_action else partial(retraced, member)
        each = jax.vmap(jax.grad(objective), (None, None, 0, 0, 0))
        keys = jax.random.split(act_key, valid.shape[0])
        gradient, num_broken = finite.masked_mean(
            each(state.params, state, keys, batch, valid)
        )
        params, opt_state = optimizers.ascend(
            optimizer, gradient, state.opt_state, state.params
        )
        return state._replace(params=params, opt_state=opt_state), {
            "critic/mse": error,
            "gradient/norm": estimate.norm(gradient),
            "gradient/num_non_finite": num_broken,
        }

    def q_value(
        params: Params, state: State, key: Key, window: Any, valid: Array
    ) -> Array:
        """Of an action of the policy's own where the window [1, ...] is, [] (Sec. 4.3).

        The cost of saturation included, as below.
        """
        obs = window.obs[0]
        found = value(state, state.critic, obs, sample(state, params, key, obs))
        return found - cost(state, params, obs)

    def retraced(
        member: PyTree,
        params: Params,
        state: State,
        key: Key,
        window: Any,
        valid: Array,
    ) -> Array:
        """The return of a real window [H, ...] gone through with the model; [].

        Its value is that of what happened; its gradient is Eqs. (9) and (10).
        """

        def act(obs: Array, real: Array) -> Array:
            return clip(_with_inferred_noise(gaussian(state, params, obs), real))

        predict = partial(model.predict, member)
        total, weight, obs = _retrace(
            act, predict, decode, window, valid, config.discount
        )
        if config.horizon > 0:
            total += weight * value(state, state.critic, obs)
            total *= importance(state, params, window, valid)
        return total - cost(state, params, window.obs[0])

    def fit_critic(key: Key, state: State, batch: Any) -> tuple[State, Array]:
        """A step towards r + discount target(next_obs), weighted; the mean square."""

        def target(key: Key, real: Any) -> Array:
            action = sample(state, state.params, key, real.next_obs)
            action = action if of_action else jnp.zeros(0)
            follows = value(state, state.target, real.next_obs, action)
            follows = jnp.where(real.terminal, 0, config.discount * follows)
            return real.reward + follows

        def loss(critic_params: Params) -> Array:
            actions = batch.action if of_action else batch.action[:, :0]
            found = jax.vmap(partial(value, state, critic_params))(batch.obs, actions)
            return (weights * ((found - targets) / unit(state)) ** 2).mean()

        targets = jax.vmap(target)(jax.random.split(key, len(batch.reward)), batch)
        weights = jnp.ones(len(batch.reward))
        if not of_action:
            windows = jax.tree.map(lambda x: x[:, None], batch)
            weights = jax.vmap(partial(importance, state, state.params))(
                windows, jnp.ones((len(weights), 1), bool)
            )
        error, gradient = jax.value_and_grad(loss)(state.critic)
        updates, opt_state = critic_optimizer.update(gradient, state.critic_opt_state)
        fitted = optax.apply_updates(state.critic, updates)
        share = 1 - config.target_decay
        return state._replace(
            critic=fitted,
            target=optax.incremental_update(fitted, state.target, share),
            critic_opt_state=opt_state,
        ), error

    def unit(state: State) -> Array:
        """Of values."""
        return state.reward_std / (1 - config.discount)

    def value(
        state: State, params: Params, obs: Array, action: Array | None = None
    ) -> Array:
        obs = normalize.normalise(state.obs, obs)
        action = jnp.zeros(0) if action is None else action
        inputs = jnp.concatenate([obs, clip(action) / env.action_limit])
        return critic.apply(params, inputs)[0] * unit(state)

    def clip(action: Array) -> Array:
        """As the environment does."""
        return jnp.clip(action, -env.action_limit, env.action_limit)

    def before_tanh(state: State, params: Params, obs: Array) -> Array:
        return network.apply(params, normalize.normalise(state.obs, obs))

    def gaussian(state: State, params: Params, obs: Array) -> Gaussian:
        mean = env.action_limit * jnp.tanh(before_tanh(state, params, obs))
        return Gaussian(mean, jnp.full(mean.shape, config.std * env.action_limit))

    def cost(state: State, params: Params, obs: Array) -> Array:
        squares = (before_tanh(state, params, obs) ** 2).sum()
        return config.saturation_cost * state.reward_std * squares

    def sample(state: State, params: Params, key: Key, obs: Array) -> Array:
        mean, std = gaussian(state, params, obs)
        return mean + std * jax.random.normal(key, mean.shape)

    def log_density(state: State, params: Params, obs: Array, action: Array) -> Array:
        mean, std = gaussian(state, params, obs)
        return jax.scipy.stats.norm.logpdf(action, mean, std).sum()

    def importance(state: State, params: Params, window: Any, valid: Array) -> Array:
        """How much likelier the actions [H, A] are now than when they were taken."""
        now = jax.vmap(partial(log_density, state, params))(window.obs, window.action)
        change = jnp.where(valid, now - window.log_prob, 0).sum()
        return jax.lax.stop_gradient(jnp.minimum(jnp.exp(change), config.max_weight))

    def policy(state: State) -> Policy:
        mean = lambda obs: gaussian(state, state.params, obs).mean
        return Policy(lambda: (), lambda key, obs, _: (mean(obs), ()))

    def predict(state: State, obs: Array, action: Array) -> Gaussian:
        return outcomes.of_every_member(model)(state, obs, clip(action))

    return Algorithm(init, step, policy, predict)


def _never(obs: Array, action: Array, next_obs: Array) -> Array:
    """Ends are in the data."""
    return jnp.zeros((), bool)


def _with_inferred_noise(gaussian: Gaussian, x: Array) -> Array:
    """The sample `x` as mean + std noise, with the noise that makes it `x` [D].

    Where there is no std, `x` is the mean and a rest.  Its value is `x`, its gradient
    that of mean and std (SVG, Heess et al., 2015, Sec. 4.1).
    """
    mean, std = gaussian
    safe = jnp.where(std > 0, std, 1)
    noise = jax.lax.stop_gradient(jnp.where(std > 0, (x - mean) / safe, 0))
    again = mean + std * noise
    return again + jax.lax.stop_gradient(x - again)


def _retrace(
    act: Callable[[Array, Array], Array],
    predict: Callable[[Array, Array], Gaussian],
    decode: Callable[[Array, Array, Array], Outcome],
    window: Transition,
    valid: Array,
    discount: float | Array,
) -> tuple[Array, Array, Array]:
    """Goes through a real window [H, ...] again, with policy and model, noise inferred.

    `act` makes of (obs, the real action) the same action, `predict` and `decode` are
    the model's.  All values are those of what happened, up to what `valid` [H] leaves
    out; their gradients go through policy and model.  Returns the discounted return [],
    the weight [] of what follows (0 after an end), and the obs [O] where it follows.
    """

    def advance(
        carry: tuple[Array, Array, Array], x: tuple[Transition, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        (total, weight, obs), (real, valid) = carry, x
        action = act(obs, real.action)
        prediction = predict(obs, action)
        happened = jnp.append(real.next_obs, real.reward)[: prediction.mean.size]
        result = decode(obs, action, _with_inferred_noise(prediction, happened))
        total = total + jnp.where(valid, weight * result.reward, 0)
        later = jnp.where(real.terminal, 0, weight * discount)
        weight = jnp.where(valid, later, weight)
        return (total, weight, jnp.where(valid, result.next_obs, obs)), None

    one = jnp.ones((), window.obs.dtype)
    start = (jnp.zeros_like(one), one, window.obs[0])
    return jax.lax.scan(advance, start, (window, valid))[0]


def _validate(env: Env, config: Config) -> None:
    models.validate(config.model, env.obs_size)
    if models.learns(config.model, env._replace(terminal=_never))[1]:
        name = f"model.{config.model.name}.learn_terminal"
        raise ValueError(f"{name}: SVG takes ends from the real data")
    checks.at_least(config, -1, "horizon")
    checks.at_least(config, 0, "saturation_cost")
    checks.at_least(config, 1, "num_updates", "batch_size")
    if config.horizon == -1 and config.num_updates > 1:
        raise ValueError(
            f"num_updates is {config.num_updates}, must be 1 where horizon is -1: then "
            "the policy learns from its latest episode, to which it must not adapt"
        )
    checks.at_most(config, "horizon", "capacity")
    rates = ("learning_rate", "critic_learning_rate")
    checks.positive(config, *rates, "max_norm", "max_weight", "std")
    checks.within(config, 0, 1, "target_decay")
    if isinstance(config.discount, float) and not 0 <= config.discount < 1:
        raise ValueError(f"discount is {config.discount}, must be in [0, 1)")
    checks.holds_an_episode(config, env)
