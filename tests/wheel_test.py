"""What is shipped: the wheel, what it says it needs, and the tested pins."""

import ast
import email
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")


def declared(*extras: str) -> list[str]:
    optional = PROJECT["optional-dependencies"]
    return PROJECT["dependencies"] + [line for key in extras for line in optional[key]]


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def pins(python: str, file: str = "requirements-dev.txt") -> dict[str, str]:
    """The version of every package that a file of requirements names for `python`."""
    lines = [
        line
        for line in (ROOT / file).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    where = {"python_version": python, "python_full_version": f"{python}.0"}
    found: dict[str, str] = {}
    for pin in map(Requirement, lines):
        assert pin.url is None
        (version,) = pin.specifier
        assert version.operator == "=="
        if pin.marker is None or pin.marker.evaluate(where):
            name = canonicalize_name(pin.name)
            assert name not in found
            found[name] = version.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_satisfy_the_lower_bounds(python):
    found = pins(python)
    asked = requirements(declared(*PROJECT["optional-dependencies"]))
    del asked["mbrl-jax"]  # an extra that includes another
    for name, requirement in asked.items():
        assert requirement.specifier.contains(found[name]), name


@pytest.mark.parametrize("python", PYTHONS)
def test_the_pins_for_users_are_among_those_for_developers(python):
    users = pins(python, "requirements.txt")
    assert users.items() <= pins(python).items()
    for name in requirements(declared("experiments", "gymnasium")):
        assert name in users


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_name_one_tensorflow_probability(python):
    found = pins(python)
    assert "tfp-nightly" in found
    assert "tensorflow-probability" not in found  # it installs into the same folder


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, whether or not at its top."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names) - {"mbrl_jax", "experiments"}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("mbrl_jax", ["gymnasium"]),
        ("experiments", ["experiments", "gymnasium", "search", "ray", "slurm"]),
    ],
)
def test_everything_imported_is_declared(folder, extras):
    known = set(requirements(declared(*extras)))
    owners = packages_distributions()
    for path in (ROOT / folder).rglob("*.py"):
        for package in imported(path):
            names = {canonicalize_name(owner) for owner in owners[package]}
            assert names & known, f"{path.name} imports {package}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    options = ["--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([*command, *options, str(ROOT)], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        fields = email.message_from_bytes(archive.read(metadata))
    library = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mbrl_jax").rglob("*")
        if path.suffix in (".py", ".typed")
    }
    info = metadata.removesuffix("METADATA")
    assert "mbrl_jax/py.typed" in library
    assert {name for name in names if not name.startswith(info)} == library
    assert f"{info}licenses/LICENSE" in names
    assert fields["Name"] == "mbrl_jax"
    assert fields["License-Expression"] == "Apache-2.0"


IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import mbrl_jax
assert pathlib.Path(mbrl_jax.__file__).is_relative_to(sys.prefix), mbrl_jax.__file__
names = [m.name for m in pkgutil.walk_packages(mbrl_jax.__path__, "mbrl_jax.")]
for name in names:
    importlib.import_module(name)
assert "mbrl_jax.algorithms.pets" in names, names
"""


def test_wheel_imports_in_an_empty_environment(wheel, tmp_path):
    """The environment sees the dependencies installed here, but not the repository."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    (site_packages,) = home.glob("lib/python*/site-packages")
    (site_packages / "here.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([python, "-I", "-c", IMPORT_ALL], check=True, cwd=tmp_path)
