import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from PIL import Image

from benchmarks import gradients as benchmark
from experiments import gradients, run
from experiments.runs import command_flags, gradient_problems
from mbrl_jax import envs
from mbrl_jax.gradients import closed_loop
from mbrl_jax.types import Gaussian


@pytest.fixture(autouse=True)
def precision():
    """The command sets it for its whole process."""
    before = jax.config.jax_enable_x64
    matmul = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_enable_x64", before)
    jax.config.update("jax_default_matmul_precision", matmul)


def measure(folder: Path, *arguments: str) -> dict[str, Any]:
    gradients.main(["gradients", *arguments, f"--output={folder}"])
    with Image.open(folder / "gradients.png") as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    return json.loads((folder / "gradients.json").read_text())


@pytest.mark.slow
def test_the_doubling_map_against_its_closed_forms(tmp_path: Path):
    folder = tmp_path / "new" / "folder"
    arguments = ("--env=doubling_map", "--horizons=6,2,9", "--num_samples=4000")
    report = measure(folder, *arguments, "--window=4")
    assert report["horizons"] == [2, 6, 9]
    result = report["precisions"]["x64"]
    found, horizons = result["estimators"], np.array([2, 6, 9])
    truth = {
        "pathwise": 2 * np.pi**2 * (2.0**horizons - 1) ** 2,
        "likelihood_ratio": horizons / (2 * 0.01**2),
        # the reward depends on what its own window of 4 has of the parameter
        "windowed": 2 * np.pi**2 * (2.0 ** np.array([2, 2, 1]) - 1) ** 2,
    }
    for name, variance in truth.items():
        np.testing.assert_allclose(found[name]["variance"], variance, rtol=0.1)
        if name != "windowed":
            np.testing.assert_allclose(report["closed_form"][name], variance)
    mixed = np.array(found["total_propagation"]["variance"])
    assert (mixed < 2 * np.minimum(truth["pathwise"], truth["likelihood_ratio"])).all()
    np.testing.assert_allclose(result["log_growth"], np.log(2) * horizons, rtol=1e-6)
    np.testing.assert_allclose(result["lyapunov_exponent"], np.log(2), rtol=1e-6)
    for one in found.values():
        # the true gradient is 0, so that it is all noise
        assert max(one["signal_to_noise"]) < 4 / np.sqrt(4000)
        assert one["num_non_finite"] == [0, 0, 0]
    assert np.abs(found["pathwise"]["cosine"]["total_propagation"]) == pytest.approx(1)


LINEAR = ("--env=linear_quadratic", "--hidden_sizes=", "--num_samples=20")


@pytest.mark.slow
def test_a_simulator(tmp_path: Path):
    report = measure(tmp_path, *LINEAR, "--horizons=1,3,4", "--window=2")
    found = report["precisions"]["x64"]["estimators"]
    assert_right(found, 1e-6)
    assert found["windowed"]["bias"][0] < 1e-6
    assert found["windowed"]["bias"][1] > 0.01
    assert found["likelihood_ratio"]["bias"][0] > 0.01


def assert_right(found: dict[str, Any], tolerance: float) -> None:
    """Pathwise gradients are those of finite differences."""
    assert max(found["pathwise"]["bias"]) < tolerance
    for name in ("norm", "variance", "mean_return"):
        np.testing.assert_allclose(
            found["pathwise"][name], found["finite_difference"][name], rtol=0.02
        )
    assert min(found["pathwise"]["cosine"]["finite_difference"]) > 0.999


@pytest.mark.slow
def test_without_noise_there_is_no_score_in_either_precision(tmp_path: Path):
    report = measure(
        tmp_path, *LINEAR, "--horizons=1,2,4", "--std=0", "--precision=fast,x64"
    )
    assert list(report["precisions"]) == ["fast", "x64"]
    for precision, tolerance in {"fast": 1e-2, "x64": 1e-6}.items():
        found = report["precisions"][precision]["estimators"]
        assert list(found) == ["pathwise", "finite_difference"]
        assert_right(found, tolerance)
    quick, exact = (
        report["precisions"][x]["estimators"]["pathwise"]["norm"]
        for x in ("fast", "x64")
    )
    # one policy, other starts
    np.testing.assert_allclose(quick, exact, rtol=0.5)


def test_a_shorter_horizon_is_an_episode_that_ends():
    """The masked problem is the one that is as short, sample by sample."""
    env = envs.make("linear_quadratic")
    policy = gradient_problems.network(env, [], gain=1.0, seed=3)
    masked = gradient_problems.in_simulator(env, policy, 5, 0.1).problem(2)
    spread = jnp.full(env.action_size, 0.1 * env.action_limit)
    actor = closed_loop.gaussian(lambda p, obs: Gaussian(policy.apply(p, obs), spread))
    plain = closed_loop.ExpectedReturn(closed_loop.from_env(env), actor, 2)
    totals = [
        closed_loop.rollout(
            jax.random.key(1),
            policy.params,
            problem,
            problem.system.reset(jax.random.key(2)),
        )[0]
        for problem in (masked, plain)
    ]
    assert totals[0] == pytest.approx(float(totals[1]), rel=1e-6)
    assert totals[0] != 0


def test_the_page_is_that_of_the_results():
    """And they show what PIPPS found."""
    results = json.loads(benchmark.RESULTS.read_text())
    assert (benchmark.DOCS / "gradients.md").read_text() == benchmark.page(results)
    for case, horizon, factor in (("doubling_map", 16, 1e5), ("chaos", 128, 1e3)):
        record = results[case]
        found = record["precisions"]["x64"]["estimators"]
        variance = {name: np.array(x["variance"]) for name, x in found.items()}
        pathwise, mixed = variance["pathwise"], variance["total_propagation"]
        assert (mixed < 2 * np.minimum(pathwise, variance["likelihood_ratio"])).all()
        assert (pathwise / mixed)[record["horizons"].index(horizon)] > factor


@pytest.mark.slow
def test_what_is_not_finite_is_null_and_counted(tmp_path: Path):
    """Pathwise messages overflow; a score of one number has no such trouble."""
    report = measure(
        tmp_path,
        "--env=doubling_map",
        "--horizons=1,200",
        "--num_samples=20",
        "--precision=fast",
        "--window=0",
    )
    found = report["precisions"]["fast"]["estimators"]
    assert found["pathwise"]["num_non_finite"] == [0, 20]
    assert found["pathwise"]["norm"][1] == 0
    assert found["pathwise"]["signal_to_noise"][1] is None
    assert found["likelihood_ratio"]["num_non_finite"] == [0, 0]


@pytest.mark.slow
def test_the_model_of_a_run_that_plans(modelled: Path, tmp_path: Path):
    """Its policy has no parameters: a network acts, in the model and outside."""
    small = ("--horizons=1,2", "--num_samples=8", "--hidden_sizes=", "--window=0")
    report = measure(tmp_path, f"--run_dir={modelled}", *small, "--model")
    assert report["system"] == "learned model"
    assert report["policy"].startswith("random network")
    assert report["env"] == "point_mass"
    found = report["precisions"]["x64"]["estimators"]  # the run was in single precision
    assert "likelihood_ratio" in found
    assert all(x > 0 for x in found["pathwise"]["norm"])
    assert max(found["pathwise"]["bias"]) < 1e-4


@pytest.mark.slow
def test_the_policy_of_a_run(tmp_path: Path):
    arguments = (
        "--algorithm=apg",
        "--env=point_mass",
        "--num_seeds=2",
        "--num_envs=2",
        "--horizon=2",
        "--num_updates=1",
        "--hidden_sizes=4",
        "--num_steps=1",
        "--eval_episodes=0",
        "--nopictures",
        f"--run_dir={tmp_path / 'run'}",
    )
    run.main(["run", *arguments])
    # without noise there are no scores, which take long to compile
    small = ("--horizons=1,2", "--num_samples=8", "--window=0", "--std=0")
    report = measure(tmp_path, f"--run_dir={tmp_path / 'run'}", *small)
    assert report["policy"] == "apg after 1 steps"
    assert report["system"] == "simulator"
    found = report["precisions"]["x64"]["estimators"]
    assert max(found["pathwise"]["bias"]) < 1e-4
    with pytest.raises(ValueError, match="apg learns no model"):
        measure(tmp_path, f"--run_dir={tmp_path / 'run'}", *small, "--model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--env=pendulum", "--output="), "--output is needed"),
        ((), "one of --env and --run_dir"),
        (("--env=pendulum", "--run_dir=x"), "one of --env and --run_dir"),
        (("--env=pendulum", "--model"), "--model needs the --run_dir"),
        (("--env=pendulums",), "unknown environment 'pendulums'; did you mean"),
        (("--env=pendulum", "--horizons=1,x"), "flag --horizons"),
        (("--env=pendulum", "--horizons="), "at least one is needed"),
        (("--env=pendulum", "--horizons=0"), "0 is not positive"),
        (("--env=pendulum", "--hidden_sizes=-2"), "-2 is not positive"),
        (("--env=pendulum", "--hidden_sizes=2147483648"), "is more than 2147483647"),
        (("--env=pendulum", "--precision=half"), "precision is 'half'"),
        (("--env=pendulum", "--precision="), "--precision is needed"),
        (("--env=cartpole_balance",), "cartpole_balance is exactly 0"),
        (("--env=maze",), "maze has discrete actions: they have no gradient"),
        (("--run_dir=~nosuchuser/x",), "~nosuchuser/x: there is no such user"),
        (("--run_dir=nowhere",), "there is no run folder nowhere"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    given = ["gradients", f"--output={tmp_path / 'new'}", *arguments]
    with pytest.raises((flags.Error, ValueError, OSError), match=message):
        gradients.main(given)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit) as stopped:
        command_flags.command(gradients.main)
    assert stopped.value.code in (1, 2)
    assert len(capsys.readouterr().err.splitlines()) == 1
