"""Where the time of the tests goes, and whether it stays within what they may take.

CPU seconds, with those of child processes, since the clock on the wall says little on
a machine that others use too.  After a run there is a table: the time per file, how
much of it was tracing and compiling, how many programs were compiled, and the slowest
tests.  A run of everything fails if it takes more than its budget, an algorithm if its
contract or its own file takes more than its share.
"""

import json
import re
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from tests import compiling

# CPU seconds.
BUDGETS = {  # of all tests with a mark; a quarter of an hour on two cores is 1,500
    "not slow": 1500,
    "slow": 1800,
}
CONTRACT = 20  # of one algorithm in contract_test.py
OWN_TESTS = 60  # of one file in tests/algorithms
SLACK = 1.4  # other machines are slower, and busy ones, too
SLACK_OF_SHARES = 3.0  # which vary more than the sum
SHOWN_FROM = 60  # in all: a few tests are run without a table

EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
COLUMNS = ("cpu", "trace", "lower", "compile", "programs")


class Clock:
    """A pytest plugin: measures in every process, reports in the one that hears all."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.before: Counter[str] = Counter()
        self.tests: dict[str, dict[str, float]] = {}
        jax.monitoring.register_event_duration_secs_listener(self.listen)

    def listen(self, event: str, duration: float, **_: Any) -> None:
        if event in EVENTS:
            self.now[EVENTS[event]] += duration
            self.now["programs"] += EVENTS[event] == "compile"

    def total(self) -> Counter[str]:
        """Since the process began."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = time.process_time() + children.ru_utime + children.ru_stime
        return Counter({**self.now, "cpu": spent})

    def pytest_runtest_logstart(self) -> None:
        self.before = self.total()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Iterator[None]:
        report: Any = yield
        if call.when == "teardown":
            spent = self.total()
            spent.subtract(self.before)
            report.user_properties.append(("clock", {x: spent[x] for x in COLUMNS}))
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        found = dict(report.user_properties).get("clock")
        if report.when == "teardown" and found:
            self.tests[report.nodeid] = found

    def pytest_terminal_summary(self, terminalreporter: Any, config: Any) -> None:
        if total(self.tests) < SHOWN_FROM:
            return
        terminalreporter.section("CPU seconds")
        for line in table(self.tests):
            terminalreporter.write_line(line)
        for line in overruns(self.tests, budget(config)):
            terminalreporter.write_line(line, red=True)

    def pytest_sessionfinish(self, session: Any) -> None:
        if session.config.option.clock and not hasattr(session.config, "workerinput"):
            record = json.dumps(summary(self.tests), indent=1)
            Path(session.config.option.clock).write_text(f"{record}\n")
        if overruns(self.tests, budget(session.config)) and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def budget(config: Any) -> int | None:
    """Of the run; None if it is of some tests that were asked for."""
    last_failed = getattr(config.option, "lf", False)  # absent without its plugin
    if config.option.keyword or last_failed:
        return None
    if config.args_source is not config.ArgsSource.TESTPATHS:
        return None
    mark = config.option.markexpr
    return BUDGETS.get(mark) if mark else sum(BUDGETS.values())


def total(tests: dict[str, dict[str, float]]) -> float:
    return sum(test["cpu"] for test in tests.values())


def by_file(tests: dict[str, dict[str, float]]) -> dict[str, Counter[str]]:
    files: dict[str, Counter[str]] = defaultdict(Counter)
    for name, spent in tests.items():
        files[name.partition("::")[0]].update({**spent, "tests": 1})
    return files


def summary(tests: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Of each file and in all, rounded; the largest file first."""
    files = sorted(by_file(tests).items(), key=lambda item: -item[1]["cpu"])
    tidy = lambda spent: {name: round(x, 1) for name, x in spent.items()}
    every = sum((spent for _, spent in files), Counter[str]())
    return {"in all": tidy(every), **{name: tidy(spent) for name, spent in files}}


def table(tests: dict[str, dict[str, float]]) -> list[str]:
    """The time per file, the slowest twenty tests, and the sum."""
    files = sorted(by_file(tests).items(), key=lambda item: -item[1]["cpu"])
    line = "{:>7.1f} {:>7.1f} {:>7.1f} {:>8.1f} {:>8.0f}  {}"
    head = "    cpu   trace   lower  compile programs  "
    row = lambda spent, name: line.format(*(spent[x] for x in COLUMNS), name)
    slowest = sorted(tests.items(), key=lambda item: -item[1]["cpu"])[:20]
    return [
        head + "file",
        *(row(spent, name) for name, spent in files),
        head + "slowest tests",
        *(row(spent, name) for name, spent in slowest),
        f"{total(tests):>7.1f} in all, {len(tests)} tests",
    ]


def overruns(tests: dict[str, dict[str, float]], budget: int | None) -> list[str]:
    """What took more than its share, a line each; `budget` is that of all."""
    shares: Counter[tuple[str, int]] = Counter()
    for name, spent in tests.items():
        file, _, test = name.partition("::")
        if file == "tests/contract_test.py":
            algorithm = re.search(r"\[([a-z_0-9]+)", test)
            if algorithm:
                shares[f"the contract of {algorithm[1]}", CONTRACT] += spent["cpu"]
        elif file.startswith("tests/algorithms/"):
            shares[file, OWN_TESTS] += spent["cpu"]
    found = [
        f"{name} took {spent:.0f} CPU seconds, may take {share}"
        for (name, share), spent in shares.items()
        if spent > SLACK_OF_SHARES * share
    ]
    if budget and total(tests) > SLACK * budget:
        found.append(f"all tests took {total(tests):.0f}, may take {budget}")
    return found if compiling.OLDER_EMITTERS else []  # newer ones take longer
