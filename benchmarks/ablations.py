"""What the parts cost, and what other choices would: the evidence for the README."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import planning, timing
from benchmarks.setting import Setting, gradient_flop, make_model
from benchmarks.timing import Call, Row
from mbrl_jax.models.propagation import PROPAGATIONS, Step
from mbrl_jax.networks import silu
from mbrl_jax.types import Array, Key, Model, Params, PyTree

GENERATORS = ("threefry2x32", "rbg", "unsafe_rbg")  # of jax; the first is its default

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu, ours, by tanh": silu,
    "silu of jax.nn": jax.nn.silu,
    "silu as x / (1 + exp(-x))": lambda x: x / (1 + jnp.exp(-x)),
    "relu": jax.nn.relu,
}

PRODUCTS = {  # of a hidden layer: rows b, inputs i, outputs o, for each member m
    "forward": "mbi,mio->mbo",
    "gradient by the inputs": "mbo,mio->mbi",
    "gradient by the weights": "mbi,mbo->mio",
}


def random_numbers(size: int = 1_000_000, num_repeats: int = 5) -> list[Row]:
    """Normal numbers by each generator."""
    rows = []
    for name in GENERATORS:
        draw, key = jax.jit(_normal, static_argnums=1), jax.random.key(0, impl=name)
        took = timing.measure(lambda d=draw, k=key: d(k, size), 4, num_repeats)
        rows.append(_per("normal numbers", name, took, size))
    return rows


def activations(
    setting: Setting = Setting(), num_loops: int = 20, num_repeats: int = 5
) -> list[Row]:
    """On all units of a hidden layer, for all particles of a search."""
    num_rows = setting.num_samples * setting.num_particles
    x = jax.random.normal(jax.random.key(0), (num_rows, setting.hidden_sizes[0]))
    rows = []
    for name, function in ACTIVATIONS.items():
        call = _loop(lambda x, f=function: f(x) + 1e-3, x, num_loops)
        took = timing.measure(call, 1, num_repeats)
        rows.append(_per("activations", name, took, num_loops * x.size))
    return rows


def searches(setting: Setting = Setting(), num_repeats: int = 5) -> list[Row]:
    """One iteration of planning as it is, and as it might have been."""
    setting = setting._replace(num_iterations=1)
    ts_inf = PROPAGATIONS["ts_inf"]
    variants = {
        "as it is": planning.search(setting, ts_inf),
        "noise of its own for each candidate": planning.search(
            setting, ts_inf, own_key
        ),
        "all elites predict, one is kept": planning.search(setting, keep_one),
    }
    unit = f"{timing.seconds_unit()} per iteration"
    return [
        Row("one iteration", name, took.seconds, unit, took.wall)
        for name, call in variants.items()
        for took in [timing.measure(call, 1, num_repeats)]
    ]


def own_key(key: Key, actions: Array) -> Key:
    """A key for each candidate [H, A], made of its first action."""
    return jax.random.fold_in(key, actions.ravel()[0].view(jnp.uint32))


def keep_one(model: Model, state: PyTree) -> Step:
    """TS-infinity by way of the predictions of all members for each particle."""
    members = model.members(state)

    def step(key: Key, obs: Array, action: Array) -> Array:
        one = jax.vmap(model.predict, in_axes=(None, 0, None))
        every = jax.vmap(one, in_axes=(0, None, None))(members, obs, action)
        particle = jnp.arange(obs.shape[0])
        own = particle % every.mean.shape[0]
        mean, std = every.mean[own, particle], every.std[own, particle]  # [P, D]
        return mean + std * jax.random.normal(key, mean.shape)

    return step


def fit_parts(
    setting: Setting = Setting(),
    cases: tuple[tuple[int, int], ...] = ((32, 100), (256, 20)),
    num_repeats: int = 5,
) -> list[Row]:
    """A fit's matrix products alone, Adam alone, and the bound that they set.

    `cases` are batch sizes and numbers of repetitions in a compiled loop.
    """
    adam, num_bytes = adam_alone(setting, cases[0][1])
    took = timing.measure(adam, 1, num_repeats)
    adam_seconds = took.seconds / cases[0][1]
    rate = num_bytes / adam_seconds / 1e9
    unit = f"GB per {timing.seconds_unit()}"
    rows = [Row("parts of a fit", "Adam alone", rate, unit, took.wall)]
    for batch_size, num_loops in cases:
        bound = adam_seconds
        for name, indices in PRODUCTS.items():
            call, flop = layer_product(setting, batch_size, indices, num_loops)
            took = timing.measure(call, 1, num_repeats)
            bound += (len(setting.hidden_sizes) - 1) * took.seconds / num_loops
            case = f"{name}, batch {batch_size}"
            unit = f"GFLOP per {timing.seconds_unit()}"
            rate = flop / took.seconds / 1e9
            rows.append(timing.row("parts of a fit", case, rate, unit, took, flop))
        all_flop = batch_size * setting.num_members * gradient_flop(setting)
        took = took._replace(seconds=bound, wall=bound)
        case = f"Adam and these products only, batch {batch_size}"
        unit = f"gradient steps per {timing.seconds_unit()}"
        row = timing.row("parts of a fit", case, 1 / bound, unit, took, all_flop)
        rows.append(row._replace(wall=None))  # a sum of parts
    return rows


def adam_alone(setting: Setting, num_loops: int) -> tuple[Call, float]:
    """Steps with a given gradient, and the bytes that one has to read and write."""
    params = make_model(setting)[1].params
    grads = jax.tree.map(lambda x: x + 1.0, params)
    adam = optax.adam(1e-3)

    def step(carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        params, state = carry
        updates, state = adam.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    call = _loop(step, (params, adam.init(params)), num_loops)
    # read: gradient, both moments, parameters; written: all but the gradient
    return call, 7.0 * num_bytes


def layer_product(
    setting: Setting, batch_size: int, indices: str, num_loops: int
) -> tuple[Call, float]:
    """One of `PRODUCTS` in a loop, and the floating-point operations of the loop."""
    members, size = setting.num_members, setting.hidden_sizes[-1]
    sizes = {"m": members, "b": batch_size, "i": size, "o": size}
    left, right = (
        jax.random.normal(jax.random.key(0), [sizes[index] for index in operand])
        for operand in indices.split("->")[0].split(",")
    )

    def step(last: Array) -> Array:  # depends on the last, or it would be done once
        return jnp.einsum(indices, left * (1 + 1e-9 * last[0, 0, 0]), right)

    flop = 2.0 * members * batch_size * size * size
    return _loop(step, jnp.einsum(indices, left, right), num_loops), flop * num_loops


def _normal(key: Key, size: int) -> Array:
    return jax.random.normal(key, (size,))


def _loop(step: Callable[[Any], Any], start: Any, num_loops: int) -> Call:
    """`step` applied `num_loops` times, compiled."""
    body = lambda i, carry: step(carry)
    run = jax.jit(lambda start: jax.lax.fori_loop(0, num_loops, body, start))
    return lambda: run(start)


def _per(topic: str, case: str, took: timing.Timing, count: int) -> Row:
    unit = timing.seconds_unit().replace("s", "ns") + " each"
    return Row(topic, case, 1e9 * took.seconds / count, unit, took.wall)
