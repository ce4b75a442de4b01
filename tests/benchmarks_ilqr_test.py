"""The benchmark of iLQR, at sizes so small that only its arithmetic is of interest."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import ilqr

STUB = """
import jax
import jax.numpy as np

def ilqr(cost, dynamics, x, u, maxiter, grad_norm_threshold, make_psd):
    total = 0.0
    for t in range(len(u)):
        total = total + cost(x, u[t], t)
        x = dynamics(x, u[t], t)
    total = total + cost(x, 0 * u[0], len(u))
    return None, None, total, None, None, None, np.array(7)
"""


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.setattr(ilqr, "NUM_REPEATS", 1)
    monkeypatch.setattr(ilqr, "NUM_CALLS", 1)
    whole = ilqr.pendulum()
    return whole._replace(u=whole.u[:5])


@pytest.mark.parametrize("name", ilqr.PROBLEMS)
def test_the_problems_are_not_solved_at_their_start(name):
    problem = ilqr.PROBLEMS[name]()
    x = jnp.asarray(problem.x)
    moved = problem.dynamics(x, jnp.asarray(problem.u[0]), 0)
    assert moved.shape == x.shape
    assert problem.final_cost(x) > 10


def test_the_peer_has_the_same_problem(problem, tmp_path, monkeypatch):
    (tmp_path / "trajax").mkdir()
    (tmp_path / "trajax" / "__init__.py").touch()
    (tmp_path / "trajax" / "optimizers.py").write_text(STUB)
    monkeypatch.setattr("sys.path", [str(tmp_path), *ilqr.sys.path])
    monkeypatch.setattr(ilqr, "NUM_ITERATIONS", 0)
    found = ilqr.against_peer(problem, str(tmp_path))
    assert set(found) == {"ours", "trajax", "trajax, projected"}
    assert found["ours"]["iterations"] == 1
    assert found["trajax"]["iterations"] == 7
    assert found["trajax"]["cost"] == pytest.approx(found["ours"]["cost"], rel=1e-12)
    assert found["ours"]["ratio"] == 1
    each = [found[who]["seconds_per_iteration"] for who in ("ours", "trajax")]
    assert found["trajax"]["ratio"] == pytest.approx(each[0] / each[1])


@pytest.mark.slow
def test_a_batch_of_starts(problem, monkeypatch):
    monkeypatch.setattr(ilqr, "BATCH", 3)
    monkeypatch.setattr(ilqr, "BATCH_REPEATS", 1)
    monkeypatch.setattr(ilqr, "CHUNKS", (2,))
    found = ilqr.batch(problem, "float32", 4)
    assert set(found) == {"loop", "batch", "chunks of 2", "iterations"}
    assert 1 <= found["iterations"]["mean"] <= found["iterations"]["most"] <= 4


def test_ratios_are_those_of_neighbours_in_time():
    times = {
        "loop": [(2.0, 20.0), (9.0, 9.0), (4.0, 8.0)],
        "batch": [(1.0, 1.0), (3.0, 3.0), (1.0, 1.0)],
    }
    found = ilqr.summary(times)
    assert found["batch"] == {
        "seconds": 1.0,
        "wall": 1.0,
        "times as fast": 3.0,  # of 2, 3, 4
        "times as fast, wall": 8.0,  # of 20, 3, 8
    }
