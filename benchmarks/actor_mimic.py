"""Students of three small mazes: Actor-Mimic, losses, a small one; and a fourth maze.

    python -m benchmarks.actor_mimic

Five seeds that nothing was chosen on.  Each has a DQN for each of three mazes, trained
as the preset of `policy_distillation` says, and all students learn from these: by
Actor-Mimic, by the three losses of policy distillation, and one that has a fifteenth of
the parameters of its teachers together.  Then a DQN learns a fourth maze, from scratch,
with the hidden layers of Actor-Mimic's student.  Writes results/actor_mimic.json and
docs/actor_mimic.png.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks.policy_gradients import draw
from experiments.reports import plots, statistics
from experiments.runs import command_flags, jax_settings, presets, run_folder
from mbrl_jax import envs, networks, rollout
from mbrl_jax.algorithms import actor_mimic, dqn, policy_distillation
from mbrl_jax.envs import multi_task
from mbrl_jax.training import train
from mbrl_jax.types import Array, Env, Key, Params, Policy, PyTree
from mbrl_jax.value_learning import distillation, parts

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "actor_mimic.json"
PICTURE = ROOT / "docs" / "actor_mimic.png"
SEEDS = range(10, 15)
SOURCES, TARGET = "detour1+detour2+detour3", "detour4"
SMALL = (10,)  # hidden units: 422 parameters, next to three times 2,116
NUM_EPISODES = 100
EVERY, NUM_POINTS = 50, 60  # steps between evaluations in the fourth maze
AT_RANDOM, BEST = -2.0, 0.279  # of the fourth, by its tables
ENOUGH = AT_RANDOM + 0.95 * (BEST - AT_RANDOM)


class Student(NamedTuple):
    label: str
    algorithm: str
    settings: dict[str, Any]  # in place of the preset's


STUDENTS = (
    Student("Actor-Mimic", "actor_mimic", {}),
    Student("KL, tau 0.01", "policy_distillation", {}),
    Student("MSE", "policy_distillation", {"loss": "mse"}),
    Student("NLL", "policy_distillation", {"loss": "nll"}),
    Student("KL, a fifteenth", "policy_distillation", {"hidden_sizes": SMALL}),
)
MODULES = {"actor_mimic": actor_mimic, "policy_distillation": policy_distillation}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    env, target = envs.make(SOURCES), envs.make(TARGET)
    keys = jax.vmap(jax.random.key)(jnp.array(SEEDS))
    taught, own = each(lambda key: teach(key, env), keys)
    returns = {"teachers": np.asarray(own)}  # [S, N]
    sizes = {"teachers": num_params(taught.learner.params) // len(SEEDS)}
    curves: dict[str, np.ndarray] = {}  # [P, S]
    for student in STUDENTS:
        learn = lambda x, student=student: distil(x[0], env, student, x[1])
        params, own = each(learn, (keys, taught))
        returns[student.label] = np.asarray(own)
        sizes[student.label] = num_params(params) // len(SEEDS)
        if student is STUDENTS[0]:
            curves = transfers(keys, target, params["network"])
        run_folder.write_json(RESULTS, summary(returns, sizes, curves))
        print(student.label, returns[student.label].mean(axis=0), flush=True)
    picture(returns, curves)


def transfers(keys: Array, env: Env, trunks: Params) -> dict[str, np.ndarray]:
    """Learning curves of the fourth maze, with trunks [S, ...] and without."""
    found = {
        "from scratch": each(lambda key: transfer(key, env, None), keys),
        "from Actor-Mimic": each(lambda x: transfer(x[0], env, x[1]), (keys, trunks)),
    }
    return {label: np.asarray(curve).T for label, curve in found.items()}


def each(f: Callable[[PyTree], PyTree], xs: PyTree) -> PyTree:
    """Seed by seed, compiled once."""
    return jax.jit(lambda xs: jax.lax.map(f, xs))(xs)


def config_of(student: Student) -> Any:
    record = presets.record(student.algorithm, SOURCES)
    module = MODULES[student.algorithm]
    return command_flags.replace(
        module.Config(), {**record["config"], **student.settings}
    )


def teach(key: Key, env: Env) -> tuple[PyTree, Array]:
    """The teachers of a seed, and their returns [N]."""
    config = config_of(STUDENTS[1]).distil
    teachers = distillation.own(env, config)
    init_key, key, eval_key = jax.random.split(key, 3)
    learn = lambda state, key: (teachers.learn(key, state)[0], None)
    keys = jax.random.split(key, config.num_teacher_steps)
    state, _ = jax.lax.scan(learn, teachers.init(init_key), keys)

    def best(task: int) -> Policy:
        return parts.acting(
            lambda key, obs: teachers.say(state, task, obs).values.argmax()
        )

    return state, returns_of(eval_key, env, [best(i) for i in range(len(env.tasks))])


def distil(
    key: Key, env: Env, student: Student, taught: PyTree
) -> tuple[Params, Array]:
    """What a student of these teachers has learned, and its returns [N]."""
    config = config_of(student)
    algorithm = MODULES[student.algorithm].make(env, config)
    init_key, key, eval_key = jax.random.split(key, 3)
    num_taught = config.distil.num_teacher_steps
    state = algorithm.init(init_key)._replace(
        teachers=taught, num_taught=jnp.int32(num_taught)
    )
    step = lambda state, key: (algorithm.step(key, state)[0], None)
    number = presets.record(student.algorithm, SOURCES)["num_steps"] - num_taught
    state, _ = jax.lax.scan(step, state, jax.random.split(key, number))
    policies = [algorithm.policy(state)] * len(env.tasks)
    return state.params, returns_of(eval_key, env, policies)


def returns_of(key: Key, env: Env, policies: Sequence[Policy]) -> Array:
    """Of each task by its policy, [N]."""
    starts = jax.random.key(train.EVALUATION_SEED)
    found = []
    for task, policy in enumerate(policies):
        own = multi_task.at(env, task)
        metrics, _ = rollout.evaluate(key, own, policy, NUM_EPISODES, starts)
        found.append(metrics["eval/return_mean"])
    return jnp.stack(found)


def transfer(key: Key, env: Env, trunk: Params | None) -> Array:
    """Returns [P] of a DQN, every `EVERY` steps."""
    sizes = config_of(STUDENTS[0]).hidden_sizes
    teacher = config_of(STUDENTS[0]).distil
    config = dqn.Config(
        collect=dataclasses.replace(teacher.collect, interval=EVERY),
        learn=dataclasses.replace(teacher.teacher, hidden_sizes=sizes),
    )
    algorithm = dqn.make(env, config)
    init_key, key = jax.random.split(key)
    state = algorithm.init(init_key)
    if trunk is not None:
        params = networks.with_trunk(state.learner.params, trunk)
        learner = state.learner._replace(params=params, target=params)
        state = state._replace(learner=learner)

    def step(state: PyTree, key: Key) -> tuple[PyTree, Array]:
        state, _ = algorithm.step(key, state)
        return state, returns_of(key, env, [algorithm.policy(state)])[0]

    return jax.lax.scan(step, state, jax.random.split(key, NUM_POINTS))[1]


def num_params(params: Params) -> int:
    own = params.get("network", params)  # without Actor-Mimic's maps
    return sum(x.size for x in jax.tree.leaves(own))


def until_enough(returns: np.ndarray) -> np.ndarray:
    """Steps [S] of the first evaluation that was good enough, of [P, S]; at least the
    last where none was."""
    good = returns >= ENOUGH
    first = np.where(good.any(axis=0), good.argmax(axis=0), NUM_POINTS - 1)
    return EVERY * (1 + first)


def interval(values: Any, *more: Any) -> dict[str, float]:
    """The mean [S], or the ratio of two, with its interval."""
    scores = [np.asarray(x, float) for x in (values, *more)]
    mean = lambda x: x[0].mean(axis=-1) / (x[1].mean(axis=-1) if more else 1)
    return statistics.bootstrap(np.random.default_rng(0), mean, scores)._asdict()


def summary(
    returns: dict[str, np.ndarray], sizes: dict[str, int], curves: dict[str, np.ndarray]
) -> dict[str, Any]:
    teachers = returns["teachers"]
    steps = {label: until_enough(curve) for label, curve in curves.items()}
    return {
        "seeds": list(SEEDS),
        "tasks": SOURCES,
        "students": {
            label: {
                "parameters": sizes[label],
                "return": interval(own.mean(axis=1)),
                "of its teachers": interval(own.mean(axis=1), teachers.mean(axis=1)),
                "of its teacher, by task": [
                    interval(own[:, i], teachers[:, i]) for i in range(own.shape[1])
                ],
                "seeds": own,
            }
            for label, own in returns.items()
        },
        "transfer": {
            "task": TARGET,
            "enough": ENOUGH,
            "steps": {
                label: {"mean": interval(own), "seeds": own}
                for label, own in steps.items()
            },
            "from scratch / from Actor-Mimic": interval(
                steps["from scratch"], steps["from Actor-Mimic"]
            ),
            "return": curves,
        },
        **run_folder.surroundings(),
    }


def picture(returns: dict[str, np.ndarray], curves: dict[str, np.ndarray]) -> None:
    made, axes = plots.new_figure(2, width=13)
    for i, (label, own) in enumerate(returns.items()):
        colour = plots.COLOURS[i]
        for task in range(own.shape[1]):
            place = task + 0.12 * (i - 2.5)
            axes[0].plot(
                np.full(len(own), place),
                own[:, task],
                "o",
                ms=4,
                color=colour,
                label=label if not task else None,
            )
    axes[0].set_xticks(range(3), SOURCES.split(multi_task.SIGN))
    axes[0].set(ylabel="return, by seed")
    axes[0].legend(frameon=False, fontsize=8)
    axes[0].set_title("teachers and students", loc="left", fontsize=11)
    steps = EVERY * (1 + np.arange(NUM_POINTS))
    draw(
        axes[1],
        {label: {"env_steps": steps, "return": x} for label, x in curves.items()},
    )
    axes[1].axhline(ENOUGH, color=plots.INK, lw=0.8, linestyle="--")
    axes[1].set(ylabel="return, IQM of 5 seeds")
    axes[1].set_title(f"then {TARGET}", loc="left", fontsize=11)
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
