"""SimPLe: simulated policy learning, PPO in a video model (Kaiser et al., 2020).

"Model-based reinforcement learning for Atari", arXiv 1903.00374, Alg. 1:

    repeat:
        act for `window` steps in each real environment, and remember all
        train the video model (`models/next_frame.py`) on what is remembered,
            `first_factor` times as long the first time
        `num_policy_updates` times: PPO on `num_rollouts` rollouts in the model, of
            `horizon` steps from pictures that were seen; the critic stands for what
            follows them

Rewards are taken by their sign.  Deviations: rollouts end where the model says so, and
a real episode goes on from iteration to iteration.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import gathering, networks, optimizers, replay
from mbrl_jax.envs import pixels
from mbrl_jax.gathering import Counters
from mbrl_jax.models import next_frame
from mbrl_jax.ops import checks
from mbrl_jax.policy_gradient import actor_critic, experience, ppo
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Key,
    Metrics,
    Params,
    Policy,
    PyTree,
    Transition,
    Window,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 10_000  # frames kept
    num_envs: int = 8  # real ones, side by side
    window: int = 64  # steps of each in an iteration
    num_model_updates: int = 1000  # of an iteration
    first_factor: int = 3  # times as many in the first
    batch_size: int = 32  # sequences
    sequence_length: int = 4  # steps
    own_share: float = 0.5  # of the frames, that the model makes itself
    learning_rate: float = 1e-3  # of Adam, for the model
    max_norm: float = 10.0  # of its gradient, above which it is scaled down
    num_policy_updates: int = 100  # in an iteration
    num_rollouts: int = 64  # in the model, for each of them
    horizon: int = 20  # steps of a rollout
    net: actor_critic.Config = actor_critic.Config()
    pixels: networks.EncoderConfig = networks.EncoderConfig()
    learn: ppo.Config = ppo.Config()
    model: next_frame.Config = next_frame.Config()


class State(NamedTuple):
    model: Params
    model_opt: optax.OptState
    learner: PyTree
    replay: replay.Replay
    parallel: gathering.ParallelEnvs
    counters: Counters


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be, and for an
    environment that shows no pictures."""
    _validate(config)
    model = next_frame.make(env, config.model)
    net = actor_critic.make(env, config.net, config.pixels)
    learner = ppo.make(net, config.learn)
    gatherer = gathering.window_gatherer(env, config.num_envs, config.window)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)

    def told(action: Array) -> Array:
        """What the model is told of an action."""
        if env.num_actions:
            return jax.nn.one_hot(action, env.num_actions)
        return jnp.clip(action / env.action_limit, -1, 1)

    def init(key: Key) -> State:
        model_key, learner_key, env_key = jax.random.split(key, 3)
        params, learned = model.init(model_key), learner.init(learner_key)
        parallel = gatherer.init(env_key, learner.explore(learned))
        data = replay.of(env, config.capacity)
        counters = gathering.zero_counters()
        return State(params, optimizer.init(params), learned, data, parallel, counters)

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        act_key, fit_key, key = jax.random.split(key, 3)
        acting = learner.explore(state.learner)
        gathered = gatherer.gather(act_key, acting, state.parallel)
        # [N, T] as they came: all environments step by step
        rows = jax.tree.map(
            lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]),
            gathered.windows.transitions,
        )
        every = jnp.ones(config.num_envs * config.window, bool)
        data = replay.insert(state.replay, rows, every, stride=config.num_envs)
        first = state.counters.env_steps == 0
        params, opt_state, seen = fit(
            fit_key, state.model, state.model_opt, data, first
        )
        learned, learned_how = improve(key, state.learner, params, data)
        counters = gathering.count(state.counters, gathered)
        state = State(params, opt_state, learned, data, gathered.parallel, counters)
        return state, {
            **seen,
            **learned_how,
            **gathering.report(counters, gathered.returns[:, -1].mean()),
        }

    def fit(
        key: Key, params: Params, opt_state: PyTree, data: replay.Replay, first: Array
    ) -> tuple[Params, PyTree, Metrics]:
        """The model, and its losses in the last update."""

        def loss(params: Params, key: Key) -> tuple[Array, Metrics]:
            batch_key, key = jax.random.split(key)
            rows, valid = replay.sample_sequences(
                batch_key,
                data,
                config.batch_size,
                config.sequence_length,
                config.num_envs,
            )
            rows = rows._replace(action=jax.vmap(jax.vmap(told))(rows.action))
            keys = jax.random.split(key, config.batch_size)
            each = lambda key, rows, valid: model.loss(
                params, key, rows, valid, config.own_share
            )
            losses, terms = jax.vmap(each)(keys, rows, valid)
            return losses.mean(), {f"model/{x}": y.mean() for x, y in terms.items()}

        def update(i: Array, now: tuple) -> tuple:
            params, opt_state, _ = now
            gradient, terms = jax.grad(loss, has_aux=True)(
                params, jax.random.fold_in(key, i)
            )
            return *optimizers.descend(optimizer, gradient, opt_state, params), terms

        number = jnp.where(first, config.first_factor, 1) * config.num_model_updates
        terms = jax.eval_shape(loss, params, key)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), terms)
        start = params, opt_state, zeros
        params, opt_state, terms = jax.lax.fori_loop(0, number, update, start)
        skipped = {"gradient/skipped_updates": opt_state.num_skipped}
        return params, opt_state, {**terms, **skipped}

    def imagined(
        key: Key, learned: PyTree, params: Params, data: replay.Replay
    ) -> Window:
        """Rollouts in the model [N, H, ...]."""
        starts_key, key = jax.random.split(key)
        starts = replay.sample(starts_key, data, config.num_rollouts).obs
        acting = learner.explore(learned)

        def one(key: Key, start: Array) -> Window:
            memory = acting.init()

            def ahead(now: tuple, key: Key) -> tuple[tuple, tuple[Transition, Array]]:
                (obs, alive, memory), (act_key, key) = now, jax.random.split(key)
                action, memory = acting.act(act_key, obs, memory)
                after, reward, ended = model.step(params, key, obs, told(action))
                never = jnp.zeros((), bool)
                data = Transition(obs, action, reward, after, ended, never)
                return (after, alive & ~ended, memory), (data, alive)

            keys = jax.random.split(key, config.horizon)
            start_of_it = start, jnp.ones((), bool), memory
            _, (data, alive) = jax.lax.scan(ahead, start_of_it, keys)
            return Window(data, alive, memory)

        return jax.vmap(one)(jax.random.split(key, config.num_rollouts), starts)

    def improve(
        key: Key, learned: PyTree, params: Params, data: replay.Replay
    ) -> tuple[PyTree, Metrics]:
        """PPO in the model."""

        def update(learned: PyTree, key: Key) -> tuple[PyTree, Metrics]:
            rollout_key, key = jax.random.split(key)
            windows = imagined(rollout_key, learned, params, data)
            learned, metrics = learner.update(key, learned, windows)
            earned = jnp.where(windows.valid, windows.transitions.reward, 0)
            found = {"imagined/return": earned.sum(axis=1).mean()}
            return learned, {**metrics, **found}

        keys = jax.random.split(key, config.num_policy_updates)
        learned, metrics = jax.lax.scan(update, learned, keys)
        return learned, jax.tree.map(lambda x: x[-1], metrics)

    def policy(state: State) -> Policy:
        return learner.policy(state.learner)

    def foresee(state: State, key: Key, obs: Array, action: Array) -> dict[str, Array]:
        def ahead(obs: Array, x: tuple[Key, Array]) -> tuple[Array, Array]:
            obs, _, _ = model.step(state.model, x[0], obs, told(x[1]))
            return obs, pixels.newest(env, obs)

        keys = jax.random.split(key, len(action))
        _, frames = jax.lax.scan(ahead, obs[0], (keys, action))
        first = pixels.newest(env, obs[0])[None]
        return {"predicted": jnp.concatenate([first, frames])}

    return Algorithm(init, step, policy, foresee=foresee)


def _validate(config: Config) -> None:
    counts = ("num_envs", "window", "num_model_updates", "first_factor", "batch_size")
    more = ("sequence_length", "num_policy_updates", "num_rollouts", "horizon")
    checks.at_least(config, 1, *counts, *more)
    checks.positive(config, "learning_rate", "max_norm")
    checks.within(config, 0, 1, "own_share")
    checks.under("model", next_frame.validate, config.model)
    checks.under("learn", ppo.validate, config.learn)
    experience.check_minibatches(config.learn, config.num_rollouts * config.horizon)
    gathered = config.num_envs * config.window
    if not gathered <= config.capacity:
        raise ValueError(
            f"capacity is {config.capacity}, less than the {gathered} frames of an "
            "iteration"
        )
    if config.sequence_length > config.window:
        raise ValueError(
            f"sequence_length is {config.sequence_length}, more than the "
            f"{config.window} steps of window"
        )
