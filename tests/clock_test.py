"""The budget of the tests can be overrun."""

from typing import Any

import pytest

from tests import clock, compiling

pytestmark = pytest.mark.skipif(
    not compiling.OLDER_EMITTERS, reason="the budgets are those of another compiler"
)


def spent(cpu: float) -> dict[str, float]:
    return dict.fromkeys(clock.COLUMNS, 0.0) | {"cpu": cpu, "programs": 2.0}


def test_the_table_has_files_and_tests_in_order():
    tests = {"a.py::x": spent(3.0), "b.py::x": spent(2.0), "b.py::y": spent(2.0)}
    lines = clock.table(tests)
    assert [line.split()[-1] for line in lines[1:3]] == ["b.py", "a.py"]
    assert [line.split()[0] for line in lines[1:3]] == ["4.0", "3.0"]
    assert [line.split()[-1] for line in lines[4:7]] == [
        "a.py::x",
        "b.py::x",
        "b.py::y",
    ]
    assert lines[7] == "    7.0 in all, 3 tests"


def test_the_summary_adds_up():
    tests = {"a.py::x": spent(3.0), "b.py::x": spent(2.0), "b.py::y": spent(2.25)}
    found = clock.summary(tests)
    assert [*found] == ["in all", "b.py", "a.py"]
    assert found["b.py"]["cpu"] == pytest.approx(4.25, abs=0.06)
    assert found["b.py"]["tests"] == 2
    assert found["in all"]["cpu"] == pytest.approx(7.25, abs=0.06)
    assert found["in all"]["programs"] == 6


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize(
    ("names", "share", "budget", "says"),
    [
        (["tests/a_test.py::x", "tests/b_test.py::y"], 1500, 1500, "all tests"),
        (
            ["tests/contract_test.py::x[sac]", "tests/contract_test.py::y[sac-True]"],
            clock.CONTRACT,
            None,
            "the contract of sac",
        ),
        (
            ["tests/algorithms/a_test.py::x", "tests/algorithms/a_test.py::y[1]"],
            clock.OWN_TESTS,
            None,
            "tests/algorithms/a_test.py",
        ),
    ],
)
def test_what_takes_more_than_its_share_is_named(
    names: list[str], share: int, budget: int | None, says: str, factor: float
):
    slack = clock.SLACK if budget else clock.SLACK_OF_SHARES
    each = factor * slack * share / len(names)
    found = clock.overruns({name: spent(each) for name in names}, budget)
    assert len(found) == (factor > 1)
    assert all(line.startswith(f"{says} took") for line in found)


def test_shares_are_not_added_up():
    """Of different algorithms, nor when only some tests are run."""
    half = clock.SLACK_OF_SHARES * clock.CONTRACT * 0.9
    names = ("x[sac]", "x[td3]", "test_without_a_name")
    tests = {f"tests/contract_test.py::{name}": spent(half) for name in names}
    assert clock.overruns(tests, 1500) == []
    tests = {f"tests/x_test.py::{i}": spent(1500.0) for i in range(9)}
    assert clock.overruns(tests, None) == []


def config_of(mark: str, keyword: str = "") -> Any:
    """As pytest's, of a run without names of files."""
    config = type("Config", (), {})()
    options = {"keyword": keyword, "markexpr": mark, "lf": False, "clock": ""}
    config.option = type("Option", (), options)
    config.ArgsSource = type("Source", (), {"TESTPATHS": 1})
    config.args_source = 1
    return config


def test_each_part_has_a_budget_and_a_choice_of_tests_has_none():
    parts = {mark: clock.budget(config_of(mark)) for mark in ("slow", "not slow")}
    assert parts == clock.BUDGETS
    assert clock.budget(config_of("")) == sum(clock.BUDGETS.values())
    assert clock.budget(config_of("not slow", keyword="sac")) is None
    assert clock.budget(config_of("something")) is None


@pytest.mark.parametrize("mark", clock.BUDGETS)
def test_a_run_that_overruns_fails(mark: str):
    class Session:
        exitstatus: Any = 0
        config: Any = config_of(mark)

    timer, session = clock.Clock(), Session()
    timer.tests = {"tests/a_test.py::x": spent(1.0)}
    timer.pytest_sessionfinish(session)
    assert session.exitstatus == 0
    timer.tests = {"tests/a_test.py::x": spent(2 * clock.SLACK * clock.BUDGETS[mark])}
    timer.pytest_sessionfinish(session)
    assert session.exitstatus == pytest.ExitCode.TESTS_FAILED


def test_what_a_test_takes_is_measured():
    timer = clock.Clock()
    before = timer.total()
    timer.listen("/jax/core/compile/backend_compile_duration", 2.5)
    timer.listen("/jax/core/compile/jaxpr_trace_duration", 0.5)
    timer.listen("/some/other/event", 9.0)
    sum(i * i for i in range(300_000))
    after = timer.total()
    after.subtract(before)
    assert after["programs"] == 1
    assert after["compile"] == 2.5
    assert after["trace"] == 0.5
    assert after["cpu"] > 0
