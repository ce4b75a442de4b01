"""Numbers as a report writes them."""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.reports.statistics import Estimate

NOTHING = "–"


def number(value: float) -> str:
    """Four digits, or all of those before the point.  inf is a time: never."""
    if not np.isfinite(value):
        return "never" if value > 0 else str(value)
    if float(value).is_integer():
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.3g}"
    digits = int(np.clip(3 - np.floor(np.log10(abs(value))), 0, 4))
    return f"{value:,.{digits}f}"


def interval(estimate: Estimate, form: Callable[[float], str] = number) -> str:
    """`value [low, high]`; of one run, or where all is inf, only the value."""
    value, low, high = (float(x) for x in estimate)
    if np.isnan(low) or low == np.inf:
        return form(value)
    return f"{form(value)} [{form(low)}, {form(high)}]"


def span(values: Sequence[float | None]) -> str:
    """From the least to the largest, of what is known."""
    known = [x for x in values if x is not None]
    if not known:
        return NOTHING
    low, high = number(min(known)), number(max(known))
    return low if low == high else f"{low} to {high}"


def count(num: int, thing: str) -> str:
    return f"{num} {thing}{'' if num == 1 else 's'}"
