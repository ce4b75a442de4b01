"""A policy put into a network: its answers, and supervised learning from them.

    actions = ask(key, teacher, obs)                   along the way of whoever acted
    answers = replay.insert(answers, transitions with these actions, valid)
    params, *_ = fit(key, act, optimizer, params, opt_state, answers, ...)

With observations from where the network itself goes this is DAgger (Ross et al., 2011,
"A reduction of imitation learning and structured prediction to no-regret online
learning"), else behavioural cloning.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers, replay
from mbrl_jax.replay import Replay
from mbrl_jax.types import Array, Key, Params, Policy, PyTree, Transition


def ask(key: Key, teacher: Policy, obs: Array) -> Array:
    """What `teacher`, on its own way from step to step, does at each obs [T, O]."""

    def one(memory: PyTree, x: tuple[Key, Array]) -> tuple[PyTree, Array]:
        action, memory = teacher.act(*x, memory)
        return memory, action

    keys = jax.random.split(key, obs.shape[0])
    return jax.lax.scan(one, teacher.init(), (keys, obs))[1]


def rows(obs: Array, action: Array) -> Transition:
    """Answers: what is to be done [N, A] at each obs [N, O]; all else is 0."""
    zero, never = jnp.zeros(len(obs)), jnp.zeros(len(obs), bool)
    return Transition(obs, action, zero, obs, never, never)


def fit(
    key: Key,
    act: Callable[[Params, Array], Array],
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    answers: Replay,
    *,
    action_limit: float,
    num_updates: int,
    batch_size: int,
    weights: Array | None = None,
) -> tuple[Params, optax.OptState, Array]:
    """Least squares of `act(params, obs [O]) -> action [A]` on rows of `answers`.

    Errors are in units of the limit; `weights` are factors of their squares, one for
    each row [C], or one matrix [C, A, A], such as a precision.  Returns the parameters,
    the optimiser's state, and the loss before each of the updates, [num_updates].
    """
    weights = jnp.ones(answers.capacity) if weights is None else weights
    both: Any = (answers.data, weights)
    weighted = answers._replace(data=both)
    size = answers.data.action.shape[-1]

    def update(carry: tuple, key: Key) -> tuple[tuple, Array]:
        params, opt_state = carry
        batch: Any = replay.sample(key, weighted, batch_size)
        rows, weight = batch

        def loss(params: Params) -> Array:
            actions = jax.vmap(lambda obs: act(params, obs))(rows.obs)
            error = (actions - rows.action) / action_limit
            if weight.ndim > 1:
                return jnp.einsum("ba,bac,bc->b", error, weight, error).mean() / size
            return (weight[:, None] * jnp.square(error)).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        return optimizers.descend(optimizer, gradient, opt_state, params), value

    keys = jax.random.split(key, num_updates)
    (params, opt_state), losses = jax.lax.scan(update, (params, opt_state), keys)
    return params, opt_state, losses
