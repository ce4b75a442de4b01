"""The search: on a toy whose return is known, and on a tiny run."""

import dataclasses
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

from experiments import run
from experiments.runs import ledger, registry
from experiments.sweeps import search
from mbrl_jax.training import train
from mbrl_jax.training.population import Range
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics

NOTHING = lambda line: None


@dataclasses.dataclass(frozen=True)
class Toy:
    """An algorithm whose return is -(x - 0.3)^2 - 0.1 |size - 2|."""

    x: float = 0.0  # what is searched
    size: int = 1  # of the state
    sizes: tuple[int, ...] = (1,)  # without effect
    lost_above: float = 2.0  # of x: the return is not a number
    broken_above: float = 2.0  # of x: the state is not finite after two steps


def make(env: Env, config: Toy) -> Algorithm:
    if config.size > 9:
        raise ValueError(f"size is {config.size}, more than 9")

    def init(key: Key) -> Array:
        return jnp.zeros(config.size)

    def step(key: Key, state: Array) -> tuple[Array, Metrics]:
        worth = -((config.x - 0.3) ** 2) - 0.1 * abs(config.size - 2)
        broken = (config.x > config.broken_above) & (state > 0)
        state = state + jnp.where(broken, jnp.inf, jax.random.randint(key, (), 1, 100))
        return state, {
            "env_steps": state[0].astype(int),  # tells the key of every step
            "episode/return": jnp.where(config.x > config.lost_above, jnp.nan, worth),
        }

    return Algorithm(init, step, lambda state: None)


def record(**config: Any) -> dict[str, Any]:
    return {
        "algorithm": "toy",
        "env": "point_mass",
        "episode_length": 0,
        "seed": 0,
        "num_seeds": 1,
        "precision": "fast",
        "num_steps": 4,
        "eval_every": 0,
        "eval_episodes": 0,
        "checkpoint_every": 1,
        "config": dataclasses.asdict(Toy(**config)),
    }


SOURCE = SimpleNamespace(Config=Toy, make=make)
LOOPS: dict[str, train.Loop] = {}
loop_of = registry.Run.loop


def compiled_once(run: registry.Run, eval_episodes: int = 5) -> train.Loop:
    """The loop of a run of the toy; runs that are alike but for their hyperparameters
    share what is compiled, which takes longer than all else in a search."""
    config = {
        name: value
        for name, value in run.record["config"].items()
        if name not in run.hyperparameters
    }
    kind = repr((run.env.name, config, run.key.shape, eval_episodes))
    if kind not in LOOPS:
        LOOPS[kind] = loop_of(run, eval_episodes)
    loop: Any = LOOPS[kind]
    return loop._replace(step=partial(loop.step.func, run.hyperparameters))


def use_toy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(registry, "module", lambda name: SOURCE)
    patch.setattr(registry.Run, "loop", compiled_once)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    use_toy(monkeypatch)


X = {"x": Range(0.0, 1.0)}


def find(folder: Path, domains: dict[str, Any] = X, **options: Any) -> search.Found:
    """A search for 16 trials, four at once, of two seeds each."""
    defaults: dict[str, Any] = {
        "record": record(),
        "num_trials": 16,
        "trials_at_once": 4,
        "num_seeds": 2,
        "folder": folder,
        "ledger_path": folder / "ledger.jsonl",
        "report": NOTHING,
    }
    return search.search(domains=domains, **{**defaults, **options})


def book(folder: Path) -> list[ledger.Line]:
    return ledger.read(folder / "ledger.jsonl")


def results(folder: Path) -> dict[str, Any]:
    """What does not depend on when and where."""
    clocks = ("wall_seconds", "compile_seconds", "time", "folder", "device", "num_runs")
    return {
        line["run"]: {name: x for name, x in line.items() if name not in clocks}
        for line in book(folder)
    }


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="search", storage=storage).trials


def ended(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return [x for x in trials(folder) if x.state.name in ("COMPLETE", "PRUNED")]


def assert_consistent(folder: Path, found: search.Found, num_seeds: int = 2) -> None:
    """Every (trial, seed) is in the ledger once, and says the same as the study."""
    lines = book(folder)
    assert len({line["run"] for line in lines}) == len(lines)
    runs = {(line["hyperparameters"]["x"], line["seed"]): line for line in lines}
    done = ended(folder)
    assert len(lines) == len(runs) == num_seeds * len(done)
    assert len(done) == found.num_complete + found.num_pruned
    for trial, seed in itertools.product(done, range(num_seeds)):
        status = {"COMPLETE": "finished", "PRUNED": "pruned"}[trial.state.name]
        assert runs[trial.params["x"], seed]["status"] == status
    best = max(line["return"] for line in lines if line["status"] == "finished")
    assert found.value == pytest.approx(best)


@pytest.mark.slow
def test_a_tiny_run_is_searched(tiny: str, tmp_path: Path) -> None:
    base = run.record_of(*run.parse(["run", tiny]))
    domains = {
        "plan.init_std": Range(0.1, 1.0, log=True),
        "plan.horizon": [2, 3],
    }
    options = {"num_trials": 4, "trials_at_once": 4, "record": base}
    said: list[str] = []
    found = find(tmp_path, domains, **options, report=said.append)
    lines = book(tmp_path)
    assert len(lines) == 8
    assert {line["seed"] for line in lines} == {0, 1}
    default = base["config"]["plan.init_std"], base["config"]["plan.horizon"]
    means: dict[tuple[float, int], list[float]] = {}
    for line in lines:
        own = line["hyperparameters"]
        std = own.get("plan.init_std", default[0])
        assert 0.1 <= std <= 1
        pair = std, own.get("plan.horizon", default[1])
        means.setdefault(pair, []).append(line["return"])
        assert line["curves"]["eval/return_mean"]["env_steps"] == [200, 400]
    assert len(means) == 4
    assert {horizon for _, horizon in means} == {2, 3}
    best = max(means, key=lambda pair: statistics.fmean(means[pair]))
    assert tuple(found.settings.values()) == best
    assert found.value == pytest.approx(statistics.fmean(means[best]))
    reported = [tuple(x.intermediate_values) for x in trials(tmp_path)]
    assert reported == 4 * [(2,)]  # the evaluation at step 4 is the last
    (words,) = said
    assert words.startswith(f"4 of 4 trials, 0 pruned; best {found.value:.5g} with")


@pytest.mark.slow
def test_a_trial_is_the_run_with_its_settings(
    tiny: str, whole: Path, tmp_path: Path
) -> None:
    base = run.record_of(*run.parse(["run", tiny]))
    domains = {"plan.init_std": [base["config"]["plan.init_std"]]}
    find(tmp_path, domains, record=base, num_trials=1, num_seeds=1)
    (mine,), (its,) = book(tmp_path), ledger.lines(whole)
    assert {*mine} == {*its}
    same = ("run", "status", "env_steps", "hyperparameters", "num_runs", "device")
    assert [mine[name] for name in same] == [its[name] for name in same]
    for name in ledger.CURVES:
        for part in ("env_steps", "return"):
            expected = pytest.approx(its["curves"][name][part], rel=1e-4)
            assert mine["curves"][name][part] == expected


@pytest.mark.usefixtures("toy")
def test_poor_trials_are_dropped_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an own account of medians: returns are constant, 4 trials x 2 seeds a time."""
    stepped: list[int] = []

    def counting(run: registry.Run, *arguments: Any) -> train.Loop:
        loop = compiled_once(run, *arguments)

        def step(key: Key, i: int, state: Any) -> Any:
            stepped.append(len(key))
            return loop.step(key, i, state)

        return loop._replace(step=step)

    monkeypatch.setattr(registry.Run, "loop", counting)
    found = find(tmp_path, num_trials=40)
    assert_consistent(tmp_path, found)
    complete: list[float] = []
    expected: list[int] = []
    asked = trials(tmp_path)
    for generation in [asked[i : i + 4] for i in range(0, 40, 4)]:
        worth = [-0.1 - ((x.params["x"] - 0.3) ** 2) for x in generation]
        median = np.median(complete) if len(complete) >= 5 else -np.inf
        good = [value for value in worth if value >= median]
        states = ["COMPLETE" if x >= median else "PRUNED" for x in worth]
        assert [x.state.name for x in generation] == states
        assert [x.value for x in generation] == pytest.approx(worth)
        left = 2 * len(good) if len(good) <= 2 else 8
        expected += [8] + 3 * [left] * bool(good)  # the first step counts
        complete += good
    assert stepped == expected
    assert min(stepped) < 8
    assert found.num_pruned == 40 - len(complete) > 0
    ends = [len(line["curves"]["episode/return"]["return"]) for line in book(tmp_path)]
    assert {*ends} == {1, 4}
    # a run is the same whatever others it shares a program with, and how many are left
    ended_at = {
        (line["seed"], end, line["env_steps"])
        for line, end in zip(book(tmp_path), ends, strict=True)
    }
    assert len(ended_at) == 4


@pytest.mark.usefixtures("toy")
def test_the_same_seed_gives_the_same_search(tmp_path: Path) -> None:
    one, two = find(tmp_path / "one"), find(tmp_path / "two")
    assert one == two
    assert results(tmp_path / "one") == results(tmp_path / "two")
    other = find(tmp_path / "other", record={**record(), "seed": 1})
    assert other.settings != one.settings


@pytest.mark.usefixtures("toy")
def test_few_at_once_need_no_more_trials(tmp_path: Path) -> None:
    for at_once in (3, 16):
        found = find(tmp_path / str(at_once), trials_at_once=at_once)
        assert_consistent(tmp_path / str(at_once), found)
        assert len(trials(tmp_path / str(at_once))) == 16


TWO = {"x": Range(0.0, 1.0), "size": [1, 2]}  # two programs in a generation


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search in TWO.  Read only."""
    folder = tmp_path_factory.mktemp("searches") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        use_toy(patch)
        find(folder, TWO)
    return folder


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    "moment", ["asking", "before the ledger", "after the ledger", "report"]
)
def test_an_interrupted_search_goes_on(
    moment: str, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find(uninterrupted, TWO)  # only says so
    add, numbers = ledger.add, itertools.count()

    def stop() -> None:
        if next(numbers) in (1, 6):
            raise KeyboardInterrupt

    def adding(path: Path, new: list[ledger.Line]) -> None:
        if moment == "before the ledger":
            stop()
        add(path, new)
        if moment == "after the ledger":
            stop()

    def asking(trial: optuna.Trial, *arguments: Any) -> Any:
        if moment == "asking":
            stop()
        return suggest(trial, *arguments)

    monkeypatch.setattr(ledger, "add", adding)
    suggest = optuna.Trial.suggest_categorical
    monkeypatch.setattr(optuna.Trial, "suggest_categorical", asking)
    report = (lambda line: stop()) if moment == "report" else NOTHING
    stopped, interruptions, found = tmp_path / "stopped", 0, None
    while found is None:
        try:
            found = find(stopped, TWO, report=report)
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == (1 if moment == "report" else 2)
    assert found == whole
    assert_consistent(stopped, found)
    assert results(stopped) == results(uninterrupted)
    states = {x.state.name for x in trials(stopped)}
    assert ("FAIL" in states) == (moment != "report")
    assert states <= {"COMPLETE", "PRUNED", "FAIL"}


def child(folder: Path) -> None:
    """A slow search of the toy, to be killed."""
    use_toy(pytest.MonkeyPatch())
    add = ledger.add

    def slowly(path: Path, new: list[ledger.Line]) -> None:
        time.sleep(0.05)
        add(path, new)
        time.sleep(0.05)

    ledger.add = slowly
    find(folder, TWO, num_trials=32)


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    """On two devices, and then on those of this process."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = find(whole, TWO, num_trials=32)
    code = f"""
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("search_test", {__file__!r})
module = sys.modules["search_test"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.child(pathlib.Path({str(killed)!r}))
"""
    own = os.environ["XLA_FLAGS"]
    devices = {"XLA_FLAGS": f"{own} --xla_force_host_platform_device_count=2"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        env={**os.environ, **devices},
    )
    path = killed / "ledger.jsonl"
    while not path.exists() or len(book(killed)) < 2 * 12:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(ended(killed)) < 32
    found = find(killed, TWO, num_trials=32)
    assert found == expected
    assert_consistent(killed, found)
    assert results(killed) == results(whole)
    assert "FAIL" in {x.state.name for x in trials(killed)}


@pytest.mark.usefixtures("toy")
def test_what_a_kill_leaves_in_the_journal_does_no_harm(tmp_path: Path) -> None:
    find(tmp_path, num_trials=4)
    journal = tmp_path / "study.journal"
    (tmp_path / "study.journal.lock").symlink_to(journal)
    with journal.open("a") as file:
        file.write('{"op_code": 4, "wor')
    clock = time.perf_counter()
    found = find(tmp_path, num_trials=8)  # Optuna itself would wait half a minute
    assert time.perf_counter() - clock < 15
    assert_consistent(tmp_path, found)
    assert len(trials(tmp_path)) == 8
    journal.write_text("no journal\n")
    with pytest.raises(ValueError, match=r"study\.journal is no study"):
        find(tmp_path)


@pytest.mark.usefixtures("toy")
def test_a_finished_search_only_says_so_and_a_longer_one_goes_on(
    tmp_path: Path,
) -> None:
    found = find(tmp_path / "short", num_trials=6)
    before = (tmp_path / "short" / "ledger.jsonl").read_bytes()
    assert find(tmp_path / "short", num_trials=6) == found
    assert (tmp_path / "short" / "ledger.jsonl").read_bytes() == before
    find(tmp_path / "short", num_trials=16)
    assert len(trials(tmp_path / "short")) == 16
    with pytest.raises(ValueError, match="holds another search: domain of x is"):
        find(tmp_path / "short", {"x": Range(0.0, 2.0)})
    with pytest.raises(ValueError, match="holds another search: num_steps is 4 there"):
        find(tmp_path / "short", record={**record(), "num_steps": 9})


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("kind", ["lost_above", "broken_above"])
def test_what_is_not_finite_is_dropped(kind: str, tmp_path: Path) -> None:
    found = find(tmp_path, record=record(**{kind: 0.4}))
    assert found.settings["x"] <= 0.4
    bad = [x for x in trials(tmp_path) if x.params["x"] > 0.4]
    assert bad
    assert {x.state.name for x in bad} == {"PRUNED"}
    for trial in trials(tmp_path):
        assert np.isfinite([*trial.intermediate_values.values()]).all()
    lines = [line for line in book(tmp_path) if line["hyperparameters"]["x"] > 0.4]
    assert len(lines) == 2 * len(bad)
    status = {"lost_above": "pruned", "broken_above": "failed"}[kind]
    assert {line["status"] for line in lines} == {status}
    # after the first draws it stays away from there
    late = [x.params["x"] for x in trials(tmp_path)[12:]]
    assert statistics.median(late) < 0.4


@pytest.mark.usefixtures("toy")
def test_without_any_finite_return_there_is_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of 4 trials came to its end"):
        find(tmp_path, record=record(lost_above=-1.0), num_trials=4)
    assert {x.state.name for x in trials(tmp_path)} == {"PRUNED"}


@pytest.mark.usefixtures("toy")
def test_impossible_settings_are_told_and_passed_over(tmp_path: Path) -> None:
    said: list[str] = []
    found = find(tmp_path, {**X, "size": [2, 10]}, report=said.append)
    assert found.settings["size"] == 2
    bad = [x.number for x in trials(tmp_path) if x.params["size"] == "10"]
    assert bad
    lines = [f"trial {number} cannot be: size is 10, more than 9" for number in bad]
    assert [line for line in said if "cannot" in line] == lines
    assert len(ended(tmp_path)) == 16
    assert len(book(tmp_path)) == 2 * (16 - len(bad))


@pytest.mark.usefixtures("toy")
def test_the_same_settings_are_trained_once(tmp_path: Path) -> None:
    domains = {"x": [0.1, 0.3, 0.5], "sizes": [(1,), (2, 3)]}
    found = find(tmp_path, domains)
    assert found.settings["x"] == 0.3
    assert found.settings["sizes"] in [(1,), (2, 3)]
    assert len(ended(tmp_path)) == 16
    lines = book(tmp_path)
    there = {(x.params["x"], x.params["sizes"]) for x in trials(tmp_path)}
    assert len(there) > 3
    assert len(lines) == len({line["run"] for line in lines}) == 2 * len(there)
    for pair in there:
        states = {
            (x.state, x.value, tuple(x.intermediate_values))
            for x in trials(tmp_path)
            if (x.params["x"], x.params["sizes"]) == pair
        }
        assert len(states) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_it_learns_where_to_look(tmp_path: Path) -> None:
    """Against as many draws at random, over five seeds."""
    rng = np.random.default_rng(0)
    draws = np.abs(rng.uniform(size=(1000, 24)) - 0.3)
    nearest, typical = [], []
    base = record() | {"num_steps": 1}
    for seed in range(5):
        folder = tmp_path / str(seed)
        found = find(folder, num_trials=24, num_seeds=1, record=base | {"seed": seed})
        nearest.append(abs(found.settings["x"] - 0.3))
        typical += [abs(x.params["x"] - 0.3) for x in trials(folder)[12:]]
    assert statistics.median(nearest) < np.median(draws.min(axis=1))
    assert statistics.median(typical) < np.median(draws) / 2


@pytest.mark.usefixtures("toy")
def test_one_run_at_a_time_outside_jax(tmp_path: Path) -> None:
    base = {**record(), "env": "gymnasium/Pendulum-v1"}
    for trials_at_once, num_seeds in ((2, 1), (1, 2)):
        with pytest.raises(ValueError, match="steps outside jax"):
            find(
                tmp_path,
                record=base,
                trials_at_once=trials_at_once,
                num_seeds=num_seeds,
            )
    assert not list(tmp_path.iterdir())
    found = find(tmp_path, record=base, num_trials=7, trials_at_once=1, num_seeds=1)
    assert_consistent(tmp_path, found, num_seeds=1)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("domains", "words"),
    [
        ({}, "nothing to search"),
        ({"env": ["pendulum"]}, "env is no hyperparameter"),
        ({**X, "precision": ["x64"]}, "precision is no hyperparameter"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    domains: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        find(tmp_path, domains)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("toy")
def test_optuna_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ImportError, match=r"^a search needs Optuna: pip install optuna$"
    ):
        find(tmp_path)
    assert not list(tmp_path.iterdir())
