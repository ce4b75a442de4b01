"""How long the moments of PILCO take, and the gradient of a rollout, next to a peer's.

    python -m benchmarks.pilco_speed --peer_python=peers/tensorflow/bin/python \
        --peer_path=peers/PILCO

`peer_pilco.py` says how these are made; it has the sizes, too.  Four processes of 100
and of 200 rows, in float64:

- step: their moments at a Gaussian input.  The peer factorises their covariances at
  every step, ours once per trial; "factors given" is without that;
- rollout: value and gradient of the expected return of 30 steps by the parameters of a
  policy of 20 radial basis functions.

Ours looks at whole blocks of 64 rows, as PILCO keeps them.  Compiled, both take turns;
CPU seconds of all threads, the peer on one; ratios are of neighbours in time.  The
moments of both have to agree.  Then ours alone: the memory of the gradient of 40 steps
at 200 rows, and of 16 policies at once next to one.  Writes results/pilco_speed.json.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import peer_pilco, peers, random_systems
from experiments.runs import jax_settings, run_folder
from mbrl_jax import moment_policies
from mbrl_jax.gradients import beliefs
from mbrl_jax.ops import moments
from mbrl_jax.ops.moments import BLOCK, Kernels, Normal
from mbrl_jax.types import Array, Params

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "pilco_speed.json"
ROWS, NUM_REPEATS = (100, 200), 5
MEMORY_HORIZON, NUM_POLICIES = 40, 16
Call = Callable[[], Any]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)
    os.environ["PYTHONPATH"] = flags.FLAGS.peer_path  # the peer's alone: ours has begun
    found: dict[str, Any] = {"cases": {}}
    command = [flags.FLAGS.peer_python, str(FOLDER / "peer_pilco.py")]
    with peers.running(command) as peer:
        found["peer"] = peer.answer()
        for num_rows in ROWS:
            for case in peer_pilco.CALLS:
                row = compare(peer, case, num_rows)
                found["cases"][f"{case}/{num_rows}"] = row
                print(case, num_rows, row, flush=True)
    found |= {"memory": memory(), "policies": policies()}
    print(found["memory"], found["policies"])
    run_folder.write_json(RESULTS, found | run_folder.surroundings())


def compare(peer: peers.Peer, case: str, num_rows: int) -> dict[str, Any]:
    call = ours(case, num_rows)

    def check(theirs: Any) -> None:
        if case != "rollout":  # whose squashing differs
            agree(call(), theirs)

    line, num_calls = f"{case}/{num_rows}", peer_pilco.CALLS[case]
    return peers.in_turn(peer, line, call, num_calls, NUM_REPEATS, check)


def agree(found: moments.Moments, theirs: Sequence[Any]) -> None:
    """Raises AssertionError if these are not the same moments."""
    mean, cov, gain = map(np.asarray, theirs)
    np.testing.assert_allclose(found.mean, mean[0], rtol=1e-6)
    np.testing.assert_allclose(found.cov, cov, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.gain, gain, rtol=1e-6, atol=1e-9)


def ours(case: str, num_rows: int) -> Call:
    """Compiled."""
    if case == "rollout":
        return compiled(*gradient(num_rows, peer_pilco.HORIZON))
    given = peer_pilco.problem(num_rows)
    x = Normal(jnp.array(given["mean"]), jnp.array(given["cov"]))
    return compiled(jax.jit(moments.kernels), (x, processes(num_rows)))


def processes(num_rows: int) -> Kernels:
    """In whole blocks: of the rows after `num_rows` all is 0."""
    given = peer_pilco.problem(num_rows)
    inputs, signal = given["inputs"], given["signal_var"]
    scaled = inputs[None] / given["lengthscales"][:, None]
    away = np.square(scaled[:, :, None] - scaled[:, None]).sum(axis=-1)
    cov = signal[:, None, None] * np.exp(-away / 2)
    cov += given["noise_var"][:, None, None] * np.eye(num_rows)
    precision = np.linalg.inv(cov)
    weights = np.einsum("enm,me->en", precision, given["targets"])
    rest = -num_rows % BLOCK
    pad = lambda x, *axes: jnp.array(
        np.pad(x, [(0, rest if i in axes else 0) for i in range(x.ndim)])
    )
    return Kernels(
        pad(inputs, 0),
        pad(weights, 1),
        jnp.array(given["lengthscales"]),
        jnp.array(signal),
        pad(precision, 1, 2),
        jnp.array(num_rows, jnp.int32),
    )


def gradient(num_rows: int, horizon: int, num_policies: int = 0) -> tuple[Any, Any]:
    """Of the expected return by the params of a policy, or of several at once; and what
    it is called with."""
    rng = np.random.default_rng(0)
    sizes = peer_pilco.NUM_STATES, peer_pilco.NUM_CONTROLS
    system = random_systems.draw(rng, *sizes)._replace(start=np.zeros(sizes[0]))
    env = random_systems.environment(system, peer_pilco.START_STD)
    made = moment_policies.make(env, env.belief, "rbf", peer_pilco.NUM_BASIS)

    def total(params: Params, known: Kernels) -> Array:
        return beliefs.rollout(env.belief, known, made, params, horizon)[0]

    run, params = jax.value_and_grad(total), made.init(jax.random.key(0))
    if num_policies:
        run = jax.vmap(run, in_axes=(0, None))
        params = jax.vmap(made.init)(jax.random.split(jax.random.key(0), num_policies))
    return jax.jit(run), (params, processes(num_rows))


def memory() -> dict[str, float]:
    """MB that the compiled program takes for its intermediate results."""

    def needs(num_policies: int) -> float:
        run, args = gradient(ROWS[-1], MEMORY_HORIZON, num_policies)
        return run.lower(*args).compile().memory_analysis().temp_size_in_bytes / 1e6

    return {"one": needs(0), f"{NUM_POLICIES} at once": needs(NUM_POLICIES)}


def policies() -> dict[str, float]:
    """CPU seconds of several policies at once over those of one."""
    alone, together = (
        compiled(*gradient(ROWS[0], peer_pilco.HORIZON, number))
        for number in (0, NUM_POLICIES)
    )
    rows = [
        (peers.timed(alone, 3), peers.timed(together, 1)) for _ in range(NUM_REPEATS)
    ]
    times = lambda clock: statistics.median(y[clock] / x[clock] for x, y in rows)
    return {"number": NUM_POLICIES, "times": times("cpu"), "times_wall": times("wall")}


def compiled(run: Any, args: tuple) -> Call:
    jax.block_until_ready(run(*args))
    return lambda: run(*args)


if __name__ == "__main__":
    flags.DEFINE_string("peer_python", None, "of the peer's environment", required=True)
    flags.DEFINE_string("peer_path", None, "of the peer's source", required=True)
    jax_settings.apply("x64")
    app.run(main)
