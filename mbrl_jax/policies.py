"""Simple policies."""

import jax

from mbrl_jax.types import Array, Env, Key, Policy, PyTree


def uniform(env: Env) -> Policy:
    """Acts uniformly at random within the limits."""

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        limit = env.action_limit
        action = jax.random.uniform(
            key, (env.action_size,), minval=-limit, maxval=limit
        )
        return action, memory

    return Policy(lambda: (), act)


def switch(first: Array, a: Policy, b: Policy) -> Policy:
    """`a` where the scalar `first` is true, else `b`.  One branch is executed, but for
    a batched `first`, where both are."""

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        def act_a(_: None) -> tuple[Array, PyTree]:
            action, memory_a = a.act(key, obs, memory[0])
            return action, (memory_a, memory[1])

        def act_b(_: None) -> tuple[Array, PyTree]:
            action, memory_b = b.act(key, obs, memory[1])
            return action, (memory[0], memory_b)

        return jax.lax.cond(first, act_a, act_b, None)

    return Policy(lambda: (a.init(), b.init()), act)
