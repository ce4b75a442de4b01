"""Many processes that write the same file at once, while others read it."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.runs import files, ledger, run_folder
from tests.experiments.runs import ledger_test

ABOUT = (
    "8 processes write the same file at once, 250 times each (the ledger: 50): every "
    "reader finds a whole file, no write fails, nothing is left behind"
)
NUM_PROCESSES = 8
Write = Callable[[Path, int, int], None]  # a file, number of the process and the write


def names() -> list[str]:
    return [*WRITERS]


def attempt(name: str, folder: Path) -> dict[str, Any]:
    write, check, times = WRITERS[name]
    path = folder / name
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    tried, failures = compete(write, check, path, times, server)
    left = sorted(x.name for x in folder.iterdir())
    if extra := [x for x in left if x not in (name, f".{name}.lock")]:
        failures.append(f"left behind: {extra}")
    path.unlink(missing_ok=True)
    return {"tried": tried, "failures": failures}


def compete(
    write: Write,
    check: Callable[[Path], Any],
    path: Path,
    times: int,
    server: Any,
) -> tuple[int, list[str]]:
    """How often it was written, and what went wrong."""
    queue = server.Queue()
    workers = [
        server.Process(target=work, args=(write, path, i, times, queue))
        for i in range(NUM_PROCESSES)
    ]
    for worker in workers:
        worker.start()
    failures = []
    while any(worker.is_alive() for worker in workers) and queue.qsize() < len(workers):
        if path.exists():
            try:
                check(path)
            except (ValueError, OSError) as error:
                failures.append(f"a reader finds: {error}"[:200])
    wrong = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    failures += [x for texts in wrong for x in texts]
    return NUM_PROCESSES * times, failures


def work(write: Write, path: Path, number: int, times: int, queue: Any) -> None:
    failures = []
    for i in range(times):
        try:
            write(path, number, i)
        except Exception as error:  # whatever it is, it is counted
            failures.append(repr(error)[:200])
    queue.put(failures)


def write_json(path: Path, number: int, i: int) -> None:
    run_folder.write_json(path, {"number": number, "values": [i] * 5000})


def check_json(path: Path) -> None:
    values = json.loads(path.read_text())["values"]
    if len(values) != 5000 or len({*values}) != 1:
        raise ValueError("the values of two writers")


def write_text(path: Path, number: int, i: int) -> None:
    files.write_text(path, f"{number}" * 50_000, through_links=bool(i % 2))


def check_text(path: Path) -> None:
    text = path.read_text()
    if len(text) != 50_000 or len({*text}) != 1:
        raise ValueError(f"{len(text)} characters, of {sorted({*text})}")


def write_ledger(path: Path, number: int, i: int) -> None:
    """A run of its own, and one that all of them write."""
    line = ledger_test.make_line
    ledger.add(path, [line(1000 * number + i), line(100_000 + i)])
    own = [x for x in ledger.read(path) if x["seed"] // 1000 == number]
    if len(own) != i + 1:
        raise ValueError(f"{len(own)} of {i + 1} lines are there")


WRITERS: dict[str, tuple[Write, Callable[[Path], Any], int]] = {
    "config.json": (write_json, check_json, 250),
    "report.html": (write_text, check_text, 250),
    "ledger.jsonl": (write_ledger, ledger.read, 50),
}
