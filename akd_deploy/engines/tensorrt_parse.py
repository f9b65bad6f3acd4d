"""Parse an ONNX network for TensorRT; what it refuses is named with its node and the module the node came from."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from akd_deploy.engines.tensorrt_api import TensorRt
from akd_deploy.engines.tensorrt_callbacks import message_log
from akd_deploy.errors import BuildError

if TYPE_CHECKING:
    import tensorrt_rtx as api

_SCOPES, _CLASSES, _NAMESPACE = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy", "namespace"


def parsed_network(
    trt: TensorRt, builder: api.Builder, model: onnx.ModelProto, path: Path, what: str
) -> api.INetworkDefinition:
    """The strongly typed network of `model`, which was read from `path`: other weights files lie beside it.

    Raises:
        BuildError: an operator is not supported; `nodes` in its details say which ones, and where they came from.
    """
    flags = 0
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):  # versions that lack one do so anyway
        flag = trt.NetworkDefinitionCreationFlag.__members__.get(name)
        if flag is not None:
            flags |= 1 << int(flag.value)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, message_log(trt))
    # From memory, with its batch fixed and its nodes named.
    if parser.parse(model.SerializeToString(), path=str(path.resolve())):
        return network
    nodes = [_refused(parser.get_error(i), model) for i in range(parser.num_errors)]
    raise BuildError(
        asked=f"an engine: {what}",
        found="; ".join(
            f"operator {n['operator']} of node {n['node']!r}"
            + (f" in module {n['module']}" if n["module"] else "")
            + f": {n['message']}"
            for n in nodes
        )
        or "; ".join(message_log(trt).errors())
        or "a parser that gave no reason",
        next="Replace the operator, or choose a target whose engine has it.",
        nodes=nodes,
    )


def _refused(failure: api.ParserError, model: onnx.ModelProto) -> dict[str, str | None]:
    name = failure.node_name()
    module = next((module_of(node) for node in model.graph.node if node.name == name), None)
    return {
        "operator": failure.node_operator(),
        "node": name,
        # In a model made of functions, each one that led to the node.
        "module": module or " / ".join(failure.local_function_stack()) or None,
        "message": " ".join(f"{failure.code().name} ({failure.desc()})".split()),
    }


def module_of(node: onnx.NodeProto) -> str | None:
    """The torch module a node was exported from, like "layer1.0.conv (Conv2d)"; None where the file does not say."""
    told = {prop.key: prop.value for prop in node.metadata_props}
    scopes, classes = _texts(told.get(_SCOPES, "")), _texts(told.get(_CLASSES, ""))
    if not scopes and told.get(_NAMESPACE):
        parts = [part.partition(": ") for part in told[_NAMESPACE].split("/")]
        scopes, classes = [name for name, _, _ in parts], [kind for _, _, kind in parts]
    if len(scopes) < 2:  # the last one is the operation itself
        return None
    kind = classes[len(scopes) - 2].rpartition(".")[2] if len(classes) == len(scopes) else ""
    name = scopes[-2] or "the network itself"
    return f"{name} ({kind})" if kind else name


def _texts(written: str) -> list[str]:
    """A Python list of texts, as torch writes one; [] for anything else."""
    try:
        found = ast.literal_eval(written)
    except (ValueError, SyntaxError):
        return []
    return [str(text) for text in found] if isinstance(found, list) else []
