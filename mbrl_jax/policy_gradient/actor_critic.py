"""A policy and a critic: two networks, with or without a memory.

    net = make(env, Config(hidden_sizes=(64, 64)))
    agent = init(key, net)
    acting = policy(net, agent, explore=True)

The networks share nothing, so that a step of the policy leaves the critic alone; each
has a GRU of its own if there is a memory (Cho et al., 2014; Hausknecht and Stone, 2015,
"Deep recurrent Q-learning for partially observable MDPs"), and an encoder for pictures,
which are in units of their own: no statistics follow them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mbrl_jax import distributions, networks
from mbrl_jax.distributions import Family
from mbrl_jax.networks import Encoder, EncoderConfig
from mbrl_jax.ops import checks, finite, normalize
from mbrl_jax.ops.normalize import Statistics
from mbrl_jax.types import Array, Env, Key, Learner, Metrics, Params, Policy, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    hidden_sizes: tuple[int, ...] = (64, 64)  # of policy and critic, tanh
    memory_size: int = 0  # of the GRU after these layers; 0: no memory
    squash: bool = False  # keep a Gaussian within the limits by tanh
    init_std: float = 1.0  # of continuous actions, in units of their limit


class ActorCritic(NamedTuple):
    """Functions for one example; a memory is () where there is none."""

    family: Family
    obs_size: int  # 0: pictures, which are not normalised
    init: Callable[[Key], tuple[Params, Params]]  # -> actor, critic
    start: Callable[[], PyTree]  # -> memory of either at the start of an episode
    act: Callable[[Params, PyTree, Array], tuple[PyTree, Array]]
    # (actor, memory, obs [O], normalised) -> (memory, outputs of the family [D])
    value: Callable[[Params, PyTree, Array], tuple[PyTree, Array]]
    # (critic, memory, obs [O], normalised) -> (memory, normalised value [])
    renormalise: Callable[[tuple[Params, Params], Statistics, Statistics], PyTree]
    # ((actor, critic), old, new) -> the same functions of obs normalised by `new`


class Agent(NamedTuple):
    """What is learned, and the statistics that it is in units of."""

    actor: Params
    critic: Params
    obs: normalize.RunningStats
    returns: normalize.RunningStats


class _Net(nn.Module):
    """Tanh layers, orthogonal; a policy's actions start near 0 (Andrychowicz et al.,
    2021, "What matters for on-policy deep actor-critic methods?", Sec. 3.2)."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    output_scale: float
    memory_size: int
    pixels: EncoderConfig | None

    @nn.compact
    def __call__(self, memory: PyTree, obs: Array) -> tuple[PyTree, Array]:
        dtype, orthogonal = jnp.result_type(float), nn.initializers.orthogonal
        layer, x = partial(nn.Dense, param_dtype=dtype), obs
        if self.pixels is not None:
            encoder: Any = Encoder(self.pixels)
            x = encoder(obs)
        for size in self.hidden_sizes:
            x = nn.tanh(layer(size, kernel_init=orthogonal(2**0.5))(x))
        if self.memory_size:
            cell: Any = nn.GRUCell(self.memory_size, param_dtype=dtype)
            memory, x = cell(memory, x)
        return memory, layer(
            self.output_size, kernel_init=orthogonal(self.output_scale)
        )(x)


def make(env: Env, config: Config, pixels: EncoderConfig | None = None) -> ActorCritic:
    """The networks that fit `env`, of pictures with encoders of `pixels`.  Raises
    ValueError for what cannot be."""
    checks.at_least(config, 0, "memory_size")
    checks.positive(config, "init_std")
    if pixels is None:
        checks.vectors(env)
    else:
        checks.under("pixels", networks.validate, pixels)
    eyes = pixels if env.obs_shape else None
    family = distributions.of(env, config.squash)
    spread = 0 if env.num_actions else env.action_size  # parameters for stds
    sizes, memory_size = config.hidden_sizes, config.memory_size
    actor_net: Any = _Net(sizes, family.output_size - spread, 0.01, memory_size, eyes)
    critic_net: Any = _Net(sizes, 1, 1.0, memory_size, eyes)

    def start() -> PyTree:
        return jnp.zeros(memory_size) if memory_size else ()

    def init(key: Key) -> tuple[Params, Params]:
        actor_key, critic_key = jax.random.split(key)
        obs = env.blank_obs()
        actor: Params = {"net": actor_net.init(actor_key, start(), obs)}
        if spread:
            actor["log_std"] = jnp.zeros(spread)
        return actor, critic_net.init(critic_key, start(), obs)

    def act(actor: Params, memory: PyTree, obs: Array) -> tuple[PyTree, Array]:
        memory, outputs = actor_net.apply(actor["net"], memory, obs)
        if spread:
            log_std = actor["log_std"] + jnp.log(config.init_std)
            outputs = jnp.concatenate([outputs, log_std])
        return memory, outputs

    def value(critic: Params, memory: PyTree, obs: Array) -> tuple[PyTree, Array]:
        memory, outputs = critic_net.apply(critic, memory, obs)
        return memory, outputs[0]

    def renormalise(
        params: tuple[Params, Params], old: Statistics, new: Statistics
    ) -> tuple[Params, Params]:
        if env.obs_shape:
            return params
        (actor, critic), at = params, _first_layers(config)
        net = normalize.folded(actor["net"], at, old, new)
        return {**actor, "net": net}, normalize.folded(critic, at, old, new)

    return ActorCritic(family, env.obs_size, init, start, act, value, renormalise)


def _first_layers(config: Config) -> list[tuple[str, ...]]:
    """Where a `_Net` keeps the weights of its inputs."""
    if config.memory_size and not config.hidden_sizes:
        return [("params", "GRUCell_0", gate) for gate in ("ir", "iz", "in")]
    return [("params", "Dense_0")]


def init(key: Key, net: ActorCritic) -> Agent:
    actor, critic = net.init(key)
    return Agent(
        actor, critic, normalize.running_stats(net.obs_size), normalize.running_stats(1)
    )


def policy(net: ActorCritic, agent: Agent, explore: bool) -> Policy:
    """Samples its actions, or takes the most likely ones."""
    stats = normalize.so_far(agent.obs)

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        obs, (mine, critics) = normalise_obs(stats, obs), memory
        mine, outputs = net.act(agent.actor, mine, obs)
        critics, _ = net.value(agent.critic, critics, obs)
        sample = (
            net.family.sample(key, outputs) if explore else net.family.mode(outputs)
        )
        return sample, (mine, critics)

    return Policy(lambda: (net.start(), net.start()), act)


def learner(
    net: ActorCritic,
    init: Callable[[Key], PyTree],
    update: Callable[[Key, PyTree, PyTree], tuple[PyTree, Metrics]],
) -> Learner:
    """Of states that have an `agent`: it samples while it explores.

    Its statistics follow the observations, and its networks them, so that the policy
    changes by what `update` did alone; but the first windows choose the units.
    """

    def in_new_units(
        key: Key, state: PyTree, windows: PyTree
    ) -> tuple[PyTree, Metrics]:
        before, (state, metrics) = state.agent.obs, update(key, state, windows)
        agent = state.agent
        units = normalize.units(before, agent.obs)
        actor, critic = net.renormalise((agent.actor, agent.critic), *units)
        return state._replace(agent=agent._replace(actor=actor, critic=critic)), metrics

    return Learner(
        init,
        in_new_units,
        lambda state: policy(net, state.agent, explore=True),
        lambda state: policy(net, state.agent, explore=False),
    )


def unroll(
    start: Callable[[], PyTree],
    apply: Callable[[Params, PyTree, Array], tuple[PyTree, Array]],
    params: Params,
    memory: PyTree,
    first: Array,
    obs: Array,
) -> tuple[PyTree, Array]:
    """One of the networks along a window: memories after each step, and outputs [T]."""
    if not jax.tree.leaves(memory):  # nothing goes from step to step
        return jax.vmap(partial(apply, params, memory))(obs)

    def step(
        memory: PyTree, x: tuple[Array, Array]
    ) -> tuple[PyTree, tuple[PyTree, Array]]:
        first, obs = x
        fresh = lambda a, b: jnp.where(first, a, b)
        memory, outputs = apply(params, jax.tree.map(fresh, start(), memory), obs)
        return memory, (memory, outputs)

    return jax.lax.scan(step, memory, (first, obs))[1]


def normalise_obs(stats: Statistics, obs: Array) -> Array:
    """Normalised; 0 in place of what is not finite, or next to it, so that one never
    acts on that.  Pictures, of which there are no statistics, stay as they are."""
    if not stats.mean.size:
        return obs
    seen = (obs - stats.mean) / stats.std
    return jnp.where(finite.moderate(obs) & jnp.isfinite(seen), seen, 0)
