"""How long a newcomer waits: the README's main command, in a fresh clone.

    python -m benchmarks.main_job

Clones the last commit into a temporary folder, runs the command there with empty caches
(compiled programs; pip's downloads, unless --nofresh_pip), and writes how long it took
and what it reached.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from experiments.runs import metrics_log, run_folder

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "main_job.json"
PICTURES = ("learning_curve.png", "episode.gif")


def command(readme: str) -> str:
    """The code block behind the mark in the README."""
    found = re.search(r"<!-- the main job -->\n```bash\n(.*?)\n```", readme, re.DOTALL)
    assert found is not None
    return found[1]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    text = command((ROOT / "README.md").read_text())
    with tempfile.TemporaryDirectory() as temporary:
        clone, home = Path(temporary) / "clone", Path(temporary) / "cache"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        environment = {**os.environ, "XDG_CACHE_HOME": str(home)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        if flags.FLAGS.fresh_pip:
            environment["PIP_CACHE_DIR"] = str(home / "pip")
        seconds = []
        for _ in range(2):
            clock = time.perf_counter()
            subprocess.run(text, shell=True, cwd=clone, env=environment, check=True)
            seconds.append(round(time.perf_counter() - clock, 1))
        folder = min((clone / "runs").iterdir())
        lines = metrics_log.read(folder)
        record = {
            "command": text,
            "commit": run_folder.surroundings()["commit"],
            "seconds_cold": seconds[0],
            "seconds_again": seconds[1],
            "first_step_seconds": lines[0]["time/step"],
            "eval_return_mean": lines[-1]["eval/return_mean"],
            "episode_returns": [line["episode/return"] for line in lines],
            "num_cpus": os.cpu_count(),
        }
        for name in PICTURES:
            shutil.copy(folder / name, ROOT / "docs" / name)
    RESULTS.parent.mkdir(exist_ok=True)
    run_folder.write_json(RESULTS, record)
    print(f"{seconds[0]} s from nothing, {seconds[1]} s again; see {RESULTS}")


if __name__ == "__main__":
    flags.DEFINE_boolean("fresh_pip", True, "download the packages again")
    app.run(main)
