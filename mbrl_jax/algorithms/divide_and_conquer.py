"""Divide and conquer: policies for parts of the starts, put together into one.

(Ghosh et al., "Divide-and-conquer reinforcement learning", 2018, arXiv 1711.09874.)

    find `num_contexts` clusters of first observations by k-means
    repeat:
        run episodes, each with the policy of the nearest cluster to its first obs
        for each context i, with the episodes of its own:
            a step of TRPO up                              gain - penalty coupling_i
            fit its critic
        fit the centre to what the policies do at all these observations
        every `period` times: fit it longer, and begin anew with all policies at it

The coupling: "dnc", the mean over the other policies of the divergence from and to
them (`policy_gradient/coupling`), or an ablation: "none"; "central", a single policy
for all starts, which is TRPO of whole episodes; "distral", the divergence from the
centre, where no policy begins anew (Teh et al., 2017).

What is evaluated is the centre: it is not told the context.  Beginning anew, a policy
keeps its std, and its critic.  Deviations: contexts get as many episodes as there are
starts of theirs; observations are normalised by the running statistics of all; critics
are networks.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import gathering, imitation, optimizers, replay
from mbrl_jax.gathering import Counters
from mbrl_jax.ops import checks, clusters, finite, normalize
from mbrl_jax.ops.clusters import Clusters
from mbrl_jax.ops.normalize import RunningStats
from mbrl_jax.policy_gradient import actor_critic, coupling, experience, trpo
from mbrl_jax.policy_gradient.actor_critic import ActorCritic, Agent
from mbrl_jax.policy_gradient.coupling import Seen
from mbrl_jax.policy_gradient.experience import Samples, Surrogate
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Key,
    Metrics,
    Params,
    Policy,
    PyTree,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    coupling: str = "dnc"  # or none, central, distral
    penalty: float = 0.1  # of a nat of the coupling, in stds of the advantage
    num_contexts: int = 4  # n
    num_starts: int = 200  # first observations that the contexts are found in
    num_episodes: int = 40  # in a step of the algorithm, of all contexts together
    period: int = 20  # R, steps from one beginning to the next
    num_passes: int = 1  # over the observations of a step, for the centre
    num_last_passes: int = 30  # before the policies begin anew
    batch_size: int = 128  # observations in an update of the centre
    learning_rate: float = 1e-3  # of Adam, for the centre
    max_norm: float = 10.0  # of the gradient, above which it is scaled down
    net: actor_critic.Config = actor_critic.Config()
    learn: trpo.Config = trpo.Config()


class State(NamedTuple):
    contexts: Clusters  # [n, O] of first observations
    learners: trpo.State  # [n, ...]; the statistics of observations are the same in all
    centre: Params  # an actor, in the same units
    opt_state: optax.OptState  # of the centre
    num_steps: Array  # [] int32
    counters: Counters


_COUPLINGS = {
    "dnc": coupling.pairwise,
    "none": coupling.nothing,
    "central": coupling.nothing,
    "distral": coupling.to_centre,
}


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    _validate(env, config)
    central = config.coupling == "central"
    number = 1 if central else config.num_contexts
    net = actor_critic.make(env, config.net)
    learner = trpo.make(net, config.learn)
    fitter = experience.fitter(net, config.learn.critic)
    gatherer = gathering.episode_gatherer(env, config.num_episodes)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    each = jnp.arange(number)

    def init(key: Key) -> State:
        starts_key, cluster_key, learner_key = jax.random.split(key, 3)
        keys = jax.random.split(starts_key, config.num_starts)
        first = gathering.over(env)(lambda key: env.reset(key).obs, keys)
        valid = finite.usable(first, num_batch_axes=1)
        contexts = clusters.kmeans(cluster_key, first, valid, number)
        one = learner.init(learner_key)
        learners = jax.tree.map(lambda x: jnp.stack([x] * number), one)
        centre = one.agent.actor
        zero = jnp.zeros((), jnp.int32)
        counters = gathering.zero_counters()
        return State(contexts, learners, centre, optimizer.init(centre), zero, counters)

    def explore(state: State) -> Policy:
        """Its memory is the context, -1 before the first observation."""

        def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
            i = jnp.where(memory < 0, clusters.nearest(state.contexts, obs), memory)
            agent = jax.tree.map(lambda x: x[i], state.learners.agent)
            acting = actor_critic.policy(net, agent, explore=True)
            return acting.act(key, obs, acting.init())[0], i

        return Policy(lambda: jnp.full((), -1, jnp.int32), act)

    def learn(
        key: Key, i: Array, own: trpo.State, rows: Samples, seen: Seen
    ) -> tuple[trpo.State, Metrics]:
        """Of context `i` [], of whose policy `rows` [N, T, ...] are."""
        plain, actor = experience.surrogate(net, rows), own.agent.actor

        def far(actor: Params) -> Array:
            outputs = experience.outputs_of(net, actor, rows)
            return _COUPLINGS[config.coupling](net.family, seen, i, outputs)

        gain = lambda actor: plain.gain(actor) - config.penalty * far(actor)
        surrogate = Surrogate(gain, plain.divergence)
        new, _, moved = trpo.improve(surrogate, actor, config.learn)
        critic, opt_state, error = fitter.fit(
            key, own.agent.critic, own.opt_state, rows
        )
        agent = own.agent._replace(actor=new, critic=critic)
        return trpo.State(agent, opt_state), {
            "policy/divergence": plain.divergence(new),
            "policy/moved": moved.astype(error.dtype),
            "policy/coupling": far(new),
            "critic/loss": error,
            "critic/skipped_updates": opt_state.num_skipped,
        }

    def distil(
        key: Key, state: State, rows: Samples, which: Array, num_passes: Array
    ) -> tuple[State, Array]:
        """With a centre fitted to what the policies are now, each at its own obs."""
        actors = state.learners.agent.actor
        outputs = jax.vmap(lambda actor: experience.outputs_of(net, actor, rows))(
            actors
        )
        outputs = outputs[which, jnp.arange(len(which))]  # [N, T, D]
        means = jax.vmap(jax.vmap(net.family.mode))(outputs)
        answers = _answers(rows, means)

        def fit(i: Array, carry: Any) -> Any:
            key, centre, opt_state, _ = carry
            key, fit_key = jax.random.split(key)
            centre, opt_state, losses = imitation.fit(
                fit_key,
                lambda actor, obs: net.family.mode(net.act(actor, (), obs)[1]),
                optimizer,
                centre,
                opt_state,
                answers,
                action_limit=env.action_limit,
                num_updates=max(1, rows.valid.size // config.batch_size),
                batch_size=config.batch_size,
            )
            return key, centre, opt_state, losses[-1]

        start = key, state.centre, state.opt_state, jnp.zeros(())
        _, centre, opt_state, loss = jax.lax.fori_loop(0, num_passes, fit, start)
        centre = {**centre, "log_std": actors["log_std"].mean(axis=0)}
        return state._replace(centre=centre, opt_state=opt_state), loss

    def put_together(
        key: Key, state: State, rows: Samples, which: Array
    ) -> tuple[State, Array]:
        """With a new centre, and where it is time with all policies at it."""
        if central:
            actor = jax.tree.map(lambda x: x[0], state.learners.agent.actor)
            return state._replace(centre=actor), jnp.zeros(())
        some = rows.valid.any()
        due = some & ((state.num_steps + 1) % config.period == 0)
        num_passes = jnp.where(due, config.num_last_passes, config.num_passes)
        state, loss = distil(key, state, rows, which, jnp.where(some, num_passes, 0))
        if config.coupling == "distral":
            return state, loss
        agent = state.learners.agent
        nets = jax.tree.map(
            lambda centre, own: jnp.where(due, centre[None], own),
            state.centre["net"],
            agent.actor["net"],
        )
        agent = agent._replace(actor={**agent.actor, "net": nets})
        return state._replace(learners=state.learners._replace(agent=agent)), loss

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        act_key, learn_key, fit_key = jax.random.split(key, 3)
        gathered = gatherer.gather(act_key, explore(state), ())
        windows = gathered.windows._replace(memory=((), ()))
        nearest = partial(clusters.nearest, state.contexts)
        which = jax.vmap(nearest)(windows.transitions.obs[:, 0])  # [N]
        own = windows.valid[None] & (which[None, :, None] == each[:, None, None])

        def look_back(agent: Agent, own: Array) -> tuple[Samples, Agent]:
            return experience.gae_samples(
                net,
                agent,
                windows._replace(valid=own),
                config.learn.discount,
                config.learn.gae_lambda,
            )

        before = state.learners.agent.obs
        rows, agents = jax.vmap(look_back)(state.learners.agent, own)  # [n, N, T]
        shared = jax.tree.map(lambda x: x[0], rows)._replace(
            valid=rows.valid.any(axis=0)
        )
        centre = experience.outputs_of(net, state.centre, shared)
        learners, metrics = jax.vmap(learn, in_axes=(0, 0, 0, 0, None))(
            jax.random.split(learn_key, number),
            each,
            state.learners._replace(agent=agents),
            rows,
            Seen(rows.outputs, centre, rows.valid),
        )
        state = state._replace(learners=learners)
        state, loss = put_together(fit_key, state, shared, which)
        stats = _merged(before, windows.transitions.obs, shared.valid)
        counters = gathering.count(state.counters, gathered)
        state = _in_units(net, state, before, stats)._replace(
            num_steps=state.num_steps + 1, counters=counters
        )
        return state, {
            **gathering.report(counters, gathered.returns[:, -1].mean()),
            **{name: x.mean() for name, x in metrics.items()},
            "centre/loss": loss,
        }

    def policy(state: State) -> Policy:
        agent = jax.tree.map(lambda x: x[0], state.learners.agent)
        agent = agent._replace(actor=state.centre)
        return actor_critic.policy(net, agent, explore=False)

    return Algorithm(init, step, policy)


def _answers(rows: Samples, means: Array) -> replay.Replay:
    """`means` [N, T, A] as what is done at the observations of rows [N, T, ...]."""
    obs, means = (x.reshape(-1, x.shape[-1]) for x in (rows.obs, means))
    empty = replay.init(obs.shape[1], means.shape[1], len(obs))
    return replay.insert(empty, imitation.rows(obs, means), rows.valid.ravel())


def _merged(before: RunningStats, obs: Array, valid: Array) -> RunningStats:
    """Statistics [n, ...], all the same, with those of obs [N, T, O]."""
    one = jax.tree.map(lambda x: x[0], before)
    one = normalize.update(one, obs.reshape(valid.size, -1), valid.ravel())
    return jax.tree.map(lambda old, x: jnp.broadcast_to(x, old.shape), before, one)


def _in_units(
    net: ActorCritic, state: State, before: RunningStats, stats: RunningStats
) -> State:
    """The same policies, of observations in units of `stats`, both [n, ...]."""
    one = lambda tree: jax.tree.map(lambda x: x[0], tree)
    units = normalize.units(one(before), one(stats))
    agent = state.learners.agent
    centre, _ = net.renormalise((state.centre, one(agent.critic)), *units)
    renewed = jax.vmap(lambda params: net.renormalise(params, *units))
    actor, critic = renewed((agent.actor, agent.critic))
    agent = agent._replace(actor=actor, critic=critic, obs=stats)
    learners = state.learners._replace(agent=agent)
    return state._replace(centre=centre, learners=learners)


def _validate(env: Env, config: Config) -> None:
    """But for what `learn` and `net` validate themselves."""
    checks.continuous(env)
    checks.one_of(config, "coupling", _COUPLINGS)
    checks.at_least(config, 0, "penalty")
    checks.positive(config, "learning_rate", "max_norm")
    names = ("num_contexts", "num_episodes", "period", "num_passes")
    checks.at_least(config, 1, *names, "num_last_passes", "batch_size")
    checks.at_most(config, "num_contexts", "num_starts")
    if config.net.memory_size:
        raise ValueError(
            f"net.memory_size is {config.net.memory_size}, must be 0: the centre is "
            "fitted to single observations"
        )
    num_steps = config.num_episodes * env.episode_length
    experience.check_minibatches(config.learn, num_steps)
