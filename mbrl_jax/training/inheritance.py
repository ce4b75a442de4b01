"""The networks of one run as the start of another: what fits is taken, the rest is new.

A state holds networks (dicts of parameters) and the statistics that their inputs and
targets are normalised by; where one stands in the state is its place.  Each takes from
the one in the same place of the other state, or else from one of the same role (model,
critic, or policy) that fits best:

    layers, from the input on, up to the first whose parameters are not of its shape: a
        layer means something only on top of those below it; activations are not seen
    the last layer, and what belongs to no layer, such as a std, only from the same
        place: in another method's it may mean something else, say logits, not values
    statistics, as a whole

A network that started as a copy of another, as target networks do, is a copy of it
again.  Nothing else is taken: optimisers, data, environments and counters start new.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import DictKey, keystr, tree_leaves_with_path

from mbrl_jax.ops.finite import GuardState
from mbrl_jax.ops.normalize import RunningStats, Statistics
from mbrl_jax.replay import Replay
from mbrl_jax.types import EnvState, PyTree

LEFT = (EnvState, GuardState, Replay)  # whatever is below
SEEN = (RunningStats, Statistics)
ROLES = ("model", "critic")  # starts of a part of the place; all others are policies


class Part(NamedTuple):
    """An array of a network, or of statistics."""

    leaf: str  # its name in the state
    array: Any  # or what has a shape and a dtype


Network = Mapping[str, Part]  # by the name within the network, as "Dense_0.kernel"


class Taken(NamedTuple):
    """What a network takes."""

    place: str  # of the other network, in the other state
    names: tuple[str, ...]  # within the network
    left: tuple[str, ...]  # what starts new


def networks(state: PyTree) -> Mapping[str, Network]:
    """All networks and statistics, by place."""
    found: dict[str, dict[str, Part]] = {}
    whole = lambda x: isinstance(x, (*LEFT, *SEEN))
    for path, node in tree_leaves_with_path(state, is_leaf=whole):
        place = _name(path)
        if isinstance(node, SEEN):
            parts = node._asdict().items()
            found[place] = {name: Part(f"{place}.{name}", x) for name, x in parts}
        elif not isinstance(node, LEFT):
            dicts = {
                i: key.key for i, key in enumerate(path) if isinstance(key, DictKey)
            }
            if dicts:
                flax = [i for i, key in dicts.items() if key == "params"]
                start = flax[0] if flax else min(dicts)
                inner = found.setdefault(_name(path[:start]), {})
                inner[_name(path[start + len(flax) :])] = Part(place, node)
    return found


def matches(new: PyTree, old: Mapping[str, Network]) -> dict[str, Taken]:
    """What each network of the state `new` takes, by place; of shapes alone."""
    found = {}
    for place, network in networks(new).items():
        found[place] = _fitting(network, place, old, place)
        if place not in old:
            others = [x for x in old if _role(x, old[x]) == _role(place, network)]
            ways = [_fitting(network, place, old, x) for x in others]
            found[place] = max(ways, key=lambda x: len(x.names), default=found[place])
    return found


def takes_a_layer(found: Mapping[str, Taken]) -> bool:
    """Whether any of the networks does; statistics alone are nothing to start from."""
    return any(_layer(name) is not None for x in found.values() for name in x.names)


def first_layers(networks: Mapping[str, Network]) -> dict[str, list[int]]:
    """The shapes of the first kernels, by place, of all networks that have layers."""
    return {
        place: [*part.array.shape]
        for place, network in networks.items()
        for name, part in network.items()
        if _layer(name) == 0 and name.endswith("kernel")
    }


def start_from(
    new: PyTree, old: Mapping[str, Network]
) -> tuple[PyTree, dict[str, Taken]]:
    """The state `new`, never stepped, with what fits of `old`; and what that was."""
    found, own = matches(new, old), networks(new)
    values: dict[str, np.ndarray] = {}
    for place, network in own.items():
        first = next(x for x in own if x == place or _copies(own[x], network))
        found[place] = found[first]  # of a copy: what the original takes
        for name in found[place].names:
            source = old[found[place].place][name].array
            values[network[name].leaf] = np.array(source)
    filled = jax.tree_util.tree_map_with_path(
        lambda path, x: values.get(_name(path), x), new
    )
    return filled, found


def without_tasks(
    old: Mapping[str, Network], obs_size: int, num_tasks: int
) -> dict[str, Network]:
    """Networks that were told which of several tasks it is, as ones that are not.

    Their inputs lose the `num_tasks` entries from number `obs_size` on, a one-hot; what
    these added to the first layer, on average over the tasks, goes to its bias.
    """
    told = slice(obs_size, obs_size + num_tasks)

    def untold(network: Network) -> Network:
        changed: dict[str, np.ndarray] = {}
        arrays = {name: np.asarray(part.array) for name, part in network.items()}
        if _is_statistics(network):
            many = {name: x for name, x in arrays.items() if np.ndim(x)}
            changed = {name: np.delete(x, told, axis=-1) for name, x in many.items()}
        for kernel in network:
            if _layer(kernel) == 0 and kernel.endswith("kernel"):
                rows, bias = arrays[kernel], kernel.removesuffix("kernel") + "bias"
                added = rows[..., told, :].mean(axis=-2)
                changed = {
                    kernel: np.delete(rows, told, axis=-2),
                    bias: arrays[bias] + added,
                }
        return {
            name: part._replace(array=changed.get(name, part.array))
            for name, part in network.items()
        }

    return {place: untold(network) for place, network in old.items()}


def _fitting(
    network: Network, place: str, old: Mapping[str, Network], other: str
) -> Taken:
    """What `network` takes from that of `old` at the place `other`."""
    there = old.get(other, {})

    def fits(name: str) -> bool:
        if name not in there:
            return False
        x, y = network[name].array, there[name].array
        return x.shape == y.shape and x.dtype == y.dtype

    layers, others = _layers(network), _layers(there)
    same, top = place == other, max(layers, default=0)
    trunk = min(top, max(others, default=0))  # layers below the last one of either
    if not layers:
        loose = [*network] if all(map(fits, network)) else []
        statistics = _is_statistics(network)
        names = loose if same or statistics else []
        return _taken(network, other, names)
    names, i = [], 0
    while i <= top and {*layers.get(i, [])} == {*others.get(i, [])}:
        last = i >= trunk and not (same and layers.keys() == others.keys())
        if last or not all(map(fits, layers.get(i, []))):
            break
        names += layers.get(i, [])
        i += 1
    if i > top:  # the last layer, too
        names += [x for x in network if _layer(x) is None and fits(x)]
    return _taken(network, other, names)


def _taken(network: Network, place: str, names: list[str]) -> Taken:
    left = [x for x in network if x not in names]
    return Taken(place, tuple(x for x in network if x in names), tuple(left))


def _layers(network: Network) -> dict[int, list[str]]:
    """The names of the parameters of each layer, from the input on."""
    found: dict[int, list[str]] = {}
    for name in network:
        if (layer := _layer(name)) is not None:
            found.setdefault(layer, []).append(name)
    return found


def _layer(name: str) -> int | None:
    """Of a parameter: flax numbers what a module calls, as "mlp.Dense_0.kernel"."""
    number = re.search(r"_(\d+)\.\w+$", name)
    return int(number[1]) if number else None


def _role(place: str, network: Network) -> tuple[str, str]:
    """What a network is for, or which statistics of it these are."""
    parts = place.split(".")
    kinds = [kind for kind in ROLES if any(x.startswith(kind) for x in parts)]
    last = parts[-1] if _is_statistics(network) else ""
    return kinds[0] if kinds else "policy", last


def _is_statistics(network: Network) -> bool:
    return any({*network} == {*kind._fields} for kind in SEEN)


def _copies(one: Network, other: Network) -> bool:
    """Whether the parameters are the same, which random ones never are by chance."""
    if not _layers(one) or one.keys() != other.keys():
        return False
    arrays = [(one[name].array, other[name].array) for name in one]
    return all(np.array_equal(x, y) for x, y in arrays)


def _name(path: Any) -> str:
    return keystr(path, simple=True, separator=".")
