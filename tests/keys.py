"""Whether a function uses every random key once.

Twice is not independent.  Neither is a key that is split, or drawn from, and folded as
well: `fold_in(key, i)` is `split(key, n)[i]`.  What every turn of a loop shares counts
once, as planners compare their candidates on the same futures; so does what goes
through `jax.random.clone`, which says that the same draws are meant.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from jax.extend import core

USED = {"random_bits", "random_gamma", "random_split"}
COPIED = {"broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"}


def check(jaxpr: core.ClosedJaxpr) -> None:
    """Raises AssertionError, also for a key that is used and given back."""
    used, _ = uses(jaxpr.jaxpr)
    kept = [x for x in jaxpr.jaxpr.outvars if isinstance(x, core.Var) and used[x]]
    assert not kept, f"used and given back: {kept}"


def uses(jaxpr: Any) -> tuple[Counter[Any], Counter[Any]]:
    """How often each variable is used, and how often folded, here or within."""
    used, folded = Counter[Any](), Counter[Any]()
    same: dict[Any, Any] = {}  # a variable, or how it is cut out -> the first like it
    of = lambda x: same.get(x, x)
    for eqn in jaxpr.eqns:
        name, first = eqn.primitive.name, eqn.invars[0] if eqn.invars else None
        for bodies in within(eqn):
            found = [called(body, given) for body, given in bodies]
            for total, part in zip(
                (used, folded), zip(*found, strict=True), strict=True
            ):
                for x in set().union(*part):  # of a branch the most
                    total[of(x)] += max(counts[x] for counts in part)
        if name in USED:
            used[of(first)] += 1
        elif name == "random_fold_in":
            folded[of(first)] += 1
        elif name in COPIED and isinstance(first, core.Var):
            same[eqn.outvars[0]] = of(first)
        elif name == "slice":
            cut = (of(first), str(eqn.params))
            same[eqn.outvars[0]] = same.setdefault(cut, eqn.outvars[0])
    for x, count in used.items():
        where = [
            f"{eqn.primitive.name} {eqn.params.get('name', '')} at {line(eqn)}"
            for eqn in jaxpr.eqns
            if x in [of(y) for y in eqn.invars if isinstance(y, core.Var)]
        ]
        assert count + (folded[x] > 0) <= 1, f"a key is used more than once: {where}"
    return used, folded


def line(eqn: Any) -> str:
    """Where it was written, outside of jax."""
    traceback = eqn.source_info.traceback
    frames = [str(x) for x in traceback.frames] if traceback else []
    return next((x for x in frames if "site-packages" not in x), "?")


def called(body: Any, given: list[Any]) -> tuple[Counter[Any], ...]:
    """What the call of a function does to what is given to it."""
    found = tuple(Counter[Any]() for _ in range(2))
    for mine, theirs in zip(found, uses(body), strict=True):
        for outer, inner in zip(given, body.invars, strict=True):
            if isinstance(outer, core.Var) and theirs[inner]:
                mine[outer] += theirs[inner]
    return found


def within(eqn: Any) -> Iterator[list[tuple[Any, list[Any]]]]:
    """The functions that it calls and what is given to them, alternatives together."""
    given, params = list(eqn.invars), eqn.params
    plain = lambda body: getattr(body, "jaxpr", body)
    if eqn.primitive.name == "while":
        first, second = params["cond_nconsts"], params["body_nconsts"]
        carry = given[first + second :]
        yield [(plain(params["cond_jaxpr"]), given[:first] + carry)]
        constants = given[first : first + second]
        yield [(plain(params["body_jaxpr"]), constants + carry)]
    elif eqn.primitive.name == "cond":
        yield [(plain(branch), given[1:]) for branch in params["branches"]]
    else:
        for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if name in params:
                yield [(plain(params[name]), given)]
                return
