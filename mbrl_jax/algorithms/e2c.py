"""Embed to Control: plans in the code of pictures (Watter et al., 2015).

    repeat:
        run `num_episodes` episodes at random, and remember them
        `num_updates` times, for each of `num_models`: a step down the loss of
            `models/latent.py`; the model of the least loss at the end is the one
    policy: z = mu(x), z_goal = mu(the picture of the goal); plan in the latent dynamics
        against (z - z_goal)^T (z - z_goal) + action_cost |u|^2, at every step anew

The environment has to have a goal, and to show pictures, as vectors:
`--env=pixels/NAME/vector=1`.  Planners are those of MPC, iLQR the paper's (with AICO
beside it).  Actions are in units of their limit.  Deviation: the plan is made anew at
every step, from the picture then.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import gathering, optimizers, policies, replay
from mbrl_jax.envs import pixels
from mbrl_jax.gathering import Counters
from mbrl_jax.models import latent
from mbrl_jax.ops import checks, finite, normalize
from mbrl_jax.planners import mpc
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Key,
    Metrics,
    Params,
    Policy,
    PyTree,
    Simulation,
    Transition,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 10_000  # transitions kept
    num_episodes: int = 10  # at random, in an iteration
    num_updates: int = 2000
    batch_size: int = 128
    num_models: int = 1  # side by side: a code that has folded stays so
    learning_rate: float = 1e-3  # of Adam
    max_norm: float = 1e4  # of a gradient, above which it is scaled down
    action_cost: float = 0.1
    planner: str = "ilqr"  # or any other of MPC's
    plan: mpc.Config = mpc.Config(horizon=10, num_samples=20)
    model: latent.Config = latent.Config()


class State(NamedTuple):
    params: Params  # [M, ...]
    opt_state: optax.OptState  # [M, ...]
    best: Array  # [] int32, the model that acts
    pixels: normalize.Statistics  # of the pictures
    replay: replay.Replay
    counters: Counters


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be, and for an
    environment without a goal."""
    _validate(env, config)
    assert env.goal is not None
    goal = env.goal
    model = latent.make(env.obs_size, env.action_size, config.model)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    gatherer = gathering.episode_gatherer(env, config.num_episodes)

    def init(key: Key) -> State:
        params = jax.vmap(model.init)(jax.random.split(key, config.num_models))
        data = replay.init(env.obs_size, env.action_size, config.capacity)
        pixels, counters = normalize.identity(env.obs_size), gathering.zero_counters()
        first = jnp.zeros((), jnp.int32)
        opt_state = jax.vmap(optimizer.init)(params)
        return State(params, opt_state, first, pixels, data, counters)

    def loss(
        params: Params, pixels: normalize.Statistics, key: Key, batch: Transition
    ) -> tuple[Array, Metrics]:
        keys, unit = jax.random.split(key, config.batch_size), env.action_limit
        one = partial(model.loss, params, pixels)
        each, terms = jax.vmap(one)(
            keys, batch.obs, batch.action / unit, batch.next_obs
        )
        return each.mean(), {f"latent/{x}": y.mean() for x, y in terms.items()}

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        act_key, key = jax.random.split(key)
        gathered = gatherer.gather(act_key, policies.uniform(env), ())
        rows, valid = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]),
            (gathered.windows.transitions, gathered.windows.valid),
        )
        data = replay.insert(state.replay, rows, valid)
        pixels = _units(data)

        def fit(
            key: Key, params: Params, opt_state: PyTree
        ) -> tuple[Params, PyTree, Metrics]:
            """One model, and its losses [num_updates]."""

            def update(
                carry: tuple[Params, PyTree], key: Key
            ) -> tuple[tuple[Params, PyTree], Metrics]:
                batch_key, key = jax.random.split(key)
                batch = replay.sample(batch_key, data, config.batch_size)
                of = jax.grad(loss, has_aux=True)
                gradient, terms = of(carry[0], pixels, key, batch)
                return optimizers.descend(
                    optimizer, gradient, carry[1], carry[0]
                ), terms

            keys = jax.random.split(key, config.num_updates)
            (params, opt_state), terms = jax.lax.scan(update, (params, opt_state), keys)
            last = max(1, config.num_updates // 10)
            return params, opt_state, jax.tree.map(lambda x: x[-last:].mean(), terms)

        keys = jax.random.split(key, config.num_models)
        params, opt_state, terms = jax.vmap(fit)(keys, state.params, state.opt_state)
        losses = sum(terms.values(), jnp.zeros(config.num_models))
        best = jnp.argmax(finite.losing(-losses)).astype(jnp.int32)
        counters = gathering.count(state.counters, gathered)
        return State(params, opt_state, best, pixels, data, counters), {
            **jax.tree.map(lambda x: x[best], terms),
            "gradient/skipped_updates": opt_state.num_skipped.sum(),
            **gathering.report(counters, gathered.returns[:, -1].mean()),
        }

    def chosen(state: State) -> Params:
        return jax.tree.map(lambda x: x[state.best], state.params)

    def policy(state: State) -> Policy:
        params = chosen(state)
        code = lambda obs: model.encode(params, state.pixels, obs).mean
        aim = code(goal().obs)

        def future(key: Key, obs: Array) -> Simulation:
            def ahead(z: Array, action: Array) -> tuple[Array, Array]:
                unit = action / env.action_limit
                z = model.transition(params, z)(z, unit)
                cost = jnp.square(z - aim).sum()
                return z, -cost - config.action_cost * jnp.square(unit).sum()

            return Simulation(code(obs), ahead)

        return mpc.make(
            config.planner, config.plan, env.action_size, env.action_limit, future
        )

    def foresee(state: State, key: Key, obs: Array, action: Array) -> dict[str, Array]:
        """No noise is drawn: means of codes."""
        params = chosen(state)
        code = lambda obs: model.encode(params, state.pixels, obs).mean
        shown = jax.vmap(lambda z: pixels.newest(env, model.decode(params, z)))

        def ahead(z: Array, action: Array) -> tuple[Array, Array]:
            z = model.transition(params, z)(z, action / env.action_limit)
            return z, z

        codes = jax.vmap(code)(obs)
        predicted = jax.lax.scan(ahead, codes[0], action)[1]
        return {
            "reconstructed": shown(codes),
            "predicted": shown(jnp.concatenate([codes[:1], predicted])),
        }

    return Algorithm(init, step, policy, foresee=foresee)


def _units(data: replay.Replay) -> normalize.Statistics:
    """The mean picture, and one std for all pixels: some hardly ever change."""
    mean, std = normalize.statistics(data.data.obs, replay.valid(data), 0.0)
    common = jnp.sqrt(jnp.square(std).mean())
    return normalize.Statistics(mean, jnp.full_like(std, common))


def _validate(env: Env, config: Config) -> None:
    checks.continuous(env)
    checks.vectors(env)
    if env.goal is None:
        raise ValueError(f"{env.name} has no goal to be brought to: e2c needs one")
    counts = ("num_episodes", "num_updates", "batch_size", "num_models")
    checks.at_least(config, 1, *counts)
    checks.positive(config, "learning_rate", "max_norm")
    checks.at_least(config, 0, "action_cost")
    checks.holds_an_episode(config, env)
    mpc.validate(config.planner, config.plan)
    checks.under("model", latent.validate, config.model)
