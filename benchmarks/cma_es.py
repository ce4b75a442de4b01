"""CMA-ES next to its author's own (`cma`) and to that of evosax.

    .venv/bin/pip install cma evosax
    python -m benchmarks.cma_es                # minutes

Evaluations: to a value of 1e-9 from the same kind of starts, median of 15 seeds, in
float64; Rastrigin's function with restarts that double the population.  Time: CPU
seconds of a generation on the sphere, ours and evosax's within one compiled loop,
measured in turn, medians.  Writes results/cma_es.json.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks import timing
from experiments.runs import jax_settings, run_folder
from mbrl_jax.planners import cma_es
from mbrl_jax.types import Array, Key

RESULTS = Path(__file__).parent / "results" / "cma_es.json"
SIZES, NUM_SEEDS, TARGET, NUM_RESTARTS = (10, 20), 15, 1e-9, 7
NUM_GENERATIONS, NUM_REPEATS = 2000, 7


def sphere(x: Any) -> Any:
    return (x**2).sum()


def ellipsoid(x: Any) -> Any:
    return (1e6 ** (np.arange(len(x)) / (len(x) - 1)) * x**2).sum()


def rosenbrock(x: Any) -> Any:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def rastrigin(x: Any) -> Any:
    cos = jnp.cos if isinstance(x, jax.Array) else np.cos
    return 10 * len(x) + (x**2 - 10 * cos(2 * np.pi * x)).sum()


# what is minimised, from where (uniform within +-), with what std
CASES: dict[str, tuple[Callable[[Any], Any], float, float]] = {
    "sphere": (sphere, 3.0, 1.0),
    "ellipsoid": (ellipsoid, 3.0, 1.0),
    "rosenbrock": (rosenbrock, 0.0, 0.1),
    "rastrigin": (rastrigin, 5.0, 2.0),
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found: dict[str, Any] = {"evaluations": {}, "generation": {}}
    for size in SIZES:
        found["generation"][f"size {size}"] = speed(size)
        print(size, found["generation"][f"size {size}"], flush=True)
        for name in CASES:
            title = f"{name}, size {size}"
            found["evaluations"][title] = evaluations(name, size)
            print(title, found["evaluations"][title], flush=True)
    run_folder.write_json(RESULTS, found | run_folder.surroundings())


def evaluations(name: str, size: int) -> dict[str, Any]:
    """Medians over the seeds that arrive, and how many do."""
    ours = our_evaluations(name, size)
    theirs = [peer_evaluations(name, size, seed) for seed in range(1, NUM_SEEDS + 1)]
    rows = {"ours": ours, "cma": theirs}
    medians = {
        who: statistics.median(x for x in row if x is not None)
        for who, row in rows.items()
    }
    return {
        **medians,
        "ratio": medians["ours"] / medians["cma"],
        "arrived": {who: sum(x is not None for x in row) for who, row in rows.items()},
    }


def our_evaluations(name: str, size: int) -> list[int | None]:
    objective, spread, std = CASES[name]

    def start(key: Key) -> Array:
        return jax.random.uniform(key, (size,), minval=-spread, maxval=spread)

    def one(key: Key) -> cma_es.Result:
        if name == "rastrigin":
            return cma_es.restarted(
                key, objective, start, std, num_restarts=NUM_RESTARTS, target=TARGET
            )
        start_key, key = jax.random.split(key)
        mean = start(start_key) if spread else jnp.zeros(size)
        return cma_es.minimise(key, objective, mean, std, target=TARGET)

    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    found = jax.jit(jax.vmap(one))(keys)
    arrived = np.asarray(found.status) == cma_es.REACHED
    counts = np.asarray(found.num_evaluations)
    return [int(n) if ok else None for n, ok in zip(counts, arrived, strict=True)]


def peer_evaluations(name: str, size: int, seed: int) -> int | None:
    import cma

    objective, spread, std = CASES[name]
    rng = np.random.default_rng(seed)
    start = lambda: rng.uniform(-spread, spread, size) if spread else np.zeros(size)
    options = {"ftarget": TARGET, "verbose": -9, "seed": seed, "maxfevals": 1_000_000}
    restarts = NUM_RESTARTS if name == "rastrigin" else 0
    _, strategy = cma.fmin2(objective, start, std, options, restarts=restarts)
    result = strategy.result
    return int(result.evaluations) if result.fbest <= TARGET else None


def speed(size: int) -> dict[str, Any]:
    """CPU seconds of a generation, and ratios of neighbours in time."""
    num_samples = cma_es.default_num_samples(size)
    calls = {
        "ours": our_generations(size, num_samples),
        "evosax": evosax_generations(size, num_samples),
    }
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {"ours": [], "evosax": [], "cma": []}
    for _ in range(NUM_REPEATS):
        for who, call in calls.items():
            seconds[who].append(timing.time_calls(call)[0] / NUM_GENERATIONS)
        seconds["cma"].append(cma_seconds(size, num_samples))
    medians = {who: statistics.median(row) for who, row in seconds.items()}
    times = lambda who: statistics.median(
        x / y for x, y in zip(seconds[who], seconds["ours"], strict=True)
    )
    return {
        "num_samples": num_samples,
        "seconds": medians,
        "times as fast as cma": times("cma"),
        "times as fast as evosax": times("evosax"),
    }


def our_generations(size: int, num_samples: int) -> Callable[[], Any]:
    def generation(state: cma_es.State, key: Key) -> tuple[cma_es.State, None]:
        samples = cma_es.ask(key, state, num_samples)
        return cma_es.tell(state, samples, jax.vmap(sphere)(samples)), None

    @jax.jit
    def run(key: Key) -> cma_es.State:
        start = cma_es.init(jnp.ones(size), jnp.asarray(1.0))
        keys = jax.random.split(key, NUM_GENERATIONS)
        return jax.lax.scan(generation, start, keys)[0]

    return lambda: run(jax.random.key(0))


def evosax_generations(size: int, num_samples: int) -> Callable[[], Any]:
    from evosax.algorithms import CMA_ES

    strategy = CMA_ES(population_size=num_samples, solution=jnp.ones(size))
    params = strategy.default_params

    def generation(state: Any, key: Key) -> tuple[Any, None]:
        ask_key, tell_key = jax.random.split(key)
        samples, state = strategy.ask(ask_key, state, params)
        values = jax.vmap(sphere)(samples)
        return strategy.tell(tell_key, samples, values, state, params)[0], None

    @jax.jit
    def run(key: Key) -> Any:
        state = strategy.init(key, jnp.ones(size), params)
        keys = jax.random.split(key, NUM_GENERATIONS)
        return jax.lax.scan(generation, state, keys)[0]

    return lambda: run(jax.random.key(0))


def cma_seconds(size: int, num_samples: int, num_generations: int = 300) -> float:
    import cma

    options = {"verbose": -9, "seed": 1, "popsize": num_samples}
    strategy = cma.CMAEvolutionStrategy(np.ones(size), 1.0, options)
    begin = time.process_time()
    for _ in range(num_generations):
        samples = strategy.ask()
        strategy.tell(samples, [sphere(x) for x in samples])
    return (time.process_time() - begin) / num_generations


if __name__ == "__main__":
    jax_settings.apply("x64")
    app.run(main)
