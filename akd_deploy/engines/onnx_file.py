"""Read an ONNX file the way engines need it: checked, batch resolved, every node with a name of its own."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError

from akd_deploy.errors import CorruptFileError, MissingFileError, StorageError, UsageError

_WITHOUT_TENSORS = frozenset(
    onnx.AttributeProto.AttributeType.Value(name) for name in ("FLOAT", "INT", "STRING", "FLOATS", "INTS", "STRINGS")
)


def read_onnx(path: Path, batch: int, *, keep_dynamic: bool = False) -> onnx.ModelProto:
    """The network in `path` for one batch size; weights in other files stay there.

    A dynamic first dimension of an input becomes `batch`; with `keep_dynamic` every dimension stays as it is. Nodes
    without a name of their own are named after their first output, so that a node name says which node is meant.

    Raises:
        MissingFileError: the file, or a weights file beside it, is not there.
        CorruptFileError: it is no ONNX network, or a weights file is too short.
        UsageError: an input has dynamic dimensions other than the batch, or a fixed batch that is not `batch`.
    """
    require_file(path)
    try:
        # Left alone, it reads a file named .json or .txt as text.
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise no_network(path, error) from error
    check_network(model, path, batch, keep_dynamic=keep_dynamic)
    return model


def fixed_batch(path: Path) -> int | None:
    """The first dimension that all inputs of the network in `path` have in common; None where one of them has none, or
    none that is fixed, or where they differ.

    Raises:
        MissingFileError, CorruptFileError: as `read_onnx` does.
    """
    model = read_onnx(path, 1, keep_dynamic=True)
    shapes = [value.type.tensor_type.shape.dim for value in graph_inputs(model.graph)]
    first = {shape[0].dim_value if len(shape) and shape[0].HasField("dim_value") else None for shape in shapes}
    return first.pop() if len(first) == 1 else None


def require_file(path: Path) -> None:
    """Raises MissingFileError where there is no such file."""
    if not path.is_file():
        raise MissingFileError(asked=f"the ONNX file {path}", found="no such file", next="Check the path.")


def check_network(model: onnx.ModelProto, path: Path, batch: int, *, keep_dynamic: bool = False) -> dict[str, int]:
    """Make of what was read from `path` what `read_onnx` gives, whose arguments and errors these are.

    Returns:
        `external_sizes`.
    """
    if not model.graph.node or not model.opset_import:
        raise corrupt_network(path, "no node or no operator set in it")
    try:
        external = external_sizes(model, path)
        check_external(external, path)
        if not keep_dynamic:
            _resolve_batch(model, path, batch)
        for node, label in zip(model.graph.node, node_names(model.graph), strict=True):
            if node.name != label:
                node.name = label
    except UnicodeDecodeError as error:  # names are looked at when they are asked for, not when the file is parsed
        raise no_network(path, error) from error
    return external


def no_network(path: Path, why: object) -> CorruptFileError:
    """The error of a file whose bytes cannot be read as a network."""
    return corrupt_network(path, f"bytes that are no ONNX network ({why})")


def corrupt_network(path: Path, found: str) -> CorruptFileError:
    """The error of a file that should be a network and has `found` in it instead."""
    return CorruptFileError(asked=f"an ONNX network in {path}", found=found, next="Export or download the file again.")


def node_names(graph: onnx.GraphProto) -> list[str]:
    """One name per node, all different: its own where that is unique, else its first output's."""
    counts = Counter(node.name for node in graph.node)
    names = []
    taken = {name for name, count in counts.items() if count == 1}
    for index, node in enumerate(graph.node):
        name = node.name
        if not name or counts[name] > 1:
            name = next((output for output in node.output if output), "") or f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            taken.add(name)
        names.append(name)
    return names


def graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller feeds: old files list their weights as inputs too."""
    weights = {initializer.name for initializer in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _resolve_batch(model: onnx.ModelProto, path: Path, batch: int) -> None:
    inputs = graph_inputs(model.graph)
    symbols: set[str] = set()
    first_dims = []
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise UsageError(
                asked=f"input {value.name!r} of {path.name} as a tensor of fixed shape",
                found="no tensor type or no shape",
                next="Export the network with the shapes of its inputs.",
            )
        if len(dims):
            if not dims[0].HasField("dim_value"):
                if dims[0].dim_param:
                    symbols.add(dims[0].dim_param)
                dims[0].dim_value = batch
            first_dims.append(dims[0].dim_value)
    for value in inputs:
        dynamic = [
            f"dimension {axis} ({dim.dim_param or 'unnamed'})"
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
            if not dim.HasField("dim_value") and dim.dim_param not in symbols
        ]
        if dynamic:
            raise UsageError(
                asked=f"input {value.name!r} of {path.name} with no dynamic dimension but the batch",
                found=f"dynamic {', '.join(dynamic)}",
                next="Latency depends on every dimension: export the network with a fixed shape, or for TensorRT "
                "give its range in the target's engine_options.shapes.",
            )
    # A network of fixed batch may fold it into another dimension (windows, tokens) but never lose it.
    if first_dims and not any(first % batch == 0 for first in first_dims):
        raise UsageError(
            asked=f"{path.name} at the target's batch of {batch}",
            found=f"a network of fixed batch {first_dims[0]}",
            next="Export it with a dynamic batch, or change the target's batch.",
        )
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info) if symbols else ():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = batch


def external_files(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The weights files that the network refers to, checked to be there and long enough."""
    return tuple(path.parent / location for location in external_locations(model, path))


def external_locations(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """As `external_files`, relative to the folder of the ONNX file."""
    sizes = external_sizes(model, path)
    check_external(sizes, path)
    return tuple(sizes)


def external_sizes(model: onnx.ModelProto, path: Path) -> dict[str, int]:
    """Weights file, relative to the folder of the ONNX file → the bytes that the network expects of it at least.

    Raises:
        CorruptFileError: a place that is no number, or outside that folder.
    """
    needed: dict[str, int] = {}
    for tensor in tensors_of(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if not isinstance(location, str):  # what the reader makes of text that is none
            raise corrupt_network(path, f"weights of {tensor.name!r} at {location!r}, which is no text")
        if not location or location.startswith("/") or ".." in PurePosixPath(location).parts:
            raise corrupt_network(path, f"weights of {tensor.name!r} at {location!r}, outside the network's own folder")
        try:
            end = int(entries.get("offset") or 0) + int(entries.get("length") or 0)
        except ValueError as error:
            raise corrupt_network(path, f"weights of {tensor.name!r} at no place in {location!r} ({error})") from error
        needed[location] = max(needed.get(location, 0), end)
    return needed


def check_external(sizes: Mapping[str, int], path: Path) -> None:
    """Look whether the weights files of `external_sizes` are there.

    Raises:
        MissingFileError: one is not.
        CorruptFileError: one is too short.
    """
    for location, size in sizes.items():
        file = path.parent / location
        if not file.is_file():
            raise MissingFileError(
                asked=f"the weights of {path}", found=f"no file {file}", next="Keep it beside the ONNX file."
            )
        if file.stat().st_size < size:
            raise corrupt_network(file, f"{file.stat().st_size} bytes where {path.name} expects {size}")


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initialisers and the tensors among nodes' attributes, those of graphs within nodes too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in _WITHOUT_TENSORS:
                continue
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from tensors_of(inner)


def copy_onnx(path: Path, out_dir: Path) -> tuple[Path, ...]:
    """Copy the ONNX file with its weights files into `out_dir`; the ONNX file comes first.

    Raises:
        StorageError: `out_dir` cannot be written.
    """
    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    sources = [path, *external_files(model, path)]
    copies = []
    try:
        for source in sources:
            copy = out_dir / source.relative_to(path.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if copy.resolve() != source.resolve():
                shutil.copyfile(source, copy)
            copies.append(copy)
    except OSError as error:
        raise StorageError(
            asked=f"a copy of {path.name} in {out_dir}", found=str(error), next="Check the space and permissions."
        ) from error
    return tuple(copies)


def nodes_using(model: onnx.ModelProto, op_types: Iterable[str]) -> list[str]:
    """`name (operator)` of every node whose operator is named, for messages."""
    wanted = set(op_types)
    return [
        f"{node.name} ({node.domain + '.' if node.domain else ''}{node.op_type})"
        for node in model.graph.node
        if node.op_type in wanted
    ]
