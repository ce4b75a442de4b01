"""Trains an algorithm in an environment, and leaves a run folder.

    python -m experiments.run --algorithm=pets --env=cartpole_swingup

A run that was stopped or killed goes on with `--run_dir=FOLDER`; flags that are not
given are then those of the folder.
"""

import contextlib
import os
import signal
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from absl import flags

from experiments import (
    command_flags,
    jax_settings,
    metrics_log,
    products,
    progress,
    registry,
    run_folder,
)
from mbrl_jax import checkpoints, envs, train

MAX_SEED = 2**31 - 1


def main(argv: Sequence[str]) -> None:
    values, config = parse(argv)
    if values.help:
        print(help_text(values, config))
        return
    jax_settings.apply(values.precision, values.compilation_cache)
    names = (*run_folder.IDENTITY, *run_folder.SCHEDULE)
    record = {name: values[name].value for name in names}
    record["config"] = command_flags.flat(config)
    run = registry.assemble(record)
    with run_folder.opened(values.run_dir, record) as folder:
        if _finished(folder, values.num_steps):
            print(f"{folder} is finished; a larger --num_steps extends it")
            return
        with _stop_signals() as should_stop:
            result = _train(folder, run, should_stop)
        run = run._replace(step=result.step, state=result.state)
        if should_stop():
            run_folder.write_status(folder, "stopped", step=run.step)
            print(f"stopped after step {run.step}; to go on: --run_dir={folder}")
            return
        progress.note("diagnostics and pictures ...")
        missing = products.make(folder, run, result.episodes)
        run_folder.write_status(folder, "finished", step=run.step, missing=missing)
        print(products.summary(folder))


def parse(argv: Sequence[str]) -> tuple[flags.FlagValues, Any]:
    """The flags, and the Config of the algorithm.  Raises flags.Error, ValueError."""
    first = flags.FlagValues()
    define(first)
    command_flags.parse(first, argv, known_only=True)
    values = flags.FlagValues()
    define(values)
    name, old = first.algorithm, None
    folder = Path(first.run_dir).expanduser()
    if first.run_dir and (folder / "config.json").exists():
        old = run_folder.read(folder)
        for field in (*run_folder.IDENTITY, *run_folder.SCHEDULE):
            values.set_default(field, old[field])
        name = name if first["algorithm"].present else old["algorithm"]
    config = registry.module(name).Config()
    if old and old["algorithm"] == name:
        config = command_flags.unflat(config, old["config"])
    command_flags.define_config(values, config)
    command_flags.parse(values, argv)
    return values, command_flags.read_config(values, config)


def define(values: flags.FlagValues) -> None:
    """The flags of a run that do not depend on the algorithm."""

    def integer(name: str, default: int, meaning: str, least: int) -> None:
        flags.DEFINE_integer(name, default, meaning, least, flag_values=values)

    def string(name: str, default: str, meaning: str) -> None:
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    string("algorithm", "pets", "method to train")
    string("env", "cartpole_swingup", "environment to train in")
    flags.DEFINE_integer("seed", 0, "of the first run", 0, MAX_SEED, flag_values=values)
    integer("num_seeds", 1, "runs trained together: seed, seed + 1, ...", 1)
    integer("num_steps", 10, "iterations of the algorithm", 1)
    integer("eval_every", 5, "steps between evaluations; 0: only at the end", 0)
    integer("eval_episodes", 5, "per evaluation; 0: no evaluation", 0)
    integer("checkpoint_every", 1, "steps between checkpoints", 1)
    string("run_dir", "", "folder of the run; default: a new one in runs/")
    flags.DEFINE_enum(
        "precision",
        "fast",
        jax_settings.PRECISIONS,
        "fast: the device's default; highest: float32 throughout; x64: float64",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "compilation_cache", True, "keep compiled programs on disk", flag_values=values
    )
    string("flagfile", "", "file with more flags, one per line")
    flags.DEFINE_boolean("help", None, "show this text", flag_values=values)


def help_text(values: flags.FlagValues, config: Any) -> str:
    common = flags.FlagValues()
    define(common)
    algorithms = [f"  {name:<15} {registry.title(name)}" for name in registry.names()]
    environments = [*envs.names(), "brax/NAME[/BACKEND]", "gymnasium/ID"]
    own = command_flags.flat(config)
    indent: Any = {"initial_indent": "  ", "subsequent_indent": "  "}
    return "\n".join(
        [
            __doc__ or "",
            "Algorithms:",
            *algorithms,
            "\nEnvironments:",
            textwrap.fill(", ".join(environments), 88, **indent),
            "\nFlags (--noNAME for false):",
            command_flags.usage(values, common),
            f"\nFlags of {values.algorithm}:",
            command_flags.usage(values, own),
        ]
    )


def _finished(folder: Path, num_steps: int) -> bool:
    if not (folder / "status.json").exists():
        return False
    status = run_folder.read_json(folder / "status.json")
    return status.get("status") == "finished" and status.get("step", 0) >= num_steps


def _train(
    folder: Path, run: registry.Run, should_stop: Callable[[], bool]
) -> train.Result:
    record = run.record
    with (
        progress.shown(record["num_steps"]) as (show, report),
        metrics_log.writer(folder) as write,
    ):

        def log(step: int, metrics: dict[str, Any]) -> None:
            write(step, metrics)
            show(step, metrics)

        saved = checkpoints.steps(folder / "checkpoints")
        report(f"run folder {folder}" + (f", at step {saved[-1]}" if saved else ""))
        try:
            run_folder.write_status(folder, "running")
            return train.run(
                run.key,
                run.algorithm,
                run.env,
                record["num_steps"],
                eval_every=record["eval_every"],
                eval_episodes=record["eval_episodes"],
                folder=folder / "checkpoints",
                config=run_folder.identity(record),
                checkpoint_every=record["checkpoint_every"],
                log=log,
                report=report,
                should_stop=should_stop,
            )
        except BaseException as error:
            reason = str(error) or type(error).__name__
            trace = traceback.format_exc().splitlines()
            with contextlib.suppress(OSError):  # on a full disk
                run_folder.write_status(folder, "failed", reason=reason, trace=trace)
            raise


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT came.  The first asks, the second kills."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)
        text = f"{signal.Signals(number).name}: finishing this step; again: at once\n"
        os.write(2, text.encode())  # print is not safe in a handler

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    command_flags.command(main)
