"""Moments and gradients of nrontsis/PILCO (on TensorFlow), by its public functions.

It runs in an environment of its own, without this project's packages:

    git clone https://github.com/nrontsis/PILCO peers/PILCO
    python3.11 -m venv peers/tensorflow
    peers/tensorflow/bin/pip install gpflow==2.11.2 tensorflow==2.21.0 \
        tf-keras==2.21.0 "numpy<2" "pandas<3"
    PYTHONPATH=peers/PILCO peers/tensorflow/bin/python benchmarks/peer_pilco.py

`pilco_speed.py` drives it in turn with ours: for each line of input, a case, it prints
what one call takes.  `problem` is what both compute.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

NUM_STATES, NUM_CONTROLS, NUM_BASIS, HORIZON = 4, 1, 20, 30
CALLS = {"step": 20, "step, factors given": 20, "rollout": 2}  # in a turn
START_STD = 0.1


def problem(num_rows: int) -> dict[str, np.ndarray]:
    """What the processes know [N, ...], their hyperparameters, and a Gaussian input."""
    rng, size = np.random.default_rng(0), NUM_STATES + NUM_CONTROLS
    inputs = rng.normal(size=(num_rows, size))
    half = 0.2 * rng.normal(size=(size, size))
    return {
        "inputs": inputs,
        "targets": 0.3 * np.sin(inputs @ rng.normal(size=(size, NUM_STATES))),
        "lengthscales": rng.uniform(1, 3, size=(NUM_STATES, size)),
        "signal_var": rng.uniform(0.5, 2, size=NUM_STATES),
        "noise_var": np.full(NUM_STATES, 1e-3),
        "mean": 0.3 * rng.normal(size=size),
        "cov": half @ half.T,
    }


def prepared(case: str, num_rows: int) -> Callable[[], Any]:
    """Compiled; each call gives numpy arrays."""
    import tensorflow as tf
    from gpflow import set_trainable
    from pilco.controllers import RbfController
    from pilco.models import PILCO

    given = problem(num_rows)
    made = PILCO(
        (given["inputs"], given["targets"]),
        controller=RbfController(NUM_STATES, NUM_CONTROLS, NUM_BASIS),
        horizon=HORIZON,
        m_init=np.zeros((1, NUM_STATES)),
        S_init=START_STD**2 * np.eye(NUM_STATES),
    )
    for i, model in enumerate(made.mgpr.models):
        model.kernel.lengthscales.assign(given["lengthscales"][i])
        model.kernel.variance.assign(given["signal_var"][i])
        model.likelihood.variance.assign(given["noise_var"][i])
    for parameter in made.mgpr.trainable_parameters:
        set_trainable(parameter, False)  # as it does before it improves a policy
    moments = tf.constant(given["mean"][None]), tf.constant(given["cov"])
    wanted = made.trainable_variables

    def gradient() -> Any:
        with tf.GradientTape() as tape:
            loss = made.training_loss()
        return loss, *tape.gradient(loss, wanted)

    if case == "rollout":
        call = tf.function(gradient)
    elif case == "step":
        call = lambda step=tf.function(made.mgpr.predict_on_noisy_inputs): step(
            *moments
        )
    else:
        factors = made.mgpr.calculate_factorizations()
        step = tf.function(made.mgpr.predict_given_factorizations)
        call = lambda: step(*moments, *factors)
    return lambda: [x.numpy() for x in call()]


def seconds(call: Callable[[], Any], num_calls: int) -> dict[str, float]:
    """Of one call: of the CPU, all threads, and on the wall."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in range(num_calls):
        call()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    return {"cpu": cpu / num_calls, "wall": wall / num_calls}


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import gpflow
    import tensorflow as tf

    # on busy cores, several threads spend most of their time waiting for each other
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    versions = {"tensorflow": tf.__version__, "gpflow": gpflow.__version__}
    print(json.dumps({**versions, "numpy": np.__version__}), flush=True)
    calls: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        case, num_rows = line.strip().split("/")
        if line not in calls:
            calls[line] = prepared(case, int(num_rows))
            found = [x.tolist() for x in calls[line]()]
            print(json.dumps({"found": found}), flush=True)
        print(json.dumps(seconds(calls[line], CALLS[case])), flush=True)


if __name__ == "__main__":
    main()
