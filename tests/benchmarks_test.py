"""The benchmarks, at sizes so small that only their arithmetic is of interest."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    ablations,
    compiling,
    fitting,
    imagining,
    planning,
    regression,
    seeds,
    speed,
    timing,
    topics,
)
from benchmarks.setting import (
    Setting,
    env,
    forward_flop,
    gradient_flop,
    plan_flop,
)
from experiments.statistics import Estimate
from mbrl_jax.algorithms import pets
from mbrl_jax.models import ensemble
from mbrl_jax.networks import GaussianMLP
from mbrl_jax.planners import mpc

TINY = Setting(
    hidden_sizes=(8, 8),
    num_members=3,
    num_elites=2,
    num_samples=4,
    horizon=2,
    num_iterations=2,
    num_particles=4,
)
TINY_PETS = pets.Config(
    capacity=8,
    num_particles=2,
    planner="random_shooting",
    plan=mpc.Config(horizon=2, num_samples=2),
    model=ensemble.Config(num_members=2, hidden_sizes=(4,), num_epochs=2),
)


def dot_flop(function, *args):
    """Counted in the program: the floating-point operations of its matrix products."""
    total = 0
    for equation in jax.make_jaxpr(function)(*args).jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            per_entry = math.prod(shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * per_entry
    return total


def test_operations_are_those_of_the_networks():
    setting, batch_size = Setting(), 32
    network = GaussianMLP(setting.hidden_sizes, env().obs_size)
    inputs = jnp.ones((batch_size, env().obs_size + env().action_size))
    params = network.init(jax.random.key(0), inputs)

    def loss(params):
        mean, log_var = network.apply(params, inputs)
        return mean.sum() + log_var.sum()

    assert dot_flop(loss, params) == batch_size * forward_flop(setting)
    assert dot_flop(jax.grad(loss), params) == batch_size * gradient_flop(setting)
    assert plan_flop(setting) == 350 * 20 * 15 * 5 * forward_flop(setting)


def test_a_row_says_how_the_call_compares_with_the_product():
    took = timing.Timing(seconds=2.0, wall=3.0, product_rate=100e9)
    row = timing.row("topic", "case", 0.5, "unit", took, flop=120e9)
    assert row == timing.Row("topic", "case", 0.5, "unit", 3.0, 60.0, 0.6)


def test_the_clock_of_a_cpu_counts_work_and_not_waiting(monkeypatch):
    used = iter([10.0, 16.0])
    monkeypatch.setattr(timing, "cpu_seconds", lambda: next(used))
    monkeypatch.setattr(timing.time, "perf_counter", iter([0.0, 9.0]).__next__)
    assert timing.time_calls(lambda: 0, num_calls=3) == (2.0, 3.0)


MEASURES = {
    "planning": lambda: planning.measure(TINY, 1),
    "fitting": lambda: fitting.measure(TINY, ((4, 7),), 1),
    "imagining": lambda: imagining.measure(TINY, (10,), 1),
    "seeds": lambda: seeds.measure((2,), 4, TINY_PETS, 1),
    "main_job_alone": lambda: seeds.main_job(1, 4, TINY_PETS),
    "main_job_64_seeds": lambda: seeds.main_job(3, 4, TINY_PETS),
    "searches": lambda: ablations.searches(TINY, 1),
    "guards": lambda: ablations.guards(TINY, 4, 2, 1),
    "fit_parts": lambda: ablations.fit_parts(TINY, ((4, 2),), 1),
    "random_numbers": lambda: ablations.random_numbers(1000, 1),
    "activations": lambda: ablations.activations(TINY, 2, 1),
}


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    x = jnp.ones((256, 256))
    product = (lambda: x @ x), 2.0 * 256**3, 20
    monkeypatch.setattr(timing, "product", lambda: product)


@pytest.mark.parametrize("name", MEASURES)
def test_figures_are_positive_and_in_the_table(name):
    rows = MEASURES[name]()
    assert len({(row.topic, row.case) for row in rows}) == len(rows) > 0
    for row in rows:
        for value in (row.figure, row.wall, row.gflops, row.ratio):
            assert value is None or 0 < value < math.inf, row
    result = {"rows": [row._asdict() for row in rows], "machine": {"platform": "cpu"}}
    lines = speed.table({name: result}, []).splitlines()
    assert len(lines) == 2 + len(rows)
    assert all(line.count("|") == 9 for line in lines)


def test_every_topic_is_tested_here():
    others = {"machine", "compiling", "sharded"}
    assert set(MEASURES) | others == set(topics.TOPICS)


def test_devices_do_not_change_the_numbers():
    for row in seeds.sharded(3, 4, TINY_PETS):
        assert 0 <= row.figure < 1e-6


def test_a_topic_says_on_what_it_was_measured(monkeypatch):
    monkeypatch.setitem(
        topics.TOPICS, "seeds", lambda: [timing.Row("a", "b", 1.0, "c")]
    )
    found = json.loads(json.dumps(topics.measure("seeds")))
    assert [row["topic"] for row in found["rows"]] == ["a", "memory"]
    assert found["rows"][1]["figure"] > 50  # MB: Python and jax alone take more
    assert found["machine"]["platform"] == jax.devices()[0].platform


def test_a_fit_takes_the_gradient_steps_that_are_counted():
    fitted, metrics = fitting.epoch(TINY, batch_size=4, num_updates=7)()
    counts = [
        leaf
        for leaf in jax.tree.leaves(fitted.opt_state)
        if jnp.issubdtype(leaf.dtype, jnp.integer)
    ]
    assert metrics["model/num_epochs"] == 1
    assert 7 in np.concatenate([np.ravel(count) for count in counts])  # Adam's own


def test_candidates_with_noise_of_their_own_have_keys_of_their_own():
    actions = jax.random.normal(jax.random.key(0), (5, 2, 1))
    keys = jax.vmap(ablations.own_key, in_axes=(None, 0))(jax.random.key(1), actions)
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 5


def test_the_peer_stands_beside_the_same_figure_of_ours():
    ours = timing.Row("planning", "ts1", 2.0, "CPU s per MPC step")
    theirs = {**ours._asdict(), "figure": 3.0}
    result = {"planning": {"rows": [ours._asdict()]}}
    assert "| 2 | CPU s per MPC step | 3 |" in speed.table(result, [theirs])
    other = theirs | {"unit": "s per MPC step"}
    assert "| 2 | CPU s per MPC step |  |" in speed.table(result, [other])


def test_the_page_has_the_table_of_the_results_file():
    results = json.loads((speed.FOLDER / "results" / "speed_cpu.json").read_text())
    page = speed.README.read_text()
    assert speed.with_table(page, results) == page


@pytest.mark.slow
def test_the_cache_spares_compiling():
    cold, cached, memory = compiling.measure()
    assert cached.figure < cold.figure / 2
    assert memory.figure > 50


def test_a_band_is_wider_than_what_made_it_and_is_left():
    low, high = regression.band([1.0, 3.0, 2.0])
    assert (low, high) == (0.0, 4.0)
    assert regression.within(Estimate(2.0, 1.0, 3.0), low, high)
    for bad in (
        Estimate(2.0, -0.1, 3.0),
        Estimate(2.0, 1.0, 4.1),
        Estimate(math.nan, math.nan, math.nan),
    ):
        assert not regression.within(bad, low, high)


def test_every_method_has_a_band_of_ten_seeds_that_are_not_tested():
    bands = json.loads(regression.BANDS.read_text())
    assert bands.keys() == regression.METHODS.keys()
    for method, known in bands.items():
        assert regression.band(known["returns"]) == (known["low"], known["high"])
        assert len(set(known["seeds"])) == 10
        first, num = regression.TESTED
        assert not set(known["seeds"]) & set(range(first, first + num))
        assert known["flags"] == [*regression.COMMON, *regression.METHODS[method]]
