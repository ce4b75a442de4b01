"""What the parts cost, and what other choices would: the evidence for the README."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import planning, timing
from benchmarks.setting import Setting, env, gradient_flop, make_model, transitions
from benchmarks.timing import Call, Row
from mbrl_jax.models.propagation import PROPAGATIONS, Propagate
from mbrl_jax.networks import GaussianMLP, silu
from mbrl_jax.ops import finite
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


def guards(
    setting: Setting = Setting(),
    batch_size: int = 32,
    num_loops: int = 100,
    num_repeats: int = 5,
) -> list[Row]:
    """Gradient steps as they are, and without the guard against non-finite values."""
    adam = optax.adam(1e-3)
    optimizers = {
        "guarded Adam": finite.skip_non_finite(adam, setting.num_members),
        "optax.adam": adam,
    }
    rows = []
    for name, optimizer in optimizers.items():
        call = gradient_steps(setting, optimizer, batch_size, num_loops)
        took = timing.measure(call, 1, num_repeats)
        num_rows = num_loops * setting.num_members * batch_size
        rows.append(
            timing.row(
                "guard",
                f"{name}, batch {batch_size}",
                num_loops / took.seconds,
                f"gradient steps per {timing.seconds_unit()}",
                took,
                num_rows * gradient_flop(setting),
            )
        )
    return rows


def gradient_steps(
    setting: Setting,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    num_loops: int,
) -> Call:
    """On one batch, again and again."""
    task, params = env(), make_model(setting)[1].params
    network = GaussianMLP(setting.hidden_sizes, task.obs_size)
    data = transitions(jax.random.key(0), batch_size)
    inputs = jnp.concatenate([data.obs, data.action], axis=1)

    def loss(params: Params) -> Array:
        mean, log_var = network.apply(params, inputs)
        return (jnp.square(mean - data.next_obs) * jnp.exp(-log_var) + log_var).mean()

    def step(carry: tuple[Params, PyTree]) -> tuple[Params, PyTree]:
        params, state = carry
        updates, state = optimizer.update(
            jax.vmap(jax.grad(loss))(params), state, params
        )
        return optax.apply_updates(params, updates), state

    return _loop(step, (params, optimizer.init(params)), num_loops)


def random_numbers(size: int = 1_000_000, num_repeats: int = 5) -> list[Row]:
    """Normal numbers by each generator."""
    draw = jax.jit(lambda key: jax.random.normal(key, (size,)))
    rows = []
    for name in GENERATORS:
        call = partial(draw, jax.random.key(0, impl=name))
        rows.append(_each("normal numbers", name, call, size, 4, num_repeats))
    return rows


def activations(
    setting: Setting = Setting(), num_loops: int = 20, num_repeats: int = 5
) -> list[Row]:
    """On all units of a hidden layer, for all particles of a search."""
    num_rows = setting.num_samples * setting.num_particles
    x = jax.random.normal(jax.random.key(0), (num_rows, setting.hidden_sizes[0]))
    rows = []
    for name, function in ACTIVATIONS.items():
        call = _loop(function, x, num_loops)
        count = num_loops * x.size
        rows.append(_each("activations", name, call, count, 1, num_repeats))
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
    rows = []
    for name, call in variants.items():
        took = timing.measure(call, 1, num_repeats)
        rows.append(Row("one iteration", name, took.seconds, unit, took.wall))
    return rows


def own_key(key: Key, actions: Array) -> Key:
    """A key for each candidate [H, A], made of its first action."""
    return jax.random.fold_in(key, actions.ravel()[0].view(jnp.uint32))


def keep_one(model: Model, state: PyTree) -> Propagate:
    """TS-infinity by way of the predictions of all members for each particle."""
    members = model.members(state)

    def step(key: Key, obs: Array, action: Array, alive: Array) -> Array:
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


def _loop(step: Callable[[Any], Any], start: Any, num_loops: int) -> Call:
    """`step` applied `num_loops` times, compiled."""
    body = lambda i, carry: step(carry)
    run = jax.jit(lambda start: jax.lax.fori_loop(0, num_loops, body, start))
    return lambda: run(start)


def _each(
    topic: str, case: str, call: Call, count: int, num_calls: int, num_repeats: int
) -> Row:
    """A row about a call that makes `count` numbers."""
    took = timing.measure(call, num_calls, num_repeats)
    unit = timing.seconds_unit().replace("s", "ns") + " each"
    return Row(topic, case, 1e9 * took.seconds / count, unit, took.wall)
