"""Trains many runs: seeds, hyperparameters, environments; leaves one ledger of them.

    python -m experiments.sweep --grid learning_rate=3e-4,1e-3 --num_seeds=5
    python -m experiments.sweep --search=random --sample init_std=0.2:1 --num_samples=8
    python -m experiments.sweep --search=optuna --sample learning_rate=1e-4:1e-2:log
    python -m experiments.sweep --search=pbt --sample learning_rate=1e-4:1e-2:log

Takes all flags of experiments.run as the base of every run.  Runs that differ in seeds
and float hyperparameters are one compiled program; others are programs of their own.
The same command goes on where a sweep was stopped or killed; with --sweep_dir=FOLDER
and more values, seeds or steps it extends that sweep.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import run
from experiments.reports import page as report_page
from experiments.reports import results
from experiments.runs import command_flags, files, ledger, paths, progress, run_folder
from experiments.sweeps import domains, hosts, launchers, programs
from mbrl_jax import envs
from mbrl_jax.training import population

SEARCHES = ("grid", "random", "optuna", "pbt")
NO_RETURN = "there is no finite return"
OF_THIS_START = {*hosts.FLAGS, "flagfile", "help", "plan_only", "sweep_dir"}


def main(argv: Sequence[str]) -> None:
    values, config = run.parse([argv[0], *_stored(argv), *argv[1:]], define)
    if values.help:
        print(help_text(values, config))
        return
    if values.run_dir or values.ledger:
        raise flags.Error(
            "a sweep has a --sweep_dir, in place of --run_dir and --ledger"
        )
    if values.init_from:
        raise flags.Error("--init_from is for experiments.run, not for a sweep")
    base = run.record_of(values, config)
    wanted, tried = programs_of(values, config, base)
    named = _named(argv)
    for record in (base, *wanted):
        _check_env(record, named)
    folder = paths.expanded(values.sweep_dir or _default_folder(base, wanted, tried))
    host = hosts.join(values)
    if host.num_hosts > 1 and (values.launcher != "local" or values.search == "optuna"):
        raise flags.Error("several processes take no --launcher and no optuna")
    with _locked(folder) if host.number == 0 else contextlib.nullcontext():
        if host.number == 0:
            run_folder.write_json(folder / "sweep.json", {"flags": _given(values)})
        if values.search == "optuna":
            _optuna(values, base, tried, folder)
        else:
            _programs(values, wanted, folder, host, named)
        if host.number == 0 and not values.plan_only:
            _conclude(folder)


def define(values: flags.FlagValues) -> None:
    run.define_run(values)
    define_sweep(values)
    command_flags.define_config(values, population.Config(), "population.")
    hosts.define(values)


def define_sweep(values: flags.FlagValues) -> None:
    """The flags of a sweep that are not those of a run."""

    def several(name: str, meaning: str) -> None:
        flags.DEFINE_multi_string(name, [], meaning, flag_values=values)

    def integer(name: str, default: int, meaning: str, least: int) -> None:
        flags.DEFINE_integer(name, default, meaning, least, flag_values=values)

    def string(name: str, default: str, meaning: str) -> None:
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    several("grid", "NAME=VALUE,VALUE: every combination is trained; may come again")
    string("grid_file", "", "JSON file {NAME: [VALUE, VALUE]}")
    several("sample", "NAME=LOW:HIGH[:log] or NAME=VALUE,VALUE, to search in")
    meaning = "all of --grid, or also a search in --sample"
    flags.DEFINE_enum("search", "grid", SEARCHES, meaning, flag_values=values)
    integer("num_samples", 16, "drawn by random, tried by optuna", 1)
    integer("num_at_once", 4, "trials of optuna in one program", 1)
    string("sweep_dir", "", "folder; default: one in sweeps/, named by what is asked")
    meaning = "what runs the programs: processes here, Ray tasks, Slurm jobs"
    flags.DEFINE_enum("launcher", "local", launchers.NAMES, meaning, flag_values=values)
    integer("num_workers", 1, "programs at once; local and submitit", 1)
    integer("max_retries", 2, "of a program whose process died", 0)
    meaning = "per device; larger programs are cut; 0: what is free"
    flags.DEFINE_float("memory_gb", 0.0, meaning, 0, flag_values=values)
    flags.DEFINE_boolean("plan_only", False, "print the plan", flag_values=values)
    string("ray_address", "", "of a cluster; default: a Ray of its own, on loopback")
    flags.DEFINE_float("num_cpus", 1, "per task of Ray", 0, flag_values=values)
    flags.DEFINE_float(
        "num_gpus", 0, "per task of Ray; 0 may hide them", 0, flag_values=values
    )
    several("slurm", "NAME=VALUE: a parameter of submitit, as timeout_min=60")
    string("cluster", "", "of submitit; local: without Slurm")


def help_text(values: flags.FlagValues, config: Any) -> str:
    own, machines = flags.FlagValues(), flags.FlagValues()
    define_sweep(own)
    hosts.define(machines)
    tuning = command_flags.flat(population.Config())
    return "\n".join(
        [
            __doc__ or "",
            "Flags of a sweep:",
            command_flags.usage(values, own),
            "\nSeveral processes, on one host each:",
            command_flags.usage(values, machines),
            "\nPopulation-based training, for --search=pbt:",
            command_flags.usage(values, [f"population.{name}" for name in tuning]),
            f"\nFlags of a run of {values.algorithm}: experiments.run --help",
        ]
    )


def programs_of(
    values: flags.FlagValues, config: Any, base: programs.Record
) -> tuple[list[programs.Record], dict[str, domains.Domain]]:
    """The programs that are asked for, and the domains of a search.

    Raises ValueError for what cannot be.
    """
    grid = domains.grid(config, values.grid)
    if values.grid_file:
        for name, more in domains.grid_file(
            config, paths.expanded(values.grid_file)
        ).items():
            domains.add(grid, name, more)
    tried = domains.domains(config, values.sample)
    if both := sorted(grid.keys() & tried.keys()):
        raise ValueError(f"{both[0]} is in --grid and in --sample")
    if bool(tried) != (values.search != "grid"):
        raise ValueError("--sample and --search={random,optuna,pbt} need each other")
    if values.search == "optuna":
        if grid:
            raise ValueError("--search=optuna takes no --grid: put it into --sample")
        return [], tried
    points = programs.product(grid)
    if values.search == "random":
        points = [
            {**point, **drawn}
            for drawn in _draws(tried, values.seed, values.num_samples)
            for point in points
        ]
    if values.search == "pbt":
        base = {**base, "population": _population(values, tried)}
    elif not (grid or tried) and values.num_seeds == 1:
        raise ValueError("nothing to sweep: give --grid, --sample or --num_seeds")
    seeds = range(values.seed, values.seed + values.num_seeds)
    runs = [{"seed": seed, **point} for point in points for seed in seeds]
    return programs.grouped(base, config, runs), tried


def _draws(
    tried: dict[str, domains.Domain], seed: int, num_samples: int
) -> Iterator[dict[str, Any]]:
    """Settings at random; the first ones are the same however many there are."""
    for i in range(num_samples):
        rng = np.random.default_rng([seed, i])
        yield {name: domains.draw(rng, domain) for name, domain in tried.items()}


def _population(
    values: flags.FlagValues, tried: dict[str, domains.Domain]
) -> dict[str, Any]:
    for name, domain in tried.items():
        if not isinstance(domain, population.Range):
            raise ValueError(f"{name} is not a range: pbt tunes floats only")
    config = command_flags.read_config(values, population.Config(), "population.")
    ranges = {name: list(domain) for name, domain in tried.items()}
    return {"ranges": ranges, "config": command_flags.flat(config)}


def _programs(
    values: flags.FlagValues,
    wanted: list[programs.Record],
    folder: Path,
    host: hosts.Host,
    named: set[str],
) -> None:
    """Prepares the programs that are not there, and runs what is not finished."""
    runs = folder / "programs"
    if host.number == 0:
        schedule = {name: values[name].value for name in run_folder.SCHEDULE}
        for path, old in programs.prepared(runs).items():
            record = run_folder.rescheduled(path, old, schedule)
            if record != old:
                run_folder.write(path, record)
        known = [
            ledger.run_id(record, row)
            for record in programs.prepared(runs).values()
            for row in run_folder.rows(record)
        ]
        limit = int(values.memory_gb * 1e9)
        for record in programs.missing(wanted, set(known)):
            parts, needs = programs.fitting(
                record, limit, in_process=host.num_hosts > 1
            )
            for part in programs.spread(parts, host.num_hosts):
                print(programs.described(part, needs), flush=True)
                if not values.plan_only:
                    programs.prepare(programs.next_name(runs), part)
    if values.plan_only:
        return
    hosts.wait(host, "the plan is made")
    jobs = []
    for path, record in programs.prepared(runs).items():
        if not run_folder.finished(path):
            _check_env(record, named)
            env = record["env"] if record["env"] in named else ""
            book = (folder / "ledger.jsonl").resolve()
            jobs.append(launchers.Job(path.resolve(), book, env))
    print(f"{folder}: {len(jobs)} programs to run", flush=True)
    if host.num_hosts > 1:
        hosts.execute(host, jobs)
        hosts.wait(host, "all programs have ended")
    elif jobs:
        _launch(jobs, values)


def _named(argv: Sequence[str]) -> set[str]:
    """The modules of environments that this command line names, not a folder."""
    values = flags.FlagValues()
    define(values)
    command_flags.parse(values, argv, known_only=True)
    found = {values.env}
    for text in (*values.grid, *values.sample):
        name, _, said = text.partition("=")
        found |= set(said.split(",")) if name == "env" else set()
    if values.grid_file:
        content = run_folder.read_json(paths.expanded(values.grid_file))
        found |= {str(name) for name in content.get("env") or ()}
    return {name for name in found if envs.names_a_module(name)}


def _check_env(record: programs.Record, named: set[str]) -> None:
    env = record["env"]
    if envs.names_a_module(env) and env not in named:
        raise ValueError(
            f"the sweep names a module for its environment, which is only imported if "
            f"you name it too: --env={env}, or --grid env=..."
        )


def _launch(jobs: list[launchers.Job], values: flags.FlagValues) -> None:
    """Runs jobs, again and again those that die and do not say why."""
    options = {name: values[name].value for name in launchers.OPTIONS}
    # Ray tries again by itself
    retries = 0 if values.launcher == "ray" else values.max_retries
    for attempt in range(retries + 1):
        if attempt:
            progress.report(f"again: {len(jobs)} whose process died")
        died = []
        with contextlib.closing(
            launchers.launcher(values.launcher)(jobs, options)
        ) as ended:
            for job, reason in ended:
                said = launchers.outcome(job)
                progress.report(f"{job.folder.name}: {said or reason}")
                if not said:
                    died.append(job)
        jobs = died
        if not jobs:
            return


def _optuna(
    values: flags.FlagValues,
    base: programs.Record,
    tried: dict[str, domains.Domain],
    folder: Path,
) -> None:
    from experiments.runs import jax_settings
    from experiments.sweeps import search

    if values.plan_only:
        print(f"{values.num_samples} trials, {values.num_at_once} at once")
        return
    jax_settings.apply(values.precision, values.compilation_cache)
    jax_settings.use_cores(values.num_at_once * values.num_seeds)
    found = search.search(
        base,
        tried,
        num_trials=values.num_samples,
        trials_at_once=values.num_at_once,
        num_seeds=values.num_seeds,
        folder=folder,
        ledger_path=folder / "ledger.jsonl",
        report=progress.report,
    )
    print(found)


def _conclude(folder: Path) -> None:
    """Prints the best and what failed, writes the report; exit code 1 if any failed."""
    book = folder / "ledger.jsonl"
    lines = ledger.read(book) if book.exists() else []
    if not lines:
        raise OSError(f"no run has come to an end; see {folder}/programs/*/log.txt")
    for row in results.rows(lines, {})[:10]:
        print(
            f"  {row.iqm.value:10.5g}  {len(row.lines)} runs  {row.method}  {row.env}"
        )
    lost = [line for line in lines if results.lost(line)]
    for reason in dict.fromkeys(line.get("reason") or NO_RETURN for line in lost):
        print(f"  failed: {reason}")
    page = folder / "report.html"
    files.write_text(page, report_page.html(lines, results.read_references(None)))
    failed = {line["run"] for line in lost}
    waiting = _unfinished(folder / "programs") - failed
    if waiting:
        print(f"  not finished: {len(waiting)}; the same command goes on")
    runs = {line["run"] for line in lines} | waiting
    num_good = len(runs - failed - waiting)
    print(f"{num_good} of {len(runs)} runs are good; {page}")
    if num_good < len(runs):
        sys.exit(1)


def _unfinished(folder: Path) -> set[str]:
    """The runs, as the ledger names them, of programs that have not come to an end."""
    return {
        ledger.run_id(record, row)
        for path, record in programs.prepared(folder).items()
        if not run_folder.finished(path)
        for row in run_folder.rows(record)
    }


def _stored(argv: Sequence[str]) -> list[str]:
    """The flags of the sweep in --sweep_dir, if there is one already."""
    known = flags.FlagValues()
    flags.DEFINE_string("sweep_dir", "", "", flag_values=known)
    command_flags.parse(known, argv, known_only=True)
    path = paths.expanded(known.sweep_dir) / "sweep.json"
    if not (known.sweep_dir and path.exists()):
        return []
    given = run_folder.read_json(path).get("flags", [])
    if not isinstance(given, list) or not all(isinstance(x, str) for x in given):
        raise ValueError(f"{path}: flags is no list of texts")
    return given


def _given(values: flags.FlagValues) -> list[str]:
    """The flags that were given, now or when the sweep was started."""
    given = [values[x] for x in values if values[x].present and x not in OF_THIS_START]
    texts = [text for flag in given for text in flag.serialize().splitlines()]
    return [*dict.fromkeys(texts)]  # the same command again adds nothing


def _default_folder(
    base: programs.Record,
    wanted: list[programs.Record],
    tried: dict[str, domains.Domain],
) -> str:
    """The same for the same sweep, so that it goes on."""
    asked = [run_folder.identity(record) for record in wanted]
    name = ledger.digest([run_folder.identity(base), asked, tried])[:8]
    return f"sweeps/{paths.of_run(base)}-{name}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """For this process alone.  SIGTERM ends the programs as Ctrl-C does, in order."""
    files.make_folder(folder)
    in_use = f"the sweep {folder} is running in another process"
    with files.locked(folder / ".lock", in_use):
        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # in the background
            numbers.append(signal.SIGINT)
        before = [signal.signal(x, signal.default_int_handler) for x in numbers]
        try:
            yield
        except KeyboardInterrupt:
            progress.report(f"stopped; --sweep_dir={folder} goes on")
            raise
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


if __name__ == "__main__":
    command_flags.command(main)
