"""How many environment steps per second brax.training's PPO makes, on a CPU.

By its public function, `train`.  It runs in the environment of `peer_brax_apg.py`,
without this project's packages:

    python3.11 -m venv /tmp/peer_brax
    /tmp/peer_brax/bin/pip install brax==0.14.2 jax==0.9.2

`ppo_speed.py` drives it: with each line of input it goes on training for
--num_iterations windows and prints a line of JSON about that.  Nothing is evaluated.
Two networks of 2 x 64 tanh units; observations are normalised.
"""

import argparse
import contextlib
import functools
import json
import resource
import sys
import time
from typing import Any

from brax import envs
from brax.training.agents.ppo import networks
from brax.training.agents.ppo import train as ppo
from flax import linen

WARM_UP = 2  # calls that are not counted: both compile
ENDLESS = 1000


class Done(Exception):
    """No input is left."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", required=True, help="of Brax")
    for name in ("envs", "steps", "epochs", "minibatches", "iterations"):
        parser.add_argument(f"--num_{name}", type=int, required=True)
    asked = parser.parse_args()
    size, sizes = asked.num_envs * asked.num_steps * asked.num_iterations, (64, 64)
    begin, num_calls = now(), 0

    def turn(num_steps: int, make_policy: Any, params: Any) -> None:
        """Is called between two epochs, and before the first."""
        nonlocal begin, num_calls
        cpu, wall = (end - start for end, start in zip(now(), begin, strict=True))
        if num_calls == WARM_UP:
            print(json.dumps({"ready": True}), flush=True)
        elif num_calls > WARM_UP:
            print(json.dumps({"steps": size, "cpu": cpu, "wall": wall}), flush=True)
        num_calls += 1
        if num_calls > WARM_UP and not sys.stdin.readline():
            raise Done
        begin = now()

    with contextlib.suppress(Done):
        ppo.train(
            envs.get_environment(asked.env, backend="generalized"),
            num_timesteps=ENDLESS * size,
            num_evals=1 + ENDLESS,  # as many calls of `turn`
            run_evals=False,
            num_eval_envs=1,
            policy_params_fn=turn,
            num_envs=asked.num_envs,
            unroll_length=asked.num_steps,
            batch_size=asked.num_envs // asked.num_minibatches,
            num_minibatches=asked.num_minibatches,
            num_updates_per_batch=asked.num_epochs,
            episode_length=1000,
            discounting=0.99,
            gae_lambda=0.95,
            learning_rate=3e-4,
            clipping_epsilon=0.2,
            entropy_cost=0.0,
            max_grad_norm=0.5,
            normalize_observations=True,
            network_factory=functools.partial(
                networks.make_ppo_networks,
                policy_hidden_layer_sizes=sizes,
                value_hidden_layer_sizes=sizes,
                activation=linen.tanh,
                distribution_type="normal",
                noise_std_type="log",
            ),
        )


def now() -> tuple[float, float]:
    """Seconds: of the CPU, all threads of this process; on the wall."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, time.perf_counter()


if __name__ == "__main__":
    main()
