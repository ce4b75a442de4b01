"""GCG: generalised computation graphs (Kahn et al., 2018, arXiv 1709.10489).

A recurrent network looks at one observation and at H actions, and says what each of
them leads to, y_1 .. y_H, and what comes after, b_H:

    J(s, a_1 .. a_H) = sum_h discount^(h-1) y_h + discount^H b_H             Eq. (1)
    the policy executes a_1 of the best sequence that a search finds, at every step
    D(y_h, label_h) for each h, and D(b_H, max_a J'(s_H, a)) go down         Eq. (2)

From model-free to model-based it is all one method (Table I): a horizon of 1 with
`bootstrap` is Q-learning, a longer one N-step Q-learning, and without it no value is
learned at all.  `predict` is what y is:

    collision    minus the chance that the episode has ended by then, by cross-entropy;
                 once it has, it stays so
    reward       the reward of that step, by the square

Deviations: a GRU in place of their multiplicative LSTM; the search may be any of MPC's;
the loop is that of the off-policy learners; J' is of a slowly moving copy.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers, replay
from mbrl_jax.ops import checks
from mbrl_jax.planners import mpc
from mbrl_jax.replay import Replay
from mbrl_jax.types import (
    Array,
    Env,
    Key,
    Metrics,
    Params,
    Policy,
    PyTree,
)
from mbrl_jax.value_learning import off_policy, parts
from mbrl_jax.value_learning.off_policy import OffPolicyHooks

PREDICT = ("collision", "reward")


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    predict: str = "collision"  # or reward
    bootstrap: bool = False  # a value after the last action
    discount: float = 0.99
    hidden_size: int = 32  # of the recurrent network
    encoder_sizes: tuple[int, ...] = (64,)  # of the observation, ReLU
    learning_rate: float = 1e-3  # of Adam
    max_norm: float = 10.0  # of a gradient, above which it is scaled down
    target_rate: float = 0.01  # share of the new network in the target one
    exploration_std: float = 0.2  # of the noise, in units of the action's limit
    planner: str = "random_shooting"
    plan: mpc.Config = mpc.Config(horizon=8, num_samples=64)


class State(NamedTuple):
    params: Params
    target: Params
    opt_state: optax.OptState


class Graph(nn.Module):
    """obs [O], actions [H, A] in units of their limit -> y [H] or logits, b []."""

    hidden_size: int
    encoder_sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, obs: Array, actions: Array) -> tuple[Array, Array]:
        layer = partial(nn.Dense, param_dtype=jnp.result_type(float))
        x = obs
        for size in self.encoder_sizes:
            x = nn.relu(layer(size)(x))
        carry = jnp.tanh(layer(self.hidden_size)(x))
        cell = nn.scan(
            nn.GRUCell, variable_broadcast="params", split_rngs={"params": False}
        )
        last, hidden = cell(self.hidden_size, param_dtype=jnp.result_type(float))(
            carry, actions
        )
        return layer(1, name="y")(hidden)[:, 0], layer(1, name="b")(last)[0]


def make(env: Env, config: Config, collect: off_policy.Config) -> OffPolicyHooks:
    """The method, for the loop that `collect` says.  Raises ValueError for what cannot
    be."""
    _validate(env, config, collect)
    horizon, limit = config.plan.horizon, env.action_limit
    network: Any = Graph(config.hidden_size, config.encoder_sizes)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    discounts = config.discount ** jnp.arange(horizon + 1)
    # what it is worth to have collided, which is for ever
    lasting = 1 / jnp.maximum(1 - config.discount, 1e-3)
    never = -lasting if config.predict == "collision" else 0.0

    def init(key: Key) -> tuple[State, tuple[()]]:
        nothing = jnp.zeros((horizon, env.action_size))
        params = network.init(key, jnp.zeros(env.obs_size), nothing)
        return State(params, params, optimizer.init(params)), ()

    def worth(params: Params, obs: Array, actions: Array) -> Array:
        """J(s, a_1 .. a_H), Eq. (1)"""
        y, b = network.apply(params, obs, actions / limit)
        if config.predict == "collision":
            y = -jax.nn.sigmoid(y)
        after = discounts[-1] * b if config.bootstrap else 0.0
        return discounts[:-1] @ y + after

    def planning(params: Params) -> Policy:
        future = lambda key, obs: partial(worth, params, obs)
        return mpc.make(config.planner, config.plan, env.action_size, limit, future)

    def best(params: Params, key: Key, obs: Array) -> Array:
        """max_a J(s, a), as far as uniformly drawn sequences go; []"""
        shape = (config.plan.num_samples, horizon, env.action_size)
        actions = jax.random.uniform(key, shape, minval=-limit, maxval=limit)
        return jax.vmap(partial(worth, params, obs))(actions).max()

    def update(
        key: Key, learned: State, model_state: PyTree, data: Replay
    ) -> tuple[State, Metrics]:
        draw_key, search_key = jax.random.split(key)
        rows, valid = replay.sample_sequences(
            draw_key, data, collect.batch_size, horizon, collect.num_envs
        )
        ended = jnp.cumsum(valid & rows.terminal, axis=1) > 0  # [B, H]
        known = valid | ended  # what is after an end is known, too
        if config.predict == "collision":
            labels = ended.astype(rows.reward.dtype)
        else:
            labels = jnp.where(valid, rows.reward, 0)
        keys = jax.random.split(search_key, len(valid))
        follows = jnp.zeros(len(valid))
        if config.bootstrap:
            follows = jax.vmap(partial(best, learned.target))(
                keys, rows.next_obs[:, -1]
            )
            follows = jnp.where(ended[:, -1], never, follows)

        def loss(params: Params) -> Array:
            """D of Eq. (2), the mean over what is known"""
            y, b = jax.vmap(partial(network.apply, params))(
                rows.obs[:, 0], rows.action / limit
            )
            if config.predict == "collision":
                errors = optax.sigmoid_binary_cross_entropy(y, labels)
            else:
                errors = jnp.square(y - labels)
            error = jnp.where(known, errors, 0).sum() / known.sum()
            if config.bootstrap:
                whole = known[:, -1]
                squares = jnp.where(whole, jnp.square(b - follows), 0)
                error += squares.sum() / jnp.maximum(whole.sum(), 1)
            return error

        error, gradient = jax.value_and_grad(loss)(learned.params)
        params, opt_state = optimizers.descend(
            optimizer, gradient, learned.opt_state, learned.params
        )
        target = optax.incremental_update(params, learned.target, config.target_rate)
        return State(params, target, opt_state), {
            "model/loss": error,
            "gradient/skipped_updates": opt_state.num_skipped,
        }

    def explore(learned: State) -> Policy:
        policy = planning(learned.params)

        def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
            search_key, key = jax.random.split(key)
            action, memory = policy.act(search_key, obs, memory)
            std = config.exploration_std
            return parts.noisy(key, action / limit, std, limit), memory

        return Policy(policy.init, act)

    return OffPolicyHooks(
        init=init,
        prepare=lambda key, learned, model_state, data, env_steps: (model_state, {}),
        update=update,
        explore=explore,
        policy=lambda learned: planning(learned.params),
    )


def _validate(env: Env, config: Config, collect: off_policy.Config) -> None:
    checks.continuous(env)
    checks.vectors(env)
    checks.one_of(config, "predict", PREDICT)
    checks.at_least(config, 1, "hidden_size")
    checks.positive(config, "learning_rate", "max_norm")
    checks.at_least(config, 0, "exploration_std")
    checks.within(config, 0, 1, "discount", "target_rate")
    checks.under("plan", partial(mpc.validate, config.planner), config.plan)
    if config.planner in mpc.LOOK_INSIDE:
        raise ValueError(
            f"planner is {config.planner!r}, which looks into the dynamics"
        )
    needed = config.plan.horizon * collect.num_envs
    if collect.warmup < needed:
        raise ValueError(
            f"collect.warmup is {collect.warmup}, less than the {needed} steps of "
            "plan.horizon in collect.num_envs environments"
        )
