"""Distral: policies of several tasks, and one distilled of them (Teh et al., 2017).

    maximise over pi_i and pi_0 the sum over tasks i of the expected             Eq. (1)
        sum over t of discount^t (r - c_KL log(pi_i / pi_0) - c_Ent log pi_i)

pi_i being the policy of a task and pi_0 their centroid, which is not told which task it
is in.  With alpha = c_KL / (c_KL + c_Ent) and beta = 1 / (c_KL + c_Ent), by the soft
Q-learning of Sec. 2.2:

    repeat:
        in each task: act `interval` times by pi_i, or at random, and remember it
        `num_updates` times, with a batch of each task:
            V_i(s) = log(sum over a of pi_0(a|s)^alpha exp(beta Q_i(s, a))) / beta   (2)
            step Q_i(s, a) towards r + discount V_i(s')                              (3)
            pi_i = pi_0^alpha exp(beta (Q_i - V_i))                                  (4)
            step pi_0 up the sum of discount^t log pi_0(a|s) over what pi_i does     (5)

alpha 1 is the paper's "KL", below 1 "KL + ent"; 0 makes independent learners: soft
Q-learning in each task.  Two columns: the network f_i of a task is Q_i, and its policy
has logits alpha h + beta f_i, h being the centroid's, Eq. (8).  One: it has beta f_i
alone, so that f_i is Q_i + (alpha / beta) log pi_0, and has to learn what the centroid
says, as a reward.
Deviations: off policy, from a replay buffer, with a target network, and with a share of
random actions while it learns.  In (5) the states are the newest ones, of each task as
many steps, not episodes, and a is not what was done there, but all actions with their
probabilities now, as in Eq. (10).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax import gathering, optimizers, replay
from mbrl_jax.envs import multi_task
from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Key,
    Metrics,
    Params,
    Policy,
    Transition,
)
from mbrl_jax.value_learning import each_task, parts


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    alpha: float = 0.7  # share of the KL in the costs; 0: the tasks are independent
    beta: float = 30.0  # 1 / (c_KL + c_Ent), of rewards
    columns: int = 2  # 1: the centroid is no part of the tasks' policies
    hidden_sizes: tuple[int, ...] = ()  # of every network, ReLU; (): it is linear
    discount: float = 0.95
    capacity: int = 10_000  # steps kept of each task
    newest: int = 2000  # of them, that the centroid is fitted to
    exploration: float = 0.1  # probability of a random action while learning
    interval: int = 50  # steps in each task in an iteration
    num_updates: int = 50  # in an iteration
    batch_size: int = 64  # of each task
    learning_rate: float = 0.01  # of Adam, of the tasks' networks
    centroid_rate: float = 0.03  # of Adam, of the centroid's
    max_norm: float = 10.0  # of a gradient, above which it is scaled down
    target_rate: float = 0.1  # share of a new network in the target one


class _Task(NamedTuple):
    params: Params  # of f_i
    target: Params
    opt_state: optax.OptState


class _Visit(NamedTuple):
    obs: Array  # [O]
    weight: Array  # [] discount^t


class State(NamedTuple):
    tasks: _Task  # [N, ...]
    centroid: Params  # of h
    opt_state: optax.OptState
    experience: each_task.Experience


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.discrete(env)
    checks.vectors(env)
    _validate(config)
    num_tasks = len(env.tasks) or 1
    alpha, beta = config.alpha, config.beta
    cut = slice(env.obs_size - len(env.tasks))  # no network is told its task
    network: Any = MLP(config.hidden_sizes, env.num_actions, nn.relu)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    centroid_optimizer = optimizers.clipped_adam(config.centroid_rate, config.max_norm)
    gatherer = each_task.make(env, config.capacity, config.interval)

    def log_centroid(centroid: Params, obs: Array) -> Array:
        """log pi_0, [K]"""
        return jax.nn.log_softmax(network.apply(centroid, obs[cut]))

    def logits(params: Params, centroid: Params, obs: Array) -> Array:
        """Of pi_i, [K]: Eq. (4) without V_i, or, of networks, (8)"""
        own = beta * network.apply(params, obs[cut])
        return own + alpha * log_centroid(centroid, obs) if config.columns == 2 else own

    def q_target(target: Params, centroid: Params, row: Transition) -> Array:
        """Eq. (3), and in one column what the centroid pays"""
        v = jax.nn.logsumexp(logits(target, centroid, row.next_obs)) / beta  # Eq. (2)
        paid = (alpha / beta) * log_centroid(centroid, row.obs)[row.action]
        reward = row.reward + (paid if config.columns == 1 else 0)
        return reward + config.discount * jnp.where(row.terminal, 0, v)

    def learn(task: _Task, centroid: Params, rows: Transition) -> tuple[_Task, Metrics]:
        """With rows [B] of it."""
        targets = jax.vmap(partial(q_target, task.target, centroid))(rows)

        def error(params: Params) -> Array:
            q = lambda row: network.apply(params, row.obs[cut])[row.action]
            return jnp.square(jax.vmap(q)(rows) - targets).mean()

        mse, gradient = jax.value_and_grad(error)(task.params)
        params, opt_state = optimizers.descend(
            optimizer, gradient, task.opt_state, task.params
        )
        target = optax.incremental_update(params, task.target, config.target_rate)
        return _Task(params, target, opt_state), {
            "critic/mse": mse,
            "critic/value": targets.mean(),
        }

    def distil(
        centroid: Params, opt_state: optax.OptState, tasks: _Task, visits: _Visit
    ) -> tuple[Params, optax.OptState, Metrics]:
        """With visits [N, B]."""

        def log_policy(params: Params, obs: Array) -> Array:
            return jax.nn.log_softmax(logits(params, centroid, obs))

        log_pi = jax.vmap(jax.vmap(log_policy, in_axes=(None, 0)))
        log_p = log_pi(tasks.params, visits.obs)  # [N, B, K]
        p = jnp.exp(log_p)

        def surprise(centroid: Params) -> tuple[Array, Array]:
            """Less the sum of Eq. (5), and KL(pi_i || pi_0), means over the visits."""
            log_p_0 = jax.vmap(jax.vmap(partial(log_centroid, centroid)))(visits.obs)
            divergence = (p * (log_p - log_p_0)).sum(axis=-1)
            expected = -(p * log_p_0).sum(axis=-1)
            return (visits.weight * expected).mean(), divergence.mean()

        gradient, divergence = jax.grad(surprise, has_aux=True)(centroid)
        after = optimizers.descend(centroid_optimizer, gradient, opt_state, centroid)
        return *after, {
            "centroid/divergence": divergence,
            "policy/entropy": -(p * log_p).sum(axis=-1).mean(),
        }

    def init(key: Key) -> State:
        centroid_key, params_key, env_key = jax.random.split(key, 3)
        obs = jnp.zeros(env.obs_size)[cut]
        keys = jax.random.split(params_key, num_tasks)
        params = jax.vmap(network.init, in_axes=(0, None))(keys, obs)
        centroid = network.init(centroid_key, obs)
        return State(
            _Task(params, params, jax.vmap(optimizer.init)(params)),
            centroid,
            centroid_optimizer.init(centroid),
            gatherer.init(env_key),
        )

    def policy(state: State) -> Policy:
        """Draws from pi_i"""

        def own(obs: Array) -> Array:
            task = multi_task.which(env, obs)
            params = jax.tree.map(lambda x: x[task], state.tasks.params)
            return logits(params, state.centroid, obs)

        draw = lambda key, obs: jax.random.categorical(key, own(obs)).astype(jnp.int32)
        return parts.acting(draw)._replace(values=own)

    def drawn(key: Key, kept: replay.Replay, newest: int | None) -> Any:
        """A batch [N, B] of each task."""
        one = partial(replay.sample, batch_size=config.batch_size, newest=newest)
        return jax.vmap(one)(jax.random.split(key, num_tasks), kept)

    def fit(
        key: Key, state: State, visits: replay.Replay
    ) -> tuple[tuple[_Task, Params, optax.OptState], Metrics]:
        """All networks."""
        data = state.experience.replay

        def update(
            carry: tuple[_Task, Params, optax.OptState], key: Key
        ) -> tuple[tuple[_Task, Params, optax.OptState], Metrics]:
            (tasks, centroid, opt_state), keys = carry, jax.random.split(key)
            rows = drawn(keys[0], data, None)
            tasks, seen = jax.vmap(learn, in_axes=(0, None, 0))(tasks, centroid, rows)
            newest = drawn(keys[1], visits, config.newest)
            centroid, opt_state, apart = distil(centroid, opt_state, tasks, newest)
            return (tasks, centroid, opt_state), {**seen, **apart}

        start = state.tasks, state.centroid, state.opt_state
        found, seen = jax.lax.scan(
            update, start, jax.random.split(key, config.num_updates)
        )
        ready = (data.size > 0).all()
        found = jax.tree.map(lambda x, y: jnp.where(ready, x, y), found, start)
        skipped = found[0].opt_state.num_skipped.sum() + found[2].num_skipped
        return found, {
            **jax.tree.map(lambda x: x.mean(), seen),
            "gradient/skipped_updates": skipped,
        }

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        act_key, key = jax.random.split(key)
        acting = parts.exploring(policy(state), env.num_actions, config.exploration)
        experience, so_far = gatherer.gather(
            act_key, lambda task: acting, state.experience
        )
        data, state = experience.replay, state._replace(experience=experience)
        weight = config.discount ** jax.vmap(replay.times)(data)  # [N, C]
        visited: Any = _Visit(data.data.obs, weight)
        found, seen = fit(key, state, data._replace(data=visited))
        return State(*found, experience), {
            **seen,
            **gathering.report(experience.counters, so_far),
        }

    return Algorithm(init, step, policy)


def _validate(config: Config) -> None:
    checks.within(config, 0, 1, "alpha", "discount", "exploration", "target_rate")
    checks.positive(config, "beta", "learning_rate", "centroid_rate", "max_norm")
    checks.within(config, 1, 2, "columns")
    counts = ("capacity", "newest", "interval", "num_updates", "batch_size")
    checks.at_least(config, 1, *counts)
    checks.at_most(config, "interval", "capacity")
    checks.at_most(config, "newest", "capacity")
