"""A peer's script, in an environment of its own, that measures when it is its turn."""

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


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
