"""What the baselines of REINFORCE are worth: the variance of the gradient with each.

    python -m benchmarks.baselines           # minutes; results and docs/baselines.png

The gradient of one policy at a time, from independent batches of episodes: a table of
logits on the slippery gridworld, whose exact gradient its tables give, and a network on
cartpole at three stages of training, with the critic that training left.  The time
limit counts as an end here, so that every baseline has the same mean.  Writes
results/baselines.json.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from absl import app
from jax.flatten_util import ravel_pytree

from experiments.reports import plots
from experiments.runs import jax_settings, run_folder
from mbrl_jax import envs, gathering
from mbrl_jax.envs import grid
from mbrl_jax.ops import normalize
from mbrl_jax.policy_gradient import actor_critic, on_policy, reinforce
from mbrl_jax.policy_gradient.actor_critic import ActorCritic, Agent
from mbrl_jax.types import Array, Env, EnvState, Key, Params, Window

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "baselines.json"
PICTURE = ROOT / "docs" / "baselines.png"
BASELINES = tuple(reinforce.BASELINES)
BATCHES, JUDGED = (4, 16, 64), 4  # episodes of a batch; and where means are judged
AT_ONCE, NUM_ORDERS = 256, 4  # episodes; and in how many orders they make batches
NUM_TRAINED, LEARN = 16, reinforce.Config(discount=0.99)


class Case(NamedTuple):
    env: str
    hidden_sizes: tuple[int, ...]
    num_updates: int  # of REINFORCE with a critic, before
    num_episodes: int  # that are measured


CASES = {
    "gridworld, 10 updates": Case("gridworld", (), 10, 4096),
    "cartpole, 3 updates": Case("cartpole", (16,), 3, 2048),
    "cartpole, 10 updates": Case("cartpole", (16,), 10, 1024),
    "cartpole, 20 updates": Case("cartpole", (16,), 20, 1024),
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        found[name] = measure(case)
        print(name, found[name], flush=True)
    run_folder.write_json(RESULTS, found | run_folder.surroundings())
    picture(found)


def measure(case: Case) -> dict[str, Any]:
    """Traces of the variance of a batch's gradient, times its episodes, the last one
    where all are one batch; and how far off the means are, in standard errors, in the
    worst of all parameters."""
    env = ending(envs.make(case.env))
    net = actor_critic.make(env, actor_critic.Config(hidden_sizes=case.hidden_sizes))
    agent = trained(env, net, case.num_updates)
    windows, returns = gathered(env, net, agent, case.num_episodes)
    gradient = jax.jit(partial(by_batch, net), static_argnums=(2, 3))
    exact = exact_gradient(net, agent) if case.env == "gridworld" else None
    variances: dict[str, list[float]] = {name: [] for name in BASELINES}
    off = {}
    for size in (*BATCHES, case.num_episodes):
        traces, means = [], {}
        for i in range(1 if size == case.num_episodes else NUM_ORDERS):
            order = np.random.default_rng(i).permutation(case.num_episodes)
            mixed = jax.tree.map(lambda x, order=order: x[order], windows)
            each = {x: np.asarray(gradient(agent, mixed, x, size)) for x in BASELINES}
            traces.append([trace(each[name]) for name in BASELINES])
            means = {name: x.mean(axis=1, dtype=float) for name, x in each.items()}
        for name, variance in zip(BASELINES, np.mean(traces, axis=0), strict=True):
            variances[name].append(float(variance))
        if size == JUDGED:
            truth = means["none"] if exact is None else exact
            off = {name: worst(x - truth) for name, x in means.items()}
    num_parameters = len(ravel_pytree(agent.actor)[0])
    return {
        "return": returns,
        "batch sizes": [*BATCHES, case.num_episodes],
        "variance": variances,
        "off": off,
        "off by chance": float(scipy.stats.norm.isf(0.025 / num_parameters)),
        "compared to": "none" if exact is None else "the exact gradient",
        "num_parameters": num_parameters,
    }


def trace(gradients: np.ndarray) -> float:
    """Of the variance, from those of episodes in batches [N, size, P]."""
    number, size, _ = gradients.shape
    alike = gradients[0] if number == 1 else size**0.5 * gradients.mean(axis=1)
    return float(alike.astype(float).var(axis=0, ddof=1).sum())


def worst(differences: np.ndarray) -> float:
    """Of differences [N, P] with mean 0, in standard errors of theirs."""
    error = differences.std(axis=0, ddof=1) / np.sqrt(len(differences))
    some = error > 1e-6 * error.max()  # where nothing ever happens there is no error
    ratios = np.abs(differences.mean(axis=0)[some] / error[some])
    return float(ratios.max(initial=0))


def ending(env: Env) -> Env:
    """Where the clock runs out, the task ends."""

    def step(env_state: EnvState, action: Array) -> EnvState:
        after = env.step(env_state, action)
        ended = after.terminal | after.truncated
        return after._replace(terminal=ended, truncated=jnp.zeros_like(ended))

    return env._replace(step=step)


def trained(env: Env, net: ActorCritic, num_updates: int) -> Agent:
    gatherer = gathering.episode_gatherer(env, NUM_TRAINED)
    algorithm = on_policy.make(reinforce.make(net, LEARN), gatherer, num_updates)

    @jax.jit
    def run(key: Key) -> Agent:
        init_key, key = jax.random.split(key)
        return algorithm.step(key, algorithm.init(init_key))[0].learner.agent

    return run(jax.random.key(0))


def gathered(
    env: Env, net: ActorCritic, agent: Agent, number: int
) -> tuple[Window, float]:
    """Episodes of the policy, and their mean return."""
    gatherer = gathering.episode_gatherer(env, number)
    policy = actor_critic.policy(net, agent, explore=True)
    found = jax.jit(lambda key: gatherer.gather(key, policy, ()))(jax.random.key(1))
    return found.windows, float(found.returns[found.ended].mean())


def by_batch(
    net: ActorCritic, agent: Agent, windows: Window, baseline: str, size: int
) -> Array:
    """The gradient of each episode in batches of `size`, [N, size, P]."""
    config = reinforce.Config(baseline=baseline, discount=LEARN.discount)

    def one(windows: Window) -> Array:
        rows, _ = reinforce.rows_of(net, agent, windows, config)
        each = reinforce.gradients(net, agent.actor, rows, baseline)
        return jax.vmap(lambda x: ravel_pytree(x)[0])(each)

    batches = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), windows)
    return jax.lax.map(one, batches, batch_size=max(AT_ONCE // size, 1))


def exact_gradient(net: ActorCritic, agent: Agent) -> Array:
    """Of the gridworld, [P], by its tables; rewards are discounted from each step on,
    with no discount^t in front, as REINFORCE does."""
    env = grid.gridworld()
    world = grid.parse(grid.GRIDWORLD, slip=0.2, step_reward=-0.04)
    tables, stats = grid.tables(world), normalize.so_far(agent.obs)
    num_states = len(tables.reward)
    look: Callable[[Array], Array] = partial(actor_critic.normalise_obs, stats)
    seen = jax.vmap(look)(jnp.eye(num_states))
    start = jnp.zeros(num_states).at[world.starts].set(1 / len(world.starts))

    def objective(actor: Params) -> Array:
        policy = jax.nn.softmax(jax.vmap(lambda x: net.act(actor, (), x)[1])(seen))
        fixed = jax.lax.stop_gradient(policy)

        def back(values: Array, _: None) -> tuple[Array, Array]:
            worth = tables.reward + LEARN.discount * tables.transition @ values
            return (fixed * worth).sum(axis=1), worth

        def ahead(share: Array, worth: Array) -> tuple[Array, Array]:
            gain = (share[:, None] * policy * worth).sum()
            moves = share[:, None, None] * fixed[..., None] * tables.transition
            return moves.sum(axis=(0, 1)), gain

        nothing = jnp.zeros(num_states)
        _, worths = jax.lax.scan(back, nothing, length=env.episode_length)
        return jax.lax.scan(ahead, start, worths[::-1])[1].sum()

    return ravel_pytree(jax.jit(jax.grad(objective))(agent.actor))[0]


def picture(found: dict[str, Any]) -> None:
    figure, axes = plots.new_figure(len(found), width=3.3 * len(found))
    for axis, (title, result) in zip(axes, found.items(), strict=True):
        sizes, none = result["batch sizes"], np.array(result["variance"]["none"])
        labels = [*map(str, sizes[:-1]), f"{sizes[-1]}, all"]
        for name, colour in zip(BASELINES, plots.COLOURS, strict=False):
            share = np.array(result["variance"][name]) / none
            axis.plot(sizes, share, color=colour, marker="o", markersize=4, label=name)
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_title(f"return {result['return']:.3g}", loc="right", fontsize=9)
        axis.set_xscale("log", base=2)
        axis.set_ylim(0, 1.45)
        axis.set_xticks(sizes, labels)
        axis.minorticks_off()
        axis.set_xlabel("episodes of a batch")
    axes[0].set_ylabel("variance, of that without a baseline")
    axes[0].legend(frameon=False, fontsize=8, title="baseline")
    plots.save(figure, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
