"""A peer's script, in an environment of its own, that measures when it is its turn."""

import contextlib
import json
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks import timing


class Peer(NamedTuple):
    ask: Callable[[str], None]  # a line for it to read: its turn
    answer: Callable[[], dict[str, Any]]  # what it prints next: a JSON object on a line


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[Peer]:
    """`answer` raises RuntimeError if it has ended."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        to_peer, from_peer = process.stdin, process.stdout
        assert to_peer is not None
        assert from_peer is not None

        def ask(line: str) -> None:
            to_peer.write(line + "\n")
            to_peer.flush()

        def answer() -> dict[str, Any]:
            for line in from_peer:
                if line.startswith("{"):  # libraries print, too
                    return json.loads(line)
            raise RuntimeError(f"{command} has ended early")

        yield Peer(ask, answer)


def in_turn(
    peer: Peer,
    line: str,
    call: timing.Call,
    num_calls: int,
    num_repeats: int,
    check: Callable[[Any], None],
) -> dict[str, Any]:
    """Times of one call, ours and theirs; `check` sees what theirs finds, once.

    CPU seconds, medians; the ratio is that of neighbours in time.
    """
    peer.ask(line)
    check(peer.answer()["found"])
    peer.answer()  # the first turn compiled
    rows = []
    for _ in range(num_repeats):
        peer.ask(line)
        rows.append((peer.answer(), timed(call, num_calls)))
    middle = lambda values: statistics.median(list(values))
    return {
        "ratio": middle(y["cpu"] / x["cpu"] for x, y in rows),
        "ours": middle(y["cpu"] for _, y in rows),
        "theirs": middle(x["cpu"] for x, _ in rows),
        "rows": {"ours": [y for _, y in rows], "theirs": [x for x, _ in rows]},
    }


def alone(call: timing.Call, num_calls: int, num_repeats: int) -> dict[str, Any]:
    rows = [timed(call, num_calls) for _ in range(num_repeats)]
    return {"ours": statistics.median(x["cpu"] for x in rows), "rows": {"ours": rows}}


def timed(call: timing.Call, num_calls: int) -> dict[str, float]:
    cpu, wall = timing.time_calls(call, num_calls)
    return {"cpu": cpu, "wall": wall}
