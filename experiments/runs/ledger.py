"""The ledger: one JSON line for each run that has ended, in one file for many.

    run                 digest of what the run was: the key of its line
    status              finished, failed or pruned; of a failure `reason` says why
    algorithm, env, episode_length, precision, seed, num_steps
    hyperparameters     those that are not the algorithm's defaults
    config              all hyperparameters, as the algorithm had them then
    init_from           run folder whose networks it started from, where there is one
    config_digest       of all that, without the seed
    return, steps       of the last evaluation, or else of the last episode
    error               standard error of that return over the episodes evaluated
    env_steps           real transitions
    curves              "episode/return" and "eval/return_mean", each with the lists
                        env_steps and return; at most 100 points
    curve_digest        SHA-256 of the whole curves
    wall_seconds        of the program; num_runs of them shared it
    compile_seconds     likewise
    commit, versions, device, time, folder

A run has one line: the latest that was added.  Any number of processes may add at once.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.runs import (
    command_flags,
    files,
    metrics_log,
    registry,
    renamed,
    run_folder,
)

Line = dict[str, Any]

ABOUT = ("algorithm", "env", "episode_length", "precision")
MORE = ("population", "init_from")  # where there is one
CURVES = ("episode/return", "eval/return_mean")
BESIDE = ("episode/length", "eval/length_mean", "eval/return_std")
MAX_POINTS = 100  # of a curve that is kept
KEYS = {
    "run": str,
    "status": str,
    "algorithm": str,
    "env": str,
    "seed": int,
    "num_steps": int,
    "hyperparameters": dict,
    "config_digest": str,
}
NUMBER = (int, float)
MORE_KEYS: dict[str, type | tuple[type, ...]] = {  # that may be missing, or null
    "episode_length": int,
    "precision": str,
    "config": dict,
    "population": dict,
    "init_from": str,
    "return": NUMBER,
    "steps": NUMBER,
    "error": NUMBER,
    "env_steps": NUMBER,
    "wall_seconds": NUMBER,
    "compile_seconds": NUMBER,
    "num_runs": int,
    "curves": dict,
    "curve_digest": str,
    "reason": str,
    "commit": str,
    "versions": dict,
    "device": str,
    "time": str,
    "folder": str,
}


def add(
    path: Path,
    new: Iterable[Line],
    outdated: Callable[[Line], bool] = lambda line: False,
) -> None:
    """Adds lines; one whose run is there already takes the place of the old one, and
    old ones that are outdated go.

    Raises OSError if the file cannot be written, ValueError if it is no ledger;
    either way the file is what it was.
    """
    with _locked(path):
        latest = {line["run"]: line for line in new}
        old = read(path) if path.exists() else []
        kept = [x for x in old if x["run"] not in latest and not outdated(x)]
        text = "".join(
            json.dumps(line, allow_nan=False) + "\n"
            for line in [*kept, *latest.values()]
        )
        files.write_text(path, text, through_links=True)


def read(path: Path) -> list[Line]:
    """The lines.  Raises OSError if there is no file, ValueError for a bad line."""
    texts = files.read_text(path, "the ledger ").removesuffix("\n").split("\n")
    return [
        _read(f"{path}, line {number}", text)
        for number, text in enumerate(texts, start=1)
        if texts != [""]
    ]


def _read(where: str, text: str) -> Line:
    try:
        line = files.parse(text, "it")
    except ValueError as error:
        raise ValueError(f"{where} is no run: {error}") from error
    if not isinstance(line, dict):
        raise ValueError(f"{where} is no run: it is no JSON object")
    if missing := [name for name in KEYS if name not in line]:
        raise ValueError(f"{where} is no run: {missing[0]!r} is missing")
    run_folder.check_kinds(where, line, KEYS)
    run_folder.check_kinds(where, line, MORE_KEYS, needed=False)
    if line.get("population"):
        ranges = {"ranges": dict}
        run_folder.check_kinds(f"{where}, population", line["population"], ranges)
    return _by_todays_names(line)


def _by_todays_names(old: Line) -> Line:
    """A line as it would be written today: its digests are of the names, too."""
    new = renamed.record(old)
    new["hyperparameters"] = renamed.settings(old["algorithm"], old["hyperparameters"])
    if new == old or "config" not in old:  # without it there never was a digest of it
        return new
    about = {name: new[name] for name in (*ABOUT, "config", *MORE) if name in new}
    run = digest({**about, "seed": new["seed"]})
    return {**new, "run": run, "config_digest": digest(about)}


def digest(value: Any) -> str:
    """Of anything that JSON can say; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def lines(folder: Path) -> list[Line]:
    """Those of the run, or runs, in a run folder: what its files say by now.

    Raises OSError or ValueError if they cannot be read.
    """
    record = run_folder.read(folder)
    status = run_folder.read_status(folder)
    rows = run_folder.rows(record)
    try:
        needed = ("env_steps", "state/non_finite")
        steps = metrics_log.read(folder, len(rows), needed)
    except OSError:  # it ended before its first step
        steps = []
    return [
        line(
            record,
            row,
            [{name: _of(x, i) for name, x in step.items()} for step in steps],
            status,
            folder,
        )
        for i, row in enumerate(rows)
    ]


def line(
    record: run_folder.Record,
    row: Mapping[str, Any],
    steps: Sequence[Line],
    status: Mapping[str, Any],
    folder: Path,
) -> Line:
    """That of one run of a record, from the metrics of its steps.

    `status` has `status`, `time`, and `reason` where there is one.  A run whose state
    is not finite has failed, even if it went on for the sake of others.
    """
    about, seed = _about(record, row)
    for step in steps:
        if step["state/non_finite"]:
            reason = f"the state is not finite from step {step['step']} on"
            status = {**status, "status": "failed", "reason": reason}
            break
    default = _defaults(record["algorithm"])
    clocks = ("time/step", "time/evaluate")
    return {
        "run": run_id(record, row),
        **{name: status[name] for name in ("status", "reason") if name in status},
        **{name: about[name] for name in ABOUT},
        "seed": seed,
        "num_steps": record["num_steps"],
        "hyperparameters": {
            name: x for name, x in about["config"].items() if x != default[name]
        },
        "config": about["config"],
        **{name: about[name] for name in MORE if name in about},
        "config_digest": config_digest(record, row),
        **_results(steps, record["eval_episodes"]),
        "wall_seconds": sum(step.get(name, 0.0) for step in steps for name in clocks),
        "compile_seconds": sum(step.get("compile/seconds", 0.0) for step in steps),
        "num_runs": len(run_folder.rows(record)),
        **{name: record.get(name) for name in ("commit", "versions")},
        "device": ", ".join(dict.fromkeys(record.get("devices", []))),
        "time": status["time"],
        "folder": str(folder),
    }


def config(line: Line) -> dict[str, Any]:
    """All hyperparameters of a run; what it did not have yet is at its default."""
    own = {**line["hyperparameters"], **(line.get("config") or {})}
    if line["algorithm"] not in registry.names():  # a ledger may be older than the code
        return own
    return {**_defaults(line["algorithm"]), **own}


def run_id(record: run_folder.Record, row: Mapping[str, Any]) -> str:
    """Digest of what makes a run the same, with whatever others and however long."""
    about, seed = _about(record, row)
    return digest({**about, "seed": seed})


def config_digest(record: run_folder.Record, row: Mapping[str, Any]) -> str:
    """Digest of what a run is about: the same for all its seeds."""
    return digest(_about(record, row)[0])


def _defaults(algorithm: str) -> dict[str, Any]:
    return run_folder.spelled(command_flags.flat(registry.module(algorithm).Config()))


def _about(
    record: run_folder.Record, row: Mapping[str, Any]
) -> tuple[dict[str, Any], int]:
    """What a run of a record is about, and its seed."""
    config = run_folder.spelled({**record["config"], **row})
    seed = config.pop("seed")
    about = {**{name: record[name] for name in ABOUT}, "config": config}
    return about | {name: record[name] for name in MORE if record.get(name)}, seed


def _results(steps: Sequence[Line], num_episodes: int) -> Line:
    curves = {}
    for name in CURVES:
        there = [step for step in steps if name in step]
        curves[name] = {
            "env_steps": [step["env_steps"] for step in there],
            "return": [step[name] for step in there],
        }
    trained, evaluated = (curves[name]["return"] for name in CURVES)
    returns = evaluated or trained
    length = "eval/length_mean" if evaluated else "episode/length"
    lengths = [step[length] for step in steps if length in step]
    spreads = [step["eval/return_std"] for step in steps if "eval/return_std" in step]
    known = spreads and spreads[-1] is not None and num_episodes > 1
    return {
        "return": returns[-1] if returns else None,
        "steps": lengths[-1] if lengths else None,
        "error": spreads[-1] / (num_episodes - 1) ** 0.5 if known else None,
        "env_steps": steps[-1]["env_steps"] if steps else 0,
        "curves": {name: _thinned(curve) for name, curve in curves.items()},
        "curve_digest": digest(curves),
    }


def _thinned(curve: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """At most MAX_POINTS points, the last among them."""
    stride = max(1, -(-len(curve["return"]) // MAX_POINTS))
    return {name: x[::-1][::stride][::-1] for name, x in curve.items()}


def _of(value: Any, i: int) -> Any:
    """That of run number `i`: with several runs there is a list, else a number."""
    return value[i] if isinstance(value, list) else value


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for its turn.  The lock is beside the file itself, so that all who come by
    a link take the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        real = files.target(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    with files.locked(real.with_name(f".{real.name}.lock")):
        yield
