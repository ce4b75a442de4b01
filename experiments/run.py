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

import jax
from absl import flags

from experiments.reports import products
from experiments.runs import (
    command_flags,
    faults,
    heritage,
    jax_settings,
    ledger,
    memory,
    metrics_log,
    paths,
    presets,
    progress,
    registry,
    renamed,
    run_folder,
)
from mbrl_jax import envs
from mbrl_jax.ops import sharding
from mbrl_jax.training import checkpoints, train

MANY = 1024  # cores that a machine might have


def main(argv: Sequence[str]) -> None:
    values, config = parse(argv)
    if values.help:
        print(help_text(values, config))
        return
    record = record_of(values, config)
    jax_settings.apply(values.precision, values.compilation_cache)
    num_runs = len(run_folder.rows(record))
    if values.shard and num_runs > 1:
        raise flags.Error("--shard is for one run: several share the devices anyway")
    jax_settings.use_cores(MANY if values.shard else num_runs)
    run = registry.assemble(record)
    memory.check(record)
    saved = paths.expanded(values.run_dir) / "checkpoints"
    begun = values.run_dir and checkpoints.steps(saved)
    inherited = None
    if record.get("init_from") and not begun:
        inherited = heritage.of(record, run, progress.note)
    with (
        run_folder.opened(values.run_dir, record, values.wait) as folder,
        jax.set_mesh(sharding.mesh()) if values.shard else contextlib.nullcontext(),
    ):
        book = paths.expanded(values.ledger or str(folder.parent / "ledger.jsonl"))
        if run_folder.finished(folder):
            print(f"{folder} is finished; a larger --num_steps extends it")
            checkpoints.tidy(folder / "checkpoints")
            ledger.add(book, ledger.lines(folder))  # in case a kill came in between
            return
        run = run._replace(record=run_folder.read(folder))
        with _stop_signals() as should_stop:
            result = _train(folder, run, should_stop, book, inherited)
        run = run._replace(step=result.step, state=result.state)
        if should_stop():
            run_folder.write_status(folder, "stopped", step=run.step)
            print(f"stopped after step {run.step}; to go on: --run_dir={folder}")
            return
        missing = {}
        if values.pictures:
            progress.note("diagnostics and pictures ...")
            missing = products.make(folder, run, result.episodes)
        run_folder.write_status(folder, "finished", step=run.step, missing=missing)
        ledger.add(book, ledger.lines(folder))
        print(products.summary(folder))


def parse(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None] | None = None
) -> tuple[flags.FlagValues, Any]:
    """The flags, and the Config of the algorithm.  Raises flags.Error, ValueError.

    A flag that is not given is that of the run folder, or of the preset asked for.
    """
    define = define or define_run
    first = flags.FlagValues()
    define(first)
    command_flags.parse(first, argv, known_only=True)
    values = flags.FlagValues()
    define(values)
    name, known = first.algorithm, {}
    folder = paths.expanded(first.run_dir)
    if first.run_dir and (folder / "config.json").exists():
        known = run_folder.read(folder)
        if not first["env"].present:
            registry.check_env(folder, known["env"], None)
        name = name if first["algorithm"].present else known["algorithm"]
    elif first.preset:
        known = presets.record(name, first.env)
    for field in (*run_folder.IDENTITY, *run_folder.SCHEDULE):
        if field in known:
            values.set_default(field, known[field])
    config = registry.module(name).Config()
    if known and known["algorithm"] == name:
        config = _stored_config(config, known, folder)
    command_flags.define_config(values, config)
    command_flags.parse(values, argv)
    config = command_flags.read_config(values, config)
    if (teachers := getattr(config, "teachers", ())) and not known:
        values.set_default("env", registry.env_of(teachers))
    return values, config


def _stored_config(default: Any, known: run_folder.Record, folder: Path) -> Any:
    """That of a run folder, or of a preset.  ValueError, naming it, if it is none."""
    try:
        return command_flags.unflat(default, known["config"])
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error


def record_of(values: flags.FlagValues, config: Any) -> dict[str, Any]:
    """What the flags ask for; what else is known of a run is in its folder."""
    names = (*run_folder.IDENTITY, *run_folder.SCHEDULE)
    record = {name: values[name].value for name in names}
    record["config"] = command_flags.flat(config)
    if values.init_from:
        record["init_from"] = values.init_from
    folder = paths.expanded(values.run_dir)
    if values.run_dir and (folder / "config.json").exists():
        old = run_folder.read(folder)
        extras = (name for name in run_folder.EXTRAS if name in old)
        record = {**{name: old[name] for name in extras}, **record}
    return record


def define_run(values: flags.FlagValues) -> None:
    """The flags of a run that do not depend on the algorithm."""

    def integer(name: str, default: int, meaning: str) -> None:
        bounds = (run_folder.LEAST[name], run_folder.MOST[name])
        flags.DEFINE_integer(name, default, meaning, *bounds, flag_values=values)

    def string(name: str, default: str, meaning: str) -> None:
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    string("algorithm", "pets", "method to train")
    string("env", "cartpole_swingup", "environment to train in")
    flags.DEFINE_boolean(
        "preset",
        False,
        "the hyperparameters that worked for this algorithm and environment",
        flag_values=values,
    )
    integer("episode_length", 0, "steps; 0: the environment's own")
    integer("seed", 0, "of the first run")
    integer("num_seeds", 1, "runs trained together: seed, seed + 1, ...")
    integer("num_steps", 10, "iterations of the algorithm")
    integer("eval_every", 5, "steps between evaluations; 0: only at the end")
    integer("eval_episodes", 5, "per evaluation; 0: no evaluation")
    integer("checkpoint_every", 1, "steps between checkpoints")
    string("init_from", "", "run folder whose networks it starts from, as they fit")
    string("run_dir", "", "folder of the run; default: a new one in runs/")
    string("ledger", "", "file of results; default: ledger.jsonl beside the folder")
    flags.DEFINE_boolean(
        "shard", False, "share one run among all devices", flag_values=values
    )
    flags.DEFINE_boolean(
        "pictures", True, "learning curve, diagnostics, episode", flag_values=values
    )
    flags.DEFINE_boolean(
        "wait", False, "for the folder, if another process uses it", flag_values=values
    )
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
    define_run(common)
    algorithms = [f"  {name:<15} {registry.title(name)}" for name in registry.names()]
    environments = [*envs.names(), *envs.OTHERS]
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


def _train(
    folder: Path,
    run: registry.Run,
    should_stop: Callable[[], bool],
    book: Path,
    inherited: heritage.Heritage | None,
) -> train.Result:
    record = run.record
    with (
        progress.shown(record["num_steps"]) as (show, report),
        metrics_log.writer(folder) as write,
    ):
        compiled = jax_settings.compile_seconds()

        def log(step: int, metrics: dict[str, Any]) -> None:
            nonlocal compiled
            before, compiled = compiled, jax_settings.compile_seconds()
            write(step, {**metrics, "compile/seconds": compiled - before})
            show(step, metrics)

        begin = lambda state: state
        if inherited:
            begin = heritage.begin(inherited, folder, report)
        saved = checkpoints.steps(folder / "checkpoints")
        report(f"run folder {folder}" + (f", at step {saved[-1]}" if saved else ""))
        try:
            run_folder.write_status(folder, "running")
            return train.run(
                run.key,
                run.algorithm,
                run.env,
                record["num_steps"],
                hyperparameters=run.hyperparameters,
                eval_every=record["eval_every"],
                eval_episodes=record["eval_episodes"],
                folder=folder / "checkpoints",
                config=run_folder.identity(record),
                upgrade=renamed.checkpoint,
                checkpoint_every=record["checkpoint_every"],
                begin=begin,
                log=log,
                report=report,
                should_stop=should_stop,
            )
        except BaseException as error:
            reason = faults.line(error)
            trace = traceback.format_exc().splitlines()
            with contextlib.suppress(OSError):  # on a full disk
                run_folder.write_status(folder, "failed", reason=reason, trace=trace)
                ledger.add(book, ledger.lines(folder))
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
