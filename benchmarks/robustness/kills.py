"""SIGKILL at random moments, and the same command again until it is finished.

Every second kill comes somewhere in the start of the process, the others some steps
after the last one.  In the end the run has to be that of a process nobody disturbed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.robustness import tiny
from experiments.runs import metrics_log, registry, run_folder
from tests import compiling
from tests.experiments import run_test

ABOUT = (
    "SIGKILL at seeded random moments, the same command again until it is finished: "
    "config, metrics (but for times) and the last checkpoint are those of an "
    "uninterrupted run, bit for bit, and it evaluates to what training measured"
)
ROOT = Path(__file__).parents[2]
NUM_STEPS = 30
TIMEOUT = 600  # seconds, of one process
SCHEDULE = (f"--num_steps={NUM_STEPS}", "--eval_every=15", "--eval_episodes=2")

FLAGS = flags.FlagValues()  # of the command; other benchmarks have the same names
_NUM_KILLS = flags.DEFINE_integer(
    "num_kills", 5, "of each algorithm", 1, flag_values=FLAGS
)


def names() -> list[str]:
    return registry.names()


def attempt(name: str, folder: Path) -> dict[str, Any]:
    """Kills one algorithm's run as often as asked; `folder` is empty but for the cache
    of compiled programs that all share."""
    arguments = [*tiny.arguments(name), *SCHEDULE, "--nopictures"]
    whole, broken = folder / name / "whole", folder / name / "broken"
    environ = surroundings(folder)
    failures = []
    if said := run_to_its_end(arguments, whole, environ):
        return {"tried": 0, "failures": [f"without a kill: {said}"]}
    killed_at = kill_often(name, arguments, broken, environ)
    if said := run_to_its_end(arguments, broken, environ):
        failures.append(f"after {len(killed_at)} kills: {said}")
    else:
        failures += differences(whole, broken)
        failures += evaluated(broken, environ)
    return {"tried": len(killed_at), "failures": failures, "after_steps": killed_at}


def surroundings(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "XLA_FLAGS": compiling.QUICKLY,
    }


def kill_often(
    name: str, arguments: Sequence[str], folder: Path, environ: dict[str, str]
) -> list[int]:
    """After how many logged steps each of the kills came; fewer if the run ended."""
    draw, came, seconds = random.Random(name), [], 0.0
    for i in range(_NUM_KILLS.value):
        started = time.monotonic()
        process = run_test.start(*arguments, f"--run_dir={folder}", env=environ)
        if i % 2:
            time.sleep(draw.uniform(0.0, seconds))
        else:
            run_test.wait_for_steps(process, folder, logged(folder) + 1)
            seconds = time.monotonic() - started  # of a start, with what is compiled
            ahead = logged(folder) + draw.randint(0, 2)
            run_test.wait_for_steps(process, folder, ahead)
            time.sleep(draw.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            break
        came.append(logged(folder))
    return came


def logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def run_to_its_end(
    arguments: Sequence[str], folder: Path, environ: dict[str, str]
) -> str:
    """What is wrong with how it ends; nothing if it finishes."""
    process = run_test.start(*arguments, f"--run_dir={folder}", env=environ)
    try:
        _, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"not finished after {TIMEOUT} s"
    if process.returncode or "Traceback" in err or "damaged" in err:
        last = err.strip().splitlines()[-1:] or ["nothing"]
        return f"exit code {process.returncode}: {last[0]}"
    return "" if run_folder.finished(folder) else "it did not finish"


def differences(left: Path, right: Path) -> list[str]:
    """In what two finished runs are not the same."""
    failures = []
    own = {"started", "command", "commit"}
    configs = [
        {name: x for name, x in run_folder.read(folder).items() if name not in own}
        for folder in (left, right)
    ]
    if configs[0] != configs[1]:
        failures.append("config.json is another one")
    if run_test.deterministic(left) != run_test.deterministic(right):
        failures.append("the metrics are others")
    if digest(left) != digest(right):
        failures.append("the last checkpoint is another one")
    return failures


def digest(folder: Path) -> str:
    """Of the last checkpoint."""
    return run_test.digest(folder, run_folder.read(folder)["num_steps"])


def evaluated(folder: Path, environ: dict[str, str]) -> list[str]:
    """What is wrong with an evaluation of the run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", f"--run_dir={folder}"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        return [f"evaluate: exit code {done.returncode}"]
    found = json.loads((folder / "evaluation.json").read_text())
    expected = metrics_log.read(folder)[-1]
    same = found["eval/return_mean"] == expected["eval/return_mean"]
    return [] if same else ["evaluate measures something else"]
