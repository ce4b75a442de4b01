"""A counter as an environment, and a policy of noise: what happens is easily said."""

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Env, EnvState, Key, Policy


def counter(breaks_at: int = -1) -> Env:
    """obs: a number that the reset draws, and the steps since; the reward is an action
    of noise.  An end comes after 3 to 5 steps, as the number says, a time limit after
    4.  From step `breaks_at` on, all is NaN."""

    def reset(key: Key) -> EnvState:
        drawn = jax.random.uniform(key)
        obs = jnp.stack([drawn, jnp.zeros(())])
        return EnvState(
            obs,
            jnp.zeros(()),
            jnp.zeros((), bool),
            jnp.zeros((), bool),
            jnp.zeros((), jnp.int32),
            (),
        )

    def step(state: EnvState, action: Array) -> EnvState:
        time, ends = state.time + 1, 3 + jnp.floor(3 * state.obs[0])
        broken = (time >= breaks_at) & (breaks_at >= 0)
        obs = jnp.where(broken, jnp.nan, state.obs.at[1].add(1))
        reward = jnp.where(broken, jnp.nan, action[0])
        terminal = time >= ends
        return EnvState(obs, reward, terminal, (time >= 4) & ~terminal, time, ())

    return Env("counter", reset, step, 2, 1, 1.0, episode_length=4)


def acting() -> Policy:
    """Noise; its memory counts the steps of an episode."""

    def act(key: Key, obs: Array, memory: Array) -> tuple[Array, Array]:
        return jax.random.normal(key, (1,)), memory + 1

    return Policy(lambda: jnp.zeros((), jnp.int32), act)
