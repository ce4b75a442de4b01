"""How far a model may be trusted: errors against rollout length, and MBPO's bound.

Measured on the latest real data, before the model is fitted to them.
"""

from functools import partial

import jax
import jax.numpy as jnp

from mbrl_jax import replay
from mbrl_jax.models.outcomes import Decode
from mbrl_jax.ops import normalize
from mbrl_jax.replay import Replay
from mbrl_jax.types import Array, Gaussian, Key, Metrics, Model, PyTree, Transition
from mbrl_jax.value_learning import off_policy
from mbrl_jax.value_learning.branching import Choose, ModelState, Setting, Watch


def along(
    model: Model, members: PyTree, decode: Decode, steps: Transition
) -> tuple[Array, Array, Array]:
    """Every member [M, ...] on its own means along real actions, from a real state on.

    `steps` [H, ...] are consecutive.  Returns obs [M, H, O], the rewards [M, H], and
    the standardised distance z [M, H] of the real next obs from what is predicted given
    the real obs: norm((next_obs - mean) / std).
    """

    def follow(member: PyTree) -> tuple[Array, Array, Array]:
        def advance(obs: Array, real: Transition) -> tuple[Array, tuple]:
            size = len(obs)
            result = decode(
                obs, real.action, model.predict(member, obs, real.action).mean
            )
            mean, std = model.predict(member, real.obs, real.action)
            far = (real.next_obs - mean[:size]) / jnp.maximum(std[:size], 1e-6)
            z = jnp.sqrt(jnp.square(far).sum())
            return result.next_obs, (result.next_obs, result.reward, z)

        return jax.lax.scan(advance, steps.obs[0], steps)[1]

    return jax.vmap(follow)(members)


def overlap_lost(z: Array) -> Array:
    """Total variation between two Gaussians of one covariance, z standard deviations
    apart: 2 Phi(z / 2) - 1."""
    return jax.scipy.special.erf(z / 2**1.5)


def shift(old: Gaussian, new: Gaussian) -> Array:
    """Total variation between two Gaussians [A], at most: sqrt(KL / 2) (Pinsker)."""
    ratio = jnp.square(new.std / old.std)
    far = jnp.square((new.mean - old.mean) / old.std)
    divergence = 0.5 * (ratio + far - 1 - jnp.log(ratio)).sum()
    return jnp.minimum(jnp.sqrt(jnp.maximum(divergence, 0) / 2), 1)


def bound(
    model_error: Array,
    policy_shift: Array,
    max_reward: Array,
    discount: float | Array,
    length: Array,
) -> Array:
    """C(eta, k): by how much the real return may fall short of that of branches of
    `length` k, each error a total variation (MBPO, Theorem 4.3)."""
    left = 1 - discount
    from_policy = discount ** (length + 1) / left**2 + discount**length / left
    return 2 * max_reward * (from_policy * policy_shift + length / left * model_error)


def watcher(
    setting: Setting, collect: off_policy.Config, num_windows: int, horizon: int
) -> Watch:
    """What branches are worth, on windows of the latest real steps.

    Errors and disagreement after 1, 2, 4, .. steps up to the `horizon`, and (`last`) of
    the length in use, are root mean squares in standard deviations of the obs;
    `return_gap` is what the members predict of that many rewards beyond the real ones,
    in their mean; `model_error` is the total variation of one step, taking what is real
    to be as noisy as the model says; `policy_shift` that of the policy since it
    gathered these steps; `best_length` is where the bound is least.
    """
    learner, model, decode = setting.learner, setting.model, setting.decode
    latest_steps = _latest_steps(collect, horizon)

    def watch(
        key: Key, learned: PyTree, model_state: ModelState, data: Replay
    ) -> Metrics:
        latest = replay.newest(data, latest_steps)
        windows, valid = replay.sample_sequences(
            key, latest, num_windows, horizon, collect.num_envs
        )
        members = model.members(model_state.model)
        follow = partial(along, model, members, decode)
        obs, reward, z = jax.vmap(follow)(windows)  # [B, M, H, ...]
        there = replay.valid(latest)
        scale = normalize.statistics(latest.data.obs, there).std
        mean = lambda x: (
            jnp.where(valid, x, 0).sum(axis=0) / jnp.maximum(valid.sum(axis=0), 1)
        )
        rms = lambda x: jnp.sqrt(mean(jnp.square(x / scale[None, None]).mean(axis=2)))
        error = rms(obs.mean(axis=1) - windows.next_obs)
        disagreement = rms(obs.std(axis=1))
        at = jnp.minimum(model_state.length, horizon) - 1
        counted = valid & (jnp.arange(horizon) <= at)[None]
        gap = jnp.where(counted, reward.mean(axis=1) - windows.reward, 0).sum(axis=1)
        lost = jnp.where(valid, overlap_lost(z).mean(axis=1), 0).sum() / valid.sum()

        def moved(obs: Array) -> Array:
            assert learner.noise is not None
            return shift(
                learner.noise(model_state.before, obs), learner.noise(learned, obs)
            )

        moves = jnp.where(there, jax.vmap(moved)(latest.data.obs), 0)
        policy_shift = moves.sum() / there.sum()
        most = jnp.abs(latest.data.reward).max()
        lengths = jnp.arange(horizon + 1)
        bounds = bound(lost, policy_shift, most, learner.discount, lengths)
        marks = [2**i for i in range(horizon.bit_length())]  # 1, 2, 4 .. horizon
        return {
            **{f"validity/error_{h}": error[h - 1] for h in marks},
            **{f"validity/disagreement_{h}": disagreement[h - 1] for h in marks},
            "validity/error_last": error[at],
            "validity/disagreement_last": disagreement[at],
            "validity/return_gap": gap.mean(),
            "validity/model_error": lost,
            "validity/policy_shift": policy_shift,
            "validity/bound": bounds[at + 1],
            "validity/best_length": bounds.argmin(),
        }

    return watch


def _latest_steps(collect: off_policy.Config, length: int) -> int:
    """Those of an iteration; at least as many as windows need, if there are as many."""
    return min(max(collect.interval, length) * collect.num_envs, collect.capacity)


def best_horizon(
    setting: Setting, collect: off_policy.Config, num_windows: int, most: int
) -> Choose:
    """Chooses how many steps to go in the model before the critics take over.

    Along windows of the latest real steps, twice as long as the longest horizon, what
    h steps of the model and the critics after them predict is compared to all the real
    rewards and the critics after them: of 0 .. `most`, the h of least squared error.
    Where critics count entropy, which rewards do not, this leans to a larger h.
    """
    learner, model, decode = setting.learner, setting.model, setting.decode
    length = 2 * most + 1
    latest_steps = _latest_steps(collect, length)

    def total(learned: PyTree, obs: Array, steps: Transition, reward: Array) -> Array:
        """[H], for each h, of h rewards and the critics at `obs` [H, O] after them."""
        q = lambda obs, action: learner.values(learned, obs, action).min()
        weight = learner.discount ** jnp.arange(length)
        ended = jnp.cumsum(steps.terminal) - steps.terminal > 0  # before this step
        sums = jnp.cumsum(jnp.where(ended, 0, weight * reward))
        tail = jnp.where(ended, 0, weight * jax.vmap(q)(obs, steps.action))
        return jnp.pad(sums[:-1], (1, 0)) + tail

    def choose(
        key: Key, learned: PyTree, model_state: ModelState, data: Replay
    ) -> Array:
        latest = replay.newest(data, latest_steps)
        windows, valid = replay.sample_sequences(
            key, latest, num_windows, length, collect.num_envs
        )
        ended = jnp.cumsum(windows.terminal & valid, axis=1) > 0
        usable = (valid | ended).all(axis=1)
        members = model.members(model_state.model)

        def errors(steps: Transition) -> Array:
            """Squared, of each h: [H]."""
            obs, reward, _ = along(model, members, decode, steps)
            start = jnp.broadcast_to(steps.obs[0], (len(obs), 1, len(steps.obs[0])))
            obs = jnp.concatenate([start, obs[:, :-1]], axis=1)
            found = jax.vmap(total, (None, 0, None, 0))(learned, obs, steps, reward)
            known = total(learned, steps.obs, steps, steps.reward)[-1]
            return jnp.square(found - known).mean(axis=0)[: most + 1]

        found = jax.vmap(errors)(windows)  # [B, most + 1]
        usable &= jnp.isfinite(found).all(axis=1)
        least = jnp.where(usable[:, None], found, 0).sum(axis=0).argmin()
        return least.astype(jnp.int32)

    return choose
