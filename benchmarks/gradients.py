"""How well are gradients known, and how far ahead?  By `experiments.gradients`.

    python -m benchmarks.gradients                       # what is missing: minutes
    python -m benchmarks.gradients --only=pendulum,chaos # again
    python -m benchmarks.gradients --only=               # only the page and pictures

Writes results/gradients.json, a record for each case, and docs/gradients.md and .png.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from experiments import gradients
from experiments.reports import gradient_figures, plots
from experiments.runs import files, run_folder

RESULTS = Path(__file__).parent / "results" / "gradients.json"
COSTS = RESULTS.with_name("gradient_cost.json")
DOCS = Path(__file__).parents[1] / "docs"
OWN = (
    "cartpole_swingup",
    "cartpole_balance",
    "cartpole_pets",
    "acrobot",
    "reacher",
    "point_mass",
    "linear_quadratic",
    "probe1",
    "probe2",
    "probe3",
    "probe4",
    "probe5",
)
COMMON = ("--num_samples=128", "--hidden_sizes=8", "--horizons=1,2,4,8,16,32,64")
BRAX = ("--num_samples=64", "--hidden_sizes=", "--horizons=1,2,4,8,16", "--window=4")
CASES: dict[str, tuple[str, ...]] = {
    "doubling_map": (
        "--env=doubling_map",
        "--num_samples=20000",
        f"--horizons={','.join(map(str, range(2, 21)))}",
        "--window=0",
    ),
    "chaos": (
        "--env=acrobot",
        "--num_samples=256",
        "--hidden_sizes=",
        "--gain=2.5",
        "--std=0.3",
        "--seed=2",
        "--horizons=1,2,4,8,16,32,64,128",
    ),
    "pendulum": ("--env=pendulum", *COMMON, "--precision=fast,highest,x64"),
    **{name: (f"--env={name}", *COMMON, "--precision=fast,x64") for name in OWN},
    **{
        f"brax/{name}/generalized": (
            f"--env=brax/{name}/generalized",
            *BRAX,
            "--precision=fast",
        )
        for name in ("inverted_double_pendulum", "reacher")
    },
}
ESTIMATORS = ("pathwise", "likelihood_ratio", "total_propagation")
PAGE = """# Gradients through dynamics

Made by `python -m benchmarks.gradients` from
[benchmarks/results/gradients.json](../benchmarks/results/gradients.json), which has
every horizon and precision; of your own: `python -m experiments.gradients --help`.
What the estimators are: [estimators.py](../mbrl_jax/gradients/estimators.py).

![variance against horizon](gradients_variance.png)

The doubling map has an exponent of log 2 per step. Its pathwise variance grows with it,
as the closed form (broad lines) says; that of the likelihood ratio does not; total
propagation (PIPPS, Parmas et al., 2018) takes the better at each step. A double
pendulum under a policy that was chosen to be chaotic shows the same.

## By environment

At the longest horizon, in the last of the precisions that were measured. Variances are
traces, of one sample; bias is the distance to central finite differences on the same
noise, relative to their norm, and for the likelihood ratio mostly sampling error. A
signal-to-noise ratio below 1 / sqrt(samples) is noise. The exponent is the mean growth
of errors per step, with the policy in the loop. Policies are random. That an episode
ends sooner, as of a pole that falls (Brax's double pendulum), finite differences and
likelihood ratios see and pathwise gradients do not: there they are biased.

{table}

Refused, since the return of a rollout does not change with the actions, or only by
jumps: {refused}.

![variance against horizon, by environment](gradients_environments.png)

## By precision

The bias of the pathwise gradient at the longest horizon: where errors grow, single
precision and the step of the finite differences (the cube root of the machine's
precision) show first. On a CPU `highest` is what `fast` is.

{precisions}

## Cost

The time of a gradient in units of that of the rollouts it differentiates, 64 of 32
steps with a 64 x 64 network; about 4 is what reverse mode may cost in theory.

{costs}

With rematerialisation the memory of a gradient grows with the square root of the
horizon. Made by `python -m benchmarks.gradient_cost` from
[benchmarks/results/gradient_cost.json](../benchmarks/results/gradient_cost.json).

![memory against horizon](gradients_memory.png)

## Limits

Not measured: Brax's ant, halfcheetah, hopper and walker2d, whose gradients take a CPU
too long to compile, and the backends spring, positional and mjx.{missing}
"""


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)
    results = run_folder.read_json(RESULTS) if RESULTS.exists() else {}
    asked = flags.FLAGS.only
    if unknown := set(asked or ()) - CASES.keys():
        raise app.UsageError(f"unknown cases {unknown}; known are {list(CASES)}")
    for name in [x for x in CASES if x not in results] if asked is None else asked:
        print(f"--- {name}", flush=True)
        results[name] = measure(CASES[name])
        ordered = {case: results[case] for case in CASES if case in results}
        run_folder.write_json(RESULTS, ordered)
    write_docs({case: results[case] for case in CASES if case in results}, DOCS)


def measure(arguments: Sequence[str]) -> dict[str, Any]:
    """gradients.json; or the error, where there is no gradient."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            gradients.main(["gradients", *arguments, f"--output={folder}"])
        except ValueError as error:
            return {"error": str(error), **run_folder.surroundings()}
        record = run_folder.read_json(Path(folder) / "gradients.json")
        return {**record, "command": ["experiments.gradients", *arguments]}


def write_docs(results: Mapping[str, Any], folder: Path) -> None:
    """The page and its pictures."""
    good = {name: x for name, x in results.items() if "error" not in x}
    pair = [good["doubling_map"], good["chaos"]]
    titles = ["doubling map", "double pendulum"]
    figure = gradient_figures.variances(pair, titles, ESTIMATORS)
    plots.save(figure, folder / "gradients_variance.png")
    one_step = [name for name in good if name.startswith("probe")]
    rest = {x: good[x] for x in good if x not in ("doubling_map", "chaos", *one_step)}
    every = ("pathwise", "windowed", *ESTIMATORS[1:])
    titles = [name.removesuffix("/generalized") for name in rest]
    figure = gradient_figures.variances([*rest.values()], titles, every)
    plots.save(figure, folder / "gradients_environments.png")
    files.write_text(folder / "gradients.md", page(results), through_links=True)


def page(results: Mapping[str, Any]) -> str:
    good = {name: x for name, x in results.items() if "error" not in x}
    missing = ", ".join(name for name in CASES if name not in results)
    return PAGE.format(
        table=table(good),
        refused=", ".join(name for name in results if name not in good),
        precisions=precisions(good),
        costs=costs(good, run_folder.read_json(COSTS)),
        missing=missing and f"\nNot measured yet: {missing}.",
    )


def table(results: Mapping[str, Any]) -> str:
    """Markdown, a row per case."""
    columns = ("pathwise", "windowed", "likelihood_ratio", "total_propagation")
    lines = [
        "| case | policy | horizon | exponent | variance, pathwise | windowed | "
        "likelihood ratio | total propagation | signal to noise, pathwise | likelihood "
        "ratio | bias, pathwise | windowed | likelihood ratio | total propagation |",
        "|---|---|" + "--:|" * 12,
    ]
    for name, record in results.items():
        result = [*record["precisions"].values()][-1]
        last = lambda estimator, measure, result=result: number(
            result["estimators"].get(estimator, {measure: [None]})[measure][-1]
        )
        env = record["env"]
        cells = [
            name if name == env else f"{name} ({env})",
            record["policy"],
            str(record["horizons"][-1]),
            number(result["lyapunov_exponent"]),
            *(last(x, "variance") for x in columns),
            *(last(x, "signal_to_noise") for x in columns[::2]),
            *(last(x, "bias") for x in columns),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def precisions(results: Mapping[str, Any]) -> str:
    """Markdown: the bias of the pathwise gradient in each precision."""
    names = ("fast", "highest", "x64")
    lines = [f"| case | horizon | {' | '.join(names)} |", "|---|" + "--:|" * 4]
    for name, record in results.items():
        found = record["precisions"]
        if len(found) == 1:
            continue
        bias = [
            number(found[x]["estimators"]["pathwise"]["bias"][-1]) if x in found else ""
            for x in names
        ]
        lines.append(f"| {name} | {record['horizons'][-1]} | {' | '.join(bias)} |")
    return "\n".join(lines)


def costs(good: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """Markdown: of what has a gradient."""
    lines = ["| case | gradient / rollout |", "|---|--:|"]
    rows = [name for name in measured if name in good]
    return "\n".join(lines + [f"| {x} | {measured[x]['ratio']:.1f} |" for x in rows])


def number(value: float | None) -> str:
    """Two digits; nothing for None."""
    return "" if value is None else f"{value:.2g}"


if __name__ == "__main__":
    flags.DEFINE_list("only", None, "cases to measure again; default: what is missing")
    app.run(main)
