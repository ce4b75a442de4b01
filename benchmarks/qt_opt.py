"""Two peaks: who finds the higher one?  QT-Opt, NAF, TD3 and SAC.

    python -m benchmarks.qt_opt    # trains what is missing

40 seeds each that nothing was chosen on, settings of the preset of QT-Opt for all, as
far as they have them.  The lower peak is worth 0.6: what ends above 0.8 has found the
higher one.  Writes results/qt_opt.json.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app

from experiments.runs import command_flags, jax_settings, presets, registry, run_folder
from mbrl_jax import envs, rollout
from mbrl_jax.types import Array

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "qt_opt.json"
ENV, FIRST_SEED, NUM_SEEDS, FOUND = "two_peaks", 10, 40, 0.8
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "QT-Opt": ("qt_opt", {}),
    "QT-Opt, cross-entropy": ("qt_opt", {"learn.loss": "cross_entropy"}),
    "NAF": ("naf", {"learn.value_scale": 1.0}),
    "TD3": ("td3", {}),
    "SAC": ("sac", {}),
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for label, (name, settings) in CASES.items():
        if label not in found:
            found[label] = measure(name, settings)
            run_folder.write_json(RESULTS, found)
        print(label, found[label]["share"], flush=True)


def measure(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns after training, and the share of seeds that found the higher peak."""
    record, env = presets.record("qt_opt", ENV), envs.make(ENV)
    config = registry.module(name).Config()
    own = command_flags.flat(config)
    known = {x: y for x, y in record["config"].items() if x in own}
    algorithm = registry.module(name).make(
        env, command_flags.replace(config, {**own, **known, **settings})
    )

    @jax.jit
    def run(key: Array) -> Array:
        step = lambda state, key: (algorithm.step(key, state)[0], None)
        keys = jax.random.split(key, record["num_steps"])
        state = jax.lax.scan(step, algorithm.init(key), keys)[0]
        policy = algorithm.policy(state)
        return rollout.evaluate(key, env, policy, 20)[0]["eval/return_mean"]

    seeds = range(FIRST_SEED, FIRST_SEED + NUM_SEEDS)
    returns = [float(run(jax.random.key(seed))) for seed in seeds]
    return {
        "share": float((np.array(returns) > FOUND).mean()),
        "returns": returns,
        **run_folder.surroundings(),
    }


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
