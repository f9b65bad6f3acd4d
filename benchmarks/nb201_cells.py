"""Cells of NAS-Bench-201 as a runtime executes them: how many operators of each kind are left of the six written.

A cell has nodes 0 (its input) to 3 (its output); `EDGES` is the order of the architecture string. Four accounts of what
runs, from none of a compiler's work to all of it:

- as written: an eager framework runs every edge, `none` included (it multiplies by zero).
- live: edges of `none` are gone, and whatever then no longer leads from the input to the output.
- merged: live, and equal operators on equal tensors run once. The convolutions of a cell have weights of their own, so
  that pooling alone is merged.
- folded: what a graph compiler makes of `none` as a multiplication by zero. Zeros are constants, adding them and
  skipping them is free, but other operators on them still run. A multiplication by zero of what one convolution alone
  yields is folded into that convolution's weights, so that the convolution stays although nothing needs it. These
  rules were read off the labels of pixel3, a source, over all cells, with raspi4's beside them: what a benchmark says
  of raspi4 as a target has seen that much of it. A source's 900 cells suffice to choose among the accounts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NONE, SKIP, CONV_1X1, CONV_3X3, POOL = range(5)
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
OPERATORS = (CONV_1X1, CONV_3X3, POOL, NONE)
"""What `counts` counts, in this order; a skip is free beside them."""
CELLS_IN_A_NETWORK = 15
"""Where a cell's output is constant the network is too, and a compiler keeps the last cell at most."""


def as_written(cell: Sequence[int]) -> np.ndarray:
    """(1 + operators,) a one and the counts of `OPERATORS` in `cell` (6,), every edge as written."""
    return np.array([1.0, *(float(list(cell).count(operator)) for operator in OPERATORS)])


def _counted(cell: Sequence[int], edges: Sequence[int], share: float = 1.0) -> np.ndarray:
    """Counts over some edges; edges of `none` cost nothing once a compiler has seen them."""
    chosen = [cell[e] for e in edges if cell[e] != NONE]
    return share * np.array([1.0, *(float(chosen.count(operator)) for operator in OPERATORS)])


def live_edges(cell: Sequence[int]) -> list[int]:
    """Edges on a way from input to output that no `none` interrupts."""
    reached = {0}
    for e, (source, end) in enumerate(EDGES):  # in this order every edge comes after those into its source
        if cell[e] != NONE and source in reached:
            reached.add(end)
    needed = {3}
    for e, (source, end) in reversed(list(enumerate(EDGES))):
        if cell[e] != NONE and end in needed:
            needed.add(source)
    return [e for e, (s, end) in enumerate(EDGES) if cell[e] != NONE and s in reached and end in needed]


def live(cell: Sequence[int]) -> np.ndarray:
    """(1 + operators,) counts after dead edges are dropped."""
    return _counted(cell, live_edges(cell))


def merged(cell: Sequence[int], shared_weights: bool = False) -> np.ndarray:
    """(1 + operators,) counts after dead edges are dropped and equal expressions computed once.

    `shared_weights`: convolutions of one kind are equal too, as in a graph whose weights are placeholders.
    """
    edges = live_edges(cell)
    values: dict[int, tuple[object, ...]] = {0: ("input",)}
    kept: dict[tuple[object, ...], int] = {}
    for node in (1, 2, 3):
        terms = []
        for e in edges:
            source, end = EDGES[e]
            if end != node:
                continue
            if cell[e] == SKIP:
                terms.append(values[source])
                continue
            own = e if cell[e] != POOL and not shared_weights else None
            term = (int(cell[e]), values[source], own)
            kept.setdefault(term, e)
            terms.append(term)
        values[node] = terms[0] if len(terms) == 1 else ("sum", *sorted(map(repr, terms)))
    return _counted(cell, list(kept.values()))


def folded_edges(cell: Sequence[int]) -> tuple[list[int], bool]:
    """Edges whose operators run after zeros are folded, and whether the output depends on the input at all."""
    into_1, into_2, across, _, out_1, out_2 = (int(operator) for operator in cell)
    zero_1 = into_1 == NONE
    across_runs = across != NONE and not (zero_1 and across == SKIP)  # skipping zeros adds nothing
    convolutions = (CONV_1X1, CONV_3X3)

    # Node 1 is a convolution's bare output that only zeros multiply.
    only_zeroed_1 = into_1 in convolutions and across == NONE and out_1 == NONE
    # Then node 2, where it is a sum with that product and itself multiplied by zero, takes both convolutions along.
    both_vanish = only_zeroed_1 and into_2 != NONE and out_2 == NONE
    # Node 2 is one convolution's bare output: of the edge from 0, or of the edge from 1.
    bare_2 = (into_2 in convolutions and not across_runs) or (into_2 == NONE and across in convolutions)
    passes_1 = into_2 == NONE and across == SKIP and into_1 in convolutions  # node 2 is node 1, a bare convolution

    zeroed_2 = out_2 == NONE and bare_2 and not both_vanish
    computed_2 = out_2 != NONE or zeroed_2
    zeroed_1 = only_zeroed_1 and not both_vanish
    zeroed_through_2 = out_2 == NONE and passes_1
    computed_1 = out_1 != NONE or (across != NONE and computed_2) or zeroed_through_2 or zeroed_1

    runs = [
        not zero_1 and computed_1,
        into_2 != NONE and computed_2,
        across_runs and computed_2,
        True,
        not (zero_1 and out_1 == SKIP),
        not (into_2 == NONE and not across_runs and out_2 == SKIP),
    ]
    edges = [e for e in range(6) if cell[e] != NONE and runs[e]]
    from_input_1 = 0 in edges
    from_input_2 = 1 in edges or (2 in edges and from_input_1)
    depends = (
        3 in edges
        or (from_input_1 and (out_1 != NONE or zeroed_1 or zeroed_through_2))
        or (from_input_2 and (out_2 != NONE or zeroed_2))
    )
    return edges, depends


def folded(cell: Sequence[int]) -> np.ndarray:
    """(1 + operators,) counts after zeros are folded; of a constant network only its last cell."""
    edges, depends = folded_edges(cell)
    return _counted(cell, edges, 1.0 if depends else 1.0 / CELLS_IN_A_NETWORK)


ACCOUNTS = {"as written": as_written, "live": live, "merged": merged, "folded": folded}
"""Name → counts of one cell."""


def counts_of(cells: np.ndarray, account: str) -> np.ndarray:
    """(cells, 1 + operators) of `cells` (cells, 6) under one of `ACCOUNTS`."""
    return np.array([ACCOUNTS[account](cell) for cell in cells.tolist()])


def with_products(counts: np.ndarray) -> np.ndarray:
    """(cells, 1 + operators + products) the counts and their products in pairs, over 3 to be of like size.

    The one place where operators are not additive: eager frameworks on CPUs overlap or throttle a little.
    """
    operators = counts[:, 1:]
    first, second = np.tril_indices(operators.shape[1])
    return np.hstack([counts, operators[:, first] * operators[:, second] / 3])
