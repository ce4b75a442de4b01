"""SAC, TD3 and PPO on pictures: who trains the encoder, what is moved, what is kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import networks
from mbrl_jax.algorithms import ppo as ppo_algorithm
from mbrl_jax.algorithms import sac as sac_algorithm
from mbrl_jax.algorithms import td3 as td3_algorithm
from mbrl_jax.envs import pixels, planar, simulator
from mbrl_jax.policy_gradient import actor_critic
from mbrl_jax.policy_gradient import ppo as ppo_learner
from mbrl_jax.types import Algorithm, PyTree, Transition
from mbrl_jax.value_learning import off_policy, parts, sac, td3

ENV = pixels.make(simulator.time_limit(planar.make(), 5), pixels.Config(size=8))
PIXELS = parts.PixelsConfig(channels=(4, 4), num_features=6, random_shift=1)
B = 4


def batch(seed: int = 0) -> Transition:
    rng = np.random.default_rng(seed)
    obs = rng.integers(0, 256, (2, B, *ENV.obs_shape)).astype(np.uint8)
    action, flag = rng.uniform(-1, 1, (B, 2)), np.zeros(B, bool)
    return jax.tree.map(
        jnp.asarray, Transition(obs[0], action, rng.normal(size=B), obs[1], flag, flag)
    )


def moved(before: PyTree, after: PyTree) -> float:
    """By how much the largest of all entries."""
    difference = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), before, after)
    return float(jnp.stack(jax.tree.leaves(difference)).max())


def test_an_encoder_halves_the_picture_and_sees_every_pixel():
    network: Any = networks.Encoder(networks.EncoderConfig((16, 12), 7))
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 2)).astype(np.uint8)
    params = network.init(jax.random.key(0), picture)
    shapes = jax.tree.map(jnp.shape, params["params"])
    assert shapes["Convolution_0"]["Dense_0"]["kernel"] == (3 * 3 * 2, 16)
    assert shapes["Convolution_1"]["Dense_0"]["kernel"] == (3 * 3 * 16, 12)
    assert shapes["Dense_0"]["kernel"] == (2 * 2 * 12, 7)
    seen = jax.jit(jax.vmap(lambda x: network.apply(params, x)))
    one_changed = np.repeat(picture[None], 65, axis=0).reshape(65, 64, 2)
    for i in range(64):
        one_changed[i, i] = 255 - one_changed[i, i]
    features = np.asarray(seen(one_changed.reshape(65, 8, 8, 2)))
    assert features.shape == (65, 7)
    assert (np.abs(features) <= 1).all()
    assert (np.abs(features[:64] - features[64:]).max(axis=1) > 1e-6).all()


@pytest.mark.parametrize("method", [sac, td3])
def test_the_critics_train_the_encoder_and_the_policy_does_not(method: Any):
    """Two critics share one; the target critics have one of their own."""
    config = method.Config(hidden_sizes=(8,), learning_rate=1e-2)
    made = method.make(ENV, config, PIXELS)
    state, rows = made.init(jax.random.key(0)), batch()
    heads = jax.tree.leaves(state.critics["heads"])
    assert all(x.shape[0] == 2 for x in heads)
    update = jax.jit(parts.learner(made).update)
    after, _ = update(jax.random.key(1), state, rows)
    after, _ = update(jax.random.key(2), after, rows)  # TD3's policy waits
    assert moved(state.critics["encoder"], after.critics["encoder"]) > 1e-3
    assert moved(state.actor, after.actor) > 1e-3
    early = moved(state.target_critics["encoder"], after.target_critics["encoder"])
    assert 0 < early < 1e-3

    def objective(critics: PyTree) -> jax.Array:
        """What the policy goes up, as a function of the encoder that it sees by."""
        acting = lambda key, obs: made.act(state._replace(critics=critics), key, obs)
        keys = jax.random.split(jax.random.key(3), B)
        return jax.vmap(acting)(keys, rows.obs)[0].sum()

    if method is sac:
        gradient = jax.jit(jax.grad(objective))(state.critics)
        assert moved(gradient, jax.tree.map(jnp.zeros_like, gradient)) == 0
        changed = jax.tree.map(lambda x: x + 0.1, state.critics)
        assert abs(float(objective(changed) - objective(state.critics))) > 1e-4


def test_the_policy_steps_by_what_the_encoder_has_just_become():
    """Of SAC: what the objective is told of is seen by the critics' new encoder."""
    made = sac.make(ENV, sac.Config(hidden_sizes=(8,), learning_rate=1e-2), PIXELS)
    state, rows = made.init(jax.random.key(0)), batch()

    def acted(key: Any, obs: Any, act: Any, value: Any = None) -> Any:
        return jax.vmap(act)(jax.random.split(key, B), obs)[0].sum(axis=1)

    @jax.jit
    def update(state: Any) -> Any:
        targets = parts.one_step(made, state, jax.random.key(1), rows)
        return made.update(jax.random.key(2), state, targets, rows.obs, acted)

    after, metrics = update(state)

    def told(critics: Any) -> float:
        act = lambda key, obs: made.act(state._replace(critics=critics), key, obs)
        return float(acted(jax.random.key(2), rows.obs, act).mean())

    assert metrics["policy/objective"] == pytest.approx(told(after.critics), rel=1e-4)
    assert abs(told(after.critics) - told(state.critics)) > 1e-3


@pytest.mark.parametrize("module", [sac_algorithm, td3_algorithm])
def test_pictures_are_moved_as_far_as_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch, module: Any
):
    seen, make = [], parts.learner

    def learner(method: Any, random_shift: int = 0) -> Any:
        seen.append(random_shift)
        return make(method, random_shift)

    monkeypatch.setattr(parts, "learner", learner)
    module.make(ENV, module.Config(pixels=parts.PixelsConfig(random_shift=3)))
    assert seen == [3]


def test_the_frames_of_environments_side_by_side_are_told_apart():
    algorithm, key = small("sac"), jax.random.key(0)
    state, _ = jax.jit(algorithm.step)(key, jax.jit(algorithm.init)(key))
    after = np.asarray(state.replay.frames.after)
    row = np.flatnonzero(after >= 0)
    assert set(after[row] - row) == {2}
    assert len(row) >= 6  # of 12, of which one in five ends an episode


def test_pictures_are_moved_each_by_itself_and_the_edges_repeated():
    pictures = np.random.default_rng(0).integers(0, 256, (300, 5, 5, 2))
    pictures = pictures.astype(np.uint8)
    found = np.asarray(
        jax.jit(lambda key: parts.shifted(key, pictures, 1))(jax.random.key(0))
    )
    assert found.dtype == np.uint8
    wide = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    counts = np.zeros((3, 3), int)
    for one, whole in zip(found, wide, strict=True):
        fits = [
            (i, j)
            for i in range(3)
            for j in range(3)
            if (whole[i : i + 5, j : j + 5] == one).all()
        ]
        assert len(fits) == 1
        counts[fits[0]] += 1
    assert counts.min() > 15  # of 33


@pytest.mark.parametrize("random_shift", [0, 2])
def test_what_is_learned_from_is_moved(random_shift: int):
    """Before and after a step apart from each other; the critics' rows and the policy's
    pictures are the same."""
    seen: dict[str, Any] = {}

    def update(key: Any, state: Any, rows: Any, obs: Any, objective: Any) -> Any:
        seen.update(rows=rows.obs, obs=obs)
        return state, {}

    def next_value(state: Any, key: Any, next_obs: Any) -> Any:
        return next_obs.astype(jnp.float32).sum()

    made = sac.make(ENV, sac.Config(hidden_sizes=(4,)), PIXELS)
    made = made._replace(update=update, next_value=next_value, discount=1.0)
    rows = batch()._replace(reward=jnp.zeros(B))
    rows = rows._replace(next_obs=rows.obs)
    targets = {}

    def keep(key: Any, state: Any, rows: Any, obs: Any, objective: Any) -> Any:
        targets["next"] = rows.target
        return update(key, state, rows, obs, objective)

    learner = parts.learner(made._replace(update=keep), random_shift)
    learner.update(jax.random.key(0), None, rows)
    np.testing.assert_array_equal(seen["rows"], seen["obs"])
    total = lambda x: np.asarray(x, np.float64).reshape(B, -1).sum(axis=1)
    same = np.isclose(total(seen["obs"]), total(rows.obs))
    assert same.all() == (random_shift == 0)
    together = np.isclose(total(seen["obs"]), np.asarray(targets["next"]))
    assert together.all() == (random_shift == 0)


def small(name: str) -> Algorithm:
    if name == "ppo":
        config = ppo_algorithm.Config(
            num_envs=2,
            window=6,
            net=actor_critic.Config(hidden_sizes=(8,)),
            learn=ppo_learner.Config(num_epochs=1, num_minibatches=2),
            pixels=networks.EncoderConfig((4,), 6),
        )
        return ppo_algorithm.make(ENV, config)
    collect = off_policy.Config(
        capacity=16, warmup=8, interval=6, num_envs=2, batch_size=4
    )
    learn = sac.Config(hidden_sizes=(8,))
    return sac_algorithm.make(ENV, sac_algorithm.Config(collect, learn, PIXELS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_iterations_train_the_encoder_and_the_policy_acts(name: str):
    algorithm, key = small(name), jax.random.key(0)
    state, step = jax.jit(algorithm.init)(key), jax.jit(algorithm.step)
    first = state
    for key in jax.random.split(key, 3):
        state, metrics = step(key, state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    assert metrics["env_steps"] == 36
    if name == "sac":
        encoder = lambda state: state.learner.critics["encoder"]
        assert state.replay.data.obs.shape == (16, 8, 8, 1)
        assert state.replay.data.obs.dtype == jnp.uint8
    else:
        agent = state.learner.agent
        encoder = lambda state: (
            state.learner.agent.actor["net"]["params"]["Encoder_0"],
            state.learner.agent.critic["params"]["Encoder_0"],
        )
        assert agent.obs.mean.shape == (0,)
    for old, new in zip(
        jax.tree.leaves(encoder(first)), jax.tree.leaves(encoder(state)), strict=True
    ):
        assert np.abs(np.asarray(old) - np.asarray(new)).max() > 1e-7
    policy = algorithm.policy(state)
    act = jax.jit(lambda obs: policy.act(jax.random.key(1), obs, policy.init())[0])
    dark, bright = ENV.blank_obs(), ENV.blank_obs() + jnp.uint8(200)
    assert np.abs(act(dark) - act(bright)).max() > 1e-6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (parts.PixelsConfig(num_features=0), "pixels.num_features is 0"),
        (parts.PixelsConfig(random_shift=-1), "pixels.random_shift is -1"),
    ],
)
def test_what_cannot_be_is_an_early_error(config: parts.PixelsConfig, message: str):
    with pytest.raises(ValueError, match=message):
        sac.make(ENV, sac.Config(), config)


def test_without_an_encoder_pictures_are_refused():
    with pytest.raises(ValueError, match=r"pixels/planar shows pictures, \[8, 8, 2\]"):
        sac.make(ENV, sac.Config())
    with pytest.raises(ValueError, match="shows pictures"):
        actor_critic.make(ENV, actor_critic.Config())
