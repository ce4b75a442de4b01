"""What functions that others wrote return: converted once, or refused by name.

Observations and rewards are floats, terminations booleans.  Python's numbers are as
good as arrays; whole numbers become floats, which a float32 holds exactly up to 2^24.
What has no obvious meaning raises a ValueError of one line that names the function.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, PyTree


def named(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose errors are ValueErrors that say `what` failed."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise ValueError(f"{what} fails: {in_a_line(error)}") from error

    return call


def in_a_line(error: BaseException) -> str:
    """The kind of an error, and the first paragraph of what it says."""
    said = " ".join(str(error).strip().partition("\n\n")[0].split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def vector(what: str, function: Callable[..., Any]) -> Callable[..., Array]:
    """`function`, which returns an observation [O]."""

    def check(x: Array) -> Array:
        if x.ndim != 1 or not x.size:
            raise ValueError(f"{what} must return a vector [O], not {_described(x)}")
        return _real(x, what)

    return _checked(what, function, check)


def number(what: str, function: Callable[..., Any]) -> Callable[..., Array]:
    """`function`, which returns a reward []."""

    def check(x: Array) -> Array:
        if x.ndim:
            raise ValueError(f"{what} must return a number, not {_described(x)}")
        return _real(x, what)

    return _checked(what, function, check)


def boolean(what: str, function: Callable[..., Any]) -> Callable[..., Array]:
    """`function`, which returns a termination [].

    No number is one: 0.5 could be a probability, or a logit.
    """

    def check(x: Array) -> Array:
        if x.ndim or x.dtype != bool:
            raise ValueError(f"{what} must return True or False, not {_described(x)}")
        return x

    return _checked(what, function, check)


def whole(value: Any, what: str) -> Array:
    """Discrete actions; none is rounded."""
    x = _array(value, what)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{what} must be whole numbers, not {_described(x)}")
    return x.astype(jnp.int32)


def lasting_types(
    initial: Callable[[Any], PyTree], step: Callable[[PyTree], PyTree], what: str
) -> PyTree:
    """Shapes and dtypes of a state that any number of steps keeps.

    A count that starts with 0 and grows by 0.5 is a float from the start.
    """
    strong = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    state = jax.tree.map(strong, jax.eval_shape(lambda: initial(jax.random.key(0))))
    while (wider := _of_both(state, jax.eval_shape(step, state), what)) != state:
        state = wider
    return state


def like(new: PyTree, old: PyTree) -> PyTree:
    """`new` with the types of `old`, none of them weak."""

    def cast(new: Any, old: Any) -> Array:
        return new if _is_key(old) else jnp.asarray(new).astype(old.dtype)

    return jax.tree.map(cast, new, old)


def _of_both(first: PyTree, then: PyTree, what: str) -> PyTree:
    """Types that hold both states; `then`, which `what` returned, is like `first`."""
    shapes: list[Any] = [jax.tree.structure(x) for x in (first, then)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{what} must return a {shapes[0]} as initial, not {shapes[1]}"
        )

    def wider(path: Any, old: Any, new: Any) -> jax.ShapeDtypeStruct:
        if old.shape != new.shape:
            name = jax.tree_util.keystr(path) or "the state"
            raise ValueError(f"{what} makes {name} {new.shape} of {old.shape}")
        if _is_key(old):
            return jax.ShapeDtypeStruct(old.shape, old.dtype)
        dtype = jax.dtypes.canonicalize_dtype(jnp.promote_types(old.dtype, new.dtype))
        return jax.ShapeDtypeStruct(old.shape, dtype)

    return jax.tree.map_with_path(wider, first, then)


def _array(value: Any, what: str) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {value!r} is no array of numbers") from error


def _checked(
    what: str, function: Callable[..., Any], check: Callable[[Array], Array]
) -> Callable[..., Array]:
    call = named(what, function)
    return lambda *arguments: check(_array(call(*arguments), what))


def _real(x: Array, what: str) -> Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"{what} must be real, not {_described(x)}")
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(x.dtype if is_float else jnp.result_type(float))


def _described(x: Array) -> str:
    return f"{x.dtype} of shape {x.shape}"


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
