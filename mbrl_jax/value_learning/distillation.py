"""The loop of distillation: one student of several teachers, each of its own task.

    where none are given, first: a DQN for each task, `num_teacher_steps` times
    repeat:
        act `interval` times in each task, and remember what is seen there
        `num_updates` times: a step of the student towards what the teachers say there

Tasks are those of `envs.multi_task`; any other environment is one task.  It acts who is
asked for: the student goes where its own mistakes lead (Ross et al., 2011), the teacher
where it would.  Teachers are policies that tell what they rank actions by
(`Policy.values`), and are never changed by what the student learns.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import gathering, optimizers, replay
from mbrl_jax.envs import multi_task
from mbrl_jax.ops import checks, loop
from mbrl_jax.replay import Replay
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, Params, Policy, PyTree
from mbrl_jax.value_learning import dqn, each_task, off_policy, parts


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    actor: str = "student"  # who acts: student or teacher
    exploration: float = 0.05  # probability of a random action
    capacity: int = 10_000  # observations kept of each task
    interval: int = 100  # steps in each task in an iteration
    num_updates: int = 100  # in an iteration
    batch_size: int = 32  # of each task
    learning_rate: float = 1e-3  # of Adam
    max_norm: float = 10.0  # of a gradient, above which it is scaled down
    num_teacher_steps: int = 40  # of DQN in each task, where no teachers are given
    collect: off_policy.Config = off_policy.Config()  # of these DQN
    teacher: dqn.Config = dqn.Config()


class Said(NamedTuple):
    """By a teacher."""

    values: Array  # [K] what it ranks actions by
    features: Array  # [F] what these are a linear function of; F is 0 if unknown


class Student(NamedTuple):
    """Functions for one example."""

    init: Callable[[Key], Params]
    values: Callable[[Params, Array], Array]  # (params, obs) -> [K], it takes the best
    loss: Callable[[Params, int, Array, Said], Array]  # (params, task, obs, said) -> []


class Teachers(NamedTuple):
    """One for each task."""

    init: Callable[[Key], PyTree]
    learn: Callable[[Key, PyTree], tuple[PyTree, Metrics]]
    say: Callable[[PyTree, int, Array], Said]  # (state, task, obs)
    env_steps: Callable[[PyTree], Array]  # of all, []
    num_steps: int  # of `learn`


class State(NamedTuple):
    params: Params  # of the student
    opt_state: optax.OptState
    teachers: PyTree
    num_taught: Array  # [] int32, iterations in which teachers learned
    replay: Replay  # of each task [N, ...]
    parallel: gathering.ParallelEnvs  # of each task [N, ...]
    counters: gathering.Counters  # of what the student, or a teacher for it, did


def teachers(
    env: Env, those: Sequence[Policy], named: Sequence[str], config: Config
) -> Teachers:
    """Those that are given, or its own.  Raises ValueError if `named` ones are not."""
    if named and len(named) != len(those):
        raise ValueError(
            f"teachers names {len(named)}, but {len(those)} policies are given"
        )
    return given(env, those) if those else own(env, config)


def given(env: Env, those: Sequence[Policy]) -> Teachers:
    """Frozen ones, of the tasks of `env` in their order, each of its task's obs.

    Raises ValueError where their number differs, or one cannot teach.
    """
    tasks = env.tasks or (env,)
    if len(those) != len(tasks):
        raise ValueError(
            f"{env.name} has {len(tasks)} tasks, but there are {len(those)} teachers"
        )
    for task, policy in zip(tasks, those, strict=True):
        if policy.values is None:
            raise ValueError(
                f"the teacher of {task.name} does not tell what it ranks actions by"
            )

    def say(state: PyTree, task: int, obs: Array) -> Said:
        return _said(those[task], obs[: tasks[task].obs_size])

    return Teachers(
        init=lambda key: (),
        learn=lambda key, state: (state, {}),
        say=say,
        env_steps=lambda state: jnp.zeros((), jnp.int32),
        num_steps=0,
    )


def own(env: Env, config: Config) -> Teachers:
    """A DQN for each task, which learns it alone.  Raises ValueError as `dqn.make`."""
    learner = parts.learner(dqn.make(env, config.teacher))
    hooks = off_policy.model_free(learner, config.collect.batch_size)
    tasks = jnp.arange(len(env.tasks) or 1)

    def algorithm(task: Array) -> Algorithm:
        return off_policy.make(multi_task.at(env, task), hooks, config.collect)

    def init(key: Key) -> PyTree:
        keys = jax.random.split(key, len(tasks))
        return jax.vmap(lambda task, key: algorithm(task).init(key))(tasks, keys)

    def learn(key: Key, state: PyTree) -> tuple[PyTree, Metrics]:
        def one(task: Array, key: Key, state: PyTree) -> tuple[PyTree, Metrics]:
            return algorithm(task).step(key, state)

        state, seen = jax.vmap(one)(tasks, jax.random.split(key, len(tasks)), state)
        return state, {
            "teacher/return": seen["episode/return"].mean(),
            "teacher/mse": seen["critic/mse"].mean(),
            "teacher/non_finite": seen["episode/non_finite"].sum(),
        }

    def say(state: PyTree, task: int, obs: Array) -> Said:
        one = jax.tree.map(lambda x: x[task], state.learner)
        return _said(learner.policy(one), obs)

    return Teachers(
        init=init,
        learn=learn,
        say=say,
        env_steps=lambda state: state.counters.env_steps.sum(dtype=jnp.int32),
        num_steps=config.num_teacher_steps,
    )


def num_features(env: Env, taught: Teachers) -> list[int]:
    """Of each teacher.  Raises ValueError, naming its task, if one has none."""
    sizes = []
    for i, task in enumerate(env.tasks or (env,)):
        say = lambda key, i=i: taught.say(taught.init(key), i, jnp.zeros(env.obs_size))
        said: Any = jax.eval_shape(say, jax.random.key(0))
        sizes.append(said.features.shape[0])
        if not sizes[-1]:
            raise ValueError(f"the teacher of {task.name} does not tell its features")
    return sizes


def make(env: Env, student: Student, taught: Teachers, config: Config) -> Algorithm:
    """The loop.  Raises ValueError for a configuration that cannot be."""
    checks.discrete(env)
    validate(config)
    num_tasks = len(env.tasks) or 1
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)

    gatherer = each_task.make(env, config.capacity, config.interval)

    def policy(state: State) -> Policy:
        values = partial(student.values, state.params)
        return _best(values)._replace(values=values)

    def judged(state: PyTree, task: Array, obs: Array) -> Array:
        """The values [K] of the teacher of a `task`, which may be traced."""

        def values(i: int, obs: Array) -> Array:
            return taught.say(state, i, obs).values

        ways = [partial(values, i) for i in range(num_tasks)]
        return jax.lax.switch(task, ways, obs)

    def acting(state: State, task: Array) -> Policy:
        best = policy(state)
        if config.actor == "teacher":
            best = _best(partial(judged, state.teachers, task))
        return parts.exploring(best, env.num_actions, config.exploration)

    def init(key: Key) -> State:
        params_key, teacher_key, env_key = jax.random.split(key, 3)
        params = student.init(params_key)
        return State(
            params,
            optimizer.init(params),
            taught.init(teacher_key),
            jnp.zeros((), jnp.int32),
            *gatherer.init(env_key),
        )

    def teach(key: Key, state: State) -> tuple[State, Metrics]:
        learned, seen = taught.learn(key, state.teachers)
        return state._replace(teachers=learned, num_taught=state.num_taught + 1), seen

    def distil(key: Key, state: State) -> tuple[State, Metrics]:
        act_key, key = jax.random.split(key)

        before = each_task.Experience(state.replay, state.parallel, state.counters)
        after, so_far = gatherer.gather(act_key, partial(acting, state), before)
        state = state._replace(**after._asdict())
        state, seen = fit(key, state, (state.replay.size > 0).all())
        return state, {**seen, **gathering.report(state.counters, so_far)}

    def fit(key: Key, state: State, ready: Array) -> tuple[State, Metrics]:
        def update(
            carry: tuple[Params, optax.OptState], key: Key
        ) -> tuple[tuple[Params, optax.OptState], Metrics]:
            params, opt_state = carry
            keys = jax.random.split(key, num_tasks)
            draw = lambda key, data: replay.sample(key, data, config.batch_size).obs
            obs = jax.vmap(draw)(keys, state.replay)  # [N, B, O]
            said = [
                jax.vmap(partial(taught.say, state.teachers, i))(obs[i])
                for i in range(num_tasks)
            ]  # [B, ...] of each task; features need not be as many

            def loss(params: Params) -> Array:
                each = [
                    jax.vmap(partial(student.loss, params, i))(obs[i], said[i]).mean()
                    for i in range(num_tasks)
                ]
                return jnp.stack(each).mean()

            value, gradient = jax.value_and_grad(loss)(params)
            own = jax.vmap(jax.vmap(partial(student.values, params)))(obs)
            best = jnp.stack([x.values for x in said]).argmax(axis=-1)
            agrees = own.argmax(axis=-1) == best
            carry = optimizers.descend(optimizer, gradient, opt_state, params)
            return carry, {"student/loss": value, "student/agreement": agrees.mean()}

        keys = jax.random.split(key, config.num_updates)
        before = state.params, state.opt_state
        after, seen = jax.lax.scan(update, before, keys)
        params, opt_state = jax.tree.map(
            lambda x, y: jnp.where(ready, x, y), after, before
        )
        return state._replace(params=params, opt_state=opt_state), {
            **jax.tree.map(lambda x: x.mean(), seen),
            "gradient/skipped_updates": opt_state.num_skipped,
        }

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        teach_key, key = jax.random.split(key)
        due = state.num_taught < taught.num_steps
        state, learned = loop.reporting(due, partial(teach, teach_key), state)
        state, seen = loop.reporting(~due, partial(distil, key), state)
        steps = state.counters.env_steps + taught.env_steps(state.teachers)
        return state, {**learned, **seen, "env_steps": steps}

    return Algorithm(init, step, policy)


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.one_of(config, "actor", ("student", "teacher"))
    checks.within(config, 0, 1, "exploration")
    checks.at_least(config, 1, "capacity", "interval", "num_updates", "batch_size")
    checks.at_least(config, 1, "num_teacher_steps")
    checks.at_most(config, "interval", "capacity")
    checks.positive(config, "learning_rate", "max_norm")
    checks.under("teacher", dqn.validate, config.teacher)


def _said(policy: Policy, obs: Array) -> Said:
    assert policy.values is not None
    features = policy.features(obs) if policy.features else jnp.zeros(0, obs.dtype)
    return Said(policy.values(obs), features)


def _best(values: Callable[[Array], Array]) -> Policy:
    return parts.acting(lambda key, obs: values(obs).argmax().astype(jnp.int32))
