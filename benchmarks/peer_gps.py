"""KL-constrained LQR of cbfinn/gps, in numpy, by its public functions.

    git clone https://github.com/cbfinn/gps peers/gps
    PYTHONPATH=peers/gps/python .venv/bin/python -m benchmarks.peer_gps

It is Python 2, of which these files need only `cPickle`, and of its protocol a number.
`kl_lqr_speed.py` drives it in turn with ours: for each line of input, a case, it prints
what one call takes, of all conditions one after the other.  `problem` is what both
compute.
"""

import json
import pickle
import sys
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.peer_pilco import seconds

NUM_STEPS, NUM_STATES, NUM_CONTROLS = 100, 10, 3
MAX_KL, ETA = 1.0, 3.0  # nats per time step; the dual variable of a single pass
CALLS = {"pass": 2, "step": 1}  # in a turn


def problem(condition: int) -> dict[str, np.ndarray]:
    """A stable random system with quadratic costs, and a controller to stay near.

    A [O, O], B [O, A] and the costs C [O + A, O + A], c [O + A] are those of each step.
    """
    rng = np.random.default_rng(condition)
    size = NUM_STATES + NUM_CONTROLS
    A = rng.normal(size=(NUM_STATES, NUM_STATES))
    half = rng.normal(size=(size, size))
    return {
        "A": 0.95 * A / np.abs(np.linalg.eigvals(A)).max(),
        "B": rng.normal(size=(NUM_STATES, NUM_CONTROLS)),
        "C": half @ half.T / size + 0.1 * np.eye(size),
        "c": rng.normal(size=size),
        "start": rng.normal(size=NUM_STATES),
        "start_cov": 0.1 * np.eye(NUM_STATES),
        "noise": 0.01 * np.eye(NUM_STATES),
        "K": 0.05 * rng.normal(size=(NUM_STEPS, NUM_CONTROLS, NUM_STATES)),
        "k": 0.1 * rng.normal(size=(NUM_STEPS, NUM_CONTROLS)),
        "cov": 0.5 * np.eye(NUM_CONTROLS),
    }


def algorithm(num_conditions: int) -> Any:
    """What its step asks for, of this many conditions."""
    from gps.algorithm.algorithm_traj_opt import AlgorithmTrajOpt
    from gps.algorithm.policy.lin_gauss_policy import LinearGaussianPolicy

    made = AlgorithmTrajOpt.__new__(AlgorithmTrajOpt)  # its init wants an agent
    made.T, made.base_kl_step = NUM_STEPS, MAX_KL
    made._hyperparams = {"max_ent_traj": 0.0}
    made.cur = []
    for condition in range(num_conditions):
        given = problem(condition)
        every = lambda x: np.tile(x, (NUM_STEPS, *[1] * x.ndim))
        dynamics = SimpleNamespace(
            Fm=every(np.concatenate([given["A"], given["B"]], axis=1)),
            fv=np.zeros((NUM_STEPS, NUM_STATES)),
            dyn_covar=every(given["noise"]),
        )
        costs = SimpleNamespace(
            dynamics=dynamics,
            x0mu=given["start"],
            x0sigma=given["start_cov"],
            cc=np.zeros(NUM_STEPS),
            cv=every(given["c"]),
            Cm=every(given["C"]),
        )
        old = LinearGaussianPolicy(
            given["K"],
            given["k"],
            every(given["cov"]),
            every(np.linalg.cholesky(given["cov"]).T),
            every(np.linalg.inv(given["cov"])),
        )
        made.cur.append(
            SimpleNamespace(eta=1.0, step_mult=1.0, traj_info=costs, traj_distr=old)
        )
    return made


def prepared(case: str, num_conditions: int) -> Callable[[], list[dict[str, Any]]]:
    """A call gives for each condition its controller, and the KL divergence."""
    from gps.algorithm.traj_opt.traj_opt_lqr_python import TrajOptLQRPython
    from gps.algorithm.traj_opt.traj_opt_utils import traj_distr_kl

    optimiser, made = TrajOptLQRPython({}), algorithm(num_conditions)

    def one(condition: int) -> dict[str, Any]:
        current = made.cur[condition]
        old, info = current.traj_distr, current.traj_info
        if case == "step":
            new, eta = optimiser.update(condition, made)
        else:
            new, eta = optimiser.backward(old, info, ETA, made, condition)
        mean, cov = optimiser.forward(new, info)
        kl = traj_distr_kl(mean, cov, new, old)
        return {"K": new.K, "k": new.k, "cov": new.pol_covar, "kl": kl, "eta": eta}

    return lambda: [one(condition) for condition in range(num_conditions)]


def main() -> None:
    protocol = types.ModuleType("gps.proto.gps_pb2")
    protocol.NOISE = 0  # type: ignore[attr-defined]
    stand_ins = {"cPickle": pickle, "gps.proto": protocol, protocol.__name__: protocol}
    sys.modules.update(stand_ins)
    print(json.dumps({"numpy": np.__version__}), flush=True)
    calls: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        case, num_conditions = line.strip().split("/")
        if line not in calls:
            calls[line] = prepared(case, int(num_conditions))
            found = [
                {name: np.asarray(x).tolist() for name, x in row.items()}
                for row in calls[line]()
            ]
            print(json.dumps({"found": found}), flush=True)
        print(json.dumps(seconds(calls[line], CALLS[case])), flush=True)


if __name__ == "__main__":
    main()
