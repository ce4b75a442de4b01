"""The training loop, with an algorithm so small that only the loop is tested."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.training import checkpoints, train
from mbrl_jax.types import Algorithm, Array, Env, EnvState, Key, Metrics, Policy

ENV_LENGTH = 5


class State(NamedTuple):
    weights: Array  # [3]
    best: Array  # [3], at first the same array as `weights`
    key: Key  # [2]
    count: Array  # [] int32
    flags: Array  # [2] bool
    half: Array  # [2] bfloat16
    empty: Array  # [0]
    nothing: tuple[()]


def toy_env(host: bool = False) -> Env:
    """A point that is pushed; the reward is minus its distance from the origin."""

    def show(obs: Array, reward: Array, time: Array) -> EnvState:
        never = jnp.zeros((), bool)
        return EnvState(obs, reward, never, time >= ENV_LENGTH, time, ())

    def reset(key: Key) -> EnvState:
        return show(
            jax.random.normal(key, (2,)), jnp.zeros(()), jnp.zeros((), jnp.int32)
        )

    def step(env_state: EnvState, action: Array) -> EnvState:
        obs = env_state.obs + action
        return show(obs, -jnp.linalg.norm(obs), env_state.time + 1)

    return Env("toy", reset, step, 2, 1, 1.0, ENV_LENGTH, host=host)


def toy(fault: Callable[[Array, Array], Array] = lambda count, x: x) -> Algorithm:
    """Draws weights; `fault(count, weights)` may spoil them."""

    def init(key: Key) -> State:
        weights = jax.random.normal(key, (3,))
        return State(
            weights,
            weights,
            jax.random.split(key),
            jnp.zeros((), jnp.int32),
            jnp.array([True, False]),
            jnp.ones(2, jnp.bfloat16),
            jnp.zeros(0),
            (),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        weights = state.weights + jax.random.normal(key, (3,))
        weights = fault(state.count, weights)
        state = state._replace(
            weights=weights,
            key=jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.key, state.count),
            count=state.count + 1,
        )
        return state, {"env_steps": state.count * 5, "train/sum": weights.sum()}

    def policy(state: State) -> Policy:
        return Policy(
            lambda: (), lambda key, obs, memory: (state.weights[:1] * obs[:1], memory)
        )

    return Algorithm(init, step, policy)


def recorder() -> tuple[dict[int, dict[str, Any]], train.Log]:
    lines: dict[int, dict[str, Any]] = {}

    def log(step: int, metrics: dict[str, Any]) -> None:
        assert step not in lines
        lines[step] = {k: v for k, v in metrics.items() if not k.startswith("time/")}

    return lines, log


def plain(state: State) -> State:
    return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def assert_equal(left: Any, right: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


def unexpected(*arguments: Any) -> None:
    raise AssertionError(arguments)


def damage(folder: Path) -> None:
    """Flips one byte in the middle of the largest file of a checkpoint."""
    path = max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


KEY = jax.random.key(3)
TOY, LOOPS = toy(), {}
build = train.build


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of `TOY` share their loops: to compile one takes longer than all else."""

    def known(key: Key, algorithm: Any, *arguments: Any, **options: Any) -> train.Loop:
        if algorithm is not TOY:
            return build(key, algorithm, *arguments, **options)
        kind = repr((key.shape, arguments[1:], options))
        if kind not in LOOPS:
            LOOPS[kind] = build(key, algorithm, *arguments, **options)
        return LOOPS[kind]

    monkeypatch.setattr(train, "build", known)


def go(
    num_steps: int, key: Key = KEY, algorithm: Algorithm = TOY, **options: Any
) -> train.Result:
    """A run; it is evaluated only where that is asked for."""
    options = {"eval_episodes": 0, **options}
    return train.run(key, algorithm, toy_env(), num_steps, **options)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    options = {"eval_every": 2, "eval_episodes": 5, "report": unexpected}
    whole, log = recorder()
    expected = go(8, log=log, **options)
    parts, log = recorder()
    for num_steps in (4, 8):  # the evaluation at the end of a part is due anyway
        result = go(num_steps, folder=tmp_path, log=log, **options)
        assert result.step == num_steps
    assert_equal(plain(result.state), plain(expected.state))
    assert_equal(parts, whole)
    assert sorted(whole) == list(range(1, 9))
    assert [s for s in whole if "eval/return_mean" in whole[s]] == [2, 4, 6, 8]
    assert_equal(result.episodes, expected.episodes)


def test_a_finished_run_is_not_stepped_again(tmp_path: Path) -> None:
    first = go(3, folder=tmp_path)
    lines, log = recorder()
    again = go(3, folder=tmp_path, log=log)
    assert not lines
    assert again.step == 3
    assert_equal(plain(again.state), plain(first.state))


def test_step_compiles_once_also_after_a_restore(tmp_path: Path) -> None:
    go(2, folder=tmp_path)
    for key in (KEY, train.seeds(0, 2)):
        loop = train.build(key, toy(), toy_env(), 2)
        state = loop.init(key)
        checkpoints.save(tmp_path / str(key.ndim), 1, state, {})
        for i in range(3):
            state, _ = loop.step(key, i, state)
        _, saved = checkpoints.restore(tmp_path / str(key.ndim), state, {}, unexpected)
        for i in range(3):
            saved, _ = loop.step(key, i, loop.place(saved))
        assert loop.step.func._cache_size() == 1


def test_seeds_together_equal_seeds_alone() -> None:
    lines, log = recorder()
    together = go(4, train.seeds(5, 3), eval_episodes=5, log=log)
    for i in range(3):
        single, log = recorder()
        alone = go(4, jax.random.key(5 + i), eval_episodes=5, log=log)
        seed = jax.tree.map(lambda x, i=i: x[i], plain(together.state))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(
                np.float64(x), np.float64(y), rtol=1e-5, atol=1e-6
            ),
            (seed, {k: v[i] for k, v in lines[4].items()}),
            (plain(alone.state), single[4]),
        )
    assert lines[4]["eval/return_mean"].shape == (3,)
    assert together.episodes.valid.shape == (3, 5, ENV_LENGTH)
    assert len(set(lines[4]["train/sum"].tolist())) == 3
    # all start where the others do, but where the episodes of one do differ
    starts = np.asarray(together.episodes.transitions.obs[:, :, 0])  # [S, E, O]
    np.testing.assert_array_equal(starts, np.broadcast_to(starts[:1], starts.shape))
    assert len(np.unique(starts[0], axis=0)) == 5
    other = go(2, jax.random.key(77), eval_episodes=5).episodes
    np.testing.assert_array_equal(other.transitions.obs[:, 0], starts[0])


def test_host_environments_take_one_seed() -> None:
    with pytest.raises(ValueError, match="one seed at a time"):
        train.run(train.seeds(0, 2), toy(), toy_env(host=True), 1)


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    go(7, folder=tmp_path, keep=2, checkpoint_every=2)
    assert checkpoints.steps(tmp_path) == [6, 7]


def test_should_stop_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    lines, log = recorder()
    result = go(
        9,
        folder=tmp_path,
        checkpoint_every=5,
        log=log,
        should_stop=lambda: len(lines) == 3,
    )
    assert result.step == 3
    assert checkpoints.steps(tmp_path) == [3]


@pytest.mark.parametrize("kind", ["flipped", "truncated", "missing", "moved"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "damaged"
    whole = go(6, folder=tmp_path / "whole")
    go(4, folder=folder)
    files = [p for p in (folder / "4").rglob("*") if p.is_file()]
    if kind == "flipped":
        damage(folder / "4")
    elif kind == "truncated":
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "missing":
        for path in files:
            path.unlink()
    else:
        (folder / "4").rename(folder / "5")
    reports: list[str] = []
    lines, log = recorder()
    resumed = go(6, folder=folder, log=log, report=reports.append)
    assert len(reports) == 1
    assert "is damaged" in reports[0]
    assert "\n" not in reports[0]
    assert min(lines) == 4
    assert_equal(plain(resumed.state), plain(whole.state))
    assert checkpoints.steps(folder) == [4, 5, 6]
    go(7, folder=folder, report=unexpected)


def test_the_digest_is_checked(tmp_path: Path) -> None:
    state = {"w": jnp.arange(6.0)}
    checkpoints.save(tmp_path, 1, state, {})
    assert checkpoints.restore(tmp_path, state, {}, unexpected)
    (path,) = (tmp_path / "1" / "record").glob("metadata")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "sha256": "0" * 64}))
    reports: list[str] = []
    with pytest.raises(OSError, match="every checkpoint"):
        checkpoints.restore(tmp_path, state, {}, reports.append)
    assert "digest" in reports[0]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    state = {"w": jnp.arange(6.0)}
    checkpoints.save(tmp_path, 1, state, {})
    for name in ("2.orbax-checkpoint-tmp", "0.deleted"):
        (tmp_path / name / "state").mkdir(parents=True)
    assert checkpoints.steps(tmp_path) == [1]
    assert checkpoints.restore(tmp_path, state, {}, unexpected)
    checkpoints.save(tmp_path, 2, state, {})
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
    (tmp_path / "1.deleted" / "state").mkdir(parents=True)
    checkpoints.prepare(tmp_path, state)  # also where nothing is left to be saved
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


def test_checkpoints_that_are_deleted_meanwhile_are_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on beside us has saved others: these are listed again."""
    state, read = {"w": jnp.arange(6.0)}, checkpoints._read
    for step in (1, 2):
        checkpoints.save(tmp_path, step, state, {})

    def overtaken(folder: Path, step: int) -> Any:
        if step == 2:
            checkpoints.save(folder, 3, state, {}, keep=1)
        return read(folder, step)

    monkeypatch.setattr(checkpoints, "_read", overtaken)
    found = checkpoints.restore(tmp_path, state, {}, unexpected)
    assert found
    assert found[0] == 3


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    config = {"horizon": 20, "sizes": (3, 4)}
    go(2, folder=tmp_path, config=config)
    go(2, folder=tmp_path, config=config)
    other = {"horizon": 30, "sizes": (3, 4), "rate": 0.1}
    with pytest.raises(
        ValueError, match="horizon is 20 there and 30 here, rate is None there"
    ):
        go(3, folder=tmp_path, config=other)
    with pytest.raises(ValueError, match="another key"):
        go(3, jax.random.key(4), folder=tmp_path, config=config)
    with pytest.raises(
        ValueError, match=r"does not fit: \[.key., \[\], .* there, .*\[2\]"
    ):
        go(3, train.seeds(3, 2), folder=tmp_path, config=config)
    assert checkpoints.steps(tmp_path) == [1, 2]


def test_an_unwritable_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(OSError, match="cannot write to"):
            go(1, folder=folder, log=unexpected)


def test_a_full_disk_is_seen_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="MB free, checkpoints need"):
        go(1, folder=tmp_path, log=unexpected)


def test_a_disk_that_fills_up_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orbax.checkpoint as ocp

    save = ocp.Checkpointer.save

    def full(checkpointer: Any, path: Path, **options: Any) -> None:
        if path.name == "3":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(checkpointer, path, **options)

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(OSError, match=r"No space left.*last good one is of step 2"):
        go(5, folder=tmp_path)
    assert checkpoints.steps(tmp_path) == [1, 2]


def nan_after(count: int) -> Algorithm:
    return toy(lambda i, x: jnp.where(i >= count, jnp.nan, x))


def test_a_non_finite_state_ends_the_run_and_is_not_saved(tmp_path: Path) -> None:
    lines, log = recorder()
    with pytest.raises(
        FloatingPointError, match=r"step 3 .* in weights; .* checkpoint is of step 2"
    ):
        go(5, KEY, nan_after(2), folder=tmp_path, log=log)
    assert [lines[i]["state/non_finite"] for i in (1, 2, 3)] == [0, 0, 3]
    assert checkpoints.steps(tmp_path) == [1, 2]


def test_one_broken_seed_does_not_end_the_others() -> None:
    key = train.seeds(0, 3)
    sums = [go(1, k).state.weights.sum() for k in key]
    highest = int(np.argmax(sums))
    margin = float(np.sort(sums)[-2:].mean())
    broken = toy(lambda i, x: jnp.where((i == 0) & (x.sum() > margin), jnp.inf, x))
    reports: list[str] = []
    lines, log = recorder()
    result = go(3, key, broken, log=log, report=reports.append)
    assert result.step == 3
    assert reports == [f"step 1: not finite any more: seeds [{highest}]"]
    bad = lines[3]["state/non_finite"] > 0
    assert bad.tolist() == [i == highest for i in range(3)]


SHARDED = """
import sys
sys.path.insert(0, {folder!r})
import jax, numpy as np
import train_test as t
assert len(jax.devices()) == 4
for num_seeds in (8, 6, 3):
    result = t.go(3, t.train.seeds(0, num_seeds), eval_episodes=5)
    devices = result.state.weights.sharding.device_set
    assert len(devices) == min(4, num_seeds)
    assert result.episodes.valid.shape[0] == num_seeds
    print(np.asarray(result.state.weights).tolist())
key = t.train.seeds(0, 3)
loop = t.train.build(key, t.toy(), t.toy_env(), devices=jax.devices()[:2])
program = loop.step.func.lower(*loop.step.args, key, 0, loop.init(key)).compile()
assert "all-" not in program.as_text()  # no device waits for another within a step
"""


@pytest.mark.slow
def test_seeds_shard_over_devices_with_the_same_numbers() -> None:
    """Also where the devices do not divide the seeds, or are more."""
    code = SHARDED.format(folder=str(Path(__file__).parent))
    several = "--xla_force_host_platform_device_count=4"
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {several}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    expected = go(3, train.seeds(0, 8)).state.weights
    for line, num_seeds in zip(output.stdout.splitlines(), (8, 6, 3), strict=True):
        found = json.loads(line)
        np.testing.assert_allclose(found, expected[:num_seeds], rtol=1e-6)


def test_side_by_side_or_one_after_the_other_does_not_change_the_numbers() -> None:
    key = train.seeds(0, 5)
    found, expected = (
        go(3, key, side_by_side=choice, eval_episodes=2) for choice in (True, False)
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            np.float64(x), np.float64(y), rtol=1e-5, atol=1e-6
        ),
        (plain(found.state), found.episodes),
        (plain(expected.state), expected.episodes),
    )


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [False, True])
def test_every_run_has_its_own_hyperparameters(
    side_by_side: bool, tmp_path: Path
) -> None:
    rates = {"rate": np.array([0.1, 0.5, 0.9], np.float32)}

    def make(varied: dict[str, jax.Array]) -> Algorithm:
        return toy(lambda i, x: varied["rate"] * x)

    key = train.seeds(0, 3)
    together = go(4, key, make, hyperparameters=rates, side_by_side=side_by_side)
    for i, rate in enumerate(rates["rate"]):
        alone = go(4, key[i], make, hyperparameters={"rate": rate})
        fixed = go(4, key[i], toy(lambda i, x, rate=rate: rate * x))
        for other in (alone, fixed):
            np.testing.assert_allclose(
                together.state.weights[i], other.state.weights, rtol=1e-6
            )
    go(2, key, make, hyperparameters=rates, folder=tmp_path)
    resumed = go(4, key, make, hyperparameters=rates, folder=tmp_path)
    np.testing.assert_allclose(resumed.state.weights, together.state.weights, rtol=1e-6)


def test_memory_is_that_of_the_states_at_least() -> None:
    def needed(num_seeds: int) -> int:
        key = train.seeds(0, num_seeds)
        return train.memory(train.build(key, toy(), toy_env()), key)

    state = sum(x.nbytes for x in jax.tree.leaves(plain(toy().init(KEY))))
    assert 64 * state <= needed(64) <= 64 * 20 * state + 100_000
    assert needed(64) - needed(32) >= 32 * state


def test_a_pipe_is_no_checkpoint_and_not_waited_for(tmp_path):
    (tmp_path / "3").mkdir()
    for name in ("4", "1.deleted", "4.orbax-checkpoint-tmp"):
        os.mkfifo(tmp_path / name)
    assert checkpoints.steps(tmp_path) == [3]
    checkpoints.tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]
