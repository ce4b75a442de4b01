"""An ensemble of classifiers distilled into a small one (Hinton et al., 2015).

    python -m benchmarks.digits              # a quarter of an hour; docs/digits.png

Scikit-learn's digits, 1797 pictures of 8 x 8, divided anew for each seed: a transfer
set for all networks, a validation set, a test set.  The teacher is an ensemble, its
logits the logarithms of its mean probabilities.  It is trained on pictures shifted by
up to half a pixel, with noise (the paper jitters by two of 28 pixels).  The same small
network learns the labels of the transfer set as it is, or the teacher's logits there,
or for comparison the labels of what the teacher was trained on.  The temperature and
the weight of the labels are those of the least error on the validation sets of seeds 0
to 4, from which the sizes of sets and networks are too.  Whatever is reported is of
test sets, and of other seeds.

Then a digit is left out of the transfer set, each of the ten in turn: the student never
sees one.  Its bias for that digit is too low; it is raised by what is best on the
validation set.  The same is done with a network that learns labels.
Writes results/digits.json.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app

from experiments.reports import plots, statistics
from experiments.runs import jax_settings, run_folder
from mbrl_jax.networks import MLP
from mbrl_jax.ops import distillation
from mbrl_jax.types import Array, Key, Params

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "digits.json"
PICTURE = ROOT / "docs" / "digits.png"
TUNING_SEEDS, SEEDS = range(5), range(10, 20)
NUM_CLASSES, WIDTH = 10, 8
NUM_TRANSFER, NUM_VALIDATION = 400, 500  # the rest, 897, is for the test
TEACHER_SIZES, NUM_MEMBERS, STUDENT_SIZES = (64,), 5, (32,)
NUM_UPDATES, BATCH_SIZE, LEARNING_RATE = 4000, 64, 3e-3
TEMPERATURES, HARD_WEIGHTS = (1.0, 2.0, 4.0, 8.0, 20.0), (0.0, 0.1, 0.5)
NOISE, SHIFT = 0.2, 0.5  # of what the teacher sees: std; pixels
BIASES = np.arange(0.0, 20.1, 0.25)  # how far a bias may be raised
STUDENT: Any = MLP(STUDENT_SIZES, NUM_CLASSES, nn.relu)
TEACHER: Any = MLP(TEACHER_SIZES, NUM_CLASSES, nn.relu)


class Pictures(NamedTuple):
    x: Array  # [N, 64] in [0, 1]
    label: Array  # [N] int32


class Parts(NamedTuple):
    transfer: Pictures
    validation: Pictures
    test: Pictures


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found: dict[str, Any] = {"tuning": tuning()}
    chosen = found["tuning"]["chosen"]
    found["students"] = students(*chosen)
    print(found, flush=True)
    found["left out"] = left_out(*chosen)
    print(found["left out"], flush=True)
    run_folder.write_json(RESULTS, found | run_folder.surroundings())
    picture(found)


def divided(seed: int) -> Parts:
    from sklearn.datasets import load_digits  # as long to import as all the rest

    x, label = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    pictures = Pictures(
        jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(label[order], jnp.int32)
    )
    ends = NUM_TRANSFER, NUM_TRANSFER + NUM_VALIDATION
    cut = lambda first, last: jax.tree.map(lambda x: x[first:last], pictures)
    return Parts(cut(0, ends[0]), cut(*ends), cut(ends[1], None))


def all_divided(seeds: Sequence[int]) -> Parts:
    """Leading axis of seeds."""
    return jax.tree.map(lambda *x: jnp.stack(x), *map(divided, seeds))


def jittered(key: Key, x: Array) -> Array:
    """A picture [64] shifted in both directions, between pixels linearly, and noise."""
    shift_key, noise_key = jax.random.split(key)
    shift = jax.random.uniform(shift_key, (2,), minval=-SHIFT, maxval=SHIFT)
    where = jnp.meshgrid(*(jnp.arange(WIDTH)[None] + shift[:, None]), indexing="ij")
    moved = jax.scipy.ndimage.map_coordinates(x.reshape(WIDTH, WIDTH), where, order=1)
    return moved.ravel() + NOISE * jax.random.normal(noise_key, x.shape)


def train(
    key: Key, network: Any, rows: Any, weight: Array, loss: Any, *, jitter: bool = False
) -> Params:
    """`loss(logits, row)`, mean over batches of `rows` [N, ...] drawn by `weight`."""
    init_key, key = jax.random.split(key)
    params = network.init(init_key, rows[0].x[0])
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, NUM_UPDATES))

    def update(carry: tuple, key: Key) -> tuple[tuple, None]:
        params, opt_state = carry
        row_key, jitter_key = jax.random.split(key)
        index = jax.random.choice(
            row_key, len(weight), (BATCH_SIZE,), p=weight / weight.sum()
        )
        batch = jax.tree.map(lambda x: x[index], rows)
        x = batch[0].x
        if jitter:
            x = jax.vmap(jittered)(jax.random.split(jitter_key, BATCH_SIZE), x)

        def mean(params: Params) -> Array:
            return jax.vmap(loss)(network.apply(params, x), batch).mean()

        updates, opt_state = optimizer.update(jax.grad(mean)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    start = params, optimizer.init(params)
    return jax.lax.scan(update, start, jax.random.split(key, NUM_UPDATES))[0][0]


def hard(logits: Array, row: tuple[Pictures, Array]) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, row[0].label)


@jax.jit
def teachers(seeds: Array, pictures: Pictures) -> Params:
    """An ensemble for each seed: [S, M, ...]."""

    def one(seed: Array, pictures: Pictures) -> Params:
        rows, weight = (pictures, pictures.label), jnp.ones(len(pictures.label))
        fit = lambda key: train(key, TEACHER, rows, weight, hard, jitter=True)
        return jax.vmap(fit)(jax.random.split(jax.random.key(seed), NUM_MEMBERS))

    return jax.lax.map(lambda x: one(*x), (seeds, pictures))


def teacher_logits(members: Params, x: Array) -> Array:
    """Logarithms of the ensemble's mean probabilities, [N, 64] -> [N, K]."""
    each = jax.vmap(lambda params: jax.nn.log_softmax(TEACHER.apply(params, x)))(
        members
    )
    return jax.nn.logsumexp(each, axis=0) - jnp.log(NUM_MEMBERS)


@partial(jax.jit, static_argnames="jitter")
def fitted(
    seeds: Array,
    pictures: Pictures,
    logits: Array,
    weight: Array,
    temperature: Array,
    hard_weight: Array,
    jitter: bool = False,
) -> Params:
    """A student for each seed; those of the same seed start alike."""

    def loss(output: Array, row: tuple[Pictures, Array]) -> Array:
        return distillation.soft_and_hard(
            output, row[1], row[0].label, temperature, hard_weight
        )

    def one(x: tuple) -> Params:
        seed, pictures, logits, weight = x
        key = jax.random.key(1000 + seed)
        rows = pictures, logits
        return train(key, STUDENT, rows, weight, loss, jitter=jitter)

    return jax.lax.map(one, (seeds, pictures, logits, weight))


def errors(logits: Array, label: Array) -> Array:
    """Share of wrong answers, over the last axis."""
    return (logits.argmax(axis=-1) != label).mean(axis=-1)


def prepared(seeds: Sequence[int]) -> tuple[Array, Parts, Params, Array]:
    """Seeds, their pictures, their teachers, and these' logits of the transfer sets."""
    numbers, parts = jnp.asarray(seeds), all_divided(seeds)
    members = teachers(numbers, parts.transfer)
    logits = jax.vmap(teacher_logits)(members, parts.transfer.x)
    return numbers, parts, members, logits


def outputs(params: Params, pictures: Pictures) -> Array:
    return jax.vmap(STUDENT.apply)(params, pictures.x)


def tuning() -> dict[str, Any]:
    numbers, parts, _, logits = prepared(TUNING_SEEDS)
    everything = jnp.ones(parts.transfer.label.shape)
    table = {}
    for pair in [(t, w) for t in TEMPERATURES for w in HARD_WEIGHTS]:
        params = fitted(numbers, parts.transfer, logits, everything, *pair)
        wrong = errors(outputs(params, parts.validation), parts.validation.label)
        table[pair] = float(wrong.mean())
        print(pair, table[pair], flush=True)
    chosen = min(table, key=lambda pair: table[pair])
    rows = [
        {"temperature": t, "hard_weight": w, "validation error": x}
        for (t, w), x in table.items()
    ]
    return {"seeds": list(TUNING_SEEDS), "table": rows, "chosen": list(chosen)}


def students(temperature: float, hard_weight: float) -> dict[str, Any]:
    """Errors on test sets, by seed and with intervals."""
    numbers, parts, members, logits = prepared(SEEDS)
    everything = jnp.ones(parts.transfer.label.shape)
    of_teacher = jax.vmap(teacher_logits)(members, parts.test.x)
    wrong = {"teacher": errors(of_teacher, parts.test.label)}
    ways = {
        "labels": (1.0, 1.0),
        "labels, jittered": (1.0, 1.0, True),
        "distilled": (temperature, hard_weight),
    }
    for name, way in ways.items():
        params = fitted(numbers, parts.transfer, logits, everything, *way)
        wrong[name] = errors(outputs(params, parts.test), parts.test.label)
    wrong["labels less distilled"] = wrong["labels"] - wrong["distilled"]
    return {"seeds": list(SEEDS), "num_test": parts.test.label.shape[1]} | {
        name: estimate(np.asarray(x)) for name, x in wrong.items()
    }


def left_out(temperature: float, hard_weight: float) -> dict[str, Any]:
    """Without a digit: errors on it and on all, before and after its bias is raised."""
    numbers, parts, _, logits = prepared(SEEDS)
    pairs = {"labels": (1.0, 1.0), "distilled": (temperature, hard_weight)}
    found: dict[str, Any] = {}
    for name, pair in pairs.items():
        rows = []
        for digit in range(NUM_CLASSES):
            seen = (parts.transfer.label != digit).astype(jnp.float32)
            params = fitted(numbers, parts.transfer, logits, seen, *pair)
            both = [
                (np.asarray(outputs(params, x)), np.asarray(x.label))
                for x in (parts.validation, parts.test)
            ]
            rows.append(
                [
                    judged(digit, *[(x[i], y[i]) for x, y in both])
                    for i in range(len(numbers))
                ]
            )
        table = np.array(rows).mean(axis=0).T  # [5, S]: digits are averaged
        names = ("digit", "digit, raised", "all", "all, raised", "raised by")
        found[name] = {x: estimate(y) for x, y in zip(names, table, strict=True)}
    return found


def judged(
    digit: int,
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> tuple[float, ...]:
    """Errors on the digit and on all, each as it is and raised; by how much."""

    def wrong(pictures: tuple[np.ndarray, np.ndarray], bias: float) -> np.ndarray:
        logits, label = pictures
        raised = logits + bias * (np.arange(NUM_CLASSES) == digit)
        return raised.argmax(axis=1) != label

    best = BIASES[np.argmin([wrong(validation, x).mean() for x in BIASES])]
    here = test[1] == digit
    before, after = wrong(test, 0.0), wrong(test, best)
    shares = [x.mean() for x in (before[here], after[here], before, after)]
    return (*map(float, shares), float(best))


def estimate(values: np.ndarray) -> dict[str, Any]:
    """Of runs [S]: their mean and its 95 % interval."""
    mean = lambda scores: np.asarray(scores[0]).mean(axis=-1)
    found = statistics.bootstrap(np.random.default_rng(0), mean, [values])
    interval = [float(found.low), float(found.high)]
    return {"mean": float(found.value), "interval": interval, "runs": values.tolist()}


def picture(found: dict[str, Any]) -> None:
    figure, (left, right) = plots.new_figure(2, width=8.0)
    names = ("teacher", "labels", "labels, jittered", "distilled")
    colours = dict(zip(names, plots.COLOURS, strict=False))
    for i, name in enumerate(names):
        bar(left, i, found["students"][name], colours[name])
    left.set_xticks(range(4), ("teacher", "labels", "labels,\njittered", "distilled"))
    left.set_title("all digits in the transfer set", loc="left", fontsize=11)
    left.set_ylabel("errors on the test set, %")
    columns = ("digit", "digit, raised", "all", "all, raised")
    for i, column in enumerate(columns):
        for name, offset in (("labels", -0.15), ("distilled", 0.15)):
            result = found["left out"][name][column]
            bar(right, i + offset, result, colours[name], name if not i else "")
    titles = ("the digit", "the digit,\nbias raised", "all", "all,\nbias raised")
    right.set_xticks(range(4), titles)
    right.set_title("one digit left out", loc="left", fontsize=11)
    right.legend(frameon=False, fontsize=8, title="student learns from")
    for axis in (left, right):
        axis.set_ylim(bottom=0)
    plots.save(figure, PICTURE)


def bar(
    axis: Any, x: float, result: dict[str, Any], colour: str, label: str = ""
) -> None:
    """Mean and interval in per cent, and a dot for each run."""
    mean, (low, high) = 100 * result["mean"], 100 * np.array(result["interval"])
    ends = [[mean - low], [high - mean]]
    axis.errorbar(x, mean, ends, color=colour, fmt="o", capsize=4, label=label or None)
    runs = 100 * np.array(result["runs"])
    axis.plot(np.full(len(runs), x + 0.08), runs, ".", color=colour, alpha=0.4)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
