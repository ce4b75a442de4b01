"""How many environment steps per second rejax's PPO makes on Pendulum-v1, on a CPU.

By its public `create`, `init_state` and `train`.  It runs in an environment of its own,
without this project's packages:

    python3.11 -m venv peers/rejax
    peers/rejax/bin/pip install rejax==0.1.3 "gymnax<1" jax==0.10.2

`ppo_speed.py` drives it: with each line of input it goes on training for
--num_iterations windows and prints a line of JSON about that.  Nothing is evaluated.
Two networks of 2 x 64 tanh units; observations and rewards are normalised only with
--normalise, as is rejax's default.
"""

import argparse
import json
import resource
import sys
import time

import jax
from rejax import PPO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("envs", "steps", "epochs", "minibatches", "iterations"):
        parser.add_argument(f"--num_{name}", type=int, required=True)
    parser.add_argument("--normalise", action="store_true", help="as ours does")
    asked = parser.parse_args()
    size = asked.num_envs * asked.num_steps * asked.num_iterations
    ppo = PPO.create(
        env="Pendulum-v1",
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        num_envs=asked.num_envs,
        num_steps=asked.num_steps,
        num_epochs=asked.num_epochs,
        num_minibatches=asked.num_minibatches,
        total_timesteps=size,
        eval_freq=size,
        skip_initial_evaluation=True,
        normalize_observations=asked.normalise,
        normalize_rewards=asked.normalise,
        max_grad_norm=0.5,
        ent_coef=0.0,
    ).replace(eval_callback=lambda *_: ())
    train = jax.jit(lambda ppo, state: ppo.train(train_state=state)[0])
    state = jax.jit(ppo.init_state)(jax.random.PRNGKey(0))
    for _ in range(2):  # types settle
        state = jax.block_until_ready(train(ppo, state))
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        begin = now()
        state = jax.block_until_ready(train(ppo, state))
        cpu, wall = (end - start for end, start in zip(now(), begin, strict=True))
        print(json.dumps({"steps": size, "cpu": cpu, "wall": wall}), flush=True)


def now() -> tuple[float, float]:
    """Seconds: of the CPU, all threads of this process; on the wall."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, time.perf_counter()


if __name__ == "__main__":
    main()
