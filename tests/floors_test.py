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

# A file imports from the floors below its own.  A folder is a chapter.
FLOORS = (
    {"types"},
    {"ops"},
    {  # the vocabulary that all chapters share
        "networks",
        "distributions",
        "optimizers",
        "policies",
        "moment_policies",
        "replay",
        "rollout",
        "gathering",
    },
    {"envs", "planners"},
    {"models", "gradients"},
    {"policy_gradient", "value_learning", "local_policies", "imitation", "training"},
    {"algorithms"},
    {"experiments.runs"},
    {"experiments.reports"},
    {"experiments.sweeps"},
    {"experiments"},  # the commands
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# On its own floor a file imports from its own chapter, and there from the rows above
# its own only; * is all that has no row.  Where nothing is said, from nothing.
ROWS = {
    "ops": ("*", "moments clusters"),
    "vocabulary": ("rollout networks *", "policies gathering"),
    "envs": (
        "returned",
        "simulator brax_tasks saturating",
        "*",
        "systems arm catch",
        "peg_insertion dodge",
        "__init__",
    ),
    "planners": ("transcription ilqr mcts", "*", "collocation_mesh mpc"),
    "models": (
        "ensemble gaussian_process propagation gaussian_mixture footage",
        "bnn spatial_autoencoder",
        "point_filter",
        "feature_points",
        "by_name",
        "outcomes",
        "*",
        "aggregation",
        "policy_search",
    ),
    "gradients": ("closed_loop", "*", "windows by_name"),
    "policy_gradient": ("actor_critic", "experience", "*"),
    "value_learning": (
        "parts off_policy each_task",
        "*",
        "by_name branching distillation",
        "validity",
    ),
    "local_policies": ("controllers", "*", "experience", "lqr_flm"),
    "training": ("checkpoints", "*"),
    "experiments.runs": (
        "renamed faults jax_settings paths *",
        "command_flags run_folder",
        "metrics_log registry",
        "ledger gradient_problems memory heritage",
        "presets",
    ),
    "experiments.reports": (
        "plots statistics animation",
        "text results *",
        "figures preset_page",
        "html",
        "measures",
        "page",
    ),
    "experiments.sweeps": (
        "domains launchers *",
        "programs hosts ray_launcher submitit_launcher",
        "trials",
        "search",
    ),
    "experiments": ("*", "sweep"),
}
STARTS_A_COMMAND = ("experiments.sweeps.launchers", "experiments.run")  # when it works

# These import by name what takes long to import, or may not be installed.
MAY_IMPORT_BY_NAME = {"mbrl_jax.envs"}

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
UNDOES_LOGGING = "mbrl_jax.ops.root_logger"
MAY_TOUCH_THE_DISK = {"mbrl_jax.training.checkpoints", "mbrl_jax.training.train"}


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


def place_of(name: str) -> tuple[str, str]:
    """(floor's entry, file in it) of a dotted name: of a chapter, or of a root file."""
    package, *path = name.split(".")
    if package == "experiments":
        if path and f"experiments.{path[0]}" in FLOOR:
            return f"experiments.{path[0]}", (path[1:] or ["__init__"])[0]
        return "experiments", (path or ["__init__"])[0]
    return (path or [""])[0], (path[1:] or ["__init__"])[0]


def row(place: str, file: str) -> float:
    """Where a file stands in its chapter; files of a chapter without rows, on one."""
    if place in FLOORS[2]:
        place, file = "vocabulary", place
    rows = [names.split() for names in ROWS.get(place, ("*",))]
    named = [i for i, names in enumerate(rows) if file in names]
    return (named or [i for i, names in enumerate(rows) if "*" in names])[0]


def import_faults(module: str, name: str) -> Iterator[str]:
    """Why `module` may not import `name`, both dotted."""
    if name.startswith("."):
        yield "is relative"
        return
    package = name.split(".")[0]
    if package in ("tests", "benchmarks"):
        yield "is no part of the project's code"
    if package not in ("mbrl_jax", "experiments") or (module, name) == STARTS_A_COMMAND:
        return
    own, other = place_of(module), place_of(name)
    if other[0] not in FLOOR:
        yield "has no floor"
    elif FLOOR[other[0]] > FLOOR[own[0]]:
        yield "is not on a lower floor"
    elif FLOOR[other[0]] == FLOOR[own[0]]:
        together = own[0] == other[0] or {own[0], other[0]} <= FLOORS[2]
        if not together:
            yield "is not on a lower floor"
        elif row(*other) >= row(*own):
            yield "is not on a lower row of its chapter"


def faults(module: str, source: str) -> list[str]:
    """What is wrong with the `source` of the dotted `module`, a line each."""
    tree = ast.parse(source)
    if module.startswith("mbrl_jax.") and place_of(module)[0] not in FLOOR:
        return [f"{module} has no floor"]
    found = [
        f"line {line}: {name} {why}"
        for line, _, name in imports(tree)
        for why in import_faults(module, name)
    ]
    forbidden = dict(EVERYWHERE)
    if module.startswith("mbrl_jax"):
        forbidden |= LIBRARY
        if module == UNDOES_LOGGING:
            del forbidden["logging"]
        if module not in MAY_TOUCH_THE_DISK:
            forbidden |= DISK
        if module not in MAY_IMPORT_BY_NAME:
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


def test_every_file_can_be_imported():
    for path in FILES:
        importlib.import_module(dotted(path))


def test_no_floor_is_for_nothing():
    """Nor a row."""
    places = {place_of(dotted(path)) for path in FILES}
    assert {place for place, _ in places} - {""} == set(FLOOR)
    for chapter, rows in ROWS.items():
        named = {file for names in rows for file in names.split()} - {"*"}
        if chapter == "vocabulary":
            assert named <= FLOORS[2]
        else:
            assert named <= {file for place, file in places if place == chapter}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_export_config_state_and_make(name):
    assert algorithm_faults(importlib.import_module(name)) == []


def test_there_are_files_and_algorithms_to_look_at():
    assert len(FILES) > 20
    assert "mbrl_jax.algorithms.pets" in ALGORITHMS


GOOD = [
    ("mbrl_jax.types", "import jax"),
    ("mbrl_jax.gathering", "from mbrl_jax import rollout"),
    (
        "mbrl_jax.models.ensemble",
        "from mbrl_jax import replay\nimport flax.linen as nn",
    ),
    ("mbrl_jax.models.outcomes", "from mbrl_jax.models import ensemble"),
    ("mbrl_jax.models.aggregation", "from mbrl_jax.planners import mpc"),
    ("mbrl_jax.planners.mpc", "from mbrl_jax.planners.cem import cem"),
    ("mbrl_jax.envs", "import importlib\nfrom mbrl_jax.envs import pendulum"),
    ("mbrl_jax.envs.brax", "import brax.envs"),
    ("mbrl_jax.algorithms.pets", "from mbrl_jax.models import ensemble"),
    ("mbrl_jax.training.checkpoints", "from pathlib import Path\nopen(Path('a'))"),
    ("mbrl_jax.ops.tree", "def f(jax):\n    return jax.tree.map(abs, jax)"),
    ("experiments.run", "import os\nfrom absl import flags\nprint(os.environ['A'])"),
    ("experiments.run", "from experiments.runs import ledger\nimport mbrl_jax.envs"),
    ("experiments.sweep", "from experiments import run"),
    ("experiments.sweeps.launchers", "from experiments import run"),
    ("experiments.reports.page", "from experiments.runs import ledger"),
]
BAD = [
    ("mbrl_jax.types", "from mbrl_jax.ops import tree", "lower floor"),
    ("mbrl_jax.replay", "import mbrl_jax.models.ensemble", "lower floor"),
    ("mbrl_jax.replay", "from mbrl_jax import policies", "lower row"),
    ("mbrl_jax.rollout", "from mbrl_jax import gathering", "lower row"),
    ("mbrl_jax.envs.maze", "def f():\n    from mbrl_jax import training", "floor"),
    ("mbrl_jax.envs.maze", "from mbrl_jax.planners import cem", "lower floor"),
    ("mbrl_jax.value_learning.sac", "from mbrl_jax.training import train", "floor"),
    ("mbrl_jax.training.train", "from experiments import run", "lower floor"),
    ("mbrl_jax.models.gp", "from mbrl_jax.models import imagine", "lower row"),
    ("mbrl_jax.envs.maze", "from mbrl_jax.envs import pendulum", "lower row"),
    ("mbrl_jax.algorithms.mbpo", "from mbrl_jax.algorithms import pets", "lower row"),
    ("mbrl_jax.algorithms", "from mbrl_jax.algorithms import pets", "lower row"),
    ("mbrl_jax.value_learning.sac", "from mbrl_jax.value_learning import td3", "row"),
    ("mbrl_jax.models.gp", "from . import ensemble", "relative"),
    ("mbrl_jax.models.gp", "from ..types import Array", "relative"),
    ("mbrl_jax.training.train", "import mbrl_jax", "no floor"),
    ("mbrl_jax.training.train", "from mbrl_jax import utils", "no floor"),
    ("mbrl_jax.utils", "import jax", "no floor"),
    ("experiments.runs.ledger", "from experiments.reports import page", "lower floor"),
    ("experiments.reports.page", "from experiments import run", "lower floor"),
    ("experiments.run", "from experiments import sweep", "lower row"),
    ("experiments.run", "from tests import conftest", "no part"),
    ("experiments.run", "import benchmarks.planning", "no part"),
    ("experiments.run", "import pickle", "pickle"),
    ("experiments.run", "from pickle import load", "pickle"),
    ("experiments.run", "from brax.training import networks", "brax.training"),
    ("experiments.run", "from brax import training", "brax.training"),
    ("mbrl_jax.envs.brax", "import brax.training.acme", "brax.training"),
    ("mbrl_jax.envs.brax", "import brax\nbrax.training.f()", "brax.training"),
    ("mbrl_jax.replay", "from absl import flags", "absl"),
    ("mbrl_jax.replay", "import absl.logging", "absl"),
    ("mbrl_jax.replay", "import os\nos.environ['A'] = 'B'", "os.environ"),
    ("mbrl_jax.replay", "from os import environ as e", "os.environ"),
    ("mbrl_jax.replay", "import os as system\nsystem.getenv('A')", "os.getenv"),
    ("mbrl_jax.types", "import jax\njax.config.update('a', 1)", "jax.config"),
    ("mbrl_jax.types", "import jax as j\nj.config.jax_enable_x64 = True", "jax.config"),
    ("mbrl_jax.types", "from jax import config", "jax.config"),
    ("mbrl_jax.replay", "print('a')", "print"),
    ("mbrl_jax.replay", "map(print, 'a')", "print"),
    ("mbrl_jax.replay", "import jax\njax.debug.print('a')", "jax.debug.print"),
    ("mbrl_jax.replay", "import sys\nsys.stdout.write('a')", "sys.stdout"),
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
