"""How long a step of LQR within a KL divergence takes, next to cbfinn/gps in numpy.

    python -m benchmarks.kl_lqr_speed --peer_path=peers/gps/python

`peer_gps.py` says how the peer is made; it has the sizes, too.  In float64, T = 100, 10
states, 3 controls, of 4 conditions and, ours alone, of 64, vmapped:

- pass: backward for one eta, forward, and the KL divergence;
- step: the search for eta, until that divergence is its bound within 10 %;
- lqr: the plain backward and forward pass of `planners/lqr.py`, ours alone.

Both take turns; CPU seconds, all threads; ratios are of neighbours in time.  The
controllers of a pass have to agree, and the divergences of a step to be at the bound.
Writes results/kl_lqr_speed.json: microseconds of a condition.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import peer_gps, peers
from experiments.runs import jax_settings, run_folder
from mbrl_jax.local_policies import controllers, kl_lqr
from mbrl_jax.local_policies.controllers import Controller, System
from mbrl_jax.ops import definite
from mbrl_jax.planners import lqr
from mbrl_jax.planners.lqg import Belief
from mbrl_jax.planners.lqr import LQRProblem
from mbrl_jax.types import Array

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kl_lqr_speed.json"
CONDITIONS, NUM_REPEATS, NUM_CALLS = (4, 64), 5, 5
BOUND = peer_gps.MAX_KL * peer_gps.NUM_STEPS


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)
    path = [str(ROOT), flags.FLAGS.peer_path]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)  # the peer's: ours has begun
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of which several wait for each other
    found: dict[str, Any] = {"cases": {}}
    with peers.running([sys.executable, "-m", "benchmarks.peer_gps"]) as peer:
        found["peer"] = peer.answer()
        for case in (*peer_gps.CALLS, "lqr"):
            for number in CONDITIONS:
                row = compare(peer, case, number)
                found["cases"][f"{case}/{number}"] = row
                print(case, number, row, flush=True)
    run_folder.write_json(RESULTS, found | run_folder.surroundings())


def compare(peer: peers.Peer, case: str, number: int) -> dict[str, Any]:
    """Microseconds of a condition, and the ratio where the peer takes its turn."""
    call = ours(case, number)
    if case in peer_gps.CALLS and number == CONDITIONS[0]:
        check = lambda theirs: agree(case, call(), theirs)
        line = f"{case}/{number}"
        row = peers.in_turn(peer, line, call, NUM_CALLS, NUM_REPEATS, check)
    else:
        row = peers.alone(call, NUM_CALLS, NUM_REPEATS)
    of_one = {x: 1e6 * row[x] / number for x in ("ours", "theirs") if x in row}
    return {**row, **of_one}


def agree(case: str, found: Any, theirs: list[dict[str, Any]]) -> None:
    """Raises AssertionError if these are not the same."""
    controller, kl, status = found
    for i, row in enumerate(theirs):
        if case == "pass":
            for name in ("K", "k", "cov"):
                mine = getattr(controller, name)[i]
                np.testing.assert_allclose(mine, row[name], rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(kl[i], row["kl"], rtol=1e-6)
        else:
            np.testing.assert_allclose([kl[i], row["kl"]], BOUND, rtol=kl_lqr.BAND)
        assert status[i] == definite.Status.SOLVED


def ours(case: str, number: int) -> Callable[[], Any]:
    """Compiled."""
    one = {"pass": single_pass, "step": step, "lqr": plain}[case]
    given = [of_condition(condition) for condition in range(number)]
    args = jax.tree.map(lambda *x: jnp.stack(x), *given)
    run = jax.jit(jax.vmap(one))
    jax.block_until_ready(run(*args))
    return lambda: run(*args)


def single_pass(system: System, old: Controller) -> tuple[Controller, Array, Array]:
    problem = kl_lqr.penalised(system.problem, old, peer_gps.ETA)
    new, status = controllers.maximum_entropy(problem, 1.0)
    kl = controllers.kl(new, old, controllers.marginals(system, new)).sum()
    return new, kl, status


def step(system: System, old: Controller) -> tuple[Controller, Array, Array]:
    found = kl_lqr.improve(system, old, BOUND)
    return found.controller, found.kl, found.status


def plain(system: System, old: Controller) -> Any:
    found = lqr.solve(system.problem)
    return found, lqr.rollout(system.problem, found.K, found.k, system.start.mean)


def of_condition(condition: int) -> tuple[System, Controller]:
    given = {x: jnp.array(y) for x, y in peer_gps.problem(condition).items()}
    size, steps = peer_gps.NUM_STATES, peer_gps.NUM_STEPS
    every = lambda x: jnp.tile(x[None], (steps, *[1] * x.ndim))
    C, c = given["C"], given["c"]
    problem = LQRProblem(
        A=every(given["A"]),
        B=every(given["B"]),
        c=jnp.zeros((steps, size)),
        Q=jnp.concatenate([every(C[:size, :size]), jnp.zeros((1, size, size))]),
        S=every(C[size:, :size]),
        R=every(C[size:, size:]),
        q=jnp.concatenate([every(c[:size]), jnp.zeros((1, size))]),
        r=every(c[size:]),
        constant=jnp.zeros(steps + 1),
    )
    start = Belief(given["start"], given["start_cov"])
    old = Controller(given["K"], given["k"], every(given["cov"]))
    return System(problem, every(given["noise"]), start), old


if __name__ == "__main__":
    flags.DEFINE_string("peer_path", None, "of the peer's source", required=True)
    jax_settings.apply("x64")
    app.run(main)
