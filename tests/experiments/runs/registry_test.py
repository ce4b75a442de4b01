"""The algorithms there are."""

import json
import math
from pathlib import Path

import jax
import pytest
from absl import flags

from experiments import evaluate, gradients, render, run, sweep
from experiments.runs import command_flags, registry
from mbrl_jax.training import checkpoints


def ignore(line: str) -> None:
    raise AssertionError(line)


def test_every_module_is_an_algorithm_with_a_title() -> None:
    assert "pets" in registry.names()
    for name in registry.names():
        assert len(registry.title(name)) > 20
        assert callable(registry.module(name).make)


@pytest.mark.parametrize("name", ["petz", "os", "pets.os", "../pets", ""])
def test_only_algorithms_are_imported(name: str) -> None:
    with pytest.raises(ValueError, match="unknown algorithm"):
        registry.module(name)


@pytest.mark.parametrize("name", registry.names())
def test_hyperparameters_are_named_unlike_the_flags_of_a_sweep(name: str) -> None:
    """Both are flags of one command."""
    values = flags.FlagValues()
    sweep.define(values)
    config = command_flags.flat(registry.module(name).Config())
    assert not set(config) & set(values)


def test_a_finished_run_is_made_again(whole: Path) -> None:
    run = registry.load(whole, ignore)
    assert run.step == 4
    assert run.env.name == "point_mass"
    assert int(run.state.env_steps) == 4 * run.env.episode_length
    policy = run.algorithm(run.hyperparameters).policy(run.state)
    obs = run.env.reset(jax.random.key(1)).obs
    action, _ = policy.act(jax.random.key(0), obs, policy.init())
    assert action.shape == (run.env.action_size,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"algorithm": "os"}, "unknown algorithm"),
        ({"env": "nowhere"}, "unknown environment"),
        ({"precision": "quadruple"}, "precision is 'quadruple'"),
        ({"seed": 1}, "holds another run: seed is 0 there and 1 here"),
        ({"config": {}}, "config.json: missing or unknown hyperparameters"),
        ({"population": {"ranges": 3}}, "config.json, population: ranges is no dict"),
        ({"population": {"ranges": {"a": 3}}}, "config.json: population is not what"),
        (
            {"varied": {"seed": [0], "plan.init_std": [math.inf]}},
            "config.json: flag --plan.init_std is inf, must be finite",
        ),
    ],
)
def test_a_changed_config_is_refused(
    finished: Path, change: dict[str, object], words: str
) -> None:
    path = finished / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        registry.load(finished, ignore)


@pytest.mark.parametrize("name", ["evil:make", "gymnasium/evil:X-v0"])
def test_a_folder_does_not_have_a_module_imported(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    path = finished / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"env": name}))
    argument = f"--run_dir={finished}"
    for load in (
        lambda: registry.load(finished, ignore),
        lambda: evaluate.main(["evaluate", argument]),
        lambda: render.main(["render", argument]),
        lambda: run.main(["run", argument]),
        lambda: gradients.main(["gradients", argument, f"--output={tmp_path / 'x'}"]),
    ):
        with pytest.raises(ValueError, match=f"only imported if .*--env={name}$"):
            load()
    with pytest.raises(ValueError, match=f"is of the environment {name}, not maze"):
        registry.load(finished, ignore, "maze")
    with pytest.raises(SystemExit):  # it is imported now
        registry.load(finished, ignore, name)


def test_a_run_without_a_checkpoint_is_refused(finished: Path) -> None:
    (finished / "checkpoints").rename(finished / "elsewhere")
    with pytest.raises(OSError, match="no checkpoint yet"):
        registry.load(finished, ignore)


def test_no_file_of_a_run_can_run_code(whole: Path) -> None:
    """Nothing is a pickle: every file is JSON, an array store, a picture or a log."""
    kinds = {".json", ".jsonl", ".png", ".gif", ".lock"}
    for path in (x for x in whole.iterdir() if x.is_file()):
        assert path.suffix in kinds or path.name in kinds
    for path in (x for x in whole.rglob("*") if x.is_file()):
        assert not path.read_bytes().startswith(b"\x80\x04")
    assert checkpoints.steps(whole / "checkpoints") == [2, 3, 4]


@pytest.mark.parametrize(
    ("algorithm", "argument", "words"),
    [
        ("mve", "--learner.naf.learning_rate=-1", "naf.learning_rate is -1.0, must be"),
        ("mve", "--learner.dqn.discount=2", "dqn.discount is 2.0"),
        ("mve", "--learner.td3.delay=0", "td3.delay is 0"),
        ("me_trpo", "--ppo.clip=0", "ppo.clip is 0.0"),
        ("me_trpo", "--a2c.discount=3", "a2c.discount is 3.0"),
        ("me_trpo", "--reinforce.critic.num_epochs=0", "reinforce.num_epochs is 0"),
        ("mpc", "--search.discount=3", "search.discount is 3.0"),
        (
            "mba",
            "--network.ensemble.num_members=0",
            "network.ensemble.num_members is 0",
        ),
        ("ppo", "--learn.num_minibatches=1000000", "more than the 2048 steps of an"),
        ("npg", "--learn.critic.num_minibatches=1000000", "more than the"),
        ("trpo", "--learn.critic.num_minibatches=1000000", "more than the"),
        ("reinforce", "--learn.critic.num_minibatches=1000000", "more than the"),
        ("me_trpo", "--trpo.critic.num_minibatches=1000000", "more than the 10000"),
        ("nagabandi", "--trpo.critic.num_minibatches=1000000", "more than the"),
        ("nagabandi", "--kl_weight=-1", "kl_weight is -1.0, must be at least 0"),
        ("gps", "--max_kl=0", "max_kl is 0.0, must be positive"),
        ("gps", "--num_episodes=1", "num_episodes is 1, must be at least 2"),
    ],
)
def test_settings_are_checked_that_are_not_in_use_or_too_many(
    algorithm: str, argument: str, words: str
) -> None:
    argv = ["run", f"--algorithm={algorithm}", "--env=pendulum", argument]
    with pytest.raises(ValueError, match=words):
        registry.assemble(run.record_of(*run.parse(argv)))
