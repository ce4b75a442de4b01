"""Can the tests fail?  Small wrong edits, and whether the tests named for them notice.

    python -m benchmarks.mutants                  # all of them, hours
    python -m benchmarks.mutants --only=shac      # those whose file or tests say so
    python -m benchmarks.mutants --missing        # those without a result: go on

The edits are in mutants.toml.  Each is made in a copy of the working tree, never here;
before that the tests have to pass there as they are.  A test run that hangs counts as
one that fails.  Writes results/mutants.json after each edit, and fails if one survives.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from experiments.runs import run_folder

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "mutants.toml"
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
TIMEOUT = 300  # seconds, for each of the tests

_ONLY = flags.DEFINE_string("only", "", "part of the name of a file or of a test")
_MISSING = flags.DEFINE_bool("missing", False, "only those without a result")


class Mutant(NamedTuple):
    file: str  # from the root
    old: str  # is there once
    new: str
    tests: str  # what pytest is to run, separated by spaces

    @property
    def name(self) -> str:
        return f"{self.file}: {self.old.strip()!r} -> {self.new.strip()!r}"


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    chosen = [x for x in table() if _ONLY.value in x.file or _ONLY.value in x.tests]
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known = {mutant.name for mutant in table()}
    found = {name: x for name, x in found.items() if name in known}
    if _MISSING.value:
        chosen = [x for x in chosen if x.name not in found]
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder))
        named = dict.fromkeys(x for mutant in chosen for x in mutant.tests.split())
        if named and not passes(Path(folder), list(named), told=None):
            raise app.UsageError("the tests that the table names fail without an edit")
        for mutant in chosen:
            caught = is_caught(mutant, Path(folder))
            found[mutant.name] = {"tests": mutant.tests, "caught": caught}
            print("caught  " if caught else "SURVIVED", mutant.name, flush=True)
            run_folder.write_json(RESULTS, dict(sorted(found.items())))
    survivors = [x for x in chosen if not found[x.name]["caught"]]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} are caught")
    sys.exit(bool(survivors))


def table() -> Iterator[Mutant]:
    for row in tomllib.loads(TABLE.read_text())["mutant"]:
        yield Mutant(**row)


def copy(folder: Path) -> None:
    """What git tracks, as it is in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)


def is_caught(mutant: Mutant, folder: Path) -> bool:
    file = folder / mutant.file
    text = file.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: is there {text.count(mutant.old)} times")
    file.write_text(text.replace(mutant.old, mutant.new))
    try:
        return not passes(folder, mutant.tests.split())
    finally:
        file.write_text(text)


def passes(
    folder: Path, tests: Sequence[str], told: int | None = subprocess.DEVNULL
) -> bool:
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache/mutants"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
    around = {name: x for name, x in os.environ.items() if name != "PYTEST_ADDOPTS"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**around, "JAX_COMPILATION_CACHE_DIR": cache},
            stdout=told,
            timeout=TIMEOUT * len(tests),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):  # no such test, or an error of pytest's own
        raise ValueError(f"pytest {' '.join(tests)} ends with {done.returncode}")
    return done.returncode == 0


if __name__ == "__main__":
    app.run(main)
