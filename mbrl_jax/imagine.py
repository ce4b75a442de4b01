"""Model x actions or policy -> imagined futures; a model along real transitions."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import replay
from mbrl_jax.experience import Window
from mbrl_jax.models import ensemble
from mbrl_jax.models.propagation import Step
from mbrl_jax.replay import Replay
from mbrl_jax.types import (
    Array,
    Env,
    EnvState,
    Gaussian,
    Key,
    Metrics,
    Model,
    Policy,
    PyTree,
    Simulation,
    Transition,
)
from mbrl_jax.value_learning import Act

BLOCK = 1000  # rows of a member at once, so that what is between layers stays in cache


class Outcome(NamedTuple):
    """What one imagined step led to."""

    next_obs: Array  # [O]
    reward: Array  # []
    terminal: Array  # [] bool


def outcome(
    env: Env, learn_reward: bool, learn_terminal: bool
) -> Callable[[Array, Array, Array], Outcome]:
    """Reads a model's prediction: (obs [O], action [A], y [D]) -> Outcome.

    What is not learned is computed by the environment's own functions.
    """
    size = env.obs_size
    reward_of = None if learn_reward else env.reward
    terminal_of = None if learn_terminal else env.terminal

    def read(obs: Array, action: Array, y: Array) -> Outcome:
        next_obs = y[:size]
        return Outcome(
            next_obs,
            reward_of(obs, action, next_obs) if reward_of else y[size],
            terminal_of(obs, action, next_obs) if terminal_of else y[-1] > 0,
        )

    return read


def learned(
    env: Env, config: ensemble.Config
) -> tuple[Model, Callable[[Array, Array, Array], Outcome]]:
    """An ensemble for `env`, and its `outcome`.  It also learns reward and termination
    where `config` says so, or where only the simulator knows them."""
    learn_reward = config.learn_reward or env.reward is None
    learn_terminal = config.learn_terminal or env.terminal is None
    config = dataclasses.replace(
        config, learn_reward=learn_reward, learn_terminal=learn_terminal
    )
    action_size = env.num_actions or env.action_size
    model = ensemble.make(env.obs_size, action_size, config)
    if env.num_actions:
        model = _of_numbers(model, env.num_actions)
    return model, outcome(env, learn_reward, learn_terminal)


def _of_numbers(model: Model, num_actions: int) -> Model:
    """Of discrete actions: the model sees them one-hot."""
    one_hot = lambda action: jax.nn.one_hot(action, num_actions)

    def fit(key: Key, state: PyTree, data: PyTree) -> tuple[PyTree, Metrics]:
        seen = data.data._replace(action=one_hot(data.data.action))
        return model.fit(key, state, data._replace(data=seen))

    def predict(member: PyTree, obs: Array, action: Array) -> Gaussian:
        return model.predict(member, obs, one_hot(action))

    return model._replace(fit=fit, predict=predict)


def of_every_member(model: Model) -> Callable[[Any, Array, Array], Gaussian]:
    """The `predict` of an algorithm whose state has the model's as `model`."""
    every = jax.vmap(model.predict, in_axes=(0, None, None))
    return lambda state, obs, action: every(model.members(state.model), obs, action)


class Futures(NamedTuple):
    """Particles in a model, between two steps."""

    obs: Array  # [P, O]
    alive: Array  # [P] bool


def particle_returns(
    key: Key,
    step: Step,
    read: Callable[[Array, Array, Array], Outcome],
    obs: Array,
    actions: Array,
    num_particles: int,
) -> Array:
    """The returns [P] of the actions [H, A] from `obs` [O], each up to its own end."""

    def advance(
        carry: tuple[Futures, Array], x: tuple[Key, Array]
    ) -> tuple[tuple[Futures, Array], None]:
        (key, action), (futures, total) = x, carry
        futures, rewards = _advance(key, step, read, futures, action)
        return (futures, total + rewards), None

    start = _spread(obs, num_particles), jnp.zeros(num_particles, obs.dtype)
    keys = jax.random.split(key, actions.shape[0])
    (_, total), _ = jax.lax.scan(advance, start, (keys, actions))
    return total


def particle_mean(
    key: Key,
    step: Step,
    read: Callable[[Array, Array, Array], Outcome],
    obs: Array,
    num_particles: int = 1,
) -> Simulation:
    """The mean of the particles' rewards, step by step; of one, the one future."""

    def advance(
        now: tuple[Key, Futures], action: Array
    ) -> tuple[tuple[Key, Futures], Array]:
        key, futures = now
        step_key, key = jax.random.split(key)
        futures, rewards = _advance(step_key, step, read, futures, action)
        return (key, futures), rewards.mean()

    return Simulation((key, _spread(obs, num_particles)), advance)


Sampler = Callable[[Key, Array, Array], Array]
# (key, obs [N, O], action [N, A]) -> outcomes [N, D], drawn


def dealt(model: Model, members: PyTree) -> Sampler:
    """The rows are dealt to the members [M, ...] anew at every call (TS1), N / M each;
    where M does not divide N, some members have fewer."""
    num_members = jax.tree.leaves(members)[0].shape[0]
    predict = jax.vmap(jax.vmap(model.predict, in_axes=(None, 0, 0)))

    def sample(key: Key, obs: Array, action: Array) -> Array:
        deal_key, noise_key = jax.random.split(key)
        number = len(obs)
        num_blocks = -(-number // (num_members * BLOCK))
        total = number + -number % (num_members * num_blocks)  # some are done twice
        order = jax.random.permutation(deal_key, total)
        shape = num_blocks, num_members, -1
        deal = lambda x: x[order % number].reshape(*shape, *x.shape[1:])

        def block(x: tuple[Key, Array, Array]) -> Array:
            key, obs, action = x
            mean, std = predict(members, obs, action)
            return mean + std * jax.random.normal(key, mean.shape, mean.dtype)

        keys = jax.random.split(noise_key, num_blocks)
        y = jax.lax.map(block, (keys, deal(obs), deal(action)))
        return y.reshape(total, -1)[jnp.argsort(order)[:number]]

    return sample


def of_one(model: Model, member: PyTree) -> Sampler:
    """Every row by the same member."""
    predict = jax.vmap(model.predict, in_axes=(None, 0, 0))

    def sample(key: Key, obs: Array, action: Array) -> Array:
        mean, std = predict(member, obs, action)
        return mean + std * jax.random.normal(key, mean.shape, mean.dtype)

    return sample


Read = Callable[[Array, Array, Array], Outcome]  # (obs, action, outcome [D]), `outcome`


def advance(
    key: Key, sample: Sampler, read: Read, obs: Array, action: Array
) -> Transition:
    """One step of N futures, [N, ...]."""
    result = jax.vmap(read)(obs, action, sample(key, obs, action))
    never = jnp.zeros_like(result.terminal)
    return Transition(
        obs, action, result.reward, result.next_obs, result.terminal, never
    )


def rollouts(
    key: Key,
    model: Model,
    members: PyTree,
    read: Read,
    policy: Policy,
    starts: Array,
    horizon: int,
) -> Window:
    """`policy` in the model, from `starts` [N, O] on for `horizon` steps: [N, H, ...].

    The members [M, ...] share the rollouts, dealt anew at every step.  A rollout is
    valid up to its termination; what follows its last step is not known.
    """
    sample = dealt(model, members)

    def step(
        now: tuple[Array, Array, PyTree], key: Key
    ) -> tuple[tuple[Array, Array, PyTree], tuple[Transition, Array]]:
        (obs, alive, memory), (act_key, key) = now, jax.random.split(key)
        keys = jax.random.split(act_key, len(obs))
        action, memory = jax.vmap(policy.act)(keys, obs, memory)
        data = advance(key, sample, read, obs, action)
        return (data.next_obs, alive & ~data.terminal, memory), (data, alive)

    memory = _memories(policy, len(starts))
    start = (starts, jnp.ones(len(starts), bool), memory)
    keys = jax.random.split(key, horizon)
    _, (data, alive) = jax.lax.scan(step, start, keys)
    data, alive = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (data, alive))
    return Window(data, alive, memory)


def branches(
    key: Key,
    sample: Sampler,
    read: Read,
    policy: Policy,
    starts: Array,
    length: int | Array,
    buffer: Replay,
    first: Array | None = None,
) -> Replay:
    """As `rollouts`, `length` steps from `starts` [N, O] on, into a buffer.

    The length may be traced: nothing is compiled again when it grows.  The `first`
    actions [N, A], where they are given, are taken in place of the policy's.
    """

    def step(i: Array, now: tuple) -> tuple:
        obs, alive, memory, buffer = now
        act_key, step_key = jax.random.split(jax.random.fold_in(key, i))
        keys = jax.random.split(act_key, len(obs))
        action, memory = jax.vmap(policy.act)(keys, obs, memory)
        if first is not None:
            action = jnp.where(i == 0, first, action)
        data = advance(step_key, sample, read, obs, action)
        buffer = replay.insert(buffer, data, alive)
        return data.next_obs, alive & ~data.terminal, memory, buffer

    memory = _memories(policy, len(starts))
    start = (starts, jnp.ones(len(starts), bool), memory, buffer)
    return jax.lax.fori_loop(0, length, step, start)[-1]


class Path(NamedTuple):
    """N futures in a model, of H steps; and the action at their end."""

    obs: Array  # [H + 1, N, O]
    action: Array  # [H + 1, N, A]
    bonus: Array  # [H + 1, N] of acting, see `value_learning`
    reward: Array  # [H, N]
    alive: Array  # [H + 1, N] bool, not over before this state


def path(
    key: Key, sample: Sampler, read: Read, act: Act, starts: Array, horizon: int
) -> Path:
    """From `starts` [N, O] on, acting by `act(key, obs) -> (action, bonus)`.

    With a horizon of 0 the actions at the starts are those that `act` gives for
    `jax.random.split(key, N)`.
    """
    each = lambda key, obs: jax.vmap(act)(jax.random.split(key, len(obs)), obs)

    def step(
        now: tuple[Array, Array, tuple[Array, Array]], keys: Array
    ) -> tuple[tuple, Path]:
        obs, alive, (action, bonus) = now
        data = advance(keys[0], sample, read, obs, action)
        later = data.next_obs, alive & ~data.terminal, each(keys[1], data.next_obs)
        return later, Path(obs, action, bonus, data.reward, alive)

    start = starts, jnp.ones(len(starts), bool), each(key, starts)
    keys = jax.random.split(jax.random.fold_in(key, 0), (horizon, 2))
    (obs, alive, (action, bonus)), steps = jax.lax.scan(step, start, keys)
    close = lambda xs, x: jnp.concatenate([xs, x[None]])
    return Path(
        close(steps.obs, obs),
        close(steps.action, action),
        close(steps.bonus, bonus),
        steps.reward,
        close(steps.alive, alive),
    )


def _memories(policy: Policy, number: int) -> PyTree:
    spread = lambda x: jnp.broadcast_to(x, (number, *jnp.shape(x)))
    return jax.tree.map(spread, policy.init())


def _spread(obs: Array, num_particles: int) -> Futures:
    particles = jnp.broadcast_to(obs, (num_particles, *obs.shape))
    return Futures(particles, jnp.ones(num_particles, bool))


def _advance(
    key: Key,
    step: Step,
    read: Callable[[Array, Array, Array], Outcome],
    now: Futures,
    action: Array,
) -> tuple[Futures, Array]:
    """One step later, and the rewards [P] on the way: none after an end."""
    y = step(key, now.obs, action)  # [P, D]
    result = jax.vmap(read, in_axes=(0, None, 0))(now.obs, action, y)
    later = Futures(result.next_obs, now.alive & ~result.terminal)
    return later, jnp.where(now.alive, result.reward, 0)


def as_it_was(gaussian: Gaussian, x: Array) -> Array:
    """The sample `x` as mean + std noise, with the noise that makes it `x` [D].

    Where there is no std, `x` is the mean and a rest.  Its value is `x`, its gradient
    that of mean and std (SVG, Heess et al., 2015, Sec. 4.1).
    """
    mean, std = gaussian
    safe = jnp.where(std > 0, std, 1)
    noise = jax.lax.stop_gradient(jnp.where(std > 0, (x - mean) / safe, 0))
    again = mean + std * noise
    return again + jax.lax.stop_gradient(x - again)


def retrace(
    act: Callable[[Array, Array], Array],
    predict: Callable[[Array, Array], Gaussian],
    read: Callable[[Array, Array, Array], Outcome],
    window: Transition,
    valid: Array,
    discount: float | Array,
) -> tuple[Array, Array, Array]:
    """Goes through a real window [H, ...] again, with policy and model, noise inferred.

    `act` makes of (obs, the real action) the same action, `predict` and `read` are the
    model's.  All values are those of what happened, up to what `valid` [H] leaves out;
    their gradients go through policy and model.  Returns the discounted return [], the
    weight [] of what follows (0 after an end), and the obs [O] where it follows.
    """

    def advance(
        carry: tuple[Array, Array, Array], x: tuple[Transition, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        (total, weight, obs), (real, valid) = carry, x
        action = act(obs, real.action)
        prediction = predict(obs, action)
        happened = jnp.append(real.next_obs, real.reward)[: prediction.mean.size]
        result = read(obs, action, as_it_was(prediction, happened))
        total = total + jnp.where(valid, weight * result.reward, 0)
        later = jnp.where(real.terminal, 0, weight * discount)
        weight = jnp.where(valid, later, weight)
        return (total, weight, jnp.where(valid, result.next_obs, obs)), None

    one = jnp.ones((), window.obs.dtype)
    start = (jnp.zeros_like(one), one, window.obs[0])
    return jax.lax.scan(advance, start, (window, valid))[0]


def simulation(env: Env, env_state: EnvState) -> Simulation:
    """The true dynamics from `env_state` on; nothing is earned after an end."""

    def step(
        now: tuple[EnvState, Array], action: Array
    ) -> tuple[tuple[EnvState, Array], Array]:
        state, alive = now
        state = env.step(state, action)
        reward = jnp.where(alive, state.reward, 0)
        return (state, alive & ~state.terminal), reward

    return Simulation((env_state, jnp.ones((), bool)), step)


def mean_minus_std(coefficient: float | Array) -> Callable[[Array], Array]:
    """Risk aversion: mean - coefficient * std over the particles."""
    return lambda returns: returns.mean() - coefficient * returns.std()


def cvar(fraction: float | Array) -> Callable[[Array], Array]:
    """Conditional value at risk: the mean of the worst `fraction` of the particles.

    Rockafellar and Uryasev (2000): the particle on the border counts in part.
    """

    def risk(returns: Array) -> Array:
        ordered = jnp.sort(returns)
        share = fraction * returns.shape[0] - jnp.arange(returns.shape[0])
        weight = jnp.clip(share, 0.0, 1.0)
        return (weight * ordered).sum() / weight.sum()

    return risk


# the worth of an action sequence, from its particles' returns: level -> [P] -> []
RISKS: dict[str, Callable[[float | Array], Callable[[Array], Array]]] = {
    "mean": lambda level: jnp.mean,
    "mean_minus_std": mean_minus_std,
    "cvar": cvar,
}
