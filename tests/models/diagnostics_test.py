from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mbrl_jax import policies, rollout
from mbrl_jax.envs import linear_quadratic, point_mass, simulator
from mbrl_jax.models.diagnostics import LEVELS, diagnose
from mbrl_jax.types import Array, Env, Gaussian, Transition

LEVELS_ = np.array(LEVELS)


def random_episodes(env: Env, num: int) -> rollout.Episode:
    run = partial(
        rollout.evaluate, env=env, policy=policies.uniform(env), num_episodes=num
    )
    return jax.jit(lambda key: run(key)[1])(jax.random.key(0))


# --- A model that is right.


def newton(obs: Array, action: Array) -> Gaussian:
    """The point mass itself, three times."""
    position, velocity, goal = obs[:2], obs[2:4], obs[4:]
    state = point_mass.dynamics(point_mass.State(position, velocity, goal), action)
    mean = jnp.tile(jnp.concatenate(state)[None], (3, 1))
    return Gaussian(mean, jnp.zeros_like(mean))


def test_a_perfect_model_has_no_error():
    env = simulator.time_limit(point_mass.make(), 20)
    found = jax.jit(lambda episodes: diagnose(env, newton, episodes, horizon=10))(
        random_episodes(env, 4)
    )
    assert found["model/one_step_rmse"] < 1e-4
    assert found["model/one_step_disagreement"] < 1e-5  # rounding
    for name in (
        "open_loop_rmse",
        "open_loop_disagreement",
        "predicted_minus_real_return",
    ):
        assert found[f"model/{name}"].shape == (10,)
        np.testing.assert_allclose(found[f"model/{name}"], 0, atol=1e-4)


# --- A model that knows its noise, or not.

NOISE = 0.1
PROBLEM = linear_quadratic.TWO_MASSES._replace(noise_std=NOISE)
LQ = linear_quadratic.make(PROBLEM, action_limit=2.0, episode_length=25)


def linear(std: Array, offsets: Array, obs: Array, action: Array) -> Gaussian:
    """The noisy linear task, one member per offset [M]."""
    mean = jnp.asarray(PROBLEM.A) @ obs + jnp.asarray(PROBLEM.B) @ action
    means = mean[None] + offsets[:, None]
    return Gaussian(means, jnp.full_like(means, std))


@pytest.fixture(scope="module")
def noisy() -> rollout.Episode:
    return random_episodes(LQ, 40)


@jax.jit
def calibration(
    episodes: rollout.Episode, std: float, offsets: Array
) -> dict[str, Array]:
    return diagnose(LQ, partial(linear, std, offsets), episodes, horizon=2)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_coverage_and_likelihood(noisy: rollout.Episode, factor: float):
    """Too small a std covers too little, by as much as the normal distribution says."""
    found = calibration(noisy, factor * NOISE, jnp.zeros(2))
    np.testing.assert_array_equal(found["model/coverage_level"], LEVELS_.astype("f4"))
    z = scipy.stats.norm.ppf((1 + LEVELS_) / 2)
    expected = 2 * scipy.stats.norm.cdf(factor * z) - 1
    num = noisy.transitions.obs.size
    tolerance = 5 * (expected * (1 - expected) / num) ** 0.5 + 1e-3
    assert (np.abs(found["model/coverage"] - expected) < tolerance).all()
    done = jax.tree.map(np.asarray, noisy.transitions)
    scale = (done.next_obs - done.obs).reshape(-1, 4).std(axis=0)
    nll = np.log(factor * NOISE / scale).mean() + 0.5 * np.log(2 * np.pi)
    nll += 0.5 / factor**2
    assert found["model/nll"] == pytest.approx(nll, abs=5 * num**-0.5 / factor**2)
    assert found["model/one_step_rmse"] == pytest.approx(
        np.sqrt(np.square(NOISE / scale).mean()), rel=0.05
    )


def test_members_that_disagree_as_much_as_they_err_are_calibrated(
    noisy: rollout.Episode,
):
    """Two without noise of their own, one above, one below."""
    found = calibration(noisy, 0.0, jnp.array([NOISE, -NOISE]))
    expected = calibration(noisy, NOISE, jnp.zeros(2))
    for name in ("coverage", "nll", "one_step_rmse"):
        np.testing.assert_allclose(
            found[f"model/{name}"], expected[f"model/{name}"], rtol=1e-4
        )
    assert expected["model/one_step_disagreement"] == 0
    np.testing.assert_allclose(
        found["model/one_step_disagreement"], found["model/one_step_rmse"], rtol=0.05
    )


# --- Models that are wrong by a known amount: a walk whose members add too much.

E, T, H = 2, 7, 3


def walks() -> rollout.Episode:
    """Two walks of random steps; the second ends after 5."""
    action = jnp.asarray(np.random.default_rng(0).normal(size=(E, T, 1)), jnp.float32)
    next_obs = jnp.cumsum(action, axis=1)
    never = jnp.zeros((E, T), bool)
    done = Transition(
        next_obs - action, action, next_obs[..., 0], next_obs, never, never
    )
    return rollout.Episode(done, jnp.arange(T)[None] < jnp.array([T, 5])[:, None])


def offset(offsets: Array, obs: Array, action: Array) -> Gaussian:
    """One member per offset [M], with a reward 1 too large as a second entry."""
    mean = (obs + action)[None] + offsets[:, None]
    return Gaussian(jnp.concatenate([mean, mean + 1], axis=1), jnp.ones((2, 2)))


WALK = point_mass.make()._replace(
    obs_size=1,
    action_size=1,
    episode_length=T,
    reward=lambda obs, action, next_obs: next_obs[0],
)


@partial(jax.jit, static_argnums=0)
def walked(env: Env, offsets: Array, episodes: rollout.Episode) -> dict[str, Array]:
    return diagnose(env, partial(offset, offsets), episodes, horizon=H)


def valid_of(x: Array) -> np.ndarray:
    return np.concatenate([x[0], x[1, :5]])


def window_scale() -> float:
    """Of obs over all whole windows, which start at 0, 1, ... where H // 2 is 1."""
    obs = np.asarray(walks().transitions.next_obs)[..., 0]
    starts = [(0, t) for t in range(T - H + 1)] + [(1, t) for t in range(5 - H + 1)]
    return float(np.std([obs[e, t : t + H] for e, t in starts]))


def test_errors_grow_as_they_should():
    found = walked(WALK, jnp.array([0.2, 0.2]), walks())
    steps = np.arange(1, H + 1)
    scale = valid_of(np.asarray(walks().transitions.action)).std()
    assert found["model/one_step_rmse"] == pytest.approx(0.2 / scale, rel=1e-4)
    np.testing.assert_allclose(
        found["model/open_loop_rmse"], 0.2 * steps / window_scale(), rtol=1e-4
    )
    np.testing.assert_allclose(found["model/open_loop_disagreement"], 0, atol=1e-5)
    returns = 0.2 * np.cumsum(steps)
    np.testing.assert_allclose(
        found["model/predicted_minus_real_return"], returns, rtol=1e-4
    )


def test_disagreement_grows_as_it_should():
    """Each member follows its own predictions; their mean is right here."""
    found = walked(WALK, jnp.array([0.3, -0.3]), walks())
    spread = 0.3 * np.arange(1, H + 1) / window_scale()
    np.testing.assert_allclose(found["model/open_loop_disagreement"], spread, rtol=1e-4)
    np.testing.assert_allclose(found["model/open_loop_rmse"], 0, atol=1e-5)
    np.testing.assert_allclose(found["model/one_step_rmse"], 0, atol=1e-5)


def test_a_reward_that_only_the_model_knows_is_read_from_it():
    blind = WALK._replace(reward=None)
    found = walked(blind, jnp.zeros(2), walks())
    np.testing.assert_allclose(
        found["model/predicted_minus_real_return"], np.arange(1, H + 1), rtol=1e-4
    )


def test_what_is_not_valid_does_not_count():
    clean = walked(WALK, jnp.array([0.1, 0.2]), walks())
    episodes = walks()
    litter = lambda x: x if x.dtype == bool else x.at[1, 5:].set(1e3)
    dirty = episodes._replace(transitions=jax.tree.map(litter, episodes.transitions))
    found = walked(WALK, jnp.array([0.1, 0.2]), dirty)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, clean)


def test_a_horizon_is_at_most_an_episode():
    predict = partial(offset, jnp.zeros(2))
    found = jax.eval_shape(lambda: diagnose(WALK, predict, walks(), horizon=25))
    assert found["model/open_loop_rmse"].shape == (T,)
