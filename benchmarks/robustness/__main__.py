"""What users and machines do to the commands, tried in classes, and counted.

    python -m benchmarks.robustness                     # all; kills take hours
    python -m benchmarks.robustness --only=faults,links
    python -m benchmarks.robustness --page              # try nothing, write the page

Writes results/robustness.json after each case, and docs/robustness.md in the end.  Goes
on where it was stopped: what the former has is not tried again, unless `--again`.
Fails if something failed.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

from benchmarks.robustness import bad_input, faults, kills, links, page, writers
from experiments.runs import files

CLASSES = {
    "bad_input": bad_input,
    "faults": faults,
    "writers": writers,
    "links": links,
    "kills": kills,
}

_ONLY = flags.DEFINE_list("only", [*CLASSES], "classes to try", flag_values=kills.FLAGS)
_AGAIN = flags.DEFINE_boolean(
    "again", False, "also what was tried before", flag_values=kills.FLAGS
)
_PAGE = flags.DEFINE_boolean(
    "page", False, "write the page only, from what was found", flag_values=kills.FLAGS
)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if unknown := {*_ONLY.value} - CLASSES.keys():
        raise app.UsageError(f"there is no {', '.join(unknown)}, only {[*CLASSES]}")
    logging.set_verbosity(logging.WARNING)  # of others
    chosen = [] if _PAGE.value else [x for x in CLASSES if x in _ONLY.value]
    failed = [try_class(name) for name in chosen]
    files.write_text(page.PAGE, page.written(page.PAGE.read_text(), CLASSES))
    sys.exit(any(failed))


def try_class(name: str) -> bool:
    """Tries what has not been tried yet; whether anything has failed, now or before."""
    tried = CLASSES[name]
    with tempfile.TemporaryDirectory(prefix="robustness_") as folder:
        for case in tried.names():
            if case in page.found().get(name, {}) and not _AGAIN.value:
                continue
            outcome = tried.attempt(case, Path(folder))
            page.keep(name, case, outcome)
            told = "; ".join(outcome["failures"]) or "good"
            print(f"{name}: {case}: {outcome['tried']} tried, {told}", flush=True)
    return any(x["failures"] for x in page.found().get(name, {}).values())


if __name__ == "__main__":
    main(kills.FLAGS(sys.argv))
