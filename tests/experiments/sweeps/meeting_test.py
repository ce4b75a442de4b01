"""Processes that wait for each other."""

import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import pytest
from absl import flags

from experiments.sweeps import hosts, meeting


@pytest.fixture
def address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def meet(
    address: str, num_processes: int, come: Sequence[int], timeout: float
) -> dict[int, str]:
    """What each that comes is told: nothing, or what went wrong."""
    said = {}

    def one(i: int) -> None:
        try:
            meeting.meet(address, num_processes, i, timeout)
            said[i] = ""
        except OSError as error:
            said[i] = str(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in come]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return said


@pytest.mark.parametrize("come", [(0, 1, 2), (2, 1, 0), (1, 0, 1, 2)])
def test_all_go_on_when_all_have_come(address: str, come: tuple[int, ...]) -> None:
    """In any order, and if one comes again because it was started again."""
    begin = time.monotonic()
    assert meet(address, 3, come, 30.0) == {0: "", 1: "", 2: ""}
    assert time.monotonic() - begin < 10
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))):  # it is free for jax
        pass


def test_who_does_not_come_is_named(address: str) -> None:
    assert meet(address, 4, (0, 2), 0.5) == {
        0: "process 1, 3 did not come within 0.5 s",
        2: "process 0 did not come within 0.5 s",
    }
    assert meet(address, 2, (1,), 0.2) == {1: "process 0 did not come within 0.2 s"}


def test_strangers_are_not_counted(address: str) -> None:
    """Nor processes of another sweep."""
    host, _, port = address.rpartition(":")
    said: list[dict[int, str]] = []
    waiting = threading.Thread(target=lambda: said.append(meet(address, 2, (0,), 1.0)))
    waiting.start()
    time.sleep(0.3)
    for text in (b"GET / HTTP/1.1\r\n", b"mbrl_jax process 1 of 3\n", b"\xff\n", b""):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(text)
    waiting.join()
    assert said == [{0: "process 1 did not come within 1 s"}]


@pytest.mark.parametrize("bad", ["nowhere", ":12", "a:b", "a:0", "a:70000", "a:"])
def test_what_is_no_address_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match=f"{bad!r} is not HOST:PORT"):
        meeting.meet(bad, 2, 0, 1.0)


def test_a_place_where_one_cannot_listen_is_an_error(address: str) -> None:
    host, _, port = address.rpartition(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(OSError, match="cannot listen there: Address already in use"),
    ):
        meeting.meet(address, 2, 0, 1.0)


def host_flags(*argv: str) -> flags.FlagValues:
    values = flags.FlagValues()
    hosts.define(values)
    values(["sweep", *argv])
    return values


def test_only_the_address_that_was_given_is_listened_at(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **x: found.update(x))
    join = (f"--coordinator={address}", "--num_processes=1", "--process_id=0")
    assert hosts.join(host_flags(*join)) == hosts.Host(0, 1)
    assert found["coordinator_address"] == address
    assert found["coordinator_bind_address"] == address


def test_in_vain_is_one_line_and_no_abort(address: str) -> None:
    join = (f"--coordinator={address}", "--num_processes=2", "--process_id=0")
    words = f"cannot join {address}: process 1 did not come within 1 s"
    with pytest.raises(OSError, match=words):
        hosts.join(host_flags(*join, "--join_timeout=1"))
    with pytest.raises(flags.Error, match="--process_id is 2, the last of"):
        hosts.join(host_flags(*join[:2], "--process_id=2"))
