"""The folder of a run: what it was, how far it came, what it measured.

    config.json          algorithm, environment, seed, hyperparameters, versions
    status.json          running, stopped, finished or failed, and why
    metrics.jsonl        one line per step; lists hold one value per run
    tensorboard/         the same, averaged over seeds
    checkpoints/         the last few states
    diagnostics.json     the model's errors; .png shows them
    learning_curve.png
    episode.gif
    foreseen.gif         seen, reconstructed and predicted, by a model of pictures

Everything is JSON, pictures and plain arrays: reading a folder runs no code from it.
"""

import contextlib
import datetime
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.runs import files, paths, renamed
from mbrl_jax.training import checkpoints

Record = Mapping[str, Any]

IDENTITY = {
    "algorithm": str,
    "env": str,
    "episode_length": int,
    "seed": int,
    "num_seeds": int,
    "precision": str,
}
SCHEDULE = {
    "num_steps": int,
    "eval_every": int,
    "eval_episodes": int,
    "checkpoint_every": int,
}
LEAST = {  # of the numbers
    "episode_length": 0,
    "seed": 0,
    "num_seeds": 1,
    "num_steps": 1,
    "eval_every": 0,
    "eval_episodes": 0,
    "checkpoint_every": 1,
}
MOST = dict.fromkeys(LEAST, 2**31 - 1) | {"num_seeds": 1_000_000}
EXTRAS = ("varied", "population", "init_from")  # mostly absent, or empty
OPTIONAL = {
    "varied": dict,
    "population": dict,
    "init_from": str,
    "devices": list,
    "versions": dict,
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "distrax", "orbax-checkpoint", "brax")


def identity(record: Record) -> dict[str, Any]:
    """What makes two runs the same run: all but how long it is and what is watched."""
    extras = {name: record[name] for name in EXTRAS if record.get(name)}
    own = {name: record[name] for name in IDENTITY}
    return spelled({**own, **extras, **record["config"]})


def rows(record: Record) -> list[dict[str, Any]]:
    """The runs that are trained together: of each its seed and what else is varied.

    `varied` of a record has a list for the seeds, and for each float hyperparameter in
    which the runs differ; without it they are of `seed`, `seed + 1`, ...
    """
    first = record["seed"]
    varied = record.get("varied") or {
        "seed": [*range(first, first + record["num_seeds"])]
    }
    return [
        dict(zip(varied, values, strict=True))
        for values in zip(*varied.values(), strict=True)
    ]


def surroundings() -> dict[str, Any]:
    """Where and with what the run was made."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    script, *arguments = sys.argv
    with contextlib.suppress(ValueError):  # one that lies elsewhere
        script = str(Path(script).resolve().relative_to(Path(__file__).parents[2]))
    commit = ""
    with contextlib.suppress(OSError):  # no git here
        commit = subprocess.run(
            git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [script, *arguments],
        "commit": commit or None,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
    }


@contextlib.contextmanager
def opened(run_dir: str, record: Record, wait: bool = False) -> Iterator[Path]:
    """The folder of a run, new or to be resumed, locked against other processes.

    Without a `run_dir` it is a new one, `runs/<algorithm>-<env>-<time>`.  Raises
    ValueError if the folder holds another run or something else, OSError if it cannot
    be written or, unless told to `wait`, is in use.
    """
    folder = paths.expanded(run_dir) if run_dir else _new_folder(record)
    files.make_folder(folder)
    in_use = "" if wait else f"{folder} is in use by another process"
    with files.locked(folder / ".lock", in_use):
        if (folder / "config.json").exists():
            old = read(folder)
            if wrong := checkpoints.differences(identity(old), identity(record)):
                raise ValueError(f"{folder} holds another run: {wrong}")
            record = rescheduled(folder, old, record)
            if "started" not in record:  # prepared by a sweep
                record |= surroundings()
        elif any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no run")
        else:
            record = {**record, **surroundings()}
        write(folder, record)
        yield folder


def rescheduled(folder: Path, old: Record, asked: Record) -> dict[str, Any]:
    """The record of a folder with the schedule that is asked for.

    What is done already stays on record as it was done.
    """
    done = max(checkpoints.steps(folder / "checkpoints"), default=0)
    if (folder / "status.json").exists():
        status = read_status(folder)
        done = max(done, status.get("step", 0) * (status["status"] == "finished"))
    if asked["num_steps"] <= done:
        return {**old, "num_steps": done}
    return {**old, **{name: asked[name] for name in SCHEDULE}}


def read(folder: Path) -> dict[str, Any]:
    """config.json.  Raises OSError or ValueError if it is not there or not whole."""
    if not folder.is_dir():
        raise OSError(f"there is no run folder {folder}")
    file = folder / "config.json"
    record = read_json(file)
    check_kinds(file, record, {**IDENTITY, **SCHEDULE, "config": dict})
    check_kinds(file, record, OPTIONAL, needed=False)
    for name, least in LEAST.items():
        if not least <= record[name] <= MOST[name]:
            raise ValueError(
                f"{file}: {name} is {record[name]}, must be from {least} to "
                f"{MOST[name]}"
            )
    if record.get("population"):
        check_kinds(f"{file}, population", record["population"], {"ranges": dict})
    record = renamed.record(record)
    if record.get("varied"):
        record["varied"] = _table(file, record["varied"])
    return record


def read_status(folder: Path) -> dict[str, Any]:
    """status.json.  Raises OSError or ValueError as `read`."""
    file = folder / "status.json"
    status = read_json(file)
    check_kinds(file, status, {"status": str, "time": str})
    more = {"step": int, "reason": str, "missing": dict}
    check_kinds(file, status, more, needed=False)
    return status


def check_kinds(
    where: Path | str,
    record: Record,
    kinds: Mapping[str, type | tuple[type, ...]],
    needed: bool = True,
) -> None:
    """Raises ValueError, naming the key, unless each is there and of its kind.

    Without being `needed` it may be missing or null.  true is no number.
    """
    for name, kind in kinds.items():
        one_of = kind if isinstance(kind, tuple) else (kind,)
        if type(record.get(name)) not in (*one_of, *([] if needed else [type(None)])):
            names = " or ".join(x.__name__ for x in one_of)
            raise ValueError(f"{where}: {name} is no {names}")


def _table(file: Path, varied: Mapping[str, Any]) -> dict[str, list[Any]]:
    """`varied` with floats again for what was `spelled`."""
    try:
        table = {
            name: [x if name == "seed" else float(x) for x in column]
            for name, column in varied.items()
        }
        seeds = np.asarray(table["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: varied is no table of runs: {error!r}") from error
    if seeds.dtype != int or not seeds.size or seeds.min() < 0:
        raise ValueError(f"{file}: varied has bad seeds")
    if any(len(column) != len(seeds) for column in table.values()):
        raise ValueError(f"{file}: varied has columns of different lengths")
    return table


def write(folder: Path, record: Record) -> None:
    """Writes config.json."""
    write_json(folder / "config.json", spelled(record))


def read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise OSError(f"{path.parent} holds no {path.name}")
    record = files.parse(files.read_text(path), str(path))
    if not isinstance(record, dict):
        raise ValueError(f"{path} is not a JSON object")
    return record


def write_json(path: Path, record: Record) -> None:
    """Writes all of it or nothing."""
    text = json.dumps(plain(record), indent=2, allow_nan=False) + "\n"
    files.write_text(path, text)


def finished(folder: Path) -> bool:
    """Whether the run is done, with as many steps as its record asks for."""
    if not (folder / "status.json").exists():
        return False
    status = read_status(folder)
    num_steps = read(folder)["num_steps"]
    return status["status"] == "finished" and (status.get("step") or 0) >= num_steps


def write_status(folder: Path, status: str, **more: Any) -> None:
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(folder / "status.json", {"status": status, "time": time, **more})


def plain(value: Any, non_finite: Callable[[float], Any] = lambda x: None) -> Any:
    """What JSON can say: arrays are lists, numbers that are not finite are null."""
    if isinstance(value, Mapping):
        return {name: plain(x, non_finite) for name, x in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return [plain(x, non_finite) for x in value]
    number = isinstance(value, float) and not math.isfinite(value)
    return non_finite(value) if number else value


def spelled(value: Any) -> Any:
    """The same of settings, where what is not finite is text, as flags take it."""
    return plain(value, str)


def _new_folder(record: Record) -> Path:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path("runs") / f"{paths.of_run(record)}-{now}"
    number = 2
    while folder.exists():
        folder = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return folder


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
