"""SimPLe's wiring: what is remembered, how long the model is trained, where rollouts
begin, how long they are, and where they end."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import networks
from mbrl_jax.algorithms import simple
from mbrl_jax.envs import catch, pixels, planar
from mbrl_jax.models import next_frame
from mbrl_jax.policy_gradient import actor_critic, ppo
from mbrl_jax.types import Array, Key, Learner, PyTree, Window

ENV = pixels.make(catch.make(), pixels.Config(size=5, num_frames=2))
CONFIG = simple.Config(
    capacity=40,
    num_envs=2,
    window=6,
    num_model_updates=2,
    first_factor=3,
    batch_size=3,
    sequence_length=2,
    num_policy_updates=4,
    num_rollouts=5,
    horizon=7,
    net=actor_critic.Config(hidden_sizes=(8,)),
    pixels=networks.EncoderConfig((4,), 6),
    learn=ppo.Config(num_epochs=1, num_minibatches=1),
    model=next_frame.Config((4, 4), 8, 2, 3),
)


@pytest.mark.slow
def test_the_model_is_trained_thrice_as_long_at_first():
    """And PPO as often in every iteration; the real steps are remembered in order."""
    algorithm, key = simple.make(ENV, CONFIG), jax.random.key(0)
    state, step = jax.jit(algorithm.init)(key), jax.jit(algorithm.step)
    counts = lambda state: [
        int(x)
        for path, x in jax.tree.leaves_with_path(state)
        if jax.tree_util.keystr(path).endswith(".count")
    ]
    first, metrics = step(jax.random.key(1), state)
    assert metrics["env_steps"] == first.replay.size == 12
    assert set(counts(first.model_opt)) == {6}
    assert set(counts(first.learner.opt_state)) == {4}
    second, metrics = step(jax.random.key(2), first)
    assert metrics["env_steps"] == second.replay.size == 24
    assert set(counts(second.model_opt)) == {8}
    assert set(counts(second.learner.opt_state)) == {8}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    # the replay's rows of one environment are two apart
    known = second.replay.frames.after
    assert set(np.asarray(known)[:10]) >= {2, 3, 4, 5}
    assert set((known - jnp.arange(40))[known >= 0].tolist()) == {2}


@pytest.mark.slow
def test_rollouts_begin_in_what_was_seen_and_end_where_the_model_says(
    monkeypatch: pytest.MonkeyPatch,
):
    """In place of the model, one that darkens the picture by 10 in a step, pays what it
    is told, and ends at the third; in place of PPO, one that keeps what it is given."""
    seen: list[Window] = []

    def model(env: Any, config: Any) -> next_frame.NextFrame:
        made = next_frame.make(env, config)

        def step(params: Any, key: Key, obs: Array, action: Array) -> tuple:
            assert action.shape == (3,)
            frame = obs[..., 1:] - jnp.uint8(10)
            ended = frame.max() < 250 - 30
            return next_frame.pushed(obs, frame), action @ jnp.arange(3.0), ended

        return made._replace(step=step)

    def keeping(net: Any, config: Any) -> Learner:
        made = ppo.make(net, config)

        def update(key: Key, state: PyTree, windows: Window) -> tuple[PyTree, Any]:
            jax.debug.callback(seen.append, windows, ordered=True)
            return state, {}

        return made._replace(update=update)

    monkeypatch.setattr(
        simple, "next_frame", _Patched(next_frame, make=model), raising=True
    )
    monkeypatch.setattr(simple, "ppo", _Patched(ppo, make=keeping), raising=True)
    algorithm = simple.make(ENV, CONFIG)
    state, metrics = jax.jit(algorithm.step)(
        jax.random.key(1), jax.jit(algorithm.init)(jax.random.key(0))
    )
    jax.effects_barrier()
    assert len(seen) == 4
    rows = jax.tree.map(np.asarray, seen[-1])
    data, valid = rows.transitions, rows.valid
    assert data.obs.shape == (5, 7, 5, 5, 2)
    kept = {x.tobytes() for x in np.asarray(state.replay.data.obs[:12])}
    newest = data.obs[:, 0, :, :, 1:]
    assert all(np.ascontiguousarray(x).tobytes() in kept for x in newest)
    np.testing.assert_array_equal(data.obs[:, 1:], data.next_obs[:, :-1])
    ends = data.next_obs[..., 1].max(axis=(2, 3)) < 220
    np.testing.assert_array_equal(data.terminal, ends)
    alive = np.cumsum(ends, axis=1) - ends == 0
    np.testing.assert_array_equal(valid, alive)
    assert 0 < valid.mean() < 1
    np.testing.assert_array_equal(data.reward, data.action)  # 0, 1 or 2
    earned = np.where(valid, data.reward, 0).sum(axis=1).mean()
    np.testing.assert_allclose(metrics["imagined/return"], earned, rtol=1e-5)


class _Patched:
    """A module of which one name is another."""

    def __init__(self, module: Any, **others: Any) -> None:
        self._module, self._others = module, others

    def __getattr__(self, name: str) -> Any:
        return self._others.get(name) or getattr(self._module, name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"capacity": 11}, "capacity is 11, less than the 12 frames of an iteration"),
        ({"sequence_length": 7}, "sequence_length is 7, more than the 6 steps"),
        ({"own_share": 1.5}, "own_share is 1.5"),
        ({"model": next_frame.Config(num_levels=7)}, "model.num_levels is 7"),
        ({"learn": ppo.Config(num_minibatches=36)}, "num_minibatches is 36"),
    ],
)
def test_what_cannot_be_is_an_early_error(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        simple.make(ENV, dataclasses.replace(CONFIG, **changes))


def test_vectors_are_no_pictures():
    with pytest.raises(ValueError, match="planar shows vectors"):
        simple.make(planar.make(), CONFIG)


def test_what_is_foreseen_follows_from_the_first_picture_and_the_actions(
    monkeypatch: pytest.MonkeyPatch,
):
    """By a model that darkens the newest frame by its action."""

    def model(env: Any, config: Any) -> next_frame.NextFrame:
        def step(params: Any, key: Key, obs: Array, action: Array) -> tuple:
            frame = obs[..., 1:] - (action @ jnp.arange(3.0)).astype(jnp.uint8)
            return next_frame.pushed(obs, frame), jnp.zeros(()), jnp.zeros((), bool)

        return next_frame.make(env, config)._replace(step=step)

    monkeypatch.setattr(simple, "next_frame", _Patched(next_frame, make=model))
    algorithm, key = simple.make(ENV, CONFIG), jax.random.key(0)
    state = jax.eval_shape(algorithm.init, key)
    obs = np.random.default_rng(0).integers(100, 255, (4, 5, 5, 2)).astype(np.uint8)
    found = algorithm.foresee(state, key, jnp.asarray(obs), jnp.array([2, 0, 1]))
    assert set(found) == {"predicted"}
    darker = np.array([0, 2, 2, 3])[:, None, None, None]
    expected = (obs[:1, ..., 1:] - darker) / 255
    np.testing.assert_allclose(found["predicted"], expected, atol=1e-6)
