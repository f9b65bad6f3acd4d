"""Read the kernel table of a TensorRT build log into what the engine inspector's JSON says of the same layers.

Such a table is one message: "Layers:", a line for each layer, an empty line, then what the network reads and writes. A
line lists a layer's fields as `Key: value`; 10.x tells windows there, 11.x and RTX tell constants.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from akd_deploy.errors import BuildError

_HEAD = re.compile(r"^Name: (?P<Name>.*?), LayerType: (?P<LayerType>[^,]*)(?P<rest>.*)$", re.DOTALL)
_KEY = re.compile(r", ([A-Z]\w*(?:/\w+)?): ?")
_TENSOR = re.compile(r"\{ Name: .*?, (?:Location: \w+, )?Dimensions: \[(?P<Dimensions>[-\d,]*)\](?P<rest>.*?)\}")
_TENSORS = ("Inputs", "Constants", "Outputs")
_LAST = "Metadata"
"""The last field; what is in it are names, whatever they look like."""
_NUMBERS = ("Weights", "Bias", "Kernel", "Stride", "Dilation")
"""Fields written as in JSON; texts in lists of others stand there without quotes."""


def layers_in_log(messages: Iterable[str]) -> list[dict[str, Any]]:
    """The layers of the last kernel table among the messages, each as a mapping of fields; [] without a table.

    Raises:
        BuildError: a line of the table cannot be read.
    """
    tables = [message for message in messages if message.startswith("Layers:\n")]
    # Not `splitlines`: U+001E, which parts the nodes' names of 10.x, counts as the end of a line there.
    lines = tables[-1].partition("\n\n")[0].split("\n")[1:] if tables else []
    return [_layer(line) for line in lines if line]


def _layer(line: str) -> dict[str, Any]:
    head = _HEAD.match(line)
    if head is None or (head["rest"] and not _KEY.match(head["rest"])):
        raise _unreadable(line)
    layer: dict[str, Any] = {"Name": head["Name"], "LayerType": head["LayerType"]}
    try:
        layer |= {key: _value(key, text) for key, text in _fields(head["rest"])}
    except ValueError as error:
        raise _unreadable(line) from error
    return layer


def _fields(text: str) -> Iterator[tuple[str, str]]:
    """Key and text of every field; inside brackets there are none."""
    depth, key, start, position = 0, "", 0, 0
    while position < len(text):
        match = _KEY.match(text, position) if depth == 0 and key != _LAST else None
        if match is not None:
            if key:
                yield key, text[start:position]
            key, start = match[1], match.end()
            position = start
            continue
        depth += (text[position] in "[{") - (text[position] in "]}")
        position += 1
    if key:
        yield key, text[start:]


def _value(key: str, text: str) -> Any:
    if key in _TENSORS:
        return [_tensor(match) for match in _TENSOR.finditer(text)]
    if key in _NUMBERS:
        return json.loads(text)
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _tensor(match: re.Match[str]) -> Mapping[str, Any]:
    told = re.findall(r", (Datatype|Format/Datatype|Format): ([^,]*(?:, (?!\w+: )[^,]*)*)", match["rest"])
    return {
        "Dimensions": [int(n) for n in match["Dimensions"].split(",") if n],
        **{key: value.strip() for key, value in told},
    }


def _unreadable(line: str) -> BuildError:
    return BuildError(
        asked="the kernel table of a build log",
        found=f"a line that is no layer: {line[:200]!r}",
        next="This TensorRT version writes another format; please report the line.",
    )
