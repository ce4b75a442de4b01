"""What a gradient through a simulator costs, in time and in memory.

    python -m benchmarks.gradient_cost                        # what is missing: minutes
    python -m benchmarks.gradient_cost --only=pendulum,memory # again

Time: the CPU seconds of `gradients.pathwise_mean` over those of the rollouts that it
differentiates, 64 of 32 steps with a 64 x 64 tanh network, timed in turn in one run.
Memory: what XLA sets aside for `gradients.pathwise` at growing horizons, with and
without rematerialisation (`segment`, the square root of the horizon).

Writes results/gradient_cost.json and docs/gradients_memory.png.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from benchmarks import timing
from experiments.reports import plots
from experiments.runs import gradient_problems, run_folder
from mbrl_jax import envs
from mbrl_jax.gradients import closed_loop, estimators, pathwise
from mbrl_jax.gradients.closed_loop import ExpectedReturn
from mbrl_jax.types import Gaussian, Key, Params, PyTree

RESULTS = Path(__file__).parent / "results" / "gradient_cost.json"
PICTURE = Path(__file__).parents[1] / "docs" / "gradients_memory.png"
OWN = (
    "pendulum",
    "cartpole_swingup",
    "cartpole_balance",
    "cartpole_pets",
    "acrobot",
    "reacher",
    "point_mass",
    "linear_quadratic",
)
BRAX = ("brax/inverted_double_pendulum/generalized", "brax/reacher/generalized")
NUM_SAMPLES, HORIZON, HIDDEN_SIZES, STD = 64, 32, (64, 64), 0.1
NUM_REPEATS, REPEAT_SECONDS = 15, 0.1
MEMORY = "memory"  # the case
MEMORY_ENV, HORIZONS = "pendulum", (16, 64, 256, 1024, 4096)
CASES = (*OWN, MEMORY, *BRAX)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)
    results = run_folder.read_json(RESULTS) if RESULTS.exists() else {}
    asked = flags.FLAGS.only
    if unknown := set(asked or ()) - set(CASES):
        raise app.UsageError(f"unknown cases {unknown}; known are {CASES}")
    for name in [x for x in CASES if x not in results] if asked is None else asked:
        found = memory(HORIZONS) if name == MEMORY else cost(name)
        results[name] = {**found, **run_folder.surroundings()}
        ordered = {case: results[case] for case in CASES if case in results}
        run_folder.write_json(RESULTS, ordered)
        print(name, found, flush=True)
    draw(results[MEMORY], PICTURE)


def make_problem(name: str, horizon: int) -> tuple[ExpectedReturn, Params]:
    """A noisy network in the simulator."""
    env = envs.make(name)
    policy = gradient_problems.network(env, HIDDEN_SIZES, gain=1.0, seed=0)
    std = jax.numpy.full(env.action_size, STD * env.action_limit)
    actor = closed_loop.gaussian(
        lambda params, obs: Gaussian(policy.apply(params, obs), std)
    )
    actor = actor._replace(log_prob=None)  # which training does not ask for
    return ExpectedReturn(closed_loop.from_env(env), actor, horizon), policy.params


def programs(name: str, num_samples: int, horizon: int) -> dict[str, Callable[[], Any]]:
    """The rollouts, and their gradient with the same rollouts beside it."""
    problem, params = make_problem(name, horizon)
    keys = jax.random.split(jax.random.key(1), num_samples)
    starts, key = jax.jit(jax.vmap(problem.system.reset))(keys), jax.random.key(2)

    @jax.jit
    def rollouts(key: Key, params: Params, starts: PyTree) -> Any:
        one = lambda key, start: closed_loop.rollout(key, params, problem, start)
        return jax.vmap(one)(jax.random.split(key, num_samples), starts)

    @jax.jit
    def gradient(key: Key, params: Params, starts: PyTree) -> Any:
        return pathwise.pathwise_mean(key, params, problem, starts)

    return {
        "rollout": lambda: rollouts(key, params, starts),
        "gradient": lambda: gradient(key, params, starts),
    }


def cost(
    name: str,
    num_samples: int = NUM_SAMPLES,
    horizon: int = HORIZON,
    num_repeats: int = NUM_REPEATS,
) -> dict[str, Any]:
    """Medians over the repeats, by the device's clock."""
    calls = programs(name, num_samples, horizon)
    compiling, seconds = {}, {kind: [] for kind in calls}
    for kind, call in calls.items():
        begin = time.perf_counter()
        jax.block_until_ready(call())
        compiling[f"{kind}_compile_seconds"] = time.perf_counter() - begin
    once = timing.time_calls(calls["rollout"])[0]
    number = max(1, int(REPEAT_SECONDS / max(once, 1e-6)))
    for _ in range(num_repeats):
        for kind, call in calls.items():
            seconds[kind].append(timing.time_calls(call, number)[0])
    pairs = zip(seconds["gradient"], seconds["rollout"], strict=True)
    return {
        "ratio": statistics.median(x / y for x, y in pairs),
        "rollout_seconds": statistics.median(seconds["rollout"]),
        "gradient_seconds": statistics.median(seconds["gradient"]),
        **compiling,
        "clock": timing.seconds_unit(),
        "num_samples": num_samples,
        "horizon": horizon,
    }


def memory(horizons: Sequence[int]) -> dict[str, Any]:
    """Bytes, at horizons that are squares."""
    segments: dict[str, Callable[[int], int]] = {
        "all_states_kept": lambda horizon: 0,
        "rematerialised": lambda horizon: round(horizon**0.5),
    }
    found = {
        name: [temporary_bytes(horizon, segment(horizon)) for horizon in horizons]
        for name, segment in segments.items()
    }
    return {"env": MEMORY_ENV, "horizons": horizons, "bytes": found}


def temporary_bytes(horizon: int, segment: int) -> int:
    problem, params = make_problem(MEMORY_ENV, horizon)
    problem = problem._replace(segment=segment)
    find = lambda key, params: estimators.pathwise(key, params, problem, NUM_SAMPLES)
    compiled = jax.jit(find).lower(jax.random.key(0), params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def draw(found: run_folder.Record, path: Path) -> None:
    figure, (axis,) = plots.new_figure(1, width=6.4)
    for i, (name, size) in enumerate(found["bytes"].items()):
        label, how = name.replace("_", " "), {"marker": "o", "color": plots.COLOURS[i]}
        axis.plot(found["horizons"], [x / 1e6 for x in size], label=label, **how)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(found["horizons"], map(str, found["horizons"]))
    axis.minorticks_off()
    title = f"gradient of {NUM_SAMPLES} rollouts, {found['env']}"
    axis.set_title(title, loc="left", fontsize=11)
    axis.set(xlabel="horizon, steps", ylabel="temporary memory, MB")
    axis.legend(frameon=False)
    plots.save(figure, path)


if __name__ == "__main__":
    flags.DEFINE_list("only", None, "cases to measure again; default: what is missing")
    app.run(main)
