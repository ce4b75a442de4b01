"""The table of edits that tests must notice; `benchmarks.mutants` makes them."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import mutants
from benchmarks.mutants import Mutant

MUTANTS = list(mutants.table())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name[:60])
def test_every_edit_can_be_made_and_has_its_tests(mutant: Mutant):
    assert (mutants.ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    for test in mutant.tests.split():
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in (mutants.ROOT / file).read_text()


@pytest.mark.slow
def test_an_edit_is_caught_or_survives_in_a_copy_alone(tmp_path: Path):
    code, test = tmp_path / "code.py", tmp_path / "code_test.py"
    code.write_text("def double(x):\n    return x + x\n")
    test.write_text("from code_of_test import double\n")
    code = code.rename(tmp_path / "code_of_test.py")
    test.write_text(test.read_text() + "def test():\n    assert double(2) == 4\n")
    before = code.read_text()
    for new, caught in [("x - x", True), ("x * x", False)]:
        mutant = Mutant(code.name, "x + x", new, test.name)
        assert mutants.is_caught(mutant, tmp_path) is caught
        assert code.read_text() == before
    with pytest.raises(ValueError, match="is there 0 times"):
        mutants.is_caught(Mutant(code.name, "x + y", "", test.name), tmp_path)
    with pytest.raises(ValueError, match="ends with 4"):
        mutants.passes(tmp_path, ["no_such_test.py"])


@pytest.mark.slow
def test_a_survivor_is_told(tmp_path: Path):
    table = tmp_path / "mutants.toml"
    row = "file = 'mbrl_jax/ops/risk.py'\nold = 'def cvar'\nnew = 'def  cvar'\n"
    table.write_text(f"[[mutant]]\n{row}tests = 'tests/ops/risk_test.py'\n")
    code = f"""if True:
        import pathlib, sys
        from absl import app
        from benchmarks import mutants
        mutants.TABLE = pathlib.Path({str(table)!r})
        mutants.RESULTS = pathlib.Path({str(tmp_path / "out.json")!r})
        app.run(mutants.main)
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=mutants.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "SURVIVED mbrl_jax/ops/risk.py" in done.stdout
    assert '"caught": false' in (tmp_path / "out.json").read_text()
