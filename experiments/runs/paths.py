"""Paths as they are written on a command line, and of what is not named there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def expanded(text: str) -> Path:
    """With the folder of a user for ~.  ValueError if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: there is no such user") from error


def several(text: str) -> list[Path]:
    """Those between commas, which may also be in the name of something that exists."""
    parts, found = [part for part in text.split(",") if part.strip()], []
    while parts:
        ends = range(len(parts), 0, -1)
        paths = [expanded(",".join(parts[:end]).strip()) for end in ends]
        there = [(end, x) for end, x in zip(ends, paths, strict=True) if x.exists()]
        end, path = there[0] if there else (1, paths[-1])
        found.append(path)
        parts = parts[end:]
    return found


def of_run(record: Mapping[str, Any]) -> str:
    """The name of its algorithm and environment, without what divides paths."""
    env = record["env"].replace("/", "-").replace(":", "-")
    return f"{record['algorithm']}-{env}"
