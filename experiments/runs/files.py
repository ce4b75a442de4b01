"""Files that are written whole or not at all, and locks.

Folders of runs come from other people, and other processes use them: a name that can be
foreseen may be a link to somebody's file, a device, or in use.  So what is written is
written under a name that nobody knows, and then takes the place of the old file.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

PRIVATE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# without O_NONBLOCK a pipe waits here for its other end


@contextlib.contextmanager
def replacing(path: Path, *, through_links: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` at the end, unless something was raised.

    A link is replaced itself, or, with `through_links`, stays and what it points to is
    replaced: right for what the user has named.  Raises OSError, naming `path`.
    """
    try:
        real = target(path) if through_links else _replaceable(path)
        temporary = real.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "xb", opener=regular) as file:
                _keep_mode(file, real)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, real)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def make_folder(folder: Path) -> None:
    """With those above it.  Raises OSError, naming it, if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}") from error


def write_text(path: Path, text: str, *, through_links: bool = False) -> None:
    """Writes all of it or nothing.  Half a character, from a name of a file that is not
    UTF-8, is written as its code."""
    with replacing(path, through_links=through_links) as file:
        file.write(text.encode(errors="backslashreplace"))


def target(path: Path) -> Path:
    """The file behind `path`, links resolved.  OSError unless it is, or may become, a
    regular one."""
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link to itself", str(path))
    return _replaceable(real)


def regular(path: str, how: int, more: int = PRIVATE) -> int:
    """An opener for `open`: of no link, no device and no pipe."""
    try:
        descriptor = os.open(path, how | more, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link", path) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return descriptor


def appending(path: Path) -> io.FileIO:
    """A file to be written on, where each write is on disk at once."""
    return open(path, "ab", buffering=0, opener=regular)


@contextlib.contextmanager
def locked(path: Path, in_use: str = "") -> Iterator[None]:
    """The lock `path` is this process's; it ends with it, however that ends.

    Waits for its turn, or, if told what to say, raises that as OSError where another
    process has it.  Raises OSError if it cannot be made.
    """
    try:
        descriptor = regular(str(path), os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if in_use else 0))
        except BlockingIOError as error:
            raise OSError(in_use) from error
        yield
    finally:
        os.close(descriptor)


def read_text(path: Path, what: str = "") -> str:
    """Raises OSError or ValueError, naming the file, if it is not there or no text.

    A pipe or a device in its place is refused: it might have no end.
    """
    try:
        with open(path, encoding="utf-8", opener=_regular_or_link) as file:
            return file.read()
    except OSError as error:
        raise OSError(f"cannot read {what}{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def parse(text: str, name: str) -> Any:
    """What a JSON text says.  Raises ValueError, naming it."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply to be read") from error


def _regular_or_link(path: str, how: int) -> int:
    return regular(path, how, os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _replaceable(path: Path) -> Path:
    """`path`, unless it is a device, a pipe or a folder."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path


def _keep_mode(file: BinaryIO, old: Path) -> None:
    """Gives a file the permissions of the one that it replaces, if there is one."""
    with contextlib.suppress(OSError):
        mode = old.lstat().st_mode
        if stat.S_ISREG(mode):
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
