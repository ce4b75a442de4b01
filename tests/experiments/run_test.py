"""The command that trains: its folder, its faults, and what survives a kill."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import evaluate, render, run
from experiments.reports import products
from experiments.runs import (
    command_flags,
    jax_settings,
    ledger,
    metrics_log,
    registry,
    run_folder,
)
from mbrl_jax.training import checkpoints, train


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_steps(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    path = folder / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.005)


def digest(folder: Path, step: int) -> str:
    path = folder / "checkpoints" / str(step) / "record" / "metadata"
    return json.loads(path.read_text())["sha256"]


def deterministic(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            name: x
            for name, x in line.items()
            if not name.startswith(("time/", "compile/"))
        }
        for line in metrics_log.read(folder)
    ]


def assert_same(left: Path, right: Path) -> None:
    """Two runs have the same metrics and the same state, bit for bit."""
    assert deterministic(left) == deterministic(right)
    step = deterministic(left)[-1]["step"]
    assert digest(left, step) == digest(right, step)


def complain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str
) -> tuple[int, str]:
    """The exit code and the only line on stderr."""
    monkeypatch.setattr(sys, "argv", ["run", *argv])
    with pytest.raises(SystemExit) as stop:
        command_flags.command(run.main)
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return int(str(stop.value.code)), line


FILES = {
    ".lock",
    "checkpoints",
    "config.json",
    "episode.gif",
    "learning_curve.png",
    "metrics.jsonl",
    "status.json",
    "tensorboard",
}


def test_a_finished_run_leaves_everything(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == FILES
    status = run_folder.read_json(whole / "status.json")
    assert (status["status"], status["step"]) == ("finished", 4)
    assert status["missing"] == {"diagnostics.png": "there is no model"}
    lines = metrics_log.read(whole)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["env_steps"] for line in lines] == [100, 200, 300, 400]
    assert ["eval/return_mean" in line for line in lines] == [False, True, False, True]


@pytest.mark.slow
def test_a_model_is_diagnosed(modelled: Path) -> None:
    diagnostics = {"diagnostics.json", "diagnostics.png"}
    assert {path.name for path in modelled.iterdir()} == FILES | diagnostics
    status = run_folder.read_json(modelled / "status.json")
    assert (status["status"], status["missing"]) == ("finished", {})
    diagnosis = run_folder.read_json(modelled / "diagnostics.json")
    assert np.isfinite(diagnosis["model/open_loop_rmse"]).all()


@pytest.mark.slow
def test_a_finished_run_says_so_and_a_longer_one_goes_on(
    finished: Path, whole: Path, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {x: x.read_bytes() for x in finished.rglob("*") if x.is_file()}
    run.main(["run", f"--run_dir={finished}"])
    assert "is finished" in capsys.readouterr().out
    assert before == {x: x.read_bytes() for x in finished.rglob("*") if x.is_file()}
    run.main(["run", f"--run_dir={finished}", "--num_steps=6"])
    assert deterministic(finished)[:4] == deterministic(whole)
    assert [line["step"] for line in metrics_log.read(finished)] == [1, 2, 3, 4, 5, 6]
    assert run_folder.read(finished)["num_steps"] == 6
    out, err = capsys.readouterr()
    assert "at step 4" in err
    assert str(finished / "learning_curve.png") in out


@pytest.mark.usefixtures("light")
def test_what_is_done_stays_on_record(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer steps than there are, of a run that is finished and of one that is not."""
    folder = tmp_path / "run"
    main = lambda *more: run.main(["run", f"--run_dir={folder}", "--nopictures", *more])
    main(tiny)
    checkpoints.tidy(folder / "checkpoints")
    (folder / "checkpoints" / "1.deleted").mkdir()
    before = (folder / "config.json").read_bytes()
    main("--num_steps=1", "--eval_episodes=9")
    assert "is finished" in capsys.readouterr().out
    assert (folder / "config.json").read_bytes() == before
    assert not (folder / "checkpoints" / "1.deleted").exists()
    (line,) = ledger.read(tmp_path / "ledger.jsonl")
    assert (line["num_steps"], line["env_steps"]) == (4, 400)
    record = run_folder.read(folder) | {"num_steps": 8}
    run_folder.write_json(folder / "config.json", record)
    run_folder.write_status(folder, "stopped", step=4)
    main("--num_steps=2")
    (line,) = ledger.read(tmp_path / "ledger.jsonl")
    assert (line["num_steps"], line["env_steps"]) == (4, 400)
    assert run_folder.read(folder)["num_steps"] == 4
    assert run_folder.read_json(folder / "status.json")["status"] == "finished"


MODULE = """
from mbrl_jax.envs import point_mass

def make():
    return point_mass.make()._replace(name="mine")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_an_environment_of_ones_own_is_named_each_time(
    tmp_path: Path,
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "envs_to_run.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    env = "--env=envs_to_run:make"
    run.main(["run", tiny, env, "--num_steps=1", "--nopictures"])
    (folder,) = (tmp_path / "runs").glob("mpc-envs_to_run-make-*")
    argument = f"--run_dir={folder}"
    with pytest.raises(ValueError, match=f"only imported if you name it too: {env}$"):
        run.main(["run", argument])
    run.main(["run", argument, env])
    evaluate.main(["evaluate", argument, env])
    assert f"{folder}, step 1, 2 episodes".removeprefix(f"{tmp_path}/") in (
        capsys.readouterr().out.replace(f"{tmp_path}/", "")
    )
    render.main(["render", argument, env])
    assert (folder / "episode.gif").exists()


@pytest.mark.usefixtures("light")
def test_the_reason_of_a_simulator_is_on_record(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jax reports a traceback of what fails outside it."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL\n...HostFault: robot failed: no")

    monkeypatch.setattr(train, "run", fail)
    with pytest.raises(jax.errors.JaxRuntimeError):
        run.main(["run", tiny, f"--run_dir={tmp_path / 'run'}"])
    status = run_folder.read_json(tmp_path / "run" / "status.json")
    assert (status["status"], status["reason"]) == ("failed", "robot failed: no")
    (line,) = ledger.read(tmp_path / "ledger.jsonl")
    assert line["reason"] == "robot failed: no"


def test_a_return_that_is_not_finite_is_summed_up() -> None:
    assert products._text(None) == "nan"
    assert products._text([None, None]) == "nan over all seeds"
    lost = "1.5 (1 to 2 over seeds, without 1 not finite)"
    assert products._text([1.0, None, 2.0]) == lost
    assert products._text([1.0, 2.0]) == "1.5 (1 to 2 over seeds)"


def test_flags_that_are_not_given_are_those_of_the_folder(whole: Path) -> None:
    values, config = run.parse(["run", f"--run_dir={whole}", "--plan.num_samples=9"])
    assert (values.env, values.num_steps) == ("point_mass", 4)
    assert config.plan.horizon == 2
    assert config.plan.num_samples == 9


def test_help_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["run", "--help", "--plan.horizon=3"])
    text = capsys.readouterr().out
    for words in (
        "pets            PETS: probabilistic ensembles",
        "cartpole_swingup",
        "brax/NAME",
        "--num_seeds=1",
        "--model.ensemble.hidden_sizes=",
        "H, steps planned ahead",
    ):
        assert words in text


BAD = [
    ("--plan.horizn=3", 2, "unknown flag --plan.horizn; did you mean --plan.horizon?"),
    ("--horizon=3", 2, "did you mean --plan.horizon?"),
    ("--algorithm=petz", 1, "unknown algorithm 'petz'; did you mean 'pets'?"),
    ("--env=cartpole_swing", 1, "did you mean 'cartpole_swingup'?"),
    ("--env=brax/nowhere", 1, "nowhere"),
    ("--seed=first", 2, "--seed=first"),
    ("--seed=-1", 2, "--seed=-1"),
    ("--num_seeds=0", 2, "--num_seeds=0"),
    ("--num_steps=0", 2, "--num_steps=0"),
    ("--precision=double", 2, "<fast|highest|x64>"),
    ("cartpole_swingup", 2, "unexpected argument 'cartpole_swingup'"),
    ("--flagfile=/nowhere", 2, "/nowhere"),
    ("--plan.horizon=0", 1, "horizon is 0"),
    ("--plan.num_elites=101", 1, "num_elites is 101, more than"),
    ("--capacity=50", 1, "capacity is 50, less than"),
    ("--model.ensemble.learning_rate=-0.1", 1, "learning_rate is -0.1"),
    ("--model.ensemble.learning_rate=nan", 2, "ensemble.learning_rate is not a number"),
    ("--model.ensemble.hidden_sizes=a", 2, "--model.ensemble.hidden_sizes"),
    ("--planner=guess", 1, "planner is 'guess'"),
    ("--run_dir=~nosuchuser/x", 1, "~nosuchuser/x: there is no such user"),
    ("--env=no_such_module:make", 1, "No module named 'no_such_module'"),
    ("--model.ensemble.learning_rate=inf", 2, "learning_rate is inf, must be finite"),
    (
        "--model.ensemble.learning_rate=1e39",
        2,
        "is 1e+39, must be finite, at most 3.4e+38",
    ),
    ("--model.ensemble.weight_decay=0,-inf", 2, "weight_decay is -inf, must be"),
    ("--model.ensemble.hidden_sizes=8,0", 2, "hidden_sizes has a size of 0, must be"),
    ("--model.ensemble.hidden_sizes=-8", 2, "hidden_sizes has a size of -8"),
    ("--plan.num_samples=2147483648", 2, "is 2147483648, must be at most 2147483647"),
    ("--num_steps=2147483648", 2, "--num_steps=2147483648"),
    ("--num_seeds=1000001", 2, "--num_seeds=1000001"),
    ("--run_dir=/proc/run", 1, "cannot write to /proc/run"),
    ("--capacity=2000000000", 1, "--capacity=2000000000 is too large: the run needs"),
]


@pytest.mark.parametrize(("argument", "code", "words"), BAD, ids=[x[0] for x in BAD])
def test_bad_input_is_one_line(
    argument: str,
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "run", None)  # it must not come to that
    found, line = complain(monkeypatch, capsys, argument)
    assert line.startswith("error: ")
    assert words in line
    assert found == code
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_line_in_a_real_process() -> None:
    process = start("--plan.horizn=3")
    out, err = process.communicate()
    assert process.returncode == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no Linux")
def test_ctrl_c_in_the_first_second_is_one_line() -> None:
    """While the command is importing what it needs."""
    # it may be ignored, and would be by the process
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start("--run_dir=/proc/nowhere")
    signal.signal(signal.SIGINT, before)
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "jaxlib" not in maps.read_text():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def test_a_folder_below_a_file_is_one_line(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argument = f"--run_dir={whole / 'config.json'}/run"
    code, line = complain(monkeypatch, capsys, argument)
    assert code == 1
    assert "cannot write to" in line


def test_another_configuration_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = complain(
        monkeypatch, capsys, f"--run_dir={finished}", "--plan.horizon=3", "--seed=2"
    )
    assert code == 1
    assert line.endswith(
        "holds another run: plan.horizon is 2 there and 3 here, "
        "seed is 0 there and 2 here"
    )


def test_broken_json_is_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "config.json").write_text("{")
    code, line = complain(monkeypatch, capsys, f"--run_dir={finished}")
    assert code == 1
    assert "config.json is not JSON" in line


@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    finished: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (finished / "checkpoints" / "4").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    evaluate.main(["evaluate", f"--run_dir={finished}"])
    out, err = capsys.readouterr()
    assert "checkpoint 4" in err
    assert "is damaged" in err
    assert "step 3" in out
    run_folder.write_status(finished, "running")
    run.main(["run", f"--run_dir={finished}"])
    assert "is damaged" in capsys.readouterr().err
    assert_same(finished, whole)


def test_a_disk_that_fills_up_is_one_line_and_says_what_is_left(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any, **options: Any) -> bool:
        raise ValueError("write failed\nNo space left on device")

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    monkeypatch.setattr(sys, "argv", ["run", f"--run_dir={finished}", "--num_steps=5"])
    with pytest.raises(SystemExit) as stop:
        command_flags.command(run.main)
    assert stop.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: checkpoint 5 cannot be written")
    assert line.endswith("the last good one is of step 4")
    status = run_folder.read_json(finished / "status.json")
    assert status["status"] == "failed"
    assert "checkpoint 5" in status["reason"]
    assert "Traceback" in status["trace"][0]
    assert checkpoints.steps(finished / "checkpoints") == [2, 3, 4]


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_ends_where_the_whole_one_ends(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill comes at any moment, a signal leaves a checkpoint of the last step."""
    flags = (tiny, "--num_steps=60", "--eval_every=20")
    run.main(["run", *flags, f"--run_dir={tmp_path / 'whole'}"])
    folder, done = tmp_path / "stopped", 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = start(*flags, f"--run_dir={folder}")
        wait_for_steps(process, folder, done + 3)
        process.send_signal(number)
        out, err = process.communicate()
        steps = checkpoints.steps(folder / "checkpoints")
        assert max(steps) > done
        done = max(steps)
        assert "damaged" not in err
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
            continue
        assert process.returncode == 0, err
        assert "Traceback" not in err
        assert out == f"stopped after step {done}; to go on: --run_dir={folder}\n"
        status = run_folder.read_json(folder / "status.json")
        assert (status["status"], status["step"]) == ("stopped", done)
        assert metrics_log.read(folder)[-1]["step"] == done
    assert done < 60
    capsys.readouterr()
    run.main(["run", f"--run_dir={folder}"])
    assert "damaged" not in capsys.readouterr().err
    assert_same(folder, tmp_path / "whole")
    before, after = (
        (x / "episode.gif").read_bytes() for x in (tmp_path / "whole", folder)
    )
    assert before == after


@pytest.mark.slow
def test_several_seeds_keep_their_axis_to_the_disk(
    tmp_path: Path, tiny: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "seeds"
    run.main(["run", tiny, "--num_seeds=3", f"--run_dir={folder}"])
    lines, single = metrics_log.read(folder), metrics_log.read(whole)
    assert all(len(line["eval/return_mean"]) == 3 for line in lines[1::2])
    assert len(set(lines[0]["episode/return"])) == 3
    # the first episode is random: it does not depend on what is learned
    returns = [line["episode/return"] for line in (lines[0], single[0])]
    np.testing.assert_allclose(returns[0][0], returns[1], rtol=1e-4)
    missing = run_folder.read_json(folder / "status.json")["missing"]
    assert missing == {"diagnostics.png": "there is no model"}
    capsys.readouterr()
    evaluate.main(["evaluate", f"--run_dir={folder}"])
    assert len(capsys.readouterr().out.splitlines()) == 6
    for which in (0, 2):
        render.main(["render", f"--run_dir={folder}", f"--run={which}"])
    with pytest.raises(ValueError, match="there are 3"):
        render.main(["render", f"--run_dir={folder}", "--run=3"])


@pytest.fixture
def precision() -> Iterator[None]:
    """The command sets it for its whole process."""
    before = jax.config.jax_enable_x64
    matmul = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_enable_x64", before)
    jax.config.update("jax_default_matmul_precision", matmul)


@pytest.mark.usefixtures("precision")
def test_float64_is_kept_to_the_disk(tmp_path: Path, tiny: str) -> None:
    folder = tmp_path / "x64"
    flags = (tiny, "--precision=x64", "--num_steps=1", "--nopictures")
    run.main(["run", *flags, f"--run_dir={folder}"])
    path = folder / "checkpoints" / "1" / "record" / "metadata"
    dtypes = {dtype for _, _, dtype in json.loads(path.read_text())["leaves"]}
    assert "float64" in dtypes
    assert "float32" not in dtypes
    evaluation = metrics_log.read(folder)[-1]["eval/return_mean"]
    jax.config.update("jax_enable_x64", False)  # the command turns it on again
    evaluate.main(["evaluate", f"--run_dir={folder}"])
    assert run_folder.read_json(folder / "evaluation.json")["eval/return_mean"] == (
        evaluation
    )


@pytest.mark.usefixtures("precision")
def test_a_model_that_is_learned_is_float64_too(tiny_model: str) -> None:
    """At its start, that is: steps keep types."""
    record = run.record_of(*run.parse(["run", tiny_model, "--precision=x64"]))
    jax_settings.apply(record["precision"])
    assembled = registry.assemble(record)
    state = jax.eval_shape(assembled.loop().init, assembled.key)
    dtypes = {x.dtype.name for x in jax.tree.leaves(state)}
    assert "float64" in dtypes
    assert "float32" not in dtypes


@pytest.mark.parametrize("name", registry.names())
def test_every_default_is_the_same_from_the_folder(tmp_path: Path, name: str) -> None:
    """In JSON for any reader, infinity too."""
    record = run.record_of(*run.parse(["run", f"--algorithm={name}"]))
    run_folder.write(tmp_path, record)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "config.json").read_text(), parse_constant=refuse)
    again = run.record_of(*run.parse(["run", f"--run_dir={tmp_path}"]))
    assert again == record
    read = run_folder.read(tmp_path)
    assert run_folder.identity(read) == run_folder.identity(record)
    assert registry.module(name).Config() == command_flags.unflat(
        registry.module(name).Config(), read["config"]
    )


def test_an_infinite_setting_is_resumed_and_so_is_that_of_an_older_folder(
    finished: Path, whole: Path
) -> None:
    path = finished / "config.json"
    record = json.loads(path.read_text())
    assert record["config"]["search.widening_factor"] == "inf"
    record["config"]["search.widening_factor"] = None  # as it was written once
    path.write_text(json.dumps(record))
    run.main(["run", f"--run_dir={finished}", "--num_steps=5", "--nopictures"])
    assert deterministic(finished)[:3] == deterministic(whole)[:3]
    assert (
        json.loads(path.read_text())["config"]
        == json.loads((whole / "config.json").read_text())["config"]
    )


def test_what_a_folder_cannot_say_is_one_line_with_the_file(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / "config.json"
    record = json.loads(path.read_text())
    record["config"]["plan.horizon"] = {"a": [1]}
    path.write_text(json.dumps(record))
    code, line = complain(monkeypatch, capsys, f"--run_dir={finished}")
    assert code == 1
    assert f"{path}: flag --plan.horizon" in line
