"""How many updates per second brax.training's APG makes, on a CPU.

By its public function, `train`.  It runs in an environment of its own, without this
project's packages:

    python3.11 -m venv /tmp/peer_brax
    /tmp/peer_brax/bin/pip install brax==0.14.2 jax==0.9.2
    /tmp/peer_brax/bin/python benchmarks/peer_brax_apg.py

(jax 0.10 has no `device_put_replicated` any more, which brax.training calls.)  The
setting is that of `apg_throughput.py`, which can also drive it in turn with ours.

An update is the gradient through 64 environments times 10 steps, and a step of Adam.
They are counted from one call of `progress_fn` to the next.  In between there is also
an evaluation, of an environment that stands still, so that it costs next to nothing:
see `evaluation_wall`.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from brax import envs
from brax.training.agents.apg import train as apg

OUTPUT = Path(__file__).parent / "results" / "peer_brax_apg_cpu.json"
ENV = "inverted_double_pendulum"
BACKEND = "generalized"
# its default network has 4 x 32 units
SETTING = {"num_envs": 64, "horizon_length": 10, "episode_length": 1000}
WARM_UP = 2  # epochs that are not counted: both compile
Row = dict[str, Any]


def measure(num_repeats: int, num_updates: int, wait: bool) -> list[Row]:
    """A row for each epoch of `num_updates`; all are one run of training."""
    env = envs.get_environment(ENV, backend=BACKEND)
    num_epochs = WARM_UP + num_repeats
    rows: list[Row] = []
    begin = now()

    def progress(epoch: int, metrics: dict[str, Any]) -> None:
        nonlocal begin
        cpu, wall = (end - start for end, start in zip(now(), begin, strict=True))
        if epoch > WARM_UP:
            row = {
                "updates_per_cpu_second": num_updates / cpu,
                "updates_per_second": num_updates / wall,
                "evaluation_wall": float(metrics["eval/epoch_eval_time"]) / wall,
                "gradient_norm": float(metrics["training/grad_norm"]),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
        if wait and WARM_UP <= epoch < num_epochs:
            input()
        begin = now()

    apg.train(
        env,
        policy_updates=num_epochs * num_updates,
        num_evals=1 + num_epochs,  # one comes before the first epoch
        num_eval_envs=1,
        eval_env=still(env),
        progress_fn=progress,
        **SETTING,
    )
    return rows


def still(env: Any) -> Any:
    """An environment in which nothing ever happens."""
    zero = jnp.zeros(())
    state = envs.State(None, jnp.zeros(env.observation_size), zero, zero)
    return SimpleNamespace(
        reset=lambda rng: state.replace(metrics={}, info={}),
        step=lambda state, action: state,
        observation_size=env.observation_size,
        action_size=env.action_size,
    )


def now() -> tuple[float, float]:
    """Seconds: of the CPU, all threads of this process; on the wall."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--num_repeats", type=int, default=9)
    parser.add_argument("--num_updates", type=int, default=50, help="of a repeat")
    parser.add_argument(
        "--wait", action="store_true", help="for a line of input before each repeat"
    )
    asked = parser.parse_args()
    rows = measure(asked.num_repeats, asked.num_updates, asked.wait)
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    packages = ("brax", "jax", "jaxlib", "mujoco", "numpy")
    machine = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "devices": [device.device_kind for device in jax.devices()],
    }
    result = {"machine": machine, "median": middle, "rows": rows}
    asked.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
