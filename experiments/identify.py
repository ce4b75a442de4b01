"""Fits named physical parameters of a simulator to recorded episodes.

    python -m experiments.identify --env=pendulum --parameters=mass,length \\
        --num_episodes=10 --noise=0.01 --output=FOLDER
    python -m experiments.identify --env=brax/inverted_pendulum --num_steps=23 \\
        --horizon=7 --noise=0.001 --parameters=link.inertia.mass.1,dof.damping.1 \\
        --output=FOLDER

--env: an environment of the project's own with equations of motion, or brax/NAME on its
generalized backend, observed as positions and velocities of its joints.
--parameters: as in the simulator, such as mass, links.masses.0, link.inertia.mass.1 (a
wrong name is answered with the right ones); mass=1.2 sets the true value, or with
--data that around which the first guess is.

The episodes are made here, by random actions from the true parameters, and noise is
added; or they are read from --data, a .npz with obs [E, T + 1, O] and action [E, T, A].
The fit starts at the simulator's values, each wrong by a random factor.  Windows in
which a joint comes near its stop are left out.

What the recordings cannot tell is `unknown`.  If the residuals are not independent
noise, the simulator does not explain the recordings, and everything is.

Writes identification.json, in which null is infinite or unknown, and .png to --output.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.reports import plots
from experiments.runs import (
    command_flags,
    files,
    jax_settings,
    paths,
    recordings,
    run_folder,
)
from mbrl_jax.envs import systems
from mbrl_jax.gradients import identification
from mbrl_jax.types import Array

NUM_FITS = 4
MOST_MISFIT = 5.0


class Found(NamedTuple):
    fit: identification.Fit
    recorded: np.ndarray  # [W, H + 1, O]
    simulated: np.ndarray  # [W, H + 1, O]
    noise: np.ndarray  # [O] std
    kept: np.ndarray  # [W] which of all windows; those of an episode are E apart
    num_windows: int  # with those that were left out
    misfit: float


def main(argv: Sequence[str]) -> None:
    values = _flags()
    if command_flags.parse_or_help(values, argv, __doc__, required="env"):
        return
    for name in ("parameters", "output"):
        if not values[name].value:
            raise flags.Error(f"--{name} is needed")
    jax_settings.apply("x64")
    names, given = _parameters(values.parameters)
    source = recordings.make_source(values.env)
    true = systems.constants(source.system.parameters, names) | given
    if wrong := [name for name, x in true.items() if not 0 < x < np.inf]:
        raise ValueError(
            f"{wrong[0]} is {float(true[wrong[0]])}, and only positive parameters can "
            f"be fitted; --parameters={wrong[0]}=VALUE sets it"
        )
    noise_key, guess_key = jax.random.split(jax.random.key(values.seed))
    if values.data:
        obs, action = recordings.read(paths.expanded(values.data), source)
    else:
        shape = (values.num_episodes, values.num_steps)
        made = (noise_key, source, true, shape, values.noise, values.push)
        obs, action = recordings.record(*made)
    factors = jax.random.uniform(guess_key, (len(true),), minval=-1.0, maxval=1.0)
    factors = jnp.exp(values.perturbation * factors)
    guess = {name: x * factors[i] for i, (name, x) in enumerate(true.items())}
    found = identify(source.system, guess, obs, action, values.horizon)
    report: dict[str, Any] = {
        **{name: values[name].value for name in ("env", "seed", "horizon")},
        "data": values.data or None,
        "num_episodes": obs.shape[0],
        "num_steps": action.shape[1],
        **{x: None if values.data else values[x].value for x in ("noise", "push")},
        **summary(found, guess, {} if values.data else true),
    }
    print(table(report), flush=True)  # before a disk that is full can take it away
    folder = paths.expanded(values.output)
    files.make_folder(folder)
    plots.save(figure(found, len(obs), values.env), folder / "identification.png")
    record = report | run_folder.surroundings()
    run_folder.write_json(folder / "identification.json", record)
    print(folder / "identification.png")


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("env", None, "the simulator", flag_values=values)
    meaning = "what is fitted; NAME=VALUE sets the truth, or what is guessed around"
    flags.DEFINE_list("parameters", None, meaning, flag_values=values)
    flags.DEFINE_string("output", None, "folder to write to", flag_values=values)
    meaning = ".npz of recorded episodes; default: they are made"
    flags.DEFINE_string("data", "", meaning, flag_values=values)
    meaning = "episodes that are made"
    flags.DEFINE_integer("num_episodes", 10, meaning, 1, flag_values=values)
    meaning = "steps of each"
    flags.DEFINE_integer("num_steps", 100, meaning, 1, flag_values=values)
    meaning = "std of the noise that is added to every observation, in its own units"
    flags.DEFINE_float("noise", 0.01, meaning, 0.0, flag_values=values)
    meaning = "random actions reach this fraction of their limits"
    flags.DEFINE_float("push", 1.0, meaning, 0.0, flag_values=values)
    meaning = "steps that are simulated from a fitted start"
    flags.DEFINE_integer("horizon", 20, meaning, 1, flag_values=values)
    meaning = "the guess is wrong by factors of exp(-this) to exp(this)"
    flags.DEFINE_float("perturbation", 0.5, meaning, 0.0, 3.0, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of noise and guess", 0, flag_values=values)
    return values


def _parameters(texts: Sequence[str]) -> tuple[list[str], dict[str, Array]]:
    """Names, and the values of those that have one."""
    names: list[str] = []
    given: dict[str, Array] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        names.append(name)
        try:
            given |= {name: jnp.asarray(float(value))} if equals else {}
        except ValueError as error:
            raise flags.Error(f"flag --parameters: {text!r} is no number") from error
    if len(set(names)) < len(names):
        raise flags.Error("flag --parameters: a name is there twice")
    return names, given


def identify(
    system: systems.ParametricSystem,
    guess: systems.Values,
    obs: Array,
    action: Array,
    horizon: int,
) -> Found:
    """Fits `NUM_FITS` times, each time with the noise that the fit before has found."""
    data = identification.windows(obs, action, horizon)
    num_windows = len(data.obs)
    holds = jax.jit(jax.vmap(jax.vmap(system.holds)))(data.obs)
    kept = np.flatnonzero(np.asarray(holds).all(axis=1))
    if not kept.size:
        raise ValueError(
            f"in all {num_windows} windows of {horizon} steps a joint is near its stop "
            "or something is not finite; a smaller --horizon, --push or --num_steps?"
        )
    data = jax.tree.map(lambda x: x[kept], data)
    spread = data.obs.std(axis=(0, 1))
    noise = jnp.where(spread > 0, spread, 1.0)
    floor = 1e-9 * noise  # there may be no noise
    # data and guess are arguments, so that a cache knows the program again
    fit = jax.jit(partial(identification.fit, system))
    for _ in range(NUM_FITS):
        scale = jnp.maximum(noise, floor)
        found = fit(guess, data, scale)
        rms = jnp.sqrt((found.residuals**2).mean(axis=(0, 1)))
        noise = scale * rms * found.noise / jnp.sqrt((rms**2).mean())
    errors = found.residuals * scale[None, None]
    std = jnp.maximum(noise, 1e3 * floor)  # rounding is no misfit
    standard = errors / std[None, None]
    misfit = identification.misfit(standard, found.offsets.shape[1])
    recorded = np.asarray(data.obs)
    simulated = recorded - np.asarray(errors)
    return Found(
        found, recorded, simulated, np.asarray(noise), kept, num_windows, float(misfit)
    )


def summary(
    found: Found, guess: systems.Values, true: systems.Values
) -> dict[str, Any]:
    """What identification.json says."""
    fit = found.fit
    explained = bool(fit.converged) and found.misfit < MOST_MISFIT
    parameters = {
        name: {
            "estimate": fit.estimate[name],
            "interval": [fit.low[name], fit.high[name]] if explained else [0.0, np.inf],
            "identifiable": fit.identifiable[name] & explained,
            "true": true.get(name),
            "guess": guess[name],
        }
        for name in guess
    }
    worst = {"direction": fit.direction, "std": fit.direction_std}
    return {
        "parameters": parameters,
        "worst_known_combination": worst,  # of logarithms
        "noise_std": found.noise,
        "num_windows": found.num_windows,
        "num_windows_used": len(found.kept),
        "converged": fit.converged,
        "misfit": found.misfit,
        "explained": explained,
    }


def table(report: run_folder.Record) -> str:
    """A line for each parameter; no estimate of what cannot be told."""
    rows = [("parameter", "estimate", "95 % interval", "true")]
    for name, x in report["parameters"].items():
        low, high = (f"{float(end):.6g}" for end in x["interval"])
        estimate = f"{float(x['estimate']):.6g}" if x["identifiable"] else "unknown"
        true = "" if x["true"] is None else f"{float(x['true']):.6g}"
        rows.append((name, estimate, f"{low} to {high}", true))
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(4)]
    lines = ["".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    worst = report["worst_known_combination"]
    if len(rows) > 2 and report["explained"]:
        names = (f"{name}^{float(x):.2f}" for name, x in worst["direction"].items())
        std = f"{100 * float(worst['std']):.2g} %"
        lines += [f"worst known combination: {' '.join(names)}, std {std}"]
    used, windows = report["num_windows_used"], report["num_windows"]
    if used < windows:
        lines += [
            f"{used} of {windows} windows used: in the others a joint is near its stop"
        ]
    if not report["converged"]:
        lines += ["warning: the fit has not converged; try another --seed or --horizon"]
    elif not report["explained"]:
        lines += [
            f"warning: misfit {report['misfit']:.3g}, noise has at most {MOST_MISFIT:g}"
            ": the simulator does not explain the recordings, and no interval holds"
        ]
    return "\n".join(lines)


def figure(found: Found, num_episodes: int, name: str) -> Any:
    """An episode recorded and identified; the residuals by time and by size."""
    made, (first, growth, sizes) = plots.new_figure(3, width=13)
    length = found.recorded.shape[1]
    spread = found.recorded.std(axis=(0, 1))
    spread = np.where(spread > 0, spread, 1.0)
    residuals = (found.recorded - found.simulated) / (found.noise + 1e-12 * spread)
    episodes = found.kept % num_episodes
    shown = np.flatnonzero(episodes == np.bincount(episodes).argmax())
    for i in range(len(found.noise)):
        how = {"color": plots.COLOURS[i % len(plots.COLOURS)]}
        for w in shown:
            steps = np.arange(length) + found.kept[w] // num_episodes * length
            seen, line = found.recorded[w, :, i], found.simulated[w, :, i]
            label = f"obs {i}" if w == shown[0] else None
            first.plot(steps, line / spread[i], label=label, **how)
            first.plot(steps, seen / spread[i], ".", markersize=3, **how)
        rms = np.sqrt((residuals[:, :, i] ** 2).mean(axis=0))
        growth.plot(np.arange(length), rms, **how)
    first.set_title(f"{name}: recorded (dots), identified", loc="left", fontsize=11)
    first.set(xlabel="step", ylabel="observations, in their stds")
    first.legend(frameon=False, fontsize=8)
    growth.axhline(1, color=plots.INK, linestyle=":")
    growth.set_title("residuals by time", loc="left", fontsize=11)
    growth.set(
        xlabel="steps from the start of a window", ylabel="rms, in stds of noise"
    )
    growth.set_ylim(bottom=0)
    grid = np.linspace(-4, 4, 81)
    sizes.hist(residuals.ravel(), bins=grid[::2], density=True, color=plots.COLOURS[0])
    normal = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    sizes.plot(grid, normal, color=plots.INK, linestyle=":", label="normal")
    sizes.set_title("residuals by size", loc="left", fontsize=11)
    sizes.set(xlabel="residual, in stds of noise", ylabel="density")
    sizes.legend(frameon=False)
    return made


if __name__ == "__main__":
    command_flags.command(main)
