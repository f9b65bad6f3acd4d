"""Read an ONNX file, or say where it is broken."""

from __future__ import annotations

from pathlib import Path

import onnx

from akd_deploy.errors import CorruptFileError, MissingFileError


def parse_onnx(path: Path) -> onnx.ModelProto:
    """Load a network with its weights, whatever its graph says.

    Raises:
        MissingFileError: no such file.
        CorruptFileError: not ONNX, or weights in other files that are not there.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

    if not path.is_file():
        raise MissingFileError(asked=f"the ONNX file {path}", found="no such file", next="Check the path.")
    try:
        # Left alone, it reads a file named .json or .txt as text.
        model = onnx.load(path, format="protobuf")
    except (onnx.checker.ValidationError, DecodeError, ValueError, OSError) as error:
        raise _corrupt(path, error) from error
    if not model.HasField("graph"):
        raise _corrupt(path, "no graph in it")
    return model


def read_onnx(path: Path) -> onnx.ModelProto:
    """Load a network with its weights, and check its structure.

    Raises:
        MissingFileError: no such file.
        CorruptFileError: not ONNX, or an ONNX network that breaks the specification.
    """
    model = parse_onnx(path)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise _corrupt(path, error) from error
    return model


def _corrupt(path: Path, found: object) -> CorruptFileError:
    return CorruptFileError(
        asked=f"an ONNX network in {path}", found=str(found), next="Export it again; `akd-deploy lint` says more."
    )


def name_nodes(model: onnx.ModelProto) -> None:
    """Give each unnamed node, or one whose name is taken, a name made of its operator and place."""
    seen: set[str] = set()
    for i, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{i}"
        seen.add(node.name)
