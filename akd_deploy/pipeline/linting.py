"""Lint with what the target's latency table knows: the tile of its kernels, and what padding or another size costs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx

from akd_deploy.engines import load_engine
from akd_deploy.errors import AkdError, MissingFileError, UsageError
from akd_deploy.export.finding import Finding
from akd_deploy.export.granularity import (
    Granularity,
    documented_granularity,
    granularity_from_rows,
    with_channels,
)
from akd_deploy.export.lint import lint_onnx
from akd_deploy.export.lint_costs import LintCosts
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import find_table, read_table
from akd_deploy.pipeline.latency import TargetLatency, device_of, target_latency
from akd_deploy.target import Target


@dataclass(frozen=True)
class Linted:
    """The findings, where the number of channels at once comes from, and why costs are missing where they are."""

    findings: tuple[Finding, ...]
    granularity: Granularity
    table: Path | None
    notes: tuple[str, ...]


def granularity_of(target: Target) -> int:
    """Channels to a block: as the target's latency table has taught, where one is found, else as documented."""
    found = _found(target)
    learned = None if found is None else granularity_from_rows(read_table(found).rows, str(found))
    return (learned or documented_granularity(target)).multiple


def lint_for(
    path: Path,
    target: Target,
    table: Path | None = None,
    dimensions: Mapping[str, tuple[int, int, int]] | None = None,
) -> Linted:
    """Lint a network, with the target's latency table where one is named or found.

    Args:
        table: its folder; looked for in the usual places where None.
        dimensions: least, usual and most size of dynamic dimensions, by name.

    Raises:
        MissingFileError, MismatchError: a table that is named and is not there, or is another target's.
        AkdError: what `lint_onnx` raises.
    """
    found = table or _found(target)
    if found is None:
        costs = LintCosts(dimensions=dimensions or {})
        granularity = documented_granularity(target)
        return Linted(lint_onnx(path, target, granularity=granularity, costs=costs), granularity, None, ())
    if table is not None:
        target_latency(target, table)  # a named one must be this target's
    rows = read_table(found).rows
    granularity = granularity_from_rows(rows, str(found)) or documented_granularity(target)
    notes: list[str] = []

    @cache
    def latency() -> TargetLatency | None:
        try:
            return target_latency(target, found)
        except AkdError as error:
            notes.append(f"no predicted costs: {error.found}")
            return None

    @cache
    def kernels() -> dict[str, Kernel]:
        """Node → the kernel that it runs in, of the network as it is."""
        used = latency()
        try:
            executed = used.reader.read(path).executed if used else ()
        except AkdError as error:
            notes.append(f"no predicted costs: {error.found}")
            return {}
        return {node: one.kernel for one in executed for node in one.nodes}

    def padding_s(node: str, inside: int | None, outside: int | None) -> tuple[float, float] | None:
        kernel, used = kernels().get(node), latency()
        if kernel is None or used is None:
            return None
        wider = with_channels(kernel, inside, outside)
        if wider == kernel or not used.predictor.model.covered(kernel):
            return None
        as_it_is, padded = used.predictor.costs([kernel, wider])
        return as_it_is.mean_s, padded.mean_s

    def sizes_s(sizes: Mapping[str, int]) -> float | None:
        used = latency()
        if used is None:
            return None
        with tempfile.TemporaryDirectory(prefix="akd-lint-") as folder:
            try:
                return used.predict_model(with_sizes(path, sizes, Path(folder)), remember=False).latency_s
            except AkdError as error:
                notes.append(f"no predicted cost at {dict(sizes)}: {error.found}")
                return None

    costs = LintCosts(padding_s, sizes_s, dimensions or {})
    findings = lint_onnx(path, target, granularity=granularity, costs=costs)
    return Linted(findings, granularity, found, tuple(dict.fromkeys(notes)))


def parse_dimensions(texts: list[str]) -> dict[str, tuple[int, int, int]]:
    """`height=128,224,512` → least, usual and most size of the dimension.

    Raises:
        UsageError: another form, or sizes that do not rise from 1.
    """
    result = {}
    for text in texts:
        name, _, told = text.partition("=")
        sizes = [int(n) for n in told.split(",") if n.strip().isdigit()]
        if not name or len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise UsageError(
                asked="the sizes of a dynamic dimension",
                found=text,
                next="Write NAME=LEAST,USUAL,MOST in whole numbers.",
            )
        result[name] = (sizes[0], sizes[1], sizes[2])
    return result


def with_sizes(path: Path, sizes: Mapping[str, int], folder: Path) -> Path:
    """The network with its dynamic dimensions set, as another file in `folder`."""
    model = onnx.load(path, format="protobuf")
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    written = folder / path.name
    onnx.save_model(model, written)
    return written


def _found(target: Target) -> Path | None:
    engine = load_engine(target)
    try:
        return find_table(target, device_of(engine))
    except MissingFileError:
        return None
