"""Guided policy search: local controllers teach a network, and are held near to it.

    repeat, for each of `num_conditions` starts that are drawn once:
        run `num_episodes` with its controller p(u | x), linear-Gaussian at each step
        fit p(x' | x, u), linear-Gaussian at each step; expand the reward (`lqr_flm`)
        then, `num_inner` times:
            C-step: improve p within max_kl, held near to the network pi(u | o)
            S-step: fit the network to all p, in the metric of their precisions
            adjust how much p and pi are held together

What is held together how, l being the cost, C the covariance of p at a time step:

    lagrangian  min E_p[l] such that KL(p || pi) <= max_deviation: p improves on
                l - nu log pi - nu entropy, nu rises and falls with KL - max_deviation,
                by gradient ascent in its logarithm (Levine, CS 285, and Levine and
                Abbeel, "Learning neural network policies with guided policy search
                under unknown dynamics", 2014)
    badmm       min E_p[l] such that E_p[u] = E_pi[u], by Bregman ADMM: p improves on
                l - lambda'u + nu KL(p || pi); the network's targets are the means of p
                less C lambda / nu; then lambda += dual_rate nu C^-1 (E_pi[u] - E_p[u]),
                and nu_t doubles where KL(pi || p) is above its mean over time, halves
                where it is two deviations below (Levine, Finn, Darrell and Abbeel,
                "End-to-end training of deep visuomotor policies", 2016, Sec. 4)
    mdgps       mirror descent: max_kl is the distance from the network, linearised,
                not from the last p; there are no duals, and one C-step and S-step; the
                steps' size is one for all, from what became of the network's cost
                (Montgomery and Levine, "Guided policy search as approximate mirror
                descent", 2016, Sec. 4)

The network is linearised by the mean of its Jacobians at the samples: for a normal x
that is what regression tends to (Stein's lemma), but with no noise of its own, from
fewer samples than observations, and without a prior.  Its covariance is the inverse of
the mean precision of all p, its mean is what is evaluated; before the first C-step it
is fitted to the first controllers.

Deviations: dual steps of badmm are in the metric of C, as the targets are; episodes
are those of p, also for mdgps; observations are states.  A fixed start also fixes what
else is drawn at a reset, such as noise that is drawn from a key in the state.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import gathering, imitation, optimizers, replay
from mbrl_jax.envs import simulator
from mbrl_jax.gathering import Counters
from mbrl_jax.gradients import pathwise
from mbrl_jax.local_policies import controllers, experience, kl_lqr
from mbrl_jax.local_policies.controllers import Controller, System
from mbrl_jax.models.linear_gaussian import Episodes
from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks, definite, loop, normalize
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    EnvState,
    Key,
    Metrics,
    Params,
    Policy,
    PyTree,
)

_VARIANTS = ("lagrangian", "badmm", "mdgps")


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    variant: str = "lagrangian"  # or badmm, mdgps
    num_conditions: int = 4  # M, starts
    num_episodes: int = 5  # N, of each of them, in a step of the algorithm
    horizon: int = 0  # T, their steps; 0: of an episode
    max_kl: float = 0.2  # nats per time step, before it is adapted
    init_std: float = 0.5  # of the first controllers, in units of the action limit
    prior: str = "mixture"  # or none
    strength: float = 1.0  # of the prior, in rows per time step
    num_clusters: int = 20  # of the mixture, at most
    rows_per_cluster: int = 20  # at least
    num_remembered: int = 20  # latest episodes of a start, which the mixture is of
    hidden_sizes: tuple[int, ...] = (40, 40)  # of the network
    learning_rate: float = 1e-3  # of Adam
    max_norm: float = 10.0  # of the gradient, above which it is scaled down
    num_updates: int = 1000  # of the network, in an S-step
    batch_size: int = 128
    num_inner: int = 4  # C-steps and S-steps from the same episodes; of mdgps 1
    init_weight: float = 0.01  # nu: a nat's worth in units of reward, at first
    dual_rate: float = 0.1  # of the ascent
    max_deviation: float = 0.1  # of lagrangian: nats per time step


class _Network(NamedTuple):
    """The global policy: u ~ N(mean, cov)."""

    params: Params
    opt_state: optax.OptState
    obs: normalize.RunningStats
    cov: Array  # [A, A]


class _Pull(NamedTuple):
    """What holds a controller and the network together."""

    weights: Array  # [T] nu, in units of the cost, per nat
    duals: Array  # [T, A] lambda, in units of the cost, per unit of action


class State(NamedTuple):
    starts: EnvState  # [M, ...]
    controllers: Controller  # [M, ...]
    episodes: Episodes  # [M, ...] the latest, the newest first
    network: _Network
    pulls: _Pull  # [M, ...]
    size: Array  # [M] of a step, a factor of max_kl
    cost: Array  # [M] expected, of what a step set out from, when it did
    predicted: Array  # [M] by how much less that was to become
    num_kept: Array  # [] int32, C-steps that found nothing
    counters: Counters


class _Inner(NamedTuple):
    """What is improved in turns."""

    network: _Network
    linear: Controller  # [M, ...] the network, linearised
    pulls: _Pull  # [M, ...]


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    reward = _validate(env, config)
    if config.horizon:
        env = simulator.time_limit(env, config.horizon)
    num_times, O, A = env.episode_length, env.obs_size, env.action_size
    M, N = config.num_conditions, config.num_episodes
    mirror = config.variant == "mdgps"
    net: Any = MLP(config.hidden_sizes, A)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)

    def init(key: Key) -> State:
        net_key, start_key = jax.random.split(key)
        each = lambda x: jnp.tile(x[None], (M,) + (1,) * x.ndim)
        params, zeros = net.init(net_key, jnp.zeros(O)), jnp.zeros(M)
        return State(
            starts=jax.vmap(env.reset)(jax.random.split(start_key, M)),
            controllers=jax.tree.map(each, experience.first_controller(env, config)),
            episodes=jax.tree.map(each, experience.no_episodes(env, config)),
            network=_Network(
                params,
                optimizer.init(params),
                normalize.running_stats(O),
                experience.first_cov(env, config),
            ),
            pulls=_Pull(
                jnp.zeros((M, num_times)) + config.init_weight,
                jnp.zeros((M, num_times, A)),
            ),
            size=zeros + 1,
            cost=zeros,
            predicted=zeros,
            num_kept=jnp.zeros((), jnp.int32),
            counters=gathering.zero_counters(),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        run_key, first_key, inner_key = jax.random.split(key, 3)

        def gather(
            key: Key, start: EnvState, controller: Controller, episodes: Episodes
        ) -> experience.Experience:
            own = env._replace(reset=lambda key: start)
            return experience.gather(key, own, controller, episodes, reward, config)

        keys = jax.random.split(run_key, M)
        found = jax.vmap(gather)(keys, state.starts, state.controllers, state.episodes)
        systems, gathered = found.system, found.gathered
        join = lambda x: x.reshape(M * N, *x.shape[2:])
        gathered = gathered._replace(
            windows=jax.tree.map(join, gathered.windows),
            ended=join(gathered.ended),
            returns=join(gathered.returns),
        )
        counters = gathering.count(state.counters, gathered)
        seen = jax.tree.map(lambda x: x[:, :N], found.episodes)
        network = _seeing(state.network, seen)
        first = state.counters.num_episodes == 0
        fit = lambda x: fit_network(
            first_key, x[0], state.controllers, state.pulls, seen
        )
        network, _ = loop.when(first, fit, (network, jnp.zeros(())))
        linear = linearised(network, seen)

        old = linear if mirror else state.controllers
        cost, size = jax.vmap(_cost)(systems, old), state.size
        predicted, actual = state.predicted, state.cost - cost
        if mirror:
            predicted, actual = (
                jnp.broadcast_to(x.mean(), (M,)) for x in (predicted, actual)
            )
        size = jax.vmap(kl_lqr.adapted)(size, predicted, actual)
        max_kl = config.max_kl * num_times * size

        def inner(now: _Inner, key: Key) -> tuple[_Inner, tuple]:
            found = jax.vmap(improve)(systems, old, now.linear, now.pulls, max_kl)
            local = found.controller
            network, loss = fit_network(key, now.network, local, now.pulls, seen)
            linear = linearised(network, seen)
            pulls = jax.vmap(pulled)(systems, local, linear, now.pulls, seen)
            return _Inner(network, linear, pulls), (found, loss)

        keys = jax.random.split(inner_key, 1 if mirror else config.num_inner)
        now, every = jax.lax.scan(inner, _Inner(network, linear, state.pulls), keys)
        step, loss = jax.tree.map(lambda x: x[-1], every)
        local, pulls = step.controller, now.pulls
        at = jax.vmap(controllers.marginals)(systems, local)
        kl = jax.vmap(controllers.kl)(now.linear, local, at)  # [M, T]
        if config.variant == "badmm":
            pulls = pulls._replace(
                weights=jax.vmap(kl_lqr.scheduled)(pulls.weights, kl)
            )
        improved = every[0].status <= definite.Status.NOT_CONVERGED  # [inner, M]
        new_cost = jax.vmap(_cost)(systems, local)
        sound = improved[-1] & jnp.isfinite(cost) & jnp.isfinite(new_cost)
        safe = lambda x: jnp.where(sound, x, 0)
        num_kept = state.num_kept + (~improved).sum(dtype=jnp.int32)
        violation = jax.vmap(_violation)(local, now.linear, seen)
        state = State(
            starts=state.starts,
            controllers=local,
            episodes=found.episodes,
            network=now.network,
            pulls=pulls,
            size=size,
            cost=safe(cost),
            predicted=safe(cost - new_cost),
            num_kept=num_kept,
            counters=counters,
        )
        variances = jnp.diagonal(found.dynamics.cov, axis1=2, axis2=3)
        return state, {
            **gathering.report(counters, gathered.returns[:, -1].mean()),
            "model/std": jnp.sqrt(variances).mean(),
            "imagined/local_return": -safe(new_cost).mean(),
            "imagined/return": -jax.vmap(_cost)(systems, now.linear).mean(),
            "imagined/improvement": state.predicted.mean(),
            "constraint/kl": kl.mean(),
            "constraint/violation": violation.mean(),
            "constraint/weight": pulls.weights.mean(),
            "controller/kl": step.kl.mean() / num_times,
            "controller/max_kl": max_kl.mean() / num_times,
            "controller/size": size.mean(),
            "controller/num_kept": num_kept,
            "imitation/loss": loss,
            "imitation/skipped_updates": now.network.opt_state.num_skipped,
        }

    def improve(
        system: System,
        old: Controller,
        linear: Controller,
        pull: _Pull,
        max_kl: Array,
    ) -> kl_lqr.Improvement:
        """The C-step of a condition."""
        if mirror:
            return kl_lqr.improve(system, old, max_kl)
        problem = kl_lqr.toward(system.problem, linear, pull.weights)
        problem = problem._replace(r=problem.r - pull.duals)
        held = system._replace(problem=problem)
        return kl_lqr.improve(held, old, max_kl, temperature=pull.weights)

    def fit_network(
        key: Key, network: _Network, local: Controller, pulls: _Pull, seen: Episodes
    ) -> tuple[_Network, Array]:
        """The S-step; and the mean loss of the last tenth of the updates."""
        precision, _ = jax.vmap(jax.vmap(definite.inverse))(local.cov)  # [M, T, A, A]
        shift = jnp.einsum("mtab,mtb->mta", local.cov, pulls.duals)
        shift = shift / pulls.weights[..., None]
        target = jnp.einsum("mtao,mnto->mnta", local.K, seen.obs)
        target = target + (local.k - shift)[:, None]
        weight = pulls.weights[..., None, None] * precision
        weight = weight / jnp.trace(weight, axis1=2, axis2=3).mean() * A
        weight = jnp.where(seen.valid[..., None, None], weight[:, None], 0)
        obs, target, weight = (
            x.reshape(-1, *x.shape[3:]) for x in (seen.obs, target, weight)
        )
        stats = normalize.so_far(network.obs)
        params, opt_state, losses = imitation.fit(
            key,
            lambda params, obs: mean(params, stats, obs),
            optimizer,
            network.params,
            network.opt_state,
            _answers(obs, target),
            action_limit=env.action_limit,
            num_updates=config.num_updates,
            batch_size=config.batch_size,
            weights=weight,
        )
        cov, _ = definite.inverse(precision.mean(axis=(0, 1)))
        network = network._replace(params=params, opt_state=opt_state, cov=cov)
        return network, losses[-max(1, config.num_updates // 10) :].mean()

    def pulled(
        system: System,
        local: Controller,
        linear: Controller,
        pull: _Pull,
        seen: Episodes,
    ) -> _Pull:
        """After an S-step."""
        if config.variant == "lagrangian":
            at = controllers.marginals(system, local)
            kl = controllers.kl(local, linear, at).mean()
            over = jnp.clip(kl / config.max_deviation - 1, -1, 1)
            return pull._replace(
                weights=pull.weights * jnp.exp(config.dual_rate * over)
            )
        if config.variant == "badmm":
            pushed = _standard_gap(local, linear, seen)[1]
            rise = config.dual_rate * pull.weights[:, None] * pushed
            return pull._replace(duals=pull.duals + rise)
        return pull

    def linearised(network: _Network, seen: Episodes) -> Controller:
        """The network as a controller of each condition."""
        stats = normalize.so_far(network.obs)
        act = lambda obs: mean(network.params, stats, obs)
        one = lambda obs, valid: controllers.linearised(act, network.cov, obs, valid)
        return jax.vmap(one)(seen.obs, seen.valid)

    def mean(params: Params, stats: normalize.Statistics, obs: Array) -> Array:
        out: Array = net.apply(params, normalize.normalise(stats, obs))
        return env.action_limit * out

    def policy(state: State) -> Policy:
        network = state.network
        stats = normalize.so_far(network.obs)

        def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
            return mean(network.params, stats, obs), memory

        return Policy(lambda: (), act)

    return Algorithm(init, step, policy)


def _seeing(network: _Network, seen: Episodes) -> _Network:
    """The same function, of observations in the units of those seen until now."""
    flat = seen.obs.reshape(-1, seen.obs.shape[-1])
    obs = normalize.update(network.obs, flat, seen.valid.ravel())
    before, after = normalize.units(network.obs, obs)
    layers: list[tuple[str, ...]] = [("params", "Dense_0")]
    params = normalize.folded(network.params, layers, before, after)
    return network._replace(params=params, obs=obs)


def _answers(obs: Array, action: Array) -> replay.Replay:
    """Rows of observations and what is to be done there."""
    empty = replay.init(obs.shape[1], action.shape[1], len(obs))
    size = jnp.full((), len(obs), jnp.int32)
    return empty._replace(data=imitation.rows(obs, action), size=size)


def _cost(system: System, controller: Controller) -> Array:
    at = controllers.marginals(system, controller)
    return controllers.expected_cost(system.problem, at)


def _standard_gap(
    local: Controller, linear: Controller, seen: Episodes
) -> tuple[Array, Array]:
    """E_pi[u] - E_p[u] over the samples of each step, [T, A], and C^-1 times that."""
    number = jnp.maximum(seen.valid.sum(axis=0), 1)[:, None]
    obs = seen.obs.sum(axis=0) / number  # [T, O], those that are not valid are 0
    gap = jnp.einsum("tao,to->ta", linear.K - local.K, obs) + linear.k - local.k
    return gap, jax.vmap(lambda cov, gap: definite.solve(cov, gap)[0])(local.cov, gap)


def _violation(local: Controller, linear: Controller, seen: Episodes) -> Array:
    """[] nats per step: KL divergence of what the means alone differ by."""
    gap, pushed = _standard_gap(local, linear, seen)
    return (gap * pushed).sum(axis=1).mean() / 2


def _validate(env: Env, config: Config) -> experience.Reward:
    if env.host:
        raise ValueError(
            f"{env.name} steps outside jax, one at a time, and gps runs "
            f"{config.num_conditions} times {config.num_episodes} episodes at once"
        )
    checks.one_of(config, "variant", _VARIANTS)
    counts = "num_conditions", "num_inner", "num_updates", "batch_size"
    checks.at_least(config, 1, *counts)
    names = "learning_rate", "max_norm", "init_weight", "dual_rate", "max_deviation"
    checks.positive(config, *names)
    if config.num_conditions > 1 and not _starts_differ(env):
        raise ValueError(
            f"num_conditions is {config.num_conditions}, but {env.name} always starts "
            "the same: num_conditions must be 1"
        )
    return experience.validate("gps", env, config)


def _starts_differ(env: Env) -> bool:
    """Whether what is seen first has to do with the key."""
    jaxpr = jax.make_jaxpr(lambda key: env.reset(key).obs)(jax.random.key(0)).jaxpr
    return pathwise.reaches(jaxpr, {*jaxpr.invars})
