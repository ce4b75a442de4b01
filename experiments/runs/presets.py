"""Presets: for an algorithm and an environment, the settings that worked.

A file each, `presets/<algorithm>/<environment>.json`, with - for / in the name:

    settings    of the run and hyperparameters, named as flags; the rest is at default
    chosen_on   the seeds that they were chosen on

What a run has to reach is the same for all in an environment, in presets/criteria.json:
`at_least` or `at_most` of a `measure` (the return of an episode, or its steps), and
`why`.  What they reached on other seeds is in the ledger, and in docs/presets.md.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.runs import command_flags, ledger, registry, run_folder

FOLDER = Path(__file__).parents[1] / "presets"
Preset = dict[str, Any]


def names() -> list[tuple[str, str]]:
    """The pairs of algorithm and environment that have one."""
    return sorted(
        (preset["algorithm"], preset["env"])
        for preset in map(run_folder.read_json, FOLDER.glob("*/*.json"))
    )


def path(algorithm: str, env: str) -> Path:
    return FOLDER / algorithm / f"{env.replace('/', '-')}.json"


def load(algorithm: str, env: str) -> Preset:
    """The preset.  Raises ValueError, naming those that there are, if there is none."""
    file = path(algorithm, env)
    if not file.exists():
        known = ", ".join(own for name, own in names() if name == algorithm)
        raise ValueError(
            f"there is no preset of {algorithm} for {env}; "
            + (f"there are some for: {known}" if known else "there are none of it")
        )
    preset = run_folder.read_json(file)
    for name, x in preset["settings"].items():
        if isinstance(x, list):  # what JSON makes of a tuple
            preset["settings"][name] = tuple(x)
    return preset


def record(algorithm: str, env: str) -> dict[str, Any]:
    """The settings as in a run's record: complete as far as the algorithm goes."""
    settings = load(algorithm, env)["settings"]
    config = command_flags.flat(registry.module(algorithm).Config())
    of_run = {name: x for name, x in settings.items() if name not in config}
    own = {name: x for name, x in settings.items() if name in config}
    return {"algorithm": algorithm, "env": env, **of_run, "config": {**config, **own}}


def found(algorithm: str, env: str, lines: Iterable[ledger.Line]) -> list[ledger.Line]:
    """The finished runs with these settings, of each seed the latest.

    A hyperparameter that a run did not have yet has to be at its default.
    """
    asked = {"episode_length": 0, "precision": "fast", **record(algorithm, env)}
    asked["config"] = run_folder.spelled(asked["config"])

    def same(line: ledger.Line) -> bool:
        return (
            line["status"] == "finished"
            and not any(name in line for name in ledger.MORE)
            and all(line[name] == asked[name] for name in (*ledger.ABOUT, "num_steps"))
            and ledger.config(line) == asked["config"]
        )

    return list({line["seed"]: line for line in lines if same(line)}.values())


def criteria() -> dict[str, dict[str, Any]]:
    """What a run has to reach, by environment."""
    return run_folder.read_json(FOLDER / "criteria.json")


def passes(env: str, measured: Mapping[str, float | None]) -> bool:
    """Whether the `return` and the `steps` of an episode, of a run's ledger line for
    example, meet the criterion of the environment."""
    criterion = criteria()[env]
    x = measured.get(criterion["measure"])
    if x is None:
        return False
    at_least = criterion.get("at_least", -math.inf)
    return at_least <= x <= criterion.get("at_most", math.inf)


def criterion(env: str) -> str:
    """The criterion in words."""
    said = criteria()[env]
    bound = next(name for name in ("at_least", "at_most") if name in said)
    return f"{said['measure']} {bound.replace('_', ' ')} {said[bound]:g}: {said['why']}"
