"""Embed to Control on the planar task: what the code knows, and where its plans lead.

    python -m benchmarks.e2c    # trains what is missing, draws the picture

Settings are those of the preset; five seeds that nothing was chosen on, and beside it
an autoencoder whose transition is fitted apart from it (`model.joint` off).  Measured:

    code        R^2 of the places by the best affine function of the codes
    one_step    the same function, of the codes that the transition predicts
    reached     share of 100 unseen starts that end within 2 pixels of the goal
    in_goal     share of all steps spent there

each on transitions and starts that nothing was learned from.  Writes results/e2c.json
and docs/e2c.png.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app

from experiments.reports import plots, statistics
from experiments.runs import command_flags, jax_settings, presets, run_folder
from mbrl_jax import envs, policies
from mbrl_jax.algorithms import e2c
from mbrl_jax.envs import planar
from mbrl_jax.models import latent
from mbrl_jax.types import Array, Env, EnvState, Key, Policy, PyTree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "e2c.json"
PICTURE = ROOT / "docs" / "e2c.png"
ENV = "pixels/planar/size=24,num_frames=1"
FIRST_SEED, NUM_SEEDS, NUM_STARTS, NUM_ROWS = 10, 5, 100, 2000
PIXELS = 2  # the goal's size
PUBLISHED = (  # shares of time in the goal, mean and best, of another planar task
    ("E2C's successor PCC (Levine et al., 2020)", 0.48, 0.76),
)
CASES = {"embed to control": {}, "transition apart": {"model.joint": False}}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for label, settings in CASES.items():
        for seed in range(FIRST_SEED, FIRST_SEED + NUM_SEEDS):
            if (name := f"{label}/{seed}") not in found:
                found[name] = measure(seed, settings)
                run_folder.write_json(RESULTS, found)
            rest = {x: y for x, y in found[name].items() if isinstance(y, float)}
            print(name, rest, flush=True)
    picture(found)


def measure(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """After a run of the preset with `settings`: the figures, and what is drawn."""
    record, env = presets.record("e2c", ENV), envs.make(ENV)
    changed = {**record["config"], **settings}
    config: e2c.Config = command_flags.replace(e2c.Config(), changed)
    algorithm = e2c.make(env, config)
    key, step = jax.random.key(seed), jax.jit(algorithm.step)
    state = jax.jit(algorithm.init)(key)
    for key in jax.random.split(key, record["num_steps"]):
        state, metrics = step(key, state)
    places = jax.jit(lambda key: visited(key, env, algorithm.policy(state)))
    away = np.linalg.norm(np.asarray(places(jax.random.key(0))) - planar.GOAL, axis=2)
    near = away < PIXELS * 2 * (planar.RANGE + planar.SIZE) / 24
    code = known(jax.random.key(1), env, config.model, state)
    return {
        **code,
        "reached": float(near[:, -1].mean()),
        "in_goal": float(near.mean()),
        "env_steps": int(metrics["env_steps"]),
        **run_folder.surroundings(),
    }


def visited(key: Key, env: Env, policy: Policy) -> Array:
    """The true places after each step, [NUM_STARTS, T, 2]."""

    def one(key: Key) -> Array:
        reset_key, key = jax.random.split(key)
        first = env.reset(reset_key)

        def step(now: tuple[EnvState, PyTree], key: Key) -> tuple[PyTree, Array]:
            action, memory = policy.act(key, now[0].obs, now[1])
            after = env.step(now[0], action)
            return (after, memory), after.sim.inner.obs

        keys = jax.random.split(key, env.episode_length)
        return jax.lax.scan(step, (first, policy.init()), keys)[1]

    return jax.vmap(one)(jax.random.split(key, NUM_STARTS))


def known(
    key: Key, env: Env, config: latent.Config, state: e2c.State
) -> dict[str, float | list]:
    """R^2 of places by codes, and by predicted codes; some of both."""
    model = latent.make(env.obs_size, env.action_size, config)
    uniform = policies.uniform(env)

    @jax.jit
    @jax.vmap
    def row(key: Key) -> tuple[Array, Array, Array]:
        reset_key, key = jax.random.split(key)
        now = env.reset(reset_key)
        action, _ = uniform.act(key, now.obs, ())
        after = env.step(now, action)
        encode = partial(model.encode, state.params, state.pixels)
        z = encode(now.obs).mean
        ahead = model.transition(state.params, z)(z, action / env.action_limit)
        return encode(after.obs).mean, ahead, after.sim.inner.obs

    code, ahead, place = map(np.asarray, row(jax.random.split(key, NUM_ROWS)))
    half = NUM_ROWS // 2
    affine = lambda z: np.concatenate([z, np.ones((len(z), 1))], axis=1)
    weights = np.linalg.lstsq(affine(code[:half]), place[:half], rcond=None)[0]
    score = r_squared(place[half:])
    return {
        "code": score(affine(code[half:]) @ weights),
        "one_step": score(affine(ahead[half:]) @ weights),
        "some_codes": code[:500].tolist(),
        "some_places": place[:500].tolist(),
    }


def r_squared(true: np.ndarray) -> Callable[[np.ndarray], float]:
    total = np.square(true - true.mean(axis=0)).sum()
    return lambda guess: float(1 - np.square(true - guess).sum() / total)


def picture(found: dict[str, Any]) -> None:
    """The codes of places by colour, of the median seed, and the figures beside."""
    made, axes = plots.new_figure(3, width=12)
    for axis, label in zip(axes, CASES, strict=False):
        runs = [x for name, x in found.items() if name.startswith(label)]
        one = sorted(runs, key=lambda run: run["one_step"])[len(runs) // 2]
        place, code = np.array(one["some_places"]), np.array(one["some_codes"])
        x, y = (place.T + planar.RANGE) / (2 * planar.RANGE)
        colours = np.stack([x, 0.4 + 0 * x, y], axis=1).clip(0, 1)
        axis.scatter(*code.T[:2], c=colours, s=6, lw=0)
        axis.set(title=f"codes, {label}", xlabel="red: x of the place, blue: y")
    rng, names = np.random.default_rng(0), ("code", "one_step", "reached", "in_goal")
    for i, label in enumerate(CASES):
        runs = [x for name, x in found.items() if name.startswith(label)]
        for j, name in enumerate(names):
            values = np.array([run[name] for run in runs])
            value, low, high = statistics.bootstrap(rng, statistics.iqm, [values])
            at = j + 0.2 * (i - 0.5)
            known = {"label": label} if j == 0 else {}
            axes[2].plot([at, at], [low, high], color=plots.COLOURS[i], lw=2)
            axes[2].plot(at, value, "o", color=plots.COLOURS[i], **known)
    axes[2].set_xticks(range(len(names)), names)
    axes[2].set(ylim=(0, 1.05), title="IQM of five seeds")
    axes[2].legend(frameon=False, fontsize=8)
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
