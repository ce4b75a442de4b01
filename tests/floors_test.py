"""The floors of the library: who may import whom, and what no file of it does.

Everything is read off the syntax tree, so nothing is missed because it did not run.
"""

import ast
import builtins
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = (  # a file or folder imports from the lines above its own only
    {"types"},
    {"ops"},
    {"simulator"},
    {"networks", "optimizers", "distributions"},
    {"policies", "replay", "envs", "closed_loop", "actor_critic"},
    {"experience", "value_learning"},
    {"models", "planners", "gradients", "identification", "learners"},
    {"rollout", "imagine", "parallel"},
    {"diagnostics", "aggregation", "on_policy"},
    {"off_policy", "value_learners"},
    {"branching", "value_expansion"},
    {"validity"},
    {"algorithms", "population"},
    {"checkpoints"},
    {"train"},
    {"experiments"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# These put the files of their own folder together.
MAY_IMPORT_SIBLINGS = {
    "mbrl_jax.envs",
    "mbrl_jax.envs.systems",
    "mbrl_jax.models.propagation",
    "mbrl_jax.planners.collocation_mesh",
    "mbrl_jax.planners.ilqg",
    "mbrl_jax.planners.mpc",
}

EVERYWHERE = {  # name, or the start of a dotted one: why not
    "brax.training": "calls functions that jax has removed",
    "pickle": "loading runs code",
    "cloudpickle": "loading runs code",
    "dill": "loading runs code",
    "joblib": "loading runs code",
    "marshal": "loading runs code",
    "shelve": "loading runs code",
}
LIBRARY = {
    "absl": "flags belong to experiments/",
    "jax.config": "global state",
    "jax.debug.print": "prints",
    "logging": "prints",
    "os.environ": "reads the environment",
    "os.getenv": "reads the environment",
    "print": "prints",
    "sys.stderr": "prints",
    "sys.stdout": "prints",
}
DISK = {
    "numpy.load": "touches the disk",
    "numpy.save": "touches the disk",
    "numpy.savetxt": "touches the disk",
    "numpy.savez": "touches the disk",
    "open": "touches the disk",
    "orbax": "touches the disk",
    "pathlib": "touches the disk",
    "shutil": "touches the disk",
    "tempfile": "touches the disk",
}
HIDDEN = {
    "__import__": "hides imports from this test",
    "importlib": "hides imports from this test",
}
MAY_TOUCH_THE_DISK = {"mbrl_jax.checkpoints", "mbrl_jax.train"}


def imports(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """(line, name bound here, dotted name of what it stands for) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                source = "." * node.level + (node.module or "")
                yield node.lineno, alias.asname or alias.name, f"{source}.{alias.name}"


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every built-in and imported thing that is named."""
    stands_for = {name: name for name in vars(builtins)}
    for line, bound, name in imports(tree):
        yield line, name
        stands_for[bound.split(".")[0]] = (
            name if "." not in bound else name.split(".")[0]
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in stands_for:
            yield node.lineno, stands_for[node.id]
        elif isinstance(node, ast.Attribute):
            root, _, path = ast.unparse(node).partition(".")
            if root in stands_for:
                yield node.lineno, f"{stands_for[root]}.{path}"


def import_faults(module: str, name: str) -> Iterator[str]:
    """Why `module` may not import `name`, both dotted."""
    if name.startswith("."):
        yield "is relative"
        return
    package, *path = name.split(".")
    if package in ("tests", "benchmarks"):
        yield "is no part of the project's code"
    if package not in ("mbrl_jax", "experiments"):
        return
    own = module.split(".")
    own_place = own[1] if own[0] == "mbrl_jax" else own[0]
    place = (path or [""])[0] if package == "mbrl_jax" else package
    if place not in FLOOR:
        yield "has no floor"
    elif place == own_place:
        if place != "experiments" and module not in MAY_IMPORT_SIBLINGS:
            yield "is in the same folder"
    elif FLOOR[place] >= FLOOR[own_place]:
        yield "is not on a lower floor"


def faults(module: str, source: str) -> list[str]:
    """What is wrong with the `source` of the dotted `module`, a line each."""
    tree = ast.parse(source)
    if module.startswith("mbrl_jax.") and module.split(".")[1] not in FLOOR:
        return [f"{module} has no floor"]
    found = [
        f"line {line}: {name} {why}"
        for line, _, name in imports(tree)
        for why in import_faults(module, name)
    ]
    forbidden = dict(EVERYWHERE)
    if module.startswith("mbrl_jax"):
        forbidden |= LIBRARY
        if module not in MAY_TOUCH_THE_DISK:
            forbidden |= DISK
        if module not in MAY_IMPORT_SIBLINGS:
            forbidden |= HIDDEN
    found += sorted(
        {
            f"line {line}: {bad} {why}"
            for line, name in uses(tree)
            for bad, why in forbidden.items()
            if name == bad or name.startswith(f"{bad}.")
        }
    )
    return found


def algorithm_faults(module: ModuleType) -> list[str]:
    """What an algorithm exports besides `Config`, `State` and `make`, or lacks."""
    imported = {
        bound.split(".")[0]
        for _, bound, _ in imports(ast.parse(inspect.getsource(module)))
    }
    public = {name for name in vars(module) if not name.startswith("_")} - imported
    found = []
    if public != {"Config", "State", "make"}:
        found.append(f"exports {sorted(public)}")
    config, state = getattr(module, "Config", None), getattr(module, "State", None)
    if not (dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen):
        found.append("Config is no frozen dataclass")
    if not (isinstance(state, type) and issubclass(state, tuple) and state._fields):
        found.append("State is no NamedTuple")
    if not inspect.isfunction(getattr(module, "make", None)):
        found.append("make is no function")
    return found


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(
    path
    for folder in ("mbrl_jax", "experiments")
    for path in (ROOT / folder).rglob("*.py")
)
ALGORITHMS = [
    dotted(path)
    for path in sorted((ROOT / "mbrl_jax" / "algorithms").glob("*.py"))
    if path.stem != "__init__"
]


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_files_keep_to_their_floor(path):
    assert faults(dotted(path), path.read_text()) == []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_export_config_state_and_make(name):
    assert algorithm_faults(importlib.import_module(name)) == []


def test_there_are_files_and_algorithms_to_look_at():
    assert len(FILES) > 20
    assert "mbrl_jax.algorithms.pets" in ALGORITHMS


GOOD = [
    ("mbrl_jax.types", "import jax"),
    (
        "mbrl_jax.models.ensemble",
        "from mbrl_jax import replay\nimport flax.linen as nn",
    ),
    ("mbrl_jax.models.propagation", "from mbrl_jax.models import ensemble"),
    ("mbrl_jax.planners.mpc", "from mbrl_jax.planners.cem import cem"),
    ("mbrl_jax.envs", "import importlib\nfrom mbrl_jax.envs import pendulum"),
    ("mbrl_jax.envs.brax", "import brax.envs"),
    ("mbrl_jax.algorithms.pets", "from mbrl_jax.models import ensemble"),
    ("mbrl_jax.checkpoints", "from pathlib import Path\nopen(Path('a'))"),
    ("mbrl_jax.ops.tree", "def f(jax):\n    return jax.tree.map(abs, jax)"),
    ("experiments.run", "import os\nfrom absl import flags\nprint(os.environ['A'])"),
    ("experiments.run", "from experiments import flags\nfrom mbrl_jax import train"),
]

BAD = [
    ("mbrl_jax.types", "from mbrl_jax.ops import tree", "lower floor"),
    ("mbrl_jax.replay", "import mbrl_jax.models.ensemble", "lower floor"),
    ("mbrl_jax.replay", "from mbrl_jax import policies", "lower floor"),
    ("mbrl_jax.envs.maze", "def f():\n    from mbrl_jax import train", "lower floor"),
    ("mbrl_jax.train", "from experiments import run", "lower floor"),
    ("mbrl_jax.models.gp", "from mbrl_jax.models import ensemble", "same folder"),
    ("mbrl_jax.envs.maze", "from mbrl_jax.envs import pendulum", "same folder"),
    ("mbrl_jax.algorithms.mbpo", "from mbrl_jax.algorithms import pets", "same folder"),
    ("mbrl_jax.algorithms", "from mbrl_jax.algorithms import pets", "same folder"),
    ("mbrl_jax.models.gp", "from . import ensemble", "relative"),
    ("mbrl_jax.models.gp", "from ..types import Array", "relative"),
    ("mbrl_jax.train", "import mbrl_jax", "no floor"),
    ("mbrl_jax.train", "from mbrl_jax import utils", "no floor"),
    ("mbrl_jax.utils", "import jax", "no floor"),
    ("experiments.run", "from tests import conftest", "no part"),
    ("experiments.run", "import benchmarks.planning", "no part"),
    ("experiments.run", "import pickle", "pickle"),
    ("experiments.run", "from pickle import load", "pickle"),
    ("experiments.run", "from brax.training import networks", "brax.training"),
    ("experiments.run", "from brax import training", "brax.training"),
    ("mbrl_jax.envs.brax", "import brax.training.acme", "brax.training"),
    ("mbrl_jax.envs.brax", "import brax\nbrax.training.f()", "brax.training"),
    ("mbrl_jax.train", "from absl import flags", "absl"),
    ("mbrl_jax.train", "import absl.logging", "absl"),
    ("mbrl_jax.train", "import os\nos.environ['A'] = 'B'", "os.environ"),
    ("mbrl_jax.train", "from os import environ as e", "os.environ"),
    ("mbrl_jax.train", "import os as system\nsystem.getenv('A')", "os.getenv"),
    ("mbrl_jax.types", "import jax\njax.config.update('a', 1)", "jax.config"),
    ("mbrl_jax.types", "import jax as j\nj.config.jax_enable_x64 = True", "jax.config"),
    ("mbrl_jax.types", "from jax import config", "jax.config"),
    ("mbrl_jax.train", "print('a')", "print"),
    ("mbrl_jax.train", "map(print, 'a')", "print"),
    ("mbrl_jax.train", "import jax\njax.debug.print('a')", "jax.debug.print"),
    ("mbrl_jax.train", "import sys\nsys.stdout.write('a')", "sys.stdout"),
    ("mbrl_jax.ops.tree", "open('a')", "open"),
    ("mbrl_jax.ops.tree", "import numpy as np\nnp.savez('a', 1)", "numpy.save"),
    ("mbrl_jax.ops.tree", "from pathlib import Path", "pathlib"),
    ("mbrl_jax.ops.tree", "def f():\n    import orbax.checkpoint as ocp", "orbax"),
    ("mbrl_jax.ops.tree", "import importlib", "importlib"),
    ("mbrl_jax.ops.tree", "__import__('os')", "__import__"),
]


@pytest.mark.parametrize(("module", "source"), GOOD)
def test_good_sources_pass(module, source):
    assert faults(module, source) == []


@pytest.mark.parametrize(("module", "source", "fault"), BAD)
def test_bad_sources_are_found(module, source, fault):
    found = faults(module, source)
    assert any(fault in line for line in found), found


EXPORTS = """
import dataclasses
from typing import NamedTuple
_SECRET = 1
@dataclasses.dataclass(frozen=True)
class Config: pass
class State(NamedTuple):
    params: int
def make(env, config): pass
def _helper(): pass
"""


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", None),
        ("_SECRET", "PUBLIC", "exports"),
        ("_helper", "helper", "exports"),
        ("def make", "def build", "make is no function"),
        ("(frozen=True)", "", "Config is no frozen dataclass"),
        ("(NamedTuple)", "", "State is no NamedTuple"),
        ("State(", "Carry(", "State is no NamedTuple"),
    ],
)
def test_exports_of_an_algorithm(tmp_path, monkeypatch, old, new, fault):
    (tmp_path / "some_algorithm.py").write_text(EXPORTS.replace(old, new))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_algorithm", raising=False)
    found = algorithm_faults(importlib.import_module("some_algorithm"))
    monkeypatch.delitem(sys.modules, "some_algorithm")
    if fault is None:
        assert found == []
    else:
        assert any(fault in line for line in found), found
