"""Files that are written whole or not at all, whatever stands in their place."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.runs import files


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full: what was written does not reach it."""

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


@pytest.fixture
def terminal() -> Iterator[Path]:
    """A device that nobody else uses."""
    ends = os.openpty()
    yield Path(os.ttyname(ends[1]))
    for end in ends:
        os.close(end)


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[None]:
    state = lambda: {
        x.name: (x.lstat().st_ino, x.lstat().st_mtime_ns) for x in folder.iterdir()
    }
    before = state()
    yield
    assert state() == before


def test_the_place_of_a_file_is_taken_and_its_permissions_are_kept(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a"
    files.write_text(path, "one")
    files.write_text(tmp_path / "b", "")
    usual = (tmp_path / "b").stat().st_mode
    assert path.stat().st_mode == usual == 0o100666 & ~umask()
    path.chmod(0o640)
    files.write_text(path, "two")
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert {x.name for x in tmp_path.iterdir()} == {"a", "b"}


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.usefixtures("full")
def test_on_a_full_disk_everything_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    words = f"cannot write {tmp_path / 'a'}: No space left on device"
    with untouched(tmp_path), pytest.raises(OSError, match=words):
        files.write_text(tmp_path / "a", "new")


def test_what_fails_half_way_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def write_half() -> None:
        with files.replacing(tmp_path / "a") as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with untouched(tmp_path), pytest.raises(KeyboardInterrupt):
        write_half()


def test_a_link_is_replaced_or_stays_and_what_it_points_to_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").mkdir()
    victim, link = tmp_path / "there" / "victim", tmp_path / "link"
    victim.write_text("old")
    link.symlink_to(victim)
    files.write_text(link, "new", through_links=True)
    assert link.is_symlink()
    assert victim.read_text() == "new"
    files.write_text(link, "own")
    assert not link.is_symlink()
    assert (victim.read_text(), link.read_text()) == ("new", "own")
    assert [x.name for x in (tmp_path / "there").iterdir()] == ["victim"]


def test_a_link_may_point_to_what_is_not_there_yet_but_not_to_itself(
    tmp_path: Path,
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "new")
    files.write_text(tmp_path / "link", "text", through_links=True)
    assert (tmp_path / "new").read_text() == "text"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match=r"cannot write .*loop: it is a symbolic link"):
        files.write_text(tmp_path / "loop", "text", through_links=True)


@pytest.mark.parametrize("through_links", [False, True])
def test_pipes_and_devices_are_refused(
    tmp_path: Path, terminal: Path, through_links: bool
) -> None:
    """None that others use: what does not refuse them would replace them."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, terminal):
        words = f"cannot write {path}: it is no regular file"
        with untouched(tmp_path), pytest.raises(OSError, match=words):
            files.write_text(path, "text", through_links=through_links)
        with pytest.raises(OSError, match=words), files.locked(path):
            pass


def test_what_a_lock_or_a_log_would_be_is_not_followed(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / ".lock"
    victim.write_text("old")
    link.symlink_to(victim)
    with pytest.raises(OSError, match="it is a symbolic link"), files.locked(link):
        pass
    with (
        pytest.raises(OSError, match="it is a symbolic link"),
        open(link, "ab", opener=files.regular),
    ):
        pass
    assert victim.read_text() == "old"


def test_a_lock_is_that_of_one(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with (
        files.locked(path),
        pytest.raises(OSError, match=r"^busy$"),
        files.locked(path, "busy"),
    ):
        pass
    with files.locked(path, "busy"):
        pass


def test_many_write_the_same_file_at_once(tmp_path: Path) -> None:
    path, texts = tmp_path / "a", [str(i) * 10_000 for i in range(4)]
    failed = []

    def write(text: str) -> None:
        try:
            for _ in range(50):
                files.write_text(path, text)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    assert failed == []
    assert [x.name for x in tmp_path.iterdir()] == ["a"]


def test_half_a_character_is_written_as_its_code(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "r\udcffn")
    assert (tmp_path / "a").read_text() == r"r\udcffn"


def test_what_has_no_end_is_not_read(tmp_path: Path, terminal: Path) -> None:
    """A pipe would be waited for; a link to a file is as good as the file."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", terminal):
        with pytest.raises(OSError, match=f"cannot read {path}: it is no regular fil"):
            files.read_text(path)
    with pytest.raises(OSError, match=f"cannot read {tmp_path}: Is a directory"):
        files.read_text(tmp_path)
    (tmp_path / "a").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert files.read_text(tmp_path / "link") == "text"


def test_what_is_no_text_or_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="a is not UTF-8 text"):
        files.read_text(tmp_path / "a")
    with pytest.raises(OSError, match=r"cannot read .*nowhere: No such file"):
        files.read_text(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="the text is not JSON"):
        files.parse("{", "the text")
    with pytest.raises(ValueError, match="the text is nested too deeply"):
        files.parse("[" * 100_000, "the text")
