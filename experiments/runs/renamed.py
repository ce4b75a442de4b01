"""What was called something else before: for old folders, old ledgers, old habits.

One table for both ends: what is on disk is read through it, and an old flag on the
command line is an error that says the new one.  Runs from before models had a choice
are of ensembles, and get today's defaults for the models that they do not use.
"""

import dataclasses
import importlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mbrl_jax.models import by_name, ensemble

_LEARNERS = {
    "a2c": {"trace_decay": "gae_lambda"},
    "natural_gradient": {"trace_decay": "gae_lambda", "divergence": "max_kl"},
    "ppo": {"trace_decay": "gae_lambda", "target_divergence": "target_kl"},
    "trpo": {
        "trace_decay": "gae_lambda",
        "divergence": "max_kl",
        "shrink": "backtrack_ratio",
    },
}


def _under(prefix: str, learner: str) -> dict[str, str]:
    """The names of a learner's settings, where an algorithm has them at `prefix`."""
    names = _LEARNERS[learner]
    return {f"{prefix}.{old}": f"{prefix}.{new}" for old, new in names.items()}


_OF_A_MODEL = {  # algorithm -> its field; once of an ensemble, now of any model
    **dict.fromkeys(("bptt", "dyna", "maac", "mbpo", "mbrl_v05", "mbrl_v10"), "model"),
    **dict.fromkeys(("mbrl_v15", "me_trpo", "mve", "nagabandi", "pets"), "model"),
    **dict.fromkeys(("steve", "svg"), "model"),
    "mba": "network",
}


def _of_an_ensemble(algorithm: str) -> dict[str, str]:
    prefix = _OF_A_MODEL[algorithm]
    names = [field.name for field in dataclasses.fields(ensemble.Config)]
    return {f"{prefix}.{name}": f"{prefix}.ensemble.{name}" for name in names}


_OTHER_SETTINGS: dict[str, dict[str, str]] = {
    "a2c": _under("learn", "a2c"),
    "me_trpo": {
        old: new
        for learner in _LEARNERS
        for old, new in _under(learner, learner).items()
    },
    "nagabandi": _under("trpo", "trpo"),
    "npg": _under("learn", "natural_gradient"),
    "ppo": _under("learn", "ppo"),
    "shac": {"trace_decay": "td_lambda"},
    "trpo": _under("learn", "trpo"),
}
SETTINGS = {  # algorithm -> {old: new}
    **_OTHER_SETTINGS,
    **{
        name: {**_OTHER_SETTINGS.get(name, {}), **_of_an_ensemble(name)}
        for name in _OF_A_MODEL
    },
}
LEAVES = {  # parts of the path to an array in a checkpoint
    "running": "parallel",
    "tally": "counters",
    "world": "model_state",
    "learner.targets": "learner.target_critics",
    "before.targets": "before.target_critics",
}


LATER = {  # what came later, and by default does nothing
    "pets": "distil",
    **dict.fromkeys(("ppo", "sac", "td3"), "pixels"),
}


def settings(algorithm: str, old: Mapping[str, Any]) -> dict[str, Any]:
    """Anything that is keyed by the names of settings, by those of today."""
    names = SETTINGS.get(algorithm, {})
    return {names.get(name, name): _spelled(x) for name, x in old.items()}


def _spelled(x: Any) -> Any:
    """An infinite setting is text; it was null in config.json, a number in checkpoints,
    and in ledgers null."""
    return "inf" if x is None or x == math.inf else x


def record(old: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run folder (config.json)."""
    algorithm, new = old["algorithm"], dict(old)
    if new.get("config"):
        new["config"] = _completed(algorithm, new["config"])
    if new.get("varied"):
        new["varied"] = settings(algorithm, new["varied"])
    if new.get("population"):
        ranges = settings(algorithm, new["population"]["ranges"])
        new["population"] = {**new["population"], "ranges": ranges}
    return new


def checkpoint(old: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a checkpoint: its configuration, and the names of its arrays."""
    config = old["config"]
    if "algorithm" in config:
        config = _completed(config["algorithm"], config)
    leaves = [[_leaf(name), *rest] for name, *rest in old["leaves"]]
    return {**old, "config": config, "leaves": leaves}


def _completed(algorithm: str, old: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` of a whole run, with those that there were none of then."""
    new = settings(algorithm, old)
    new = {**_later(algorithm, new), **new}
    if algorithm not in _OF_A_MODEL or not _of_an_ensemble(algorithm).keys() & old:
        return new
    field = _OF_A_MODEL[algorithm]
    module = importlib.import_module(f"mbrl_jax.algorithms.{algorithm}")
    models: by_name.Config = getattr(module.Config(), field)
    unused = {
        f"{field}.{name}.{setting}": x
        for name in ("gaussian_process", "bnn")
        for setting, x in _fields(getattr(models, name)).items()
    }
    return {f"{field}.name": "ensemble", **unused, **new}


def _later(algorithm: str, whole: Mapping[str, Any]) -> dict[str, Any]:
    """What settings that came later say by default, where all others are there."""
    if algorithm not in LATER:
        return {}
    module = importlib.import_module(f"mbrl_jax.algorithms.{algorithm}")
    fields, later = _fields(module.Config()), LATER[algorithm]
    there = {name.partition(".")[0] for name in whole}
    if not fields.keys() - {later} <= there:
        return {}
    return {f"{later}.{name}": x for name, x in _fields(fields[later]).items()}


def _fields(config: Any) -> dict[str, Any]:
    """Of a dataclass, as JSON has them."""
    plain = lambda x: list(x) if isinstance(x, tuple) else x
    names = [field.name for field in dataclasses.fields(config)]
    return {name: plain(getattr(config, name)) for name in names}


def _leaf(path: str) -> str:
    path = f".{path}."
    for old, new in LEAVES.items():
        path = path.replace(f".{old}.", f".{new}.")
    return path[1:-1]


def flags(name: str, known: Iterable[str]) -> list[str]:
    """What the flag `name`, or one that ends so, is called now, as far as `known`."""
    known = {*known}
    return sorted(
        {
            new
            for names in SETTINGS.values()
            for old, new in names.items()
            if new in known and (name == old or name == _last(old) != _last(new))
        }
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]
