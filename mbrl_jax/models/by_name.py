"""The models by name, for algorithms that take any of them."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from mbrl_jax.models import bnn, ensemble, gaussian_process
from mbrl_jax.ops import checks
from mbrl_jax.types import Env, Model

_MODELS: dict[str, Any] = {
    "ensemble": ensemble,
    "gaussian_process": gaussian_process,
    "bnn": bnn,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    name: str = "ensemble"  # ensemble, gaussian_process or bnn
    ensemble: ensemble.Config = ensemble.Config()
    gaussian_process: gaussian_process.Config = gaussian_process.Config()
    bnn: bnn.Config = bnn.Config()


def make(obs_size: int, action_size: int, config: Config = Config()) -> Model:
    """Raises ValueError for what cannot be."""
    validate(config, obs_size)
    return _MODELS[config.name].make(obs_size, action_size, chosen(config))


def validate(config: Config, obs_size: int) -> None:
    """Raises ValueError, naming the fields; also for those that are not in use."""
    checks.one_of(config, "name", _MODELS)
    checks.under("ensemble", ensemble.validate, config.ensemble)
    for name, module in (("gaussian_process", gaussian_process), ("bnn", bnn)):
        valid = partial(module.validate, obs_size=obs_size)
        checks.under(name, valid, getattr(config, name))


def chosen(config: Config) -> Any:
    """The configuration of the model that is in use."""
    return getattr(config, config.name)


def learns(config: Config, env: Env) -> tuple[bool, bool]:
    """Whether the reward, and terminations, are learned: where the model is told to, or
    where only the simulator knows them.

    Raises ValueError for a model that cannot.
    """
    reward = chosen(config).learn_reward or env.reward is None
    if config.name != "gaussian_process":
        return reward, chosen(config).learn_terminal or env.terminal is None
    if env.terminal is None:
        raise ValueError(
            f"only the simulator of {env.name} knows its terminations, and Gaussian "
            "processes do not learn them: model.name must be ensemble or bnn"
        )
    return reward, False


def learning(config: Config, reward: bool, terminal: bool) -> Config:
    """`config` with a model that learns these."""
    targets = {"learn_reward": reward}
    if config.name != "gaussian_process":
        targets["learn_terminal"] = terminal
    model = dataclasses.replace(chosen(config), **targets)
    return dataclasses.replace(config, **{config.name: model})


def num_members(config: Config) -> int:
    """How many members predict."""
    if config.name == "ensemble":
        return ensemble.num_elites(config.ensemble)
    return config.bnn.num_members if config.name == "bnn" else 1


def shares(
    config: Config, field: str, number: int, predicting: int | None = None
) -> None:
    """Raises ValueError, naming the `field`, for a number that cannot be shared equally
    among the members that predict, unless told how many do those of the model."""
    predicting = predicting or num_members(config)
    if number % predicting:
        raise ValueError(
            f"{field} is {number}, must be a multiple of the {predicting} members that "
            "predict"
        )
