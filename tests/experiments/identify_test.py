"""The command that identifies a simulator."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from PIL import Image

from experiments import identify
from experiments.runs import recordings


@pytest.fixture(autouse=True)
def x64():
    """The command turns it on for its whole process."""
    before = jax.config.jax_enable_x64
    matmul = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_enable_x64", before)
    jax.config.update("jax_default_matmul_precision", matmul)


def run(*arguments: str) -> None:
    identify.main(["identify", *arguments])


def read(folder: Path) -> dict[str, Any]:
    with Image.open(folder / "identification.png") as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    return json.loads((folder / "identification.json").read_text())


SMALL = ("--env=pendulum", "--num_episodes=3", "--num_steps=41")


@pytest.mark.slow
def test_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "new" / "folder"
    run(*SMALL, "--parameters=mass=1.3,length", f"--output={folder}")
    report = read(folder)
    for name, true in {"mass": 1.3, "length": 1.0}.items():
        found = report["parameters"][name]
        low, high = found["interval"]
        assert found["true"] == true
        assert found["identifiable"] is True
        assert abs(found["guess"] / true - 1) > 0.05
        assert low < found["estimate"] < high
        assert found["estimate"] == pytest.approx(true, rel=0.05)
    assert report["converged"] is True
    np.testing.assert_allclose(report["noise_std"], 0.01, rtol=0.3)
    shown = capsys.readouterr().out
    assert "length" in shown
    assert "unknown" not in shown
    assert "warning" not in shown


def test_a_file_without_torque_says_nothing_of_the_mass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with jax.enable_x64(True):
        source = recordings.make_source("pendulum")
        still = source._replace(low=0 * source.low, high=0 * source.high)
        key = jax.random.key(0)
        obs, action = recordings.record(key, still, {}, (3, 41), 0.01)
    path = tmp_path / "recorded.npz"
    np.savez(path, obs=obs, action=action)
    arguments = (f"--data={path}", "--parameters=mass,length", f"--output={tmp_path}")
    run("--env=pendulum", *arguments)
    report = read(tmp_path)
    mass, length = (report["parameters"][name] for name in ("mass", "length"))
    assert mass["identifiable"] is False
    assert mass["interval"] == [0, None]
    assert mass["true"] is None
    assert length["identifiable"] is True
    assert length["interval"][0] < 1 < length["interval"][1]
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("mass"))
    assert line.split() == ["mass", "unknown", "0", "to", "inf"]


def test_what_the_simulator_does_not_explain_gives_no_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Recorded with damping, fitted without."""
    with jax.enable_x64(True):
        source = recordings.make_source("pendulum")
        true = {"damping": jnp.array(0.1)}
        made = recordings.record(jax.random.key(0), source, true, (3, 41), 0.01)
    path = tmp_path / "recorded.npz"
    np.savez(path, obs=made[0], action=made[1])
    arguments = (f"--data={path}", "--parameters=mass,length", f"--output={tmp_path}")
    run("--env=pendulum", *arguments)
    report = read(tmp_path)
    assert report["explained"] is False
    assert report["converged"] is True
    assert report["misfit"] > 5
    for found in report["parameters"].values():
        assert found["interval"] == [0, None]
        assert found["identifiable"] is False
    shown = capsys.readouterr().out
    assert shown.count("unknown") == 2
    assert "does not explain the recordings" in shown


def test_no_noise_is_no_misfit(tmp_path: Path):
    run(*SMALL, "--parameters=mass,length", "--noise=0", f"--output={tmp_path}")
    report = read(tmp_path)
    assert report["explained"] is True
    for found in report["parameters"].values():
        assert found["estimate"] == pytest.approx(1, rel=1e-6)
        assert found["identifiable"] is True


@pytest.mark.slow
def test_a_links_mass_and_a_joints_damping_of_brax_whose_joints_meet_their_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = ("link.inertia.mass.1", "dof.damping.1")
    sizes = ("--num_episodes=10", "--num_steps=23", "--horizon=7", "--noise=0.001")
    where = ("--env=brax/inverted_pendulum", f"--output={tmp_path}")
    run(*where, *sizes, f"--parameters={','.join(names)}")
    report = read(tmp_path)
    assert report["explained"] is True
    assert 5 < report["num_windows_used"] < report["num_windows"] == 30
    assert "a joint is near its stop" in capsys.readouterr().out
    for name in names:
        found = report["parameters"][name]
        low, high = found["interval"]
        assert low < found["true"] < high
        assert found["estimate"] == pytest.approx(found["true"], rel=0.01)


@pytest.mark.parametrize("name", ["pendulum", "cartpole_pets", "acrobot", "reacher"])
def test_recordings_are_those_of_the_environment(name: str):
    """Observed as its own `reset` shows, within the limits, seeded."""
    with jax.enable_x64(True):
        source = recordings.make_source(name)
        key = jax.random.key(3)
        record = jax.jit(
            lambda noise: recordings.record(key, source, {}, (2, 30), noise)
        )
        (obs, action), (again, _) = jax.device_get([record(x) for x in (0.0, 0.1)])
        assert (np.abs(action) <= np.asarray(source.high)).all()
        assert 0.05 < (again - obs).std() < 0.2
        shown = jax.vmap(lambda one: source.system.observe(source.system.place(one)))
        np.testing.assert_allclose(jax.jit(shown)(obs[:, 0]), obs[:, 0], atol=1e-9)
        assert np.isfinite(obs).all()
        assert (obs[:, -1] != obs[:, 0]).any()


GOOD = {"obs": np.zeros((2, 22, 3)), "action": np.zeros((2, 21, 1))}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--env=pendulum", "--output=X"), "--parameters is needed"),
        (("--env=pendulum", "--parameters=mass"), "--output is needed"),
        (("--env=pendulum", "--parameters=mass,mass", "--output=X"), "twice"),
        (("--env=pendulum", "--parameters=mass=big", "--output=X"), "no number"),
        (("--env=pendulum", "--parameters=mas", "--output=X"), "there are: mass"),
        (("--env=pendulum", "--parameters=damping", "--output=X"), "only positive"),
        (("--env=pendulum", "--parameters=mass=-1", "--output=X"), "only positive"),
        (("--env=probe1", "--parameters=mass", "--output=X"), "no equations of"),
        (("--env=brax/ants", "--parameters=mass", "--output=X"), "unknown Brax task"),
        (("--env=brax/fast", "--parameters=mass", "--output=X"), "cannot be simulated"),
        ((*SMALL, "--push=-1", "--parameters=mass", "--output=X"), "push"),
        ((*SMALL, "--horizon=50", "--parameters=mass", "--output=X"), "in 1 to 41"),
    ],
)
def test_bad_arguments_are_one_clear_error(
    arguments: tuple[str, ...], message: str, tmp_path: Path
):
    arguments = tuple(x.replace("=X", f"={tmp_path}/new") for x in arguments)
    with pytest.raises((flags.Error, ValueError), match=message):
        run(*arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"obs": GOOD["obs"]}, "is no .npz with obs and action"),
        ({**GOOD, "obs": np.zeros((2, 22, 4))}, r"must be \[E, T \+ 1, 3\]"),
        ({**GOOD, "obs": np.zeros((2, 21, 3))}, r"obs must be \[E, T \+ 1, O\]"),
        ({**GOOD, "obs": np.full((2, 22, 3), np.nan)}, "not finite"),
        ({**GOOD, "obs": np.array([{}], object)}, "is no .npz"),
    ],
)
def test_bad_files_are_one_clear_error(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
):
    path = tmp_path / "recorded.npz"
    np.savez(path, **arrays)
    arguments = ("--parameters=mass", f"--data={path}", f"--output={tmp_path}/new")
    with pytest.raises((ValueError, OSError), match=message):
        run("--env=pendulum", *arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and no more", b"text"])
def test_files_that_are_none_are_one_clear_error(content: bytes | None, tmp_path: Path):
    path = tmp_path / "recorded.npz"
    if content is not None:
        path.write_bytes(content)
    arguments = ("--parameters=mass", f"--data={path}", f"--output={tmp_path}/new")
    with pytest.raises((ValueError, OSError), match=r"recorded\.npz"):
        run("--env=pendulum", *arguments)


@pytest.mark.parametrize("flag", ["perturbation", "noise", "push"])
def test_what_is_no_number_is_refused(flag: str) -> None:
    flags_ = ("--env=pendulum", "--parameters=mass", "--output=nowhere")
    with pytest.raises(flags.Error, match=f"flag --{flag} is not a number"):
        identify.main(["identify", *flags_, f"--{flag}=nan"])


def test_an_infinite_parameter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mass is inf"):
        identify.main(
            [
                "identify",
                "--env=pendulum",
                "--parameters=mass=inf",
                f"--output={tmp_path}",
            ]
        )
