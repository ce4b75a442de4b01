"""Paths on the command line."""

from pathlib import Path

import pytest

from experiments.runs import paths


def test_folders_of_users() -> None:
    assert paths.expanded("~/x") == Path.home() / "x"
    with pytest.raises(ValueError, match=r"^~nosuchuser/x: there is no such user$"):
        paths.expanded("~nosuchuser/x")


def test_a_comma_is_part_of_the_name_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a,b", "b,c,d"):
        Path(name).mkdir()
    for text, expected in (
        ("a,b", ["a,b"]),
        ("a,x", ["a", "x"]),
        ("a,b,c", ["a,b", "c"]),
        ("a, a", ["a", "a"]),
        ("b,c,d,a,", ["b,c,d", "a"]),
    ):
        assert paths.several(text) == [Path(x) for x in expected], text
