"""Processes wait for each other, before jax's own runtime does.

That would abort the process of one that waits in vain; here it is an error.  Process 0
listens at the address that all were told; the others say who they are, and when all
have, it tells them to go on.
"""

import contextlib
import socket
import time
from collections.abc import Iterator

GREETING = "mbrl_jax process {} of {}\n"
GO = b"go\n"
PAUSE = 0.1  # seconds between two tries to reach process 0
PATIENCE = 2.0  # seconds for somebody who connects to say who it is


def meet(address: str, num_processes: int, process_id: int, timeout: float) -> None:
    """Returns when all processes have come.

    Raises OSError after `timeout` seconds, or where one cannot listen, and ValueError
    for what is no HOST:PORT.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"{address!r} is not HOST:PORT")
    place = (host.strip("[]"), int(port))
    deadline = time.monotonic() + timeout
    if process_id:
        _go_there(place, GREETING.format(process_id, num_processes), deadline, timeout)
    elif num_processes > 1:
        _wait_for_all(place, num_processes, deadline, timeout)


def _go_there(
    place: tuple[str, int], greeting: str, deadline: float, timeout: float
) -> None:
    while True:
        with (
            contextlib.suppress(OSError),  # it is not there yet, or goes away again
            socket.create_connection(place, _left(deadline)) as process_0,
        ):
            process_0.sendall(greeting.encode())
            process_0.settimeout(_left(deadline))
            if _line(process_0) == GO:
                return
        if time.monotonic() + PAUSE > deadline:
            raise OSError(f"process 0 did not come within {timeout:g} s")
        time.sleep(PAUSE)


def _wait_for_all(
    place: tuple[str, int], num_processes: int, deadline: float, timeout: float
) -> None:
    greetings = {GREETING.format(i, num_processes): i for i in range(1, num_processes)}
    missing = set(greetings.values())
    with contextlib.ExitStack() as stack, _listening(place) as server:
        came = []
        while missing:
            server.settimeout(_left(deadline))
            try:
                other = stack.enter_context(server.accept()[0])
            except TimeoutError as error:
                who = ", ".join(map(str, sorted(missing)))
                raise OSError(
                    f"process {who} did not come within {timeout:g} s"
                ) from error
            other.settimeout(PATIENCE)
            with contextlib.suppress(OSError):  # whoever that was
                if (i := greetings.get(_line(other).decode(errors="replace"))) is None:
                    continue
                missing.discard(i)
                came.append(other)
        for other in came:
            with contextlib.suppress(OSError):  # one that came twice
                other.sendall(GO)
                other.recv(1)  # it closes first, so that the port is free here


@contextlib.contextmanager
def _listening(place: tuple[str, int]) -> Iterator[socket.socket]:
    try:
        family, _, _, _, where = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)[0]
        server = socket.create_server(where, family=family)
    except OSError as error:
        raise OSError(f"cannot listen there: {error.strerror or error}") from error
    with server:
        yield server


def _line(connection: socket.socket) -> bytes:
    """Up to the end of a line, or of what there is."""
    text = b""
    while not text.endswith(b"\n") and len(text) < 100:
        more = connection.recv(100)
        if not more:
            break
        text += more
    return text


def _left(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())
