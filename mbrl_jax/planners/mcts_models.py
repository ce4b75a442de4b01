"""What tree search searches: environments, tables, games, sampled actions.

Each function makes an `mcts.Model`; `make` is a policy that plans with an environment.
Values are the mean returns of random rollouts.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops.tabular import Tables
from mbrl_jax.planners import mcts
from mbrl_jax.planners.mcts import Config, SearchModel, SearchStep, Value
from mbrl_jax.types import Array, Env, EnvState, Key, Policy, PyTree


class Node(NamedTuple):
    """A state with the actions that can be chosen in it."""

    state: PyTree
    actions: Array  # [K, A]


def make(env: Env, config: Config = Config()) -> Policy:
    """Plans with `env` itself; what is observed has to be the state that it steps.

    For `rollout.evaluate(key, simulator.observe_all(env), policy, ...)`.  Future noise
    is none of the simulator's: keys in its state are drawn afresh.  Values are those
    of random rollouts.  Raises ValueError for a configuration that cannot be.
    """
    mcts.validate(config)
    if env.host:
        raise ValueError(f"{env.name} steps outside jax: nothing can plan with it")

    def choose(key: Key, shown: Any) -> Array:
        root_key, key = jax.random.split(key)
        state = bare(shown)
        step = of_env(env, shown, config.discount, config.num_repeats)
        if env.num_actions:
            model = random_outcomes(step, env.num_actions, config)
            return mcts.search(key, model, state, config).action
        limit, shape = env.action_limit, (env.action_size,)
        propose = lambda key, state: jax.random.uniform(
            key, shape, minval=-limit, maxval=limit
        )
        model, root = sampled_actions(step, propose, config)
        node = root(root_key, state)
        return node.actions[mcts.search(key, model, node, config).action]

    return policy(choose)


def policy(choose: Callable[[Key, Array], Array]) -> Policy:
    """Acts as `choose(key, obs)` says, without a memory."""
    return Policy(lambda: (), lambda key, obs, memory: (choose(key, obs), memory))


def of_env(
    env: Env, like: EnvState, discount: float | Array, num_repeats: int = 1
) -> SearchStep:
    """`num_repeats` steps of `env`, in states as `like` but for their keys.

    The clock is not looked at: a time limit is no end.
    """

    def once(carry: tuple, key: Key) -> tuple[tuple, None]:
        state, action, total, weight = carry
        after = env.step(_with_keys(key, state, like), action)
        on = ~state.terminal
        total = total + jnp.where(on, weight * after.reward, 0).astype(total.dtype)
        weight = jnp.where(on & ~after.terminal, weight * discount, 0)
        kept = jax.tree.map(lambda x, y: jnp.where(on, x, y), bare(after), state)
        return (kept, action, total, weight.astype(total.dtype)), None

    def step(
        key: Key, state: EnvState, action: Array, outcome: Array
    ) -> tuple[EnvState, Array, Array]:
        start = (state, action, jnp.zeros(()), jnp.ones(()))
        keys = jax.random.split(key, num_repeats)
        (state, _, total, weight), _ = jax.lax.scan(once, start, keys)
        return state, total, weight

    return step


def of_tables(tables: Tables, num_outcomes: int, config: Config) -> SearchModel:
    """Of known or counted tables, the state a number; `num_outcomes` is the largest
    number of states that an action leads to.  Values are those of random rollouts."""
    probabilities, cells = jax.lax.top_k(tables.transition, num_outcomes)  # [S, A, C]

    def step(
        key: Key, state: Array, action: Array, outcome: Array
    ) -> tuple[Array, Array, Array]:
        on = ~tables.terminal[state]
        after = jnp.where(on, cells[state, action, outcome], state)
        reward = jnp.where(on, tables.reward[state, action], 0)
        return after, reward, jnp.where(tables.terminal[after], 0, config.discount)

    model = SearchModel(
        step=step,
        logits=lambda state: jnp.zeros(tables.reward.shape[1]),
        chances=lambda state: jnp.log(probabilities[state]),
        value=_zero,
    )
    return model._replace(value=rollouts(step, _draw(model), config))


def of_game(
    play: Callable[[PyTree, Array], PyTree],
    legal: Callable[[PyTree], Array],
    lost: Callable[[PyTree], Array],
    config: Config,
) -> SearchModel:
    """Of a game of two who move in turn: 1 for who wins, -1 for who loses.

    A state is as the player to move sees it; `legal` [A] is false where all has ended,
    `lost` [] is true where the other has won.  Values are those of random rollouts.
    """

    def step(
        key: Key, state: PyTree, action: Array, outcome: Array
    ) -> tuple[PyTree, Array, Array]:
        on = legal(state).any()
        new = play(state, action)
        after = jax.tree.map(lambda x, y: jnp.where(on, x, y), new, state)
        reward = jnp.where(on & lost(after), 1.0, 0.0)
        return after, reward, jnp.where(legal(after).any(), -config.discount, 0.0)

    logits = lambda state: jnp.where(legal(state), 0.0, -jnp.inf)
    certain = lambda state: jnp.zeros_like(logits(state))[:, None]
    model = SearchModel(step, logits, certain, _zero)
    return model._replace(value=rollouts(step, _draw(model), config))


def random_outcomes(step: SearchStep, num_actions: int, config: Config) -> SearchModel:
    """Of steps that draw what comes of them by their key.

    Values are those of random rollouts.
    """
    model = SearchModel(
        step=step,
        logits=lambda state: jnp.zeros(num_actions),
        chances=lambda state: _even(num_actions, config.num_outcomes),
        value=_zero,
    )
    return model._replace(value=rollouts(step, _draw(model), config))


def sampled_actions(
    step: SearchStep, propose: Callable[[Key, PyTree], Array], config: Config
) -> tuple[SearchModel, Callable[[Key, PyTree], Node]]:
    """A model of `Node`s, and what makes one of a state.

    `propose(key, state)` draws an action [A]: that of the K tried there, and of the
    random rollouts that values are.
    """

    def node(key: Key, state: PyTree) -> Node:
        keys = jax.random.split(key, config.num_samples)
        return Node(state, jax.vmap(propose, (0, None))(keys, state))

    def step_node(
        key: Key, at: Node, action: Array, outcome: Array
    ) -> tuple[Node, Array, Array]:
        step_key, key = jax.random.split(key)
        result = step(step_key, at.state, at.actions[action], outcome)
        return node(key, result[0]), result[1], result[2]

    model = random_outcomes(step_node, config.num_samples, config)
    value = rollouts(
        step, lambda key, state: (propose(key, state), jnp.array(0)), config
    )
    return model._replace(value=lambda key, at: value(key, at.state)), node


def bare(state: PyTree) -> PyTree:
    """Without keys, since a tree can hold numbers only: zeros in their place."""
    blank = lambda x: jnp.zeros(x.shape, jnp.uint8) if _is_key(x) else x
    return jax.tree.map(blank, state)


def rollouts(
    step: SearchStep,
    draw: Callable[[Key, PyTree], tuple[Array, Array]],
    config: Config,
) -> Value:
    """The mean return of `num_rollouts` of actions and outcomes that `draw` makes.

    Of those that are finite; NaN if none is.
    """

    def one(key: Key, state: PyTree) -> Array:
        def advance(carry: tuple, key: Key) -> tuple[tuple, None]:
            state, total, weight = carry
            draw_key, key = jax.random.split(key)
            state, reward, discount = step(key, state, *draw(draw_key, state))
            total = (total + weight * reward).astype(total.dtype)
            return (state, total, (weight * discount).astype(total.dtype)), None

        start = (state, jnp.zeros(()), jnp.ones(()))
        keys = jax.random.split(key, config.rollout_length)
        return jax.lax.scan(advance, start, keys)[0][1]

    def mean(key: Key, state: PyTree) -> Array:
        keys = jax.random.split(key, config.num_rollouts)
        returns = jax.vmap(one, (0, None))(keys, state)
        return jnp.mean(returns, where=jnp.isfinite(returns))

    return mean


def _draw(model: SearchModel) -> Callable[[Key, PyTree], tuple[Array, Array]]:
    """An action and its outcome, as likely as the model says."""

    def draw(key: Key, state: PyTree) -> tuple[Array, Array]:
        action_key, outcome_key = jax.random.split(key)
        action = jax.random.categorical(action_key, model.logits(state))
        chances = model.chances(state)[action]
        if len(chances) == 1:  # to draw takes time, here and of the compiler
            return action, jnp.zeros((), jnp.int32)
        return action, jax.random.categorical(outcome_key, chances)

    return draw


def _zero(key: Key, state: PyTree) -> Array:
    return jnp.zeros(())


def _even(num_actions: int, num_outcomes: int) -> Array:
    return jnp.full((num_actions, num_outcomes), -math.log(num_outcomes))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _with_keys(key: Key, state: PyTree, like: PyTree) -> PyTree:
    """`state` with new keys where `like` has some."""
    leaves, structure = jax.tree.flatten(state)
    for i, old in enumerate(jax.tree.leaves(like)):
        if _is_key(old):
            leaves[i] = jax.random.split(jax.random.fold_in(key, i), old.shape)
    return jax.tree.unflatten(structure, leaves)
