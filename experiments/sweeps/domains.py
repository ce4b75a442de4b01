"""What a sweep varies: `NAME=VALUE,VALUE` and `NAME=LOW:HIGH[:log]` on a command line.

NAME is a hyperparameter, named as its flag or by the last part of that, `env` or
`precision`.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import command_flags, files
from mbrl_jax.training.population import Range

Values = dict[str, list[Any]]  # by full name
Domain = Range | list[Any]
OF_RUN = ("env", "precision")  # what may vary beside hyperparameters


def grid(config: Any, texts: Iterable[str]) -> Values:
    """The values in `NAME=VALUE,...`; of a tuple, each text is one value.

    A name that comes again adds its values; a value counts once.  Raises ValueError for
    an unknown name, a value of a wrong type, or none.
    """
    found: Values = {}
    for text in texts:
        name, said = _split(config, text)
        known = command_flags.flat(config).get(name)
        parts = [said] if isinstance(known, tuple) else said.split(",")
        if not said or not all(parts):
            raise ValueError(f"{text!r} has an empty value")
        add(found, name, [_value(config, name, part) for part in parts])
    return found


def grid_file(config: Any, path: Path) -> Values:
    """The values in a JSON object of lists.  Raises OSError or ValueError."""
    content = files.parse(files.read_text(path), str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    found: Values = {}
    for short, values in content.items():
        name = full_name(config, short)
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: {short} is not a list of values")
        add(found, name, [_value(config, name, value) for value in values])
    return found


def domains(config: Any, texts: Iterable[str]) -> dict[str, Domain]:
    """The ranges `NAME=LOW:HIGH[:log]`, and choices `NAME=VALUE,...`, to draw from.

    Raises ValueError as `grid` does, and for an impossible range.
    """
    found: dict[str, Domain] = {}
    for text in texts:
        name, said = _split(config, text)
        domain: Domain = (
            _range(config, name, said) if ":" in said else grid(config, [text])[name]
        )
        if found.setdefault(name, domain) != domain:  # as in a sweep that goes on
            raise ValueError(f"{name} comes twice, with another domain: {text!r}")
    return found


def full_name(config: Any, name: str) -> str:
    """`name`, or the one hyperparameter in use of which it is the last part.

    Raises ValueError if there is none, or more than one.
    """
    fields = command_flags.flat(config)
    known = [*fields, *OF_RUN]
    if name in known:
        return name
    found = [x for x in command_flags.in_use(fields) if x.rpartition(".")[2] == name]
    if len(found) > 1:
        raise ValueError(f"{name} could be {' or '.join(found)}")
    if not found:
        hint = command_flags.did_you_mean(name, known).replace("--", "")
        raise ValueError(f"there is no hyperparameter {name!r}{hint}")
    return found[0]


def add(found: Values, name: str, values: Iterable[Any]) -> None:
    """Those values that are not there yet."""
    there = found.setdefault(name, [])
    there += [x for x in dict.fromkeys(values) if x not in there]


def draw(rng: np.random.Generator, domain: Domain) -> Any:
    """A value at random."""
    if not isinstance(domain, Range):
        return domain[rng.integers(len(domain))]
    low, high, log = domain
    if log:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return float(rng.uniform(low, high))


def is_float(config: Any, name: str) -> bool:
    """Whether it may be traced: runs that differ in it alone share a program."""
    return isinstance(command_flags.flat(config).get(name), float)


def _split(config: Any, text: str) -> tuple[str, str]:
    name, equals, said = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r} is not NAME=VALUE,...")
    return full_name(config, name), said


def _value(config: Any, name: str, said: Any) -> Any:
    """What a flag would make of it."""
    if name in OF_RUN:
        if not isinstance(said, str):
            raise ValueError(f"{name}: {said!r} is no name")
        return said
    fields = {**command_flags.flat(config), name: said}
    return command_flags.flat(command_flags.unflat(config, fields))[name]


def _range(config: Any, name: str, said: str) -> Range:
    if not is_float(config, name):
        raise ValueError(f"{name} is not a float: say the values, as {name}=1,2,3")
    parts: Sequence[str] = said.split(":")
    try:
        low, high = (float(x) for x in parts[:2])
    except ValueError as error:
        raise ValueError(f"{name}={said} is not LOW:HIGH: {error}") from error
    log = parts[2:] == ["log"]
    if parts[2:] and not log:
        raise ValueError(f"{name}={said}: behind the second colon only log may stand")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name}={said}: {low:g} is not below {high:g}")
    if log and low <= 0:
        raise ValueError(f"{name}={said}: a logarithmic range starts above 0")
    return Range(low, high, log)
