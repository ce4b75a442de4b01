"""Tree search: a game, a random gridworld, continuous control, and its speed.

    python -m benchmarks.mcts                  # minutes

Tic-tac-toe: 40 games against a perfect player, half of them with the first move, and
from 50 random positions, how often less is had than minimax promises.  Gridworld: what
the worst chosen action loses, by exact tables.  Control: mean returns of 4 episodes on
the true dynamics, with those of a random policy and of iCEM.  Speed: simulations per
CPU second, vmapped and as one batch of mctx.  Writes results/mcts.json.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from absl import app

from benchmarks import minimax, timing
from experiments.runs import jax_settings, run_folder
from mbrl_jax import envs, policies, rollout
from mbrl_jax.envs import grid, simulator, tic_tac_toe
from mbrl_jax.ops import tabular
from mbrl_jax.planners import mcts, mcts_models, mpc
from mbrl_jax.types import Array, Env, Key, Policy, PyTree

RESULTS = Path(__file__).parent / "results" / "mcts.json"
NUM_SIMULATIONS = (50, 200, 1000)
NUM_GAMES, NUM_POSITIONS, NUM_EPISODES, NUM_REPEATS = 40, 50, 4, 5
NUM_CALLS = 20
CONTROL = {  # steps of an episode, and of MCTS's rollouts and iCEM's plans
    "point_mass": {"episode_length": 40, "rollout_length": 4, "horizon": 20},
    "pendulum": {"episode_length": 100, "rollout_length": 8, "horizon": 40},
}
SEARCHES = {
    "puct, 16 samples": {"rule": "puct", "num_samples": 16},
    "puct, 64 samples": {"rule": "puct", "num_samples": 64},
    "puct, 64 samples, widening": {
        "rule": "puct",
        "num_samples": 64,
        "widening_factor": 1.0,
    },
    "gumbel, 16 samples": {"rule": "gumbel", "num_samples": 16},
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found: dict[str, Any] = {}
    for title, measure in {
        "tic-tac-toe": game,
        "gridworld": gridworld,
        "speed": speed,
        **{f"control: {name}": partial(control, name) for name in CONTROL},
    }.items():
        found[title] = measure()
        print(title, found[title], flush=True)
        run_folder.write_json(RESULTS, found | run_folder.surroundings())


def game() -> dict[str, Any]:
    """By the number of simulations: results of the games, and positions spoilt."""
    openings = [minimax.EMPTY] * (NUM_GAMES // 2)
    rng, replies = np.random.default_rng(0), []
    for _ in openings:  # the perfect player begins
        replies.append(minimax.after(minimax.EMPTY, rng.choice(9)))
    positions, found = minimax.positions(NUM_POSITIONS, seed=0), {}
    for num in NUM_SIMULATIONS:
        choose = player(num, num_rollouts=1, exploration=1.4)
        results = play_out(openings + replies, choose, seed=num)
        careful = play_out(
            positions, player(num, num_rollouts=8, exploration=0.7), seed=num
        )
        promised = [minimax.value(board) for board in positions]
        found[f"{num} simulations"] = {
            "won": results.count(1),
            "drawn": results.count(0),
            "lost": results.count(-1),
            "positions spoilt, 8 rollouts": sum(
                x < y for x, y in zip(careful, promised, strict=True)
            ),
        }
    return found


def player(
    num_simulations: int, num_rollouts: int, exploration: float
) -> Callable[..., Array]:
    """(keys, boards) -> moves."""
    config = mcts.Config(
        num_simulations=num_simulations,
        exploration=exploration,
        discount=1.0,
        rollout_length=9,
        num_rollouts=num_rollouts,
    )
    rules = (tic_tac_toe.play, tic_tac_toe.legal, tic_tac_toe.lost)
    model = mcts_models.of_game(*rules, config)
    return jax.jit(
        jax.vmap(lambda key, board: mcts.search(key, model, board, config).action)
    )


def play_out(
    boards: list[minimax.Board], choose: Callable[..., Array], seed: int
) -> list[int]:
    """Results for the player to move, whom `choose` moves; the other is perfect."""
    rng, key, turn = np.random.default_rng(seed), jax.random.key(seed), 0
    boards, results = list(boards), {}
    while len(results) < len(boards):
        ours = turn % 2 == 0
        keys = jax.random.split(jax.random.fold_in(key, turn), len(boards))
        moves = choose(keys, jnp.array(boards, jnp.int32)) if ours else None
        for i in set(range(len(boards))) - set(results):
            move = rng.choice(minimax.best(boards[i])) if moves is None else moves[i]
            if move not in minimax.moves(boards[i]):
                raise ValueError(f"{move} is no move on {boards[i]}")
            boards[i] = minimax.after(boards[i], int(move))
            if not minimax.moves(boards[i]):
                value = minimax.value(boards[i])  # for the player to move next
                results[i] = -value if ours else value
        turn += 1
    return [results[i] for i in range(len(boards))]


def gridworld() -> dict[str, Any]:
    """What chosen actions lose, in the worst state and on average; exact values of the
    uniform policy at the leaves, or rollouts of it."""
    config = mcts.Config(rule="puct", discount=0.9, rollout_length=20, num_rollouts=8)
    layout = grid.parse(grid.GRIDWORLD, slip=0.2, step_reward=-0.04)
    tables = grid.tables(layout)
    uniform = jnp.full(tables.reward.shape, 1 / tables.reward.shape[1])
    values = tabular.policy_values(tables, uniform, config.discount)
    rolling = mcts_models.of_tables(tables, 3, config)
    exact = rolling._replace(value=lambda key, state: values[state])
    states = jnp.flatnonzero(~tables.terminal)
    best = tabular.value_iteration(tables, config.discount).q_values[states]
    found: dict[str, Any] = {"spread of the values": float(best.max() - best.min())}
    for title, model in (("exact values", exact), ("rollouts", rolling)):
        for num in (1, *NUM_SIMULATIONS):
            setting = mcts.Config(**(vars(config) | {"num_simulations": num}))
            search = lambda key, state, model=model, setting=setting: mcts.search(
                key, model, state, setting
            )
            keys = jax.random.split(jax.random.key(0), len(states))
            actions = jax.jit(jax.vmap(search))(keys, states).action
            lost = best.max(axis=1) - best[jnp.arange(len(states)), actions]
            row = {"worst": float(lost.max()), "mean": float(lost.mean())}
            found[f"{title}, {num} simulations"] = row
    return found


def control(name: str) -> dict[str, Any]:
    """Mean returns, and shares of the way from the random policy to iCEM."""
    setting = CONTROL[name]
    env = simulator.time_limit(envs.make(name), setting["episode_length"])
    shown = simulator.observe_all(env)
    plan = mpc.Config(
        horizon=setting["horizon"], num_samples=100, num_elites=10, num_iterations=3
    )
    size, limit = env.action_size, env.action_limit
    objective = lambda key, obs: rollout.simulation(simulator.behind(shown), obs)
    found = {
        "random": returns(env, policies.uniform(env)),
        "icem": returns(shown, mpc.make("icem", plan, size, limit, objective)),
    }
    for title, options in SEARCHES.items():
        config = mcts.Config(
            num_simulations=100,
            num_repeats=4,
            rollout_length=setting["rollout_length"],
            num_rollouts=4,
            **options,
        )
        found[title] = returns(shown, mcts_models.make(env, config))
        print(name, title, found[title], flush=True)
    low, high = found["random"], found["icem"]
    shares = {title: (x - low) / (high - low) for title, x in found.items()}
    return {"returns": found, "shares": shares}


def returns(env: Env, policy: Policy) -> float:
    run = jax.jit(lambda key: rollout.evaluate(key, env, policy, NUM_EPISODES)[0])
    return float(run(jax.random.key(0))["eval/return_mean"])


def speed() -> dict[str, Any]:
    """Simulations per CPU second: of `mcts.search` vmapped, and of one mctx batch."""
    found: dict[str, Any] = {}
    for batch_size in (1, 64):
        for num in NUM_SIMULATIONS[:2]:
            calls = {
                "vmapped": vmapped(batch_size, num),
                "batch of mctx": batched(batch_size, num),
            }
            for call in calls.values():
                jax.block_until_ready(call())
            seconds: dict[str, list[float]] = {who: [] for who in calls}
            for _ in range(NUM_REPEATS):
                for who, call in calls.items():
                    seconds[who].append(timing.time_calls(call, NUM_CALLS)[0])
            found[f"{batch_size} searches of {num}"] = {
                who: batch_size * num / float(np.median(row))
                for who, row in seconds.items()
            }
    return found


def problem(batch_size: int) -> tuple[mcts.SearchModel, Array]:
    config = mcts.Config(discount=0.95)
    model = mcts_models.of_tables(grid.tables(grid.parse(grid.MAZE)), 1, config)
    model = model._replace(value=lambda key, state: state / 54.0)
    return model, jnp.full(batch_size, 18)


def vmapped(batch_size: int, num_simulations: int) -> Callable[[], PyTree]:
    model, states = problem(batch_size)
    config = mcts.Config(rule="gumbel", num_simulations=num_simulations)
    search = lambda key, state: mcts.search(key, model, state, config).action
    run = jax.jit(jax.vmap(search))
    return lambda: run(jax.random.split(jax.random.key(0), batch_size), states)


def batched(batch_size: int, num_simulations: int) -> Callable[[], PyTree]:
    model, states = problem(batch_size)
    evaluate = jax.vmap(lambda state: (model.logits(state), model.value(None, state)))

    def expand(_: Any, key: Key, actions: Array, states: Array) -> tuple[Any, Array]:
        step = jax.vmap(lambda s, a: model.step(key, s, a, jnp.array(0)))
        states, reward, discount = step(states, actions)
        logits, value = evaluate(states)
        output = mctx.RecurrentFnOutput(
            reward=reward, discount=discount, prior_logits=logits, value=value
        )
        return output, states

    @jax.jit
    def run(key: Key) -> Array:
        logits, value = evaluate(states)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=states)
        return mctx.gumbel_muzero_policy(
            (), key, root, expand, num_simulations, gumbel_scale=0.0
        ).action

    return lambda: run(jax.random.key(0))


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
