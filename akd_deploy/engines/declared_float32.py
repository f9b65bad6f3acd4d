"""Which nodes of an ONNX network are meant to compute in float32, as the file itself declares it."""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx

from akd_deploy.errors import CorruptFileError

KEY = "akd-deploy.kept_float32"
"""The entry of a model's `metadata_props`: a JSON object, node name → why it stays in float32."""


def declare_float32(model: onnx.ModelProto, kept: Mapping[str, str]) -> None:
    """Write the declaration into a model, in place of the one it has; none is written where nothing is kept."""
    others = [prop for prop in model.metadata_props if prop.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    if kept:
        model.metadata_props.add(key=KEY, value=json.dumps(dict(sorted(kept.items())), ensure_ascii=False))


def declared_float32(model: onnx.ModelProto, where: str) -> dict[str, str]:
    """Node name → why it stays in float32; {} for a model that declares nothing.

    Raises:
        CorruptFileError: a declaration that cannot be read.
    """
    text = next((prop.value for prop in model.metadata_props if prop.key == KEY), "{}")
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(reason, str) for reason in found.values()):
        raise CorruptFileError(
            asked=f"the nodes that {where} keeps in float32",
            found=f"metadata {KEY} = {text[:200]!r}",
            next="Write a JSON object in it: node name → reason.",
        )
    return found
