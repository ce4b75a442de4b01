"""The shortest path of a point among boxes, by its visibility graph, in numpy.

What sampling-based planners are compared with.  A shortest path among polygons bends at
their corners only (Lozano-Perez and Wesley, 1979), so that it is a path in the graph of
all corners that see each other, of which Dijkstra's algorithm finds the shortest.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import dijkstra

Box = tuple[float, float, float, float]  # least x, least y, largest x, largest y
TOLERANCE = 1e-9


def shortest_path(
    boxes: Sequence[Box],
    start: Sequence[float],
    goal: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
) -> tuple[float, np.ndarray]:
    """Its length, and its points [P, 2] within `low` and `high`; inf and none without.

    Walls may be touched: paths that may not touch them come close, and are longer.
    """
    corners = [(x, y) for a, b, c, d in boxes for x in (a, c) for y in (b, d)]
    nodes = np.array([tuple(start), tuple(goal), *corners], float)
    within = ((nodes >= low) & (nodes <= high)).all(axis=1)
    nodes = nodes[within & [sees(boxes, x, x) for x in nodes]]
    lengths = np.zeros((len(nodes), len(nodes)))  # 0: no edge
    for i in range(len(nodes)):
        for j in range(i):
            if sees(boxes, nodes[i], nodes[j]):
                lengths[i, j] = np.linalg.norm(nodes[i] - nodes[j])
    costs, before = dijkstra(
        lengths, directed=False, indices=0, return_predecessors=True
    )
    if not np.isfinite(costs[1]):
        return np.inf, np.zeros((0, 2))
    order = [1]
    while order[-1] != 0:
        order.append(before[order[-1]])
    return float(costs[1]), nodes[order[::-1]]


def sees(boxes: Sequence[Box], start: np.ndarray, end: np.ndarray) -> bool:
    """Whether the segment meets the inside of no box: it is clipped to each."""
    return not any(_crosses(np.array(box), start, end) for box in boxes)


def _crosses(box: np.ndarray, start: np.ndarray, end: np.ndarray) -> bool:
    """Liang and Barsky's clipping, to the box without its rim."""
    low, high = box[:2] + TOLERANCE, box[2:] - TOLERANCE
    enter, leave = 0.0, 1.0
    for x, along, least, most in zip(start, end - start, low, high, strict=True):
        if abs(along) < TOLERANCE:
            if not least < x < most:
                return False
            continue
        first, second = sorted(((least - x) / along, (most - x) / along))
        enter, leave = max(enter, first), min(leave, second)
    return enter < leave
