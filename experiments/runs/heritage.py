"""A run that starts with the networks of another, `--init_from=FOLDER`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.runs import paths, registry, run_folder
from mbrl_jax.training import inheritance
from mbrl_jax.training.inheritance import Network, Taken
from mbrl_jax.types import PyTree


class Heritage(NamedTuple):
    """What a run starts from."""

    folder: Path
    step: int  # of the other run, when it was read
    networks: Mapping[str, Network]


def of(
    record: run_folder.Record, run: registry.Run, report: Callable[[str], None]
) -> Heritage:
    """The networks of the folder that `record` names, for its `run`.

    All its runs start from the one in the folder, or each from the one of its place
    where there are as many.  Raises OSError or ValueError if the folder cannot be read,
    or has nothing that fits.
    """
    folder = paths.expanded(record["init_from"])
    own = run_folder.read(folder)
    registry.check_precision(folder, own, record)
    number, here = len(run_folder.rows(own)), len(run_folder.rows(record))
    if number not in (1, here):
        or_as_many = f", or {here} as here" if here > 1 else ""
        raise ValueError(f"{folder} holds {number} runs, must hold 1{or_as_many}")
    same = own["env"] == record["env"]  # named on the command line: may be imported
    old = registry.load(folder, report, record["env"] if same else None)
    networks = inheritance.networks(old.state)
    if number < here:
        networks = _repeated(networks, here)
    obs_size = run.env.obs_size
    if (told := len(old.env.tasks)) and old.env.obs_size - told == obs_size:
        networks = inheritance.without_tasks(networks, obs_size, told)
    new = jax.eval_shape(run.loop().init, run.key)
    if not inheritance.takes_a_layer(inheritance.matches(new, networks)):
        raise ValueError(
            f"nothing in {folder} fits: first layers are {_first_layers(networks)} "
            f"there, {_first_layers(inheritance.networks(new))} here"
        )
    return Heritage(folder, old.step, networks)


def begin(
    heritage: Heritage, folder: Path, report: Callable[[str], None]
) -> Callable[[PyTree], PyTree]:
    """What `train.run` does to the first state of the run in `folder`: it starts from
    the heritage, and what it took is reported, and goes on record."""

    def start(state: PyTree) -> PyTree:
        state, found = inheritance.start_from(state, heritage.networks)
        report(f"starts from {heritage.folder}, step {heritage.step}:")
        for place, taken in found.items():
            report(f"  {place}: {_line(taken)}")
        inherited = {place: taken._asdict() for place, taken in found.items()}
        record = run_folder.read(folder)
        record["inherited"] = {"step": heritage.step, "networks": inherited}
        run_folder.write(folder, record)
        return state

    return start


def _repeated(networks: Mapping[str, Network], number: int) -> dict[str, Network]:
    """Those of one run, for a `number` of them."""
    spread = lambda x: np.broadcast_to(x, (number, *np.shape(x)))
    return {
        place: {
            name: part._replace(array=spread(part.array))
            for name, part in network.items()
        }
        for place, network in networks.items()
    }


def _first_layers(networks: Mapping[str, Network]) -> str:
    shapes = inheritance.first_layers(networks)
    return ", ".join(f"{place} {shape}" for place, shape in shapes.items()) or "none"


def _line(taken: Taken) -> str:
    """What a network took, and what not, by layers."""
    layers = lambda names: ", ".join(
        dict.fromkeys(name.rpartition(".")[0] or name for name in names)
    )
    new = f"new: {layers(taken.left)}" if taken.left else ""
    if not taken.names:
        return new
    return f"{layers(taken.names)} of {taken.place}" + (f"; {new}" if new else "")
