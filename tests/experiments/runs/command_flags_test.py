"""Flags from dataclasses."""

import asyncio
import dataclasses
import gc
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
import pytest
from absl import flags

from experiments.runs import command_flags, registry
from mbrl_jax.models import bnn


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float | jax.Array = 1e-3  # step size
    # of the ball
    colour: str = "red"


@dataclasses.dataclass(frozen=True)
class Config:
    """Text with a # sign: int = 3  # that is no field."""

    size: int = 3  # S, # of things
    wide: bool = True
    # two lines
    # above
    layers: tuple[int, ...] = (
        200,  # first
        100,  # second
    )
    decay: tuple[float, ...] = (0.0,)  # per layer
    inner: Inner = Inner()
    endless: float = math.inf  # until it stops


def read(*argv: str) -> Config:
    values = flags.FlagValues()
    command_flags.define_config(values, Config())
    command_flags.parse(values, ["program", *argv])
    return command_flags.read_config(values, Config())


def test_defaults_are_those_of_the_dataclass() -> None:
    assert read() == Config()


def test_every_kind_of_field_is_read() -> None:
    config = read(
        "--size=7",
        "--nowide",
        "--layers=1,2,3",
        "--decay=1e-4",
        "--inner.rate=2",
        "--inner.colour=a,b",
    )
    assert config == Config(7, False, (1, 2, 3), (1e-4,), Inner(2.0, "a,b"))
    assert isinstance(config.inner.rate, float)
    assert read("--layers=").layers == ()


def test_only_what_is_infinite_by_default_may_be_so() -> None:
    assert read("--endless=3").endless == 3
    assert read("--endless=inf").endless == math.inf
    values = flags.FlagValues()
    command_flags.define_config(values, Config(endless=3.0))  # as a preset has it
    command_flags.parse(values, ["program", "--endless=inf"])
    assert command_flags.read_config(values, Config(endless=3.0)).endless == math.inf
    flags.DEFINE_float("other", None, "", flag_values=values)
    with pytest.raises(flags.Error, match="flag --other is inf, must be finite"):
        command_flags.parse(values, ["program", "--other=inf"])


def test_help_comes_from_the_comments() -> None:
    assert command_flags.meanings(Config) == {
        "size": "S, # of things",
        "wide": "",
        "layers": "first second",
        "decay": "per layer",
        "inner": "",
        "endless": "until it stops",
    }
    assert command_flags.meanings(Inner) == {
        "rate": "step size",
        "colour": "of the ball",
    }


@dataclasses.dataclass(frozen=True)
class Larger(Inner):
    colour: str = "blue"  # of another ball
    weight: float = 1.0  # kg


def test_what_is_inherited_keeps_its_help() -> None:
    assert command_flags.meanings(Larger) == {
        "rate": "step size",
        "colour": "of another ball",
        "weight": "kg",
    }


@pytest.mark.parametrize("name", registry.names())
def test_every_hyperparameter_has_a_type_and_a_meaning(name: str) -> None:
    config = registry.module(name).Config()
    values = flags.FlagValues()
    command_flags.define_config(values, config)
    assert set(values) == set(command_flags.flat(config))
    assert [x for x in values if not values[x].help] == []


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--siz=3", "unknown flag --siz; did you mean --size?"),
        ("--rate=3", "did you mean --inner.rate?"),
        ("--xyzzy=3", "unknown flag --xyzzy"),
        ("--size=3.5", "--size"),
        ("--layers=3,b", "--layers"),
        ("--inner.rate=nan", "--inner.rate is not a number"),
        ("--inner.rate=inf", "--inner.rate is inf, must be finite"),
        ("--inner.rate=-1e39", "--inner.rate is -1e+39, must be finite"),
        ("--decay=1,nan", "--decay is not a number"),
        ("--endless=nan", "--endless is not a number"),
        ("--layers=3,0", "--layers has a size of 0"),
        ("--layers=3000000000", "--layers is 3000000000, must be at most 2147483647"),
        ("--size=2147483648", "--size is 2147483648, must be at most 2147483647"),
        ("--inner.rate", "--inner.rate"),
        ("size", "unexpected argument 'size'"),
        ("--flagfile=/nowhere", "/nowhere"),
    ],
)
def test_bad_flags_are_named(argument: str, words: str) -> None:
    with pytest.raises(flags.Error) as error:
        read(argument)
    assert words in str(error.value)


def test_a_flagfile_is_read_where_it_stands(tmp_path: Any) -> None:
    path = tmp_path / "flags"
    path.write_text("# a comment\n--size=5\n--nowide\n")
    assert read(f"--flagfile={path}", "--size=6") == Config(size=6, wide=False)
    assert read("--size=6", f"--flagfile={path}") == Config(size=5, wide=False)


def test_a_binary_flagfile_is_named(tmp_path: Any) -> None:
    path = tmp_path / "flags"
    path.write_bytes(b"\x7fELF\xff")
    with pytest.raises(flags.Error, match=rf"--flagfile={path} is not UTF-8 text"):
        read(f"--flagfile={path}")


def test_flat_and_unflat_are_inverse_also_through_json() -> None:
    config = Config(9, False, (4, 5), (), Inner(0.1 + 0.2, "blue"))
    fields = command_flags.flat(config)
    assert fields["inner.rate"] == 0.1 + 0.2
    assert command_flags.unflat(Config(), fields) == config
    assert command_flags.unflat(Config(), json.loads(json.dumps(fields))) == config


@pytest.mark.parametrize(
    "change", [{"size": "many"}, {"extra": 1}, {"wide": 7}, {"layers": [1.5]}]
)
def test_unflat_refuses_what_is_no_config(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        command_flags.unflat(Config(), command_flags.flat(Config()) | change)
    fields = command_flags.flat(Config())
    del fields["inner.rate"]
    with pytest.raises(ValueError, match=r"inner\.rate"):
        command_flags.unflat(Config(), fields)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (flags.Error("no such\nflag"), 2),
        (ValueError("horizon is 0"), 1),
        (OSError(28, "No space left on device"), 1),
        (FloatingPointError("step 3"), 1),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory\nallocating 3 bytes"), 1),
        (MemoryError(), 1),
    ],
)
def test_a_command_complains_in_one_line(
    error: Exception,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(argv: Sequence[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        command_flags.command(main)
    assert stop.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


def test_a_failed_write_in_the_background_is_not_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What nobody waits for any more, asyncio would report: a traceback for each."""

    async def fail() -> None:
        raise OSError(28, "No space left on device")

    async def abandon() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task

    def main(argv: Sequence[str]) -> None:
        asyncio.run(abandon())
        gc.collect()
        raise OSError("the disk is full")

    with pytest.raises(SystemExit):
        command_flags.command(main)
    assert caplog.text == ""


def test_a_programming_error_keeps_its_traceback() -> None:
    def main(argv: Sequence[str]) -> None:
        assert argv is sys.argv
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        command_flags.command(main)


def test_settings_of_what_is_not_done_are_not_in_use() -> None:
    names = ["num_updates", "rate", "a.num_updates", "a.rate", "a.b.rate"]
    for ours, below, expected in ((2, 2, names), (2, 0, [*names[:3], names[4]])):
        fields = {**dict.fromkeys(names, 0.5), names[0]: ours, names[2]: below}
        assert command_flags.in_use(fields) == expected


def test_settings_that_are_in_use() -> None:
    """A field `name` says which beside it are; a last part means one of those."""
    names = ["model.name", "model.ensemble.batch_size", "model.bnn.batch_size", "a"]
    for chosen, expected in (("ensemble", [0, 1, 3]), ("bnn", [0, 2, 3])):
        fields = dict.fromkeys(names) | {"model.name": chosen}
        assert command_flags.in_use(fields) == [names[i] for i in expected]


def test_an_index_may_be_0_and_a_size_may_not() -> None:
    default = bnn.Config()
    values = flags.FlagValues()
    command_flags.define_config(values, default)
    command_flags.parse(values, ["run", "--angles=0,2"])
    assert command_flags.read_config(values, default).angles == (0, 2)
    command_flags.parse(values, ["run", "--hidden_sizes=8,0"])
    with pytest.raises(flags.Error, match="--hidden_sizes has a size of 0"):
        command_flags.read_config(values, default)
