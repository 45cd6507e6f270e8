"""Labels of the cells of a grid that cost least: unary costs plus a price where neighbours differ.

Both solvers stand on one max-flow (Dinic, "Algorithm for solution of a problem of maximum flow", 1970) over int64
capacities. All kernels are in this file, because numba's cache does not notice changes in another one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsol.ops.jit import kernel

Costs = NDArray[np.int64]


def cut_quadratic(unary: Costs, down: Costs, right: Costs) -> NDArray[np.int64]:
    """Return the best labels for a squared price, exactly.

    Minimizes sum_p unary[l_p, p] + sum_pq weight_pq (l_p - l_q)^2 / (L - 1)^2 over labels 0..L-1. Such prices are
    convex in the difference, so one minimum cut finds the optimum (Ishikawa, "Exact optimization for Markov random
    fields with convex priors", PAMI 2003): node (p, k) says l_p >= k, and (l_p - l_q)^2 is, up to unary terms, the
    number of pairs (k, m) in which the nodes (p, k) and (q, m) differ.

    Args:
        unary: (L, h, w), L >= 2.
        down: (h - 1, w), weight between a cell and the one below, not negative.
        right: (h, w - 1), weight between a cell and the one to its right, not negative.

    Returns:
        (h, w). Of several optima, the one with the greatest labels.
    """
    top, (height, width) = len(unary) - 1, unary.shape[1:]
    degree = np.zeros((height, width), dtype=np.int64)
    for weights, first, second in ((down, np.s_[:-1], np.s_[1:]), (right, np.s_[:, :-1], np.s_[:, 1:])):
        degree[first] += weights
        degree[second] += weights
    label = np.arange(top + 1, dtype=np.int64)[:, None, None]
    cost = (unary * top**2 + degree * label * (label - top)).reshape(top + 1, -1)
    cells = np.arange(height * width).reshape(height, width)
    pairs = np.concatenate(
        [np.stack([cells[:-1].ravel(), cells[1:].ravel()]), np.stack([cells[:, :-1].ravel(), cells[:, 1:].ravel()])], 1
    )
    weights = np.concatenate([down.ravel(), right.ravel()])
    return _chain_cut(cost - cost.min(0), pairs, weights).reshape(height, width)


def swap(unary: Costs, price: Costs, weight: int, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Improve labels by alpha-beta swaps until none helps.

    Minimizes sum_p unary[p, l_p] + weight * sum_pq price[l_p, l_q] over the 4-neighbours of a grid (Boykov, Veksler,
    Zabih, "Fast approximate energy minimization via graph cuts", PAMI 2001).

    Args:
        unary: (h, w, L).
        price: (L, L), symmetric, not negative, 0 on the diagonal.
        weight: Not negative.
        labels: (h, w), where to start.

    Returns:
        (h, w), never worse than the start.
    """
    result = labels.astype(np.int64)
    _swap(np.ascontiguousarray(unary), price, weight, result)
    return result


@kernel
def _chain_cut(cost: Costs, pairs: NDArray[np.int64], weights: Costs) -> NDArray[np.int64]:
    top, count = cost.shape[0] - 1, cost.shape[1]
    size = count * top + 2
    source, sink = size - 2, size - 1
    endless = np.int64(1) << 60
    arcs = count * (top + 1) + pairs.shape[1] * top * top
    tail, head = np.empty(arcs, np.int64), np.empty(arcs, np.int64)
    forth, back = np.empty(arcs, np.int64), np.empty(arcs, np.int64)
    at = 0
    for cell in range(count):
        for k in range(top + 1):  # the arc that is cut when the label is k
            tail[at] = source if k == 0 else cell * top + k - 1
            head[at] = sink if k == top else cell * top + k
            forth[at], back[at] = cost[k, cell], endless
            if k == 0 or k == top:
                back[at] = 0
            at += 1
    for edge in range(pairs.shape[1]):
        for k in range(top):
            for m in range(top):
                tail[at], head[at] = pairs[0, edge] * top + k, pairs[1, edge] * top + m
                forth[at] = back[at] = weights[edge]
                at += 1
    reached = _min_cut(size, tail, head, forth, back, source, sink)
    labels = np.zeros(count, np.int64)
    for cell in range(count):
        for k in range(top):
            labels[cell] += reached[cell * top + k]
    return labels


@kernel
def _swap(unary: Costs, price: Costs, weight: int, labels: NDArray[np.int64]) -> None:
    height, width, count = unary.shape
    node = np.empty((height, width), np.int64)
    tail, head = np.empty(4 * height * width, np.int64), np.empty(4 * height * width, np.int64)
    forth, back = np.empty(4 * height * width, np.int64), np.empty(4 * height * width, np.int64)
    improved = True
    while improved:
        improved = False
        for a in range(count):
            for b in range(a + 1, count):
                size = 0
                for row in range(height):
                    for column in range(width):
                        inside = labels[row, column] == a or labels[row, column] == b
                        node[row, column] = size if inside else -1
                        size += inside
                if size == 0:
                    continue
                arcs, before = 0, np.int64(0)
                for row in range(height):
                    for column in range(width):
                        here = node[row, column]
                        if here < 0:
                            continue
                        as_a, as_b = unary[row, column, a], unary[row, column, b]
                        for step in range(4):
                            y, x = row + (step == 0) - (step == 1), column + (step == 2) - (step == 3)
                            if y < 0 or x < 0 or y >= height or x >= width:
                                continue
                            if node[y, x] < 0:
                                as_a += weight * price[a, labels[y, x]]
                                as_b += weight * price[b, labels[y, x]]
                            elif step == 0 or step == 2:
                                tail[arcs], head[arcs] = here, node[y, x]
                                forth[arcs] = back[arcs] = weight * price[a, b]
                                arcs += 1
                                before += weight * price[labels[row, column], labels[y, x]]
                        before += as_a if labels[row, column] == a else as_b
                        least = min(as_a, as_b)
                        # Source side: label a. Cutting the arc to the sink costs what label a costs.
                        tail[arcs], head[arcs] = (here, size + 1) if as_a > as_b else (size, here)
                        forth[arcs] = max(as_a, as_b) - least
                        back[arcs] = 0
                        arcs += 1
                        before -= least
                reached = _min_cut(size + 2, tail[:arcs], head[:arcs], forth[:arcs], back[:arcs], size, size + 1)
                after = np.int64(0)
                for arc in range(arcs):
                    if reached[tail[arc]] and not reached[head[arc]]:
                        after += forth[arc]
                    elif reached[head[arc]] and not reached[tail[arc]]:
                        after += back[arc]
                if after < before:
                    improved = True
                    for row in range(height):
                        for column in range(width):
                            if node[row, column] >= 0:
                                labels[row, column] = a if reached[node[row, column]] else b


@kernel
def _min_cut(
    size: int,
    tail: NDArray[np.int64],
    head: NDArray[np.int64],
    forth: Costs,
    back: Costs,
    source: int,
    sink: int,
) -> NDArray[np.bool_]:
    """Return the source's side of a minimum cut, the largest one where there are several.

    Arcs are taken against their direction, from sink to source, so that what the last search does not reach is the
    largest source side.
    """
    arcs = len(tail)
    first, following = np.full(size, -1, np.int64), np.empty(2 * arcs, np.int64)
    target, room = np.empty(2 * arcs, np.int64), np.empty(2 * arcs, np.int64)
    for arc in range(arcs):
        target[2 * arc], room[2 * arc] = tail[arc], forth[arc]
        following[2 * arc], first[head[arc]] = first[head[arc]], 2 * arc
        target[2 * arc + 1], room[2 * arc + 1] = head[arc], back[arc]
        following[2 * arc + 1], first[tail[arc]] = first[tail[arc]], 2 * arc + 1
    level, queue = np.empty(size, np.int64), np.empty(size, np.int64)
    current, path = np.empty(size, np.int64), np.empty(size, np.int64)
    while True:
        level[:] = -1
        level[sink], queue[0] = 0, sink
        begin, end = 0, 1
        while begin < end:
            here = queue[begin]
            begin += 1
            arc = first[here]
            while arc >= 0:
                if room[arc] > 0 and level[target[arc]] < 0:
                    level[target[arc]] = level[here] + 1
                    queue[end] = target[arc]
                    end += 1
                arc = following[arc]
        if level[source] < 0:
            return level < 0
        current[:] = first
        here, depth = sink, 0
        while True:
            if here == source:
                flow = room[path[0]]
                for step in range(1, depth):
                    flow = min(flow, room[path[step]])
                full = depth
                for step in range(depth - 1, -1, -1):
                    room[path[step]] -= flow
                    room[path[step] ^ 1] += flow
                    if room[path[step]] == 0:
                        full = step
                depth, here = full, target[path[full] ^ 1]
            arc = current[here]
            while arc >= 0 and (room[arc] == 0 or level[target[arc]] != level[here] + 1):
                arc = following[arc]
            current[here] = arc
            if arc >= 0:
                path[depth] = arc
                depth, here = depth + 1, target[arc]
            elif depth == 0:
                break
            else:
                depth -= 1
                here = target[path[depth] ^ 1]
                current[here] = following[current[here]]
