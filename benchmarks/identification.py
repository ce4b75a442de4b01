"""Does identification find the parameters, and do its intervals hold?

    python -m benchmarks.identification      # minutes on two cores

First 10 recordings of 10 noisy episodes each: by how much an estimate is off at most,
from windows of 20 steps and then, since those of 40 tell more but lead astray from a
first guess, from 40, starting at what was found.
Then 200 shorter recordings of each system: how often the 95 % interval of a parameter
has the truth in it, for windows of several steps and of one with fitted starts; and for
one step from the recorded starts, for which no interval is promised here: each noisy
observation ends a step and starts the next.  Everything is in float64, vmapped over the
recordings, and goes to results/identification.json.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, logging

from experiments.runs import jax_settings, recordings, run_folder
from mbrl_jax.envs import systems
from mbrl_jax.gradients import identification
from mbrl_jax.types import Key

NUM_ITERATIONS = 25  # enough; how often they were is counted
RESULTS = Path(__file__).parent / "results" / "identification.json"
NOISE = 0.01  # std, of every observation in its own unit


class Case(NamedTuple):
    env: str
    given: dict[str, float]  # parameters with other values than the environment's
    names: tuple[str, ...]  # what is fitted: the most that a recording can tell


CASES = (
    Case("pendulum", {"damping": 0.1}, ("mass", "length", "damping")),
    Case(
        "cartpole_swingup",
        {"pole_damping": 0.01},
        ("cart_mass", "pole_mass", "pole_centre", "cart_damping", "pole_damping"),
    ),
)
LENGTHENING = (20, 40)  # horizons
LOSSES = {  # the horizon, and whether starts are fitted
    "20 steps, fitted starts": (20, True),
    "1 step, fitted starts": (1, True),
    "1 step, recorded starts": (1, False),
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)  # app.run makes jax chatty
    found: dict[str, Any] = {"noise": NOISE, "systems": {}}
    for case in CASES:
        found["systems"][case.env] = measure(case)
        print(case.env, run_folder.plain(found["systems"][case.env]), flush=True)
    run_folder.write_json(RESULTS, found | run_folder.surroundings())


def measure(
    case: Case,
    num_recordings: int = 10,
    shape: tuple[int, int] = (10, 200),
    num_repeats: int = 200,
    small_shape: tuple[int, int] = (4, 42),
) -> dict[str, Any]:
    """The figures of a system; the shapes are (episodes, steps)."""
    fit = run(case, num_recordings, shape, LENGTHENING, fit_starts=True)
    true = truth(case)
    worst = {name: np.abs(x / true[name] - 1).max() for name, x in fit.estimate.items()}
    losses = {
        title: summary(run(case, num_repeats, small_shape, (horizon,), starts), true)
        for title, (horizon, starts) in LOSSES.items()
    }
    return {
        "true": true,
        "ten_episodes": {
            "recordings": num_recordings,
            "shape": shape,
            "horizons": LENGTHENING,
            "largest_relative_error": worst,
        },
        "coverage": {"repeats": num_repeats, "shape": small_shape, "losses": losses},
    }


def truth(case: Case) -> dict[str, float]:
    known = systems.constants(systems.own(case.env).parameters, case.names)
    return {name: float(x) for name, x in (known | case.given).items()}


def run(
    case: Case,
    num_recordings: int,
    shape: tuple[int, int],
    horizons: Sequence[int],
    fit_starts: bool,
) -> identification.Fit:
    """Recordings of a shape, each fitted from a first guess of its own.

    What one horizon finds is where the next begins; the last one's fits.
    """
    source = recordings.make_source(case.env)
    true = truth(case)

    def one(key: Key) -> identification.Fit:
        key, guess_key = jax.random.split(key)
        obs, action = recordings.record(key, source, true, shape, NOISE)
        factors = jax.random.uniform(guess_key, (len(true),), minval=-0.5, maxval=0.5)
        guess = {
            name: x * jnp.exp(y)
            for (name, x), y in zip(true.items(), factors, strict=True)
        }
        scale = jnp.full(obs.shape[-1], NOISE)
        for horizon in horizons:
            fit = identification.fit(
                source.system,
                guess,
                identification.windows(obs, action, horizon, shared=not fit_starts),
                scale,
                fit_starts=fit_starts,
                num_iterations=NUM_ITERATIONS,
            )
            guess = fit.estimate
        return fit

    keys = jax.random.split(jax.random.key(0), num_recordings)
    return jax.jit(jax.vmap(one))(keys)


def summary(fit: identification.Fit, true: dict[str, float]) -> dict[str, Any]:
    """Over the repeats."""
    inside = {
        name: ((fit.low[name] < x) & (x < fit.high[name])).mean()
        for name, x in true.items()
    }
    error = {
        name: jnp.sqrt(((fit.estimate[name] / x - 1) ** 2).mean())
        for name, x in true.items()
    }
    return {
        "converged": fit.converged.mean(),
        "coverage": inside,
        "relative_rms_error": error,
    }


if __name__ == "__main__":
    jax_settings.apply("x64")
    app.run(main)
