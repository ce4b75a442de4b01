"""Flags from dataclasses, their help from the comments in the source, clear errors."""

import ast
import dataclasses
import difflib
import functools
import inspect
import io
import logging
import math
import sys
import textwrap
import tokenize
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from absl import logging as absl_logging

from experiments.runs import faults, renamed

DEFINE: dict[type, Callable[..., Any]] = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}
LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = float(np.finfo(np.float32).max)


def define_config(values: flags.FlagValues, config: Any, prefix: str = "") -> None:
    """A flag for each field of the dataclass `config`: `--name`, nested `--outer.name`.

    Fields are bool, int, float, str, tuples of one of these, or dataclasses.
    """
    meaning = meanings(type(config))  # type: ignore[arg-type]  # a class has a hash
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            define_config(values, value, f"{name}.")
            continue
        element = _element(hints[field.name])
        if isinstance(value, tuple):
            texts = [_text(x) for x in value]
            flags.DEFINE_list(name, texts, meaning[field.name], flag_values=values)
        elif element is float and _may_be_infinite(field, value):
            text: Any = flags.ArgumentSerializer()
            flags.DEFINE(_AnyFloat(), name, value, meaning[field.name], values, text)
        else:
            DEFINE[element](name, value, meaning[field.name], flag_values=values)


def read_config(values: flags.FlagValues, default: Any, prefix: str = "") -> Any:
    """The dataclass with the values of the flags that `define_config` defined."""
    hints = typing.get_type_hints(type(default))
    new = {}
    for field in dataclasses.fields(default):
        name, old = prefix + field.name, getattr(default, field.name)
        if dataclasses.is_dataclass(old):
            new[field.name] = read_config(values, old, f"{name}.")
            continue
        value: Any = values[name].value
        if isinstance(old, tuple):
            value = _elements(name, value, _element(hints[field.name]))
        sizes = isinstance(value, tuple) and field.default != ()  # else indices
        _check(name, value, _may_be_infinite(field, old), sizes)
        new[field.name] = value
    return dataclasses.replace(default, **new)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass under the names of their flags."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            fields |= flat(value, f"{name}.")
        else:
            fields[name] = value
    return fields


def in_use(fields: Mapping[str, Any]) -> list[str]:
    """The names, as by `flat`, of the settings that count: where a field `name` says
    which of the fields beside it is in use, not those below the others; nor those
    beside a `num_updates` of 0, which says that nothing is done with them."""

    def counts(name: str) -> bool:
        *parts, last = name.split(".")
        if last != "num_updates" and not fields.get(
            ".".join([*parts, "num_updates"]), 1
        ):
            return False
        chosen = (".".join([*parts[:i], "name"]) for i in range(1, len(parts)))
        return all(
            fields.get(where, part) == part
            for where, part in zip(chosen, parts[1:], strict=True)
        )

    return [name for name in fields if counts(name)]


def replace(config: Any, fields: Mapping[str, Any]) -> Any:
    """The dataclass with some `fields`, named as by `flat`; they may be traced."""
    own = {name: x for name, x in fields.items() if "." not in name}
    nested: dict[str, dict[str, Any]] = {}
    for name, x in fields.items():
        outer, _, rest = name.partition(".")
        if rest:
            nested.setdefault(outer, {})[rest] = x
    inner = {name: replace(getattr(config, name), x) for name, x in nested.items()}
    return dataclasses.replace(config, **own, **inner)


def unflat(default: Any, fields: Mapping[str, Any]) -> Any:
    """The inverse of `flat`; also takes what JSON made of it.

    Raises ValueError unless `fields` has exactly the fields of `default`.
    """
    known = flat(default).keys()
    if wrong := known ^ fields.keys():
        raise ValueError(f"missing or unknown hyperparameters: {', '.join(wrong)}")
    values = flags.FlagValues()
    define_config(values, default)
    try:
        values(["", *(f"--{name}={_text(x)}" for name, x in fields.items())])
        return read_config(values, default)
    except flags.Error as error:
        raise ValueError(str(error)) from error


@functools.cache  # reading the source takes long, and a command does it often
def meanings(config: type) -> dict[str, str]:
    """The comment behind each field of a dataclass, or else that above it; of a field
    that it inherits, too."""
    source = textwrap.dedent(inspect.getsource(config))
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip()[:1] == "#")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for base in config.__bases__:
        found |= meanings(base) if dataclasses.is_dataclass(base) else {}
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = [*range(node.lineno, (node.end_lineno or node.lineno) + 1)]
            if not any(line in comments for line in lines):
                first = node.lineno - 1
                while first in comments and comments[first][1]:
                    first -= 1
                lines = [*range(first + 1, node.lineno)]
            found[node.target.id] = " ".join(
                comments[line][0] for line in lines if line in comments
            )
    return found


def parse(
    values: flags.FlagValues, argv: Sequence[str], known_only: bool = False
) -> None:
    """Reads the flags.  Raises flags.Error, naming the flag next to an unknown one."""
    try:
        rest = values(argv, known_only=known_only)
    except flags.UnrecognizedFlagError as error:
        raise flags.Error(
            f"unknown flag --{error.flagname}{did_you_mean(error.flagname, values)}"
        ) from error
    except UnicodeDecodeError as error:
        named = " ".join(x for x in argv if "flagfile" in x)
        raise flags.Error(f"{named} is not UTF-8 text: {error}") from error
    for name in values:
        flag = values[name]
        _check(name, flag.value, may_be_infinite=isinstance(flag.parser, _AnyFloat))
    if not known_only and len(rest) > 1:
        raise flags.Error(f"unexpected argument {rest[1]!r}: flags start with --")


def parse_or_help(
    values: flags.FlagValues, argv: Sequence[str], text: str | None, required: str
) -> bool:
    """Reads the flags of a small command; whether help was asked for, and given."""
    names = list(values)
    flags.DEFINE_string("flagfile", "", "file with more flags", flag_values=values)
    flags.DEFINE_boolean("help", None, "show this text", flag_values=values)
    parse(values, argv)
    if values["help"].value:
        print(f"{text}\n{usage(values, names)}")
        return True
    if not values[required].value:
        raise flags.Error(f"--{required} is needed")
    return False


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """`; did you mean ...?` or nothing; nested names also count by their last part.

    Of a name that was changed: what it is called now.
    """
    known = list(known)
    if now := renamed.flags(name, known):
        return f"; it is called {' or '.join(f'--{x}' for x in now)} now"
    full: dict[str, list[str]] = {}
    for x in known:
        for part in (x, x.rpartition(".")[2]):
            full.setdefault(part, []).append(x)
    near = difflib.get_close_matches(name, full, n=1)
    names = " or ".join(f"--{x}" for x in dict.fromkeys(full[near[0]])) if near else ""
    return f"; did you mean {names}?" if names else ""


def usage(values: flags.FlagValues, names: typing.Iterable[str]) -> str:
    """One line per flag: name, default, meaning."""
    lines = []
    for name in names:
        flag = values[name]
        default = "" if flag.default is None else f"={_text(flag.default)}"
        left = f"  --{name}{default}"
        gap = " " * (34 - len(left)) if len(left) < 33 else "  "
        lines.append(f"{left}{gap}{flag.help}".rstrip())
    return "\n".join(lines)


def command(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command: what the user can put right is one line, not a traceback."""
    faults.hide_traces()
    # when a disk is full, more than the one error that we see
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    absl_logging.set_verbosity(absl_logging.FATAL)  # which Orbax writes to
    try:
        main(sys.argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = None  # nothing is left to flush
    except KeyboardInterrupt:
        sys.exit(130)
    except flags.Error as error:
        sys.exit(_complain(error, 2))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            error = MemoryError(f"there is too little memory: {error}")
        elif not faults.is_users(error):
            raise
        sys.exit(_complain(error, 1))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(_complain(error, 1))


def _complain(error: Exception, code: int) -> int:
    print("error:", faults.line(error), file=sys.stderr)
    return code


class _AnyFloat(flags.FloatParser):
    """Of a setting that may be infinite."""


def _may_be_infinite(field: dataclasses.Field[Any], value: Any) -> bool:
    """Only what is so by default, in the class or in what holds it."""
    values = (field.default, *(value if isinstance(value, tuple) else (value,)))
    return any(isinstance(x, float) and math.isinf(x) for x in values)


def _check(name: str, value: Any, may_be_infinite: bool, sizes: bool = False) -> None:
    """Raises flags.Error for a number, or an element of a tuple, that cannot be.

    An int has 32 bits on all devices, and so has a float.
    """
    for x in value if isinstance(value, tuple) else (value,):
        wrong = ""
        if isinstance(x, float) and math.isnan(x):
            wrong = "is not a number"
        elif isinstance(x, float) and not (may_be_infinite or abs(x) <= LARGEST_FLOAT):
            wrong = f"is {x}, must be finite, at most {LARGEST_FLOAT:.2g}"
        elif isinstance(x, int) and not -LARGEST_INT <= x <= LARGEST_INT:
            wrong = f"is {x}, must be at most {LARGEST_INT}"
        elif isinstance(x, int) and sizes and x < 1:
            wrong = f"has a size of {x}, must be at least 1"
        if wrong:
            raise flags.IllegalFlagValueError(f"flag --{name} {wrong}")


def _element(hint: Any) -> type:
    """The plain type in an annotation: of `float | Array` or `tuple[float, ...]`."""
    for part in (hint, *typing.get_args(hint)):
        if part in DEFINE:
            return part
    raise TypeError(f"no flag can be made for a field of type {hint}")


def _elements(name: str, texts: Sequence[str], element: type) -> tuple[Any, ...]:
    try:
        return tuple(element(x) for x in texts)
    except ValueError as error:
        raise flags.IllegalFlagValueError(f"flag --{name}: {error}") from error


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_text(x) for x in value)
    return str(value)
