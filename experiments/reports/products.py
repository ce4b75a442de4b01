"""What a finished run leaves besides its state: diagnostics, pictures, a summary."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments.reports import animation, plots
from experiments.runs import faults, metrics_log, registry, run_folder
from mbrl_jax.models import diagnostics
from mbrl_jax.rollout import Episode
from mbrl_jax.types import Array, PyTree


def make(folder: Path, run: registry.Run, episodes: Episode | None) -> dict[str, str]:
    """Makes everything that can be made; says why, where something cannot.

    `episodes` are those of the last evaluation.  A failure does not take the others
    along: a machine without a display can train.
    """

    def diagnose(path: Path) -> None:
        run_folder.write_json(folder / "diagnostics.json", _diagnosis(run, episodes))
        plots.diagnostics(folder, path)

    makers: dict[str, Callable[[Path], None]] = {
        "diagnostics.png": diagnose,
        "learning_curve.png": lambda path: plots.learning_curve([folder], path),
        "episode.gif": lambda path: animation.episode(run, path),
    }
    if animation.is_foreseen(run):
        makers["foreseen.gif"] = lambda path: animation.foreseen(run, path)
    missing = {}
    for name, maker in makers.items():
        try:
            maker(folder / name)
        except Exception as error:  # graphics fail in many ways
            missing[name] = faults.line(error)
    return missing


def summary(folder: Path) -> str:
    """What came out of a finished run, and where it is."""
    record = run_folder.read(folder)
    status = run_folder.read_status(folder)
    lines = metrics_log.read(folder, len(run_folder.rows(record)), ("env_steps",))
    last = lines[-1]
    seconds = sum(
        x for line in lines for name, x in line.items() if name[:5] == "time/"
    )
    rows = [
        ("algorithm", record["algorithm"]),
        ("environment", record["env"]),
        ("steps", f"{last['step']} in {seconds:.0f} s"),
        ("env steps", _text(last["env_steps"])),
    ]
    for name, value in last.items():
        if name.startswith(("episode/", "eval/")):
            rows.append((name.replace("/", " ").replace("_", " "), _text(value)))
    rows.append(("run folder", str(folder)))
    pictures = "learning_curve.png", "diagnostics.png", "episode.gif", "foreseen.gif"
    for name in pictures:
        why = status["missing"].get(name)
        if not why and not (folder / name).exists():
            continue  # not asked for
        text = f"none: {why}" if why else str(folder / name)
        rows.append((name.partition(".")[0].replace("_", " "), text))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


def _text(value: float | list[float | None] | None) -> str:
    """A number, or the mean and the range over seeds; null was not finite."""
    values = np.asarray(value, float)
    if not values.ndim:
        return f"{values:.5g}"
    good = values[np.isfinite(values)]
    if not good.size:
        return "nan over all seeds"
    lost = (
        f", without {values.size - good.size} not finite"
        if good.size < values.size
        else ""
    )
    return f"{good.mean():.5g} ({good.min():.5g} to {good.max():.5g} over seeds{lost})"


def _diagnosis(run: registry.Run, episodes: Episode | None) -> dict[str, Array]:
    """The curves and figures of `diagnostics.diagnose`, for each seed."""
    if episodes is None:
        raise ValueError("there is no evaluation")

    def diagnose(
        varied: registry.Floats, state: PyTree, episodes: Episode
    ) -> dict[str, Array]:
        predict = run.algorithm(varied).predict
        if predict is None:
            raise ValueError("there is no model")
        return diagnostics.diagnose(
            run.env, lambda obs, action: predict(state, obs, action), episodes
        )

    batched = jax.vmap(diagnose) if run.key.ndim else diagnose
    return jax.device_get(jax.jit(batched)(run.hyperparameters, run.state, episodes))
