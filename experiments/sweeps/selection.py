"""Runs as they are named on a command line.

A ledger, a folder with a ledger.jsonl, or the folder of a run in one; behind a colon, a
selection: `runs/ledger.jsonl:plan.horizon=10,env=pendulum`.
"""

from pathlib import Path
from typing import Any

from experiments.reports import results
from experiments.runs import command_flags, ledger, paths


def read(source: str) -> list[ledger.Line]:
    """The runs so named.  Raises OSError or ValueError for what cannot be read."""
    path, selection = _parts(source)
    of_a_run = (path / "config.json").exists()
    lines = results.read_ledgers([path.parent if of_a_run else path])
    if of_a_run:
        lines = [line for line in lines if _is_in(line, path)]
        if not lines:
            raise ValueError(f"{path.parent / 'ledger.jsonl'} has no run of {path}")
    return select(lines, selection) if selection is not None else lines


def _parts(source: str) -> tuple[Path, str | None]:
    """The path and the selection: behind a colon, but not of one in a path there is."""
    ends = [i for i, x in enumerate(source) if x == ":"]
    for end in (len(source), *reversed(ends)):
        if paths.expanded(source[:end]).exists():
            return paths.expanded(source[:end]), source[end + 1 :] or None
    name, colon, selection = source.partition(":")
    return paths.expanded(name), selection if colon else None


def _is_in(line: ledger.Line, folder: Path) -> bool:
    said = Path(line.get("folder") or "")
    places = (said, folder.parent / said)  # from here, or from the ledger
    return any(place.resolve() == folder.resolve() for place in places)


def select(lines: list[ledger.Line], selection: str) -> list[ledger.Line]:
    """Those with `NAME=VALUE,...`: hyperparameters, or keys of the ledger.

    Raises ValueError for a name or a value that no run has.
    """
    # A value may hold commas: what has no `=` belongs to what is before.
    for part in _split(selection):
        short, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} in a selection is not NAME=VALUE")
        facts = [_facts(line) for line in lines]
        known = {x for fact in facts for x in fact}
        used = {x for fact in facts for x in command_flags.in_use(fact)}
        name = _full_name(short, known, used)
        there = sorted({results.text(fact[name]) for fact in facts if name in fact})
        lines = [
            line
            for line, fact in zip(lines, facts, strict=True)
            if name in fact and _is(fact[name], value)
        ]
        if not lines:
            raise ValueError(f"no run has {name}={value}; it is {' or '.join(there)}")
    return lines


def _split(selection: str) -> list[str]:
    parts: list[str] = []
    for x in selection.split(","):
        if "=" in x or not parts:
            parts.append(x)
        else:
            parts[-1] += f",{x}"
    return parts


def _facts(line: ledger.Line) -> dict[str, Any]:
    own = {k: x for k, x in line.items() if isinstance(x, str | int | float)}
    return {**results.settings(line), **own}


def _full_name(name: str, known: set[str], used: set[str]) -> str:
    """`name`, or the one name in use whose last part it is."""
    if name in known:
        return name
    found = sorted(x for x in used if x.rpartition(".")[2] == name)
    if len(found) > 1:
        raise ValueError(f"{name} could be {' or '.join(found)}")
    if not found:
        hint = command_flags.did_you_mean(name, known).replace("--", "")
        raise ValueError(f"no run has a {name!r}{hint}")
    return found[0]


def _is(value: Any, said: str) -> bool:
    if isinstance(value, list):
        parts = said.split(",")
        return len(parts) == len(value) and all(map(_is, value, parts))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return results.text(value).lower() == said.lower()
    try:
        return float(said) == value
    except ValueError:
        return False
