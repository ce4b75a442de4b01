"""The benchmarks, at sizes so small that only their arithmetic is of interest."""

import ast
import itertools
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    ablations,
    apg_throughput,
    compiling,
    fitting,
    imagining,
    peer_pilco,
    peers,
    pilco_speed,
    planning,
    predicted,
    random_systems,
    regression,
    returns,
    seeds,
    speed,
    timing,
    topics,
    updating,
)
from benchmarks.setting import Setting, env, forward_flop, gradient_flop, plan_flop
from experiments.reports import results
from experiments.reports.statistics import Estimate
from mbrl_jax import envs, policies, rollout
from mbrl_jax.algorithms import apg, pets, pilco
from mbrl_jax.envs import simulator
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble
from mbrl_jax.networks import GaussianMLP
from mbrl_jax.ops import moments
from mbrl_jax.planners import mpc
from mbrl_jax.training import train
from mbrl_jax.types import Algorithm

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
    propagation="expectation",
    planner="random_shooting",
    plan=mpc.Config(horizon=2, num_samples=2),
    model=models.Config(
        ensemble=ensemble.Config(
            probabilistic=False, num_members=1, hidden_sizes=(4,), num_epochs=2
        )
    ),
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


@pytest.mark.slow
def test_operations_are_those_of_an_update():
    """Beside the matrix products, a compiler counts activations and Adam."""
    call = updating.updates(1, 1)
    counted = call.func.lower(*call.args).compile().cost_analysis()["flops"]
    assert 1 <= counted / updating.update_flop() < 1.2


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
    "imagining": lambda: imagining.measure(TINY, ((1, 10), (2, 10)), 1),
    "updating": lambda: updating.measure((2,), 2, 1),
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


@pytest.fixture
def light_pets(monkeypatch):
    """What compiles at once in place of PETS, of which only the time is told.  Returns
    the configurations and the lengths of episodes that were asked for."""
    asked = []

    def make(env, config):
        asked.append((config, env.episode_length))
        step = lambda key, state: (state + 1, {"env_steps": state})
        policy = lambda state: policies.uniform(env)
        return Algorithm(lambda key: jnp.zeros((), int), step, policy)

    monkeypatch.setattr(seeds.pets, "make", make)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_figures_are_positive_and_in_the_table(name, light_pets):
    rows = MEASURES[name]()
    assert {*light_pets} <= {(TINY_PETS, 4)}
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


def test_numbers_are_compared_between_devices(monkeypatch):
    """Stand-ins for devices, of which the returns depend as no returns should."""

    def build(key, algorithm, env, devices):
        double, share = jax.config.jax_enable_x64, 1 / len(devices)
        built.append((len(devices), double))
        step = lambda key, i, state: (state, {"episode/return": share * i * np.ones(3)})
        return SimpleNamespace(init=lambda key: (), step=step)

    built = []
    monkeypatch.setattr(seeds.jax, "devices", lambda: [None] * 4)
    monkeypatch.setattr(seeds.train, "build", build)
    rows = seeds.sharded(3, 4, TINY_PETS, num_seeds=3)
    assert built == [(4, False), (2, False), (4, True), (1, True)]
    assert [row.case for row in rows] == [
        "float32, 3 seeds: 4 devices next to 2",
        "float64, 3 seeds: 4 devices next to 1",
    ]
    assert [row.figure for row in rows] == [0.5, 0.75]
    assert all(row.unit.endswith("of returns of step 3") for row in rows)


def test_a_topic_says_on_what_it_was_measured(monkeypatch):
    monkeypatch.setitem(
        topics.TOPICS, "seeds", lambda: [timing.Row("a", "b", 1.0, "c")]
    )
    found = json.loads(json.dumps(topics.measure("seeds")))
    assert [row["topic"] for row in found["rows"]] == ["a", "memory"]
    assert found["rows"][1]["figure"] > 50  # MB: Python and jax alone take more
    assert found["machine"]["platform"] == jax.devices()[0].platform


@pytest.mark.slow
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


def test_the_page_has_the_tables_of_the_results_files():
    page = speed.README.read_text()
    for mark, name in speed.TABLES.items():
        assert f"<!-- {mark} -->" in page
        results = json.loads((speed.RESULTS / name).read_text())
        assert speed.with_table(page, results, mark) == page


SMALLER_FIRST_STEP = """
import jax
from benchmarks import first_step
from mbrl_jax.training import train
from mbrl_jax.types import Algorithm

def make(env):
    init = lambda key: jax.numpy.int32(0)
    step = lambda key, state: (state + 1, {"model/num_epochs": state})
    return Algorithm(init, step, lambda state: None)

first_step.pets.make = make
first_step.main([])
"""


@pytest.mark.slow
def test_the_cache_spares_compiling(monkeypatch):
    """All that the first process compiled, the second has from it."""
    found, first_step, run = [], compiling.first_step, subprocess.run

    def listened(cache):
        found.append(first_step(cache))
        return found[-1]

    def smaller(command, **options):
        assert command[1:] == ["-m", "benchmarks.first_step"]
        return run([command[0], "-c", SMALLER_FIRST_STEP], **options)

    monkeypatch.setattr(compiling, "first_step", listened)
    monkeypatch.setattr(compiling.subprocess, "run", smaller)
    cold, cached, memory = compiling.measure()
    assert found[0]["cache_hits"] == found[1]["cache_misses"] == 0
    assert found[0]["cache_misses"] == found[1]["cache_hits"] > 0
    assert [cold.figure, cached.figure] == [process["cpu"] for process in found]
    assert memory.figure > 50


def test_a_band_is_wider_than_what_made_it_and_is_left():
    low, high = regression.band([1.0, 3.0, 2.0], most=7.0)
    assert (low, high) == (0.0, 4.0)
    assert regression.band([1.0, 3.0, 2.0], most=3.5) == (0.0, 3.5)
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
        env = next(x for x in known["flags"] if x.startswith("--env=")).removeprefix(
            "--env="
        )
        most = regression.MOST[env]
        assert regression.band(known["returns"], most) == (known["low"], known["high"])
        assert known["low"] > results.read_references(None)[env].random
        assert len(set(known["seeds"])) == 10
        first, num = regression.TESTED
        assert not set(known["seeds"]) & set(range(first, first + num))
        assert {*known["flags"]} == {*regression.COMMON, *regression.METHODS[method]}


def test_the_best_is_measured_where_all_evaluations_start():
    env = simulator.time_limit(envs.make("pendulum"), 20)
    idle, starts = policies.constant(env), jax.random.key(train.EVALUATION_SEED)
    found, _ = rollout.evaluate(
        jax.random.key(0), env, idle, returns.NUM_EVALUATED, starts
    )
    mean = float(found["eval/return_mean"])
    assert returns._at_starts(env, idle) == pytest.approx(mean, abs=0.01)
    elsewhere, _ = rollout.evaluate(
        jax.random.key(0), env, idle, returns.NUM_EVALUATED, jax.random.key(1)
    )
    assert abs(float(elsewhere["eval/return_mean"]) - mean) > 0.1


@pytest.mark.slow
def test_an_update_of_apg_is_a_step_of_adam(monkeypatch):
    states = []

    def fake(call):
        states.append(call())
        return 2.0, 4.0

    monkeypatch.setattr(timing, "time_calls", fake)
    config = apg.Config(num_envs=2, horizon=2, num_updates=3, hidden_sizes=(4,))
    measure = apg_throughput.trainer(envs.make("pendulum"), config)
    row = measure()
    assert (row[apg_throughput.CPU], row[apg_throughput.WALL]) == (1.5, 0.75)
    assert row["gradient_norm"] > 0
    for number, state in enumerate(states, start=1):  # the first was to warm up
        counts = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32]
        assert 3 * number in counts
        assert state.envs.env_steps == number * 3 * 2 * 2
    assert len(states) == 2


FAKE_PEER = """
import json, sys
print("noise of a library", flush=True)
for i, _ in enumerate(sys.stdin):
    print(json.dumps({"number": i, "argv": sys.argv[1:]}), flush=True)
"""


def test_the_peer_measures_when_it_is_its_turn(monkeypatch, tmp_path):
    (tmp_path / apg_throughput.PEER).write_text(FAKE_PEER)
    monkeypatch.setattr(apg_throughput, "FOLDER", tmp_path)
    with apg_throughput.peer(sys.executable, 2, 50) as measure:
        rows = [measure(), measure()]
    assert [row["number"] for row in rows] == [0, 1]
    assert rows[0]["argv"] == ["--wait", "--num_repeats=2", "--num_updates=50"]
    (tmp_path / apg_throughput.PEER).write_text("raise SystemExit(1)")
    with (
        apg_throughput.peer(sys.executable, 2, 50) as measure,
        pytest.raises(RuntimeError, match="ended early"),
    ):
        measure()


def test_the_ratio_to_the_peer_is_of_neighbours():
    pair = lambda theirs, ours: tuple(
        {apg_throughput.CPU: x, apg_throughput.WALL: 1.0} for x in (theirs, ours)
    )
    # the machine is twice as fast in the end
    found = apg_throughput.summary([pair(1, 2), pair(1, 3), pair(2, 8)])
    assert (found["ratio"], found["ratio_wall"]) == (3, 1)
    assert found["ours"][apg_throughput.CPU] == 3


def test_the_peer_trains_in_the_same_setting():
    text = (apg_throughput.FOLDER / apg_throughput.PEER).read_text()
    known = {
        line.targets[0].id: ast.literal_eval(line.value)
        for line in ast.parse(text).body
        if isinstance(line, ast.Assign)
        and isinstance(line.value, ast.Dict | ast.Constant)
    }
    assert known["SETTING"]["num_envs"] == apg_throughput.CONFIG.num_envs
    assert known["SETTING"]["horizon_length"] == apg_throughput.CONFIG.horizon
    assert f"brax/{known['ENV']}/{known['BACKEND']}" == apg_throughput.ENV


@pytest.mark.usefixtures("double")
def test_the_processes_are_those_that_the_peer_of_pilco_is_given():
    given, known = peer_pilco.problem(9), pilco_speed.processes(9)
    assert known.inputs.shape == (moments.BLOCK, 5)
    at = moments.Normal(jnp.array(given["mean"]), jnp.zeros((5, 5)))
    found = moments.kernels(at, known)
    for e in range(4):

        def k(a, b, e=e):
            away = (a[:, None] - b[None]) / given["lengthscales"][e]
            return given["signal_var"][e] * np.exp(-(away**2).sum(axis=-1) / 2)

        cross = k(given["mean"][None], given["inputs"])[0]
        cov = k(given["inputs"], given["inputs"]) + given["noise_var"][e] * np.eye(9)
        mean = cross @ np.linalg.solve(cov, given["targets"][:, e])
        var = given["signal_var"][e] - cross @ np.linalg.solve(cov, cross)
        assert float(found.mean[e]) == pytest.approx(mean, rel=1e-9)
        assert float(found.cov[e, e]) == pytest.approx(var, rel=1e-6)
    theirs = [found.mean[None], found.cov, found.gain]
    pilco_speed.agree(found, theirs)
    for i in range(3):
        wrong = [x * (1 + 1e-4 * (i == j)) for j, x in enumerate(theirs)]
        with pytest.raises(AssertionError, match="tolerance"):
            pilco_speed.agree(found, wrong)


def test_the_ratio_to_the_peer_of_pilco_is_of_neighbours(monkeypatch):
    rows = lambda *cpu: iter([{"cpu": x, "wall": 1.0} for x in cpu])
    theirs, ours, asked = rows(99, 1, 10, 2), rows(3, 20, 8), []
    answers = itertools.chain([{"found": 0}], theirs)

    def timed(call, num_calls):
        assert num_calls == peer_pilco.CALLS["rollout"]
        return next(ours)

    monkeypatch.setattr(pilco_speed, "ours", lambda case, num_rows: None)
    monkeypatch.setattr(peers, "timed", timed)
    monkeypatch.setattr(pilco_speed, "NUM_REPEATS", 3)
    peer = peers.Peer(asked.append, lambda: next(answers))
    row = pilco_speed.compare(peer, "rollout", 100)
    assert asked == ["rollout/100"] * 4
    assert (row["theirs"], row["ours"], row["ratio"]) == (2, 8, 3)


def test_what_was_expected_is_compared_with_what_was_measured():
    rng = np.random.default_rng(0)
    mean, half = rng.normal(size=(11, 2)), rng.normal(size=(11, 2, 2))
    cov = half @ half.transpose(0, 2, 1)
    std = np.sqrt(cov[:, [0, 1], [0, 1]])
    obs = mean + 1.9 * std
    obs[3:5, 1] = mean[3:5, 1] - 2.1 * std[3:5, 1]
    obs[0] = mean[0] + 9  # where it starts counts for nothing
    reward = -np.ones(10)
    found = predicted.compared(4, (mean, cov, 0.5 * reward), obs, reward)
    assert (found["trial"], found["return"], found["expected"]) == (4, -10, -5)
    assert found["within"] == 18 / 20
    np.testing.assert_allclose(found["believed"]["std"], std, atol=1e-5)
    np.testing.assert_allclose(found["measured"]["obs"], obs, atol=1e-5)


def test_what_is_believed_ends_with_the_last_observation(monkeypatch):
    def rollout(belief, f, made, params, horizon):
        assert (f, horizon) == ("kernels", env.episode_length)
        before = moments.Normal(jnp.zeros((3, 2)), jnp.zeros((3, 2, 2)))
        after = moments.Normal(jnp.ones(2), jnp.eye(2))
        return None, (after, None, SimpleNamespace(obs=before, reward=jnp.arange(3)))

    env = envs.make("pendulum_pilco")
    state = SimpleNamespace(model=SimpleNamespace(kernels="kernels"), params=None)
    monkeypatch.setattr(predicted.beliefs, "rollout", rollout)
    mean, cov, reward = predicted.believed(env, pilco.Config(), state)
    np.testing.assert_array_equal(mean, [[0, 0], [0, 0], [0, 0], [1, 1]])
    np.testing.assert_array_equal(cov[-1], np.eye(2))
    np.testing.assert_array_equal(reward, [0, 1, 2])


@pytest.mark.parametrize(("num_states", "num_controls"), random_systems.SIZES)
def test_a_random_system_moves_by_its_equation(num_states, num_controls):
    rng = np.random.default_rng(0)
    system = random_systems.draw(rng, num_states, num_controls)
    env = random_systems.environment(system)
    assert (env.obs_size, env.action_size) == (num_states, num_controls)
    state = env.reset(jax.random.key(0))
    x, u = np.asarray(state.obs), rng.uniform(-1, 1, num_controls)
    assert 0 < np.abs(x - system.start).max() < 5 * random_systems.START_STD
    bent = random_systems.BEND * np.sin(system.C @ x)
    after = env.step(state, jnp.array(u))
    expected = system.A @ x + system.B @ u + bent
    np.testing.assert_allclose(after.obs, expected, rtol=1e-4, atol=1e-6)
    cost = 1 - np.exp(-np.sum(expected**2) / 2)
    np.testing.assert_allclose(after.reward, -cost, rtol=1e-4)
    np.testing.assert_array_equal(env.belief.mean, system.start)


def test_random_systems_are_stable_and_unstable_and_their_own():
    draw = lambda seed: random_systems.draw(np.random.default_rng(seed), 3, 2)
    found = [random_systems.radius(draw(seed).A) for seed in range(40)]
    eigenvalues = np.linalg.eigvals(draw(0).A)
    np.testing.assert_allclose(found[0], np.abs(eigenvalues).max())
    assert len(set(found)) == 40
    assert 0.7 < min(found) < 0.8
    assert 1.1 < max(found) < 1.2
    assert 10 < sum(x > 1 for x in found) < 30


@pytest.mark.parametrize("fault", ["none", "not finite", "exception"])
def test_one_run_that_fails_fails_them_all(monkeypatch, tmp_path, fault):
    def run(key, system):
        assert system.A.shape in ((1, 1), (2, 2), (3, 3))
        calls.append(system)
        if len(calls) == 7 and fault == "exception":
            raise FloatingPointError("far away")
        metrics = {
            "episode/return": jnp.array([-10.0, -9.0, -2.5]),
            "model/num_jitters": jnp.array([0, 0, len(calls) == 3]),
        }
        return jnp.array(len(calls) != 7 or fault != "not finite"), metrics

    calls, path = [], tmp_path / "found.json"
    monkeypatch.setattr(random_systems, "run", run)
    monkeypatch.setattr(random_systems, "RESULTS", path)
    if fault == "none":
        random_systems.main([])
    else:
        with pytest.raises(SystemExit) as end:
            random_systems.main([])
        assert end.value.code == 1
    found = json.loads(path.read_text())
    num = int(fault != "none")
    assert (found["num_runs"], found["num_failed"]) == (50, num)
    assert (found["num_with_jitters"], found["num_improved"]) == (1, 50 - num)
    assert (found["cost_first"], found["cost_last"]) == (0.5, 0.125)
    assert [row["finite"] for row in found["runs"]].count(False) == num
    assert len({row["seed"] for row in found["runs"]}) == 50
