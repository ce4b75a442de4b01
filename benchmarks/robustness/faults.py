"""Simulators and disks that fail while a run is going."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.robustness import bad_input, faulty, kills, tiny
from experiments.runs import run_folder
from mbrl_jax.training import checkpoints
from tests.experiments import run_test

ABOUT = (
    "simulators that raise, return the wrong thing, NaN, inf or 1e30, or stop "
    "answering, disks that are full or read-only: the run goes on, or ends in one "
    "line, with its reason in status.json where that can be written, and goes on from "
    "its last checkpoint once the fault is mended"
)
SCHEDULE = ("--num_steps=6", "--eval_every=3", "--eval_episodes=2", "--nopictures")
GOOD_STEPS = "22"  # of the simulator, in which two steps of the algorithms are done
DISK = """
mount -t tmpfs -o size="$3" none "$1" && cp -r "$2/." "$1" || exit 99
[ "$4" = full ] || mount -o remount,ro "$1" || exit 99
shift 4
"$@"
code=$?
cp -r "$MOUNTED/." "$KEPT"
exit $code
"""  # in a namespace of its own: no root is needed, and nothing stays mounted


def names() -> list[str]:
    return [*CASES]


def attempt(name: str, folder: Path) -> dict[str, Any]:
    own = folder / name.replace("/", "_")
    own.mkdir()
    failures = CASES[name](own, kills.surroundings(folder))
    if failures is None:
        return {"tried": 0, "failures": [], "note": "such a disk cannot be made here"}
    return {"tried": 1, "failures": failures}


def flags_of(algorithm: str, fault: str, folder: Path) -> list[str]:
    env = f"--env=benchmarks.robustness.faulty:{fault}"
    return [*tiny.arguments(algorithm), *SCHEDULE, env, f"--run_dir={folder}"]


def one_line(code: int | None, err: str) -> list[str]:
    """What is wrong with how a command complains, if anything."""
    lines = err.splitlines() or [""]
    errors = [x for x in lines if x.startswith("error: ")]
    progress = ("run folder", "step ", "error: ")
    if code != 1 or len(errors) != 1 or lines[-1] not in errors:
        return [f"exit code {code}, not one line of error: {err[-200:]}"]
    more = [x for x in lines if not x.startswith(progress)]
    return [f"also says {more[0]}"[:200]] if more else []


def breaks(fault: str, algorithm: str) -> Callable[[Path, dict[str, str]], list[str]]:
    def failures(folder: Path, environ: dict[str, str]) -> list[str]:
        arguments = flags_of(algorithm, fault, folder / "run")
        broken = {**environ, faulty.AFTER: GOOD_STEPS}
        process = run_test.start(*arguments, env=broken)
        _, err = process.communicate(timeout=kills.TIMEOUT)
        found = one_line(process.returncode, err)
        if not found:
            found += on_record(folder / "run", err)
        return found + goes_on(arguments, folder / "run", environ)

    return failures


def on_record(folder: Path, err: str) -> list[str]:
    """Whether status.json has the reason that was said."""
    status = run_folder.read_status(folder)
    said = err.splitlines()[-1].removeprefix("error: ")
    if (status["status"], status.get("reason")) != ("failed", said):
        return [f"status.json has {status}"[:200]]
    return []


def goes_on(
    arguments: Sequence[str], folder: Path, environ: dict[str, str]
) -> list[str]:
    """Whether the last good checkpoint is there and can be gone on with."""
    if not checkpoints.steps(folder / "checkpoints"):
        return ["there is no checkpoint left"]
    said = kills.run_to_its_end(arguments, folder, environ)
    return [f"it does not go on: {said}"] if said else []


def lies(fault: str, algorithm: str) -> Callable[[Path, dict[str, str]], list[str]]:
    def failures(folder: Path, environ: dict[str, str]) -> list[str]:
        arguments = flags_of(algorithm, fault, folder)
        said = kills.run_to_its_end(arguments, folder, environ)
        return [said] if said else []

    return failures


def is_silent(folder: Path, environ: dict[str, str]) -> list[str]:
    """The simulator does not answer: the second signal ends the run at once."""
    arguments = flags_of("sac", "silent", folder / "run")
    broken = {**environ, faulty.AFTER: GOOD_STEPS}
    process = run_test.start(*arguments, env=broken)
    run_test.wait_for_steps(process, folder / "run", 2)
    for wait in (5.0, 20.0):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
    if process.poll() is None:
        process.kill()
        return ["two signals do not end it"]
    _, err = process.communicate()
    wrong = ["a traceback"] if "Traceback" in err else []
    return wrong + goes_on(arguments, folder / "run", environ)


def is_refused(fault: str) -> Callable[[Path, dict[str, str]], list[str]]:
    """At the start, before there is a folder."""

    def failures(folder: Path, environ: dict[str, str]) -> list[str]:
        kind, told = bad_input.outcome("run", flags_of("sac", fault, folder))
        if kind != "refused" or len(told.splitlines()) != 1:
            return [f"{kind}: {told}"[:200]]
        return []

    return failures


def on_disk(
    command: Sequence[str], folder: Path, environ: dict[str, str], kind: str, size: str
) -> tuple[int, str, str] | None:
    """Runs a command where `folder` is a disk of that kind and size, with what was in
    it; what is there in the end is in it again.  None if there is no such disk here."""
    places = [folder.with_name(x) for x in ("before", "mounted", "kept")]
    before, mounted, kept = places
    folder.rename(before)
    mounted.mkdir()
    kept.mkdir()
    if not shutil.which("unshare"):
        return None
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", DISK, "sh", mounted, before, size, kind]
        + [x.replace(str(folder), str(mounted)) for x in command],
        cwd=kills.ROOT,
        env={**environ, "MOUNTED": str(mounted), "KEPT": str(kept)},
        capture_output=True,
        text=True,
        timeout=kills.TIMEOUT,
        check=False,
    )
    kept.rename(folder)
    shutil.rmtree(before)
    if done.returncode == 99 or "unshare" in done.stderr:
        return None
    return done.returncode, done.stdout, done.stderr


def finds_a_full_disk(folder: Path, environ: dict[str, str]) -> list[str] | None:
    disk = folder / "disk"
    disk.mkdir()
    arguments = [*tiny.arguments("sac"), "--num_steps=400", "--eval_every=0"]
    arguments += ["--nopictures", f"--run_dir={disk / 'run'}"]
    command = [sys.executable, "-m", "experiments.run", *arguments]
    ended = on_disk(command, disk, environ, "full", "600k")
    if ended is None:
        return None
    code, _, err = ended
    found = one_line(code, err)
    if not checkpoints.steps(disk / "run" / "checkpoints"):
        return [*found, "there is no checkpoint left"]
    last = f"--num_steps={checkpoints.steps(disk / 'run' / 'checkpoints')[-1] + 3}"
    return found + goes_on([*arguments, last], disk / "run", environ)


def cannot_write(command: str) -> Callable[[Path, dict[str, str]], list[str] | None]:
    """In a folder with a finished run that is to be gone on with, or evaluated."""

    def failures(folder: Path, environ: dict[str, str]) -> list[str] | None:
        disk = folder / "disk"
        arguments = [*tiny.arguments("sac"), *SCHEDULE, f"--run_dir={disk / 'run'}"]
        if said := kills.run_to_its_end(arguments, disk / "run", environ):
            return [f"without the fault: {said}"]
        own = arguments if command == "run" else [arguments[-1]]
        whole = [sys.executable, "-m", f"experiments.{command}", *own]
        more = ["--num_steps=8"] if command == "run" else []
        ended = on_disk([*whole, *more], disk, environ, "read-only", "9m")
        if ended is None:
            return None
        code, out, err = ended
        if command == "run":
            return one_line(code, err) + goes_on(arguments, disk / "run", environ)
        told = code == 0 and "return mean" in out and "only printed" in err
        return [] if told else [f"exit code {code}: {err[-200:]}"]

    return failures


CASES: dict[str, Callable[[Path, dict[str, str]], list[str] | None]] = {
    **{f"{fault}/sac": breaks(fault, "sac") for fault in faulty.BREAK},
    "step_raises/pets": breaks("step_raises", "pets"),
    **{f"{fault}/sac": lies(fault, "sac") for fault in faulty.LIE},
    "nan/pets": lies("nan", "pets"),
    **{f"all_readings/{x}": lies("all_readings", x) for x in ("sac", "ppo", "mbpo")},
    "silent/sac": is_silent,
    **{fault: is_refused(fault) for fault in faulty.REFUSED},
    "a full disk": finds_a_full_disk,
    "a read-only disk/run": cannot_write("run"),
    "a read-only disk/evaluate": cannot_write("evaluate"),
}
