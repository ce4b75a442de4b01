"""How good a learned model is, on episodes it was not fitted to."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.rollout import Episode
from mbrl_jax.types import Array, Env, Gaussian, Transition

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95)  # nominal coverages that are checked
MIN_STD = 1e-6  # in units of `scale`, so that a deterministic model has a likelihood

Predict = Callable[[Array, Array], Gaussian]  # (obs [O], action [A]) -> [M, D]


def diagnose(
    env: Env, predict: Predict, episodes: Episode, horizon: int = 25
) -> dict[str, Array]:
    """Errors, calibration and disagreement of a model on `episodes` [E, T, ...].

    Errors of one step are in standard deviations of the real change of obs in a step,
    those of open-loop predictions (real actions, no real obs after the first) in
    standard deviations of the real obs; both are root mean squares over the entries of
    obs.  A curve against the horizon is [H]; entry h is about h + 1 steps ahead.
    Returns are sums of predicted rewards over the horizon minus the real ones.
    """
    horizon = min(horizon, env.episode_length)
    return {
        **_one_step(env, predict, episodes),
        **_open_loop(env, predict, episodes, horizon),
    }


def _one_step(env: Env, predict: Predict, episodes: Episode) -> dict[str, Array]:
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), episodes)
    data, weight = flat.transitions, flat.valid / flat.valid.sum()
    mean = lambda x: jnp.tensordot(weight, x, axes=1)  # over the valid rows
    scale = _scale(data.next_obs - data.obs, mean)
    prediction = jax.vmap(predict)(data.obs, data.action)
    prediction = jax.tree.map(lambda x: x[..., : env.obs_size], prediction)
    # the members' mixture, as the Gaussian with its moments
    centre = prediction.mean.mean(axis=1)
    spread = prediction.mean.std(axis=1)  # [R, O]
    var = jnp.square(prediction.std).mean(axis=1) + jnp.square(spread)
    std = jnp.maximum(jnp.sqrt(var), MIN_STD * scale[None])
    error = data.next_obs - centre
    log_prob = jax.scipy.stats.norm.logpdf(error / std) - jnp.log(std / scale[None])
    probability = 1 - 2 * jax.scipy.stats.norm.sf(jnp.abs(error) / std)  # [R, O]
    levels = jnp.array(LEVELS)
    covered = jax.vmap(lambda p: (p[:, None] < levels[None]).mean(axis=0))(probability)
    rms = lambda x: jnp.sqrt(mean(jnp.square(x / scale[None]).mean(axis=1)))
    return {
        "model/one_step_rmse": rms(error),
        "model/one_step_disagreement": rms(spread),
        "model/nll": -mean(log_prob.mean(axis=1)),
        "model/coverage": mean(covered),
        "model/coverage_level": jnp.array(LEVELS),
    }


def _open_loop(
    env: Env, predict: Predict, episodes: Episode, horizon: int
) -> dict[str, Array]:
    """Windows of real actions, followed by each member on its own means."""
    num_steps = episodes.valid.shape[1]
    starts = jnp.arange(0, num_steps - horizon + 1, max(1, horizon // 2))
    cut = lambda x: x[:, starts[:, None] + jnp.arange(horizon)[None]]
    windows, valid = jax.tree.map(
        lambda x: cut(x).reshape(-1, horizon, *x.shape[2:]), tuple(episodes)
    )
    whole = valid.all(axis=1)  # [W]
    weight = whole / jnp.maximum(whole.sum(), 1)
    mean = lambda x: jnp.tensordot(weight, x, axes=1)
    size = env.obs_size

    def follow(window: Transition) -> tuple[Array, Array]:
        """Obs [H, M, O] and rewards [H, M] of the members along one window."""
        num_members = predict(window.obs[0], window.action[0]).mean.shape[0]
        obs = jnp.broadcast_to(window.obs[0], (num_members, size))
        own = jax.vmap(
            lambda i, obs, action: predict(obs, action).mean[i], (0, 0, None)
        )

        def advance(obs: Array, action: Array) -> tuple[Array, tuple[Array, Array]]:
            y = own(jnp.arange(num_members), obs, action)  # [M, D]
            if env.reward is None:
                reward = y[:, size]
            else:
                reward = jax.vmap(env.reward, (0, None, 0))(obs, action, y[:, :size])
            return y[:, :size], (y[:, :size], reward)

        return jax.lax.scan(advance, obs, window.action)[1]

    obs, rewards = jax.vmap(follow)(windows)  # [W, H, M, O], [W, H, M]
    flat_mean = lambda x: mean(x.mean(axis=1))  # over steps, too
    scale = _scale(windows.next_obs, flat_mean)
    rms = lambda x: jnp.sqrt(mean(jnp.square(x / scale[None, None]).mean(axis=-1)))
    excess = rewards.mean(axis=2) - windows.reward  # [W, H]
    return {
        "model/open_loop_rmse": rms(obs.mean(axis=2) - windows.next_obs),
        "model/open_loop_disagreement": rms(obs.std(axis=2)),
        "model/predicted_minus_real_return": mean(jnp.cumsum(excess, axis=1)),
    }


def _scale(x: Array, mean: Callable[[Array], Array]) -> Array:
    """The standard deviation of the last axis' entries; 1 where there is none."""
    centre = jnp.broadcast_to(mean(x), x.shape)
    std = jnp.sqrt(mean(jnp.square(x - centre)))
    return jnp.where(std > 1e-8, std, 1.0)
