"""The same figures of mbrl-lib 0.2.0 (PyTorch), by its public functions, on a CPU.

It runs in an environment of its own, without this project's packages:

    python -m venv /tmp/peer
    /tmp/peer/bin/pip install torch gymnasium hydra-core omegaconf numpy tqdm termcolor
    /tmp/peer/bin/pip install --no-deps mbrl==0.2.0
    /tmp/peer/bin/python benchmarks/peer_mbrl_lib.py

(`--no-deps`, because the versions that mbrl-lib pins do not run on today's Python.)
Topics, cases and units are those of `speed.py`, whose table shows both.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import mbrl.models
import mbrl.planning
import mbrl.util.common
import numpy as np
import omegaconf
import torch
from mbrl.env import reward_fns, termination_fns
from mbrl.env.cartpole_continuous import CartPoleEnv
from mbrl.util.replay_buffer import ReplayBuffer

OUTPUT = Path(__file__).parent / "results" / "peer_mbrl_lib_cpu.json"
PRODUCT_SIZE = 1024
# as in its examples: dynamics_model/gaussian_mlp_ensemble and overrides/pets_cartpole
MODEL = {
    "dynamics_model": {
        "_target_": "mbrl.models.GaussianMLP",
        "_recursive_": False,  # the activation is not to be made before
        "device": "cpu",
        "num_layers": 4,
        "in_size": None,
        "out_size": None,
        "ensemble_size": 7,
        "hid_size": 200,
        "deterministic": False,
        "propagation_method": "random_model",
        "learn_logvar_bounds": False,
        "activation_fn_cfg": {"_target_": "torch.nn.SiLU"},
    },
    "algorithm": {
        "learned_rewards": False,
        "target_is_delta": True,
        "normalize": True,
        "normalize_double_precision": True,
    },
    "overrides": {"num_elites": 5},
}
AGENT = {
    "_target_": "mbrl.planning.TrajectoryOptimizerAgent",
    "_recursive_": False,  # nor the optimiser before its bounds are known
    "action_lb": [-1.0],
    "action_ub": [1.0],
    "planning_horizon": 15,
    "replan_freq": 1,
    "optimizer_cfg": {
        "_target_": "mbrl.planning.CEMOptimizer",
        "device": "cpu",
        "num_iterations": 5,
        "elite_ratio": 0.1,
        "population_size": 350,
        "alpha": 0.1,
        "lower_bound": None,
        "upper_bound": None,
        "return_mean_elites": True,
        "clipped_normal": False,
    },
}
NUM_PARTICLES = 20
PROPAGATIONS = {"ts_inf": "fixed_model", "ts1": "random_model"}  # ours: theirs
Row = dict[str, Any]
Model: TypeAlias = mbrl.models.OneDTransitionRewardModel


def planning(model: Model, num_repeats: int) -> list[Row]:
    agent = mbrl.planning.create_trajectory_optim_agent_for_model(
        model_env(model), omegaconf.OmegaConf.create(AGENT), NUM_PARTICLES
    )
    rows = []
    for case, method in PROPAGATIONS.items():
        model.set_propagation_method(method)
        row = measure(lambda: agent.act(np.zeros(4)), 1, num_repeats)
        unit = "CPU s per MPC step"
        rows.append(row | {"topic": "planning", "case": case, "unit": unit})
    return rows


def fitting(model: Model, num_repeats: int) -> list[Row]:
    rows = []
    for batch_size, num_updates in ((32, 150), (256, 50)):
        data = replay(batch_size * num_updates)
        model.update_normalizer(data.get_all())
        batches, _ = mbrl.util.common.get_basic_buffer_iterators(
            data, batch_size, val_ratio=0, ensemble_size=7
        )
        trainer = mbrl.models.ModelTrainer(model, optim_lr=1e-3, weight_decay=0.0)

        def epoch(trainer: Any = trainer, batches: Any = batches) -> None:
            trainer.train(batches, num_epochs=1, evaluate=False, silent=True)

        row = measure(epoch, 1, num_repeats)
        row["figure"] = num_updates / row["figure"]
        unit = "gradient steps per CPU s"
        case = f"batch {batch_size}"
        rows.append(row | {"topic": "fitting", "case": case, "unit": unit})
    return rows


def imagining(model: Model, num_repeats: int) -> list[Row]:
    model.set_propagation_method("random_model")
    imagined = model_env(model)
    rows = []
    for num_starts in (10_000, 80_000):
        starts = np.random.default_rng(0).normal(size=(num_starts, 4))

        def step(starts: np.ndarray = starts) -> None:
            state = imagined.reset(starts)
            action = np.random.default_rng(1).uniform(-1, 1, (len(starts), 1))
            imagined.step(action.astype(np.float32), state, sample=True)

        row = measure(step, 1, num_repeats)
        row["figure"] = num_starts / row["figure"]
        case, unit = f"{num_starts} starts", "transitions per CPU s"
        rows.append(row | {"topic": "imagining", "case": case, "unit": unit})
    return rows


def make_model() -> Model:
    config = omegaconf.OmegaConf.create(MODEL)
    model = mbrl.util.common.create_one_dim_tr_model(config, (4,), (1,))
    model.update_normalizer(replay(1000).get_all())
    model.set_elite(list(range(5)))
    return model


def model_env(model: Model) -> mbrl.models.ModelEnv:
    return mbrl.models.ModelEnv(
        CartPoleEnv(), model, termination_fns.cartpole, reward_fns.cartpole
    )


def replay(size: int) -> ReplayBuffer:
    """Made-up data."""
    rng = np.random.default_rng(0)
    data = ReplayBuffer(size, (4,), (1,), rng=rng)
    obs, action = rng.normal(size=(size, 4)), rng.uniform(-1, 1, (size, 1))
    next_obs, never = obs + 0.1 * np.sin(obs) + 0.1 * action, np.zeros(size, bool)
    data.add_batch(obs, action, next_obs, np.ones(size), never, never)
    return data


def measure(call: Callable[[], Any], num_calls: int, num_repeats: int) -> Row:
    """Medians; `figure` is the CPU seconds of a call.  Products are timed in turn."""
    x = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE)
    call()
    samples, products = [], []
    for _ in range(num_repeats):
        products.append(time_calls(lambda: x @ x, 10)[0])
        samples.append(time_calls(call, num_calls))
    seconds, wall = (statistics.median(column) for column in zip(*samples, strict=True))
    product_gflops = 2e-9 * PRODUCT_SIZE**3 / statistics.median(products)
    return {"figure": seconds, "wall": wall, "product_gflops": product_gflops}


def time_calls(call: Callable[[], Any], num_calls: int) -> tuple[float, float]:
    """CPU seconds of all threads, and seconds on the wall, of one call."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(num_calls):
        call()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    return cpu / num_calls, wall / num_calls


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--num_repeats", type=int, default=5)
    # on busy cores, several threads spend most of their time waiting for each other
    parser.add_argument("--num_threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.num_threads)
    rows: list[Row] = []
    for topic in (planning, fitting, imagining):
        for row in topic(make_model(), arguments.num_repeats):
            rows.append(row)
            print(row, flush=True)
    machine = {
        "num_threads": arguments.num_threads,
        "python": platform.python_version(),
        **{package: version(package) for package in ("mbrl", "torch", "numpy")},
    }
    result = {"machine": machine, "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
