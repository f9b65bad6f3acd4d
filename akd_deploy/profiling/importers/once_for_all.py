"""Latency lookup tables of ProxylessNAS and Once-for-All: blocks by a name that says their shapes, means in ms.

    expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:3-stride:2-idskip:0:
      {count: 156, mean: 5.6, var: 0.09}

Sizes are height × width × channels. ProxylessNAS writes the expansion as a ratio and activates with ReLU6;
Once-for-All's MobileNetV3 tables write the expanded channels themselves, add `-se` (squeeze-excite) and `-hs`
(hard swish, else ReLU), and activate the layers outside of blocks with hard swish.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akd_deploy.errors import MismatchError, MissingRuntimeError
from akd_deploy.profiling.importers.blocks import Block, Tensor
from akd_deploy.profiling.importers.measured_blocks import MeasuredBlock
from akd_deploy.profiling.importers.reading import (
    corrupt,
    known_keys,
    read_json,
    read_text,
    seconds_from_ms,
    whole_number,
)

STATISTICS = ("mean", "count", "var", "std", "min", "max", "median")
"""What a table may tell of a block; the mean is the latency, and the others stay behind."""

LAYERS = ("Conv", "Conv_1", "Conv_2", "AvgPool2D", "Logits", "expanded_conv")
_PROXYLESS = ("expand", "kernel", "stride", "idskip")
_MOBILENET_V3 = (*_PROXYLESS, "se", "hs")
_KEY = re.compile(r"(?P<layer>\w+)-input:(?P<input>[\dx]+)-output:(?P<output>[\dx]+)(?P<settings>(?:-\w+:\d+)*)")
_STEM_KERNEL_SIZE = 3
_SE_REDUCTION, _SE_MULTIPLE = 4, 8


@dataclass(frozen=True)
class _Key:
    """One name, taken apart. Sizes are (height, width, channels), of the last layer (channels,)."""

    text: str
    layer: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    settings: Mapping[str, int]

    @property
    def is_mobilenet_v3(self) -> bool:
        return "se" in self.settings or self.layer in ("AvgPool2D", "Conv_2")


def blocks_from_lookup_table(path: Path, batch: int) -> tuple[list[MeasuredBlock], tuple[str, ...]]:
    """Every block with a latency, and the names of those whose mean is 0.

    Args:
        path: YAML or JSON.
        batch: that the table was measured at, which it does not tell; those published for phones were at 1.

    Raises:
        MissingFileError, CorruptFileError, UnknownNameError: the file cannot be read, or names what is not known.
        MissingRuntimeError: a YAML file where PyYAML is not installed.
        MismatchError: blocks of both kinds of tables in one file.
    """
    what = "a latency lookup table"
    content = read_json(path, what) if path.suffix.lower() == ".json" else _read_yaml(path, what)
    if not isinstance(content, dict) or not content:
        raise corrupt(path, what, "no blocks with their latencies")
    keys = {text: _key(str(text), path) for text in content}
    second = [key for key in keys.values() if key.is_mobilenet_v3]
    first = [key for key in keys.values() if key.layer == "expanded_conv" and not key.is_mobilenet_v3]
    if first and second:
        raise MismatchError(
            asked=f"a table of ProxylessNAS or of Once-for-All in {path}",
            found=f"both: {first[0].text} and {second[0].text}",
            next="Split it: layers outside of blocks have other activations in each.",
        )
    measured, unmeasured = [], []
    for text, told in content.items():
        key = keys[text]
        if not isinstance(told, dict) or "mean" not in told:
            raise corrupt(path, f"the mean latency of {text}", repr(told))
        known_keys(told, STATISTICS, "statistic", f"{text} of {path}")
        mean_s = seconds_from_ms(told["mean"], f"the mean latency of {text}", path)
        if mean_s == 0:
            unmeasured.append(key.text)
            continue
        block = _block(key, batch, "hardswish" if second else "relu6")
        measured.append(MeasuredBlock(block, key.layer, (mean_s,)))
    return measured, tuple(unmeasured)


# --- names ---------------------------------------------------------------------------------------------------------


def _key(text: str, path: Path) -> _Key:
    """Take a name apart, and check that its shapes belong together."""
    match = _KEY.fullmatch(text)
    if match is None:
        raise corrupt(path, "a block", repr(text), "Expected layer-input:HxWxC-output:HxWxC-… .")
    known_keys([match["layer"]], LAYERS, "layer", str(path))
    pairs = [part.partition(":") for part in match["settings"].split("-")[1:]]
    settings = {name: int(value) for name, _, value in pairs}
    expected = _MOBILENET_V3 if "se" in settings or "hs" in settings else _PROXYLESS
    names = expected if match["layer"] == "expanded_conv" else ()
    if len(settings) != len(pairs) or set(settings) != set(names):
        wanted = f"the settings {', '.join(names) or '(none)'} of {text!r}"
        raise corrupt(path, wanted, ", ".join(settings) or "none")
    sizes = [
        tuple(whole_number(n, f"a size in {text!r}", path) for n in match[part].split("x"))
        for part in ("input", "output")
    ]
    key = _Key(text, match["layer"], sizes[0], sizes[1], settings)
    reason = _why_impossible(key)
    if reason:
        raise corrupt(path, f"a block {text!r}", reason)
    return key


def _why_impossible(key: _Key) -> str | None:
    """What in a name contradicts itself, or None."""
    if len(key.input) != 3 or len(key.output) != (1 if key.layer == "Logits" else 3):
        return "sizes that are not height x width x channels"
    if key.layer == "Logits":
        return None
    before, after = key.input[:2], key.output[:2]
    if key.layer == "AvgPool2D":
        return None if after == (1, 1) and key.input[2] == key.output[2] else "a pool that leaves more than 1x1"
    stride = key.settings.get("stride", _ratio(before, after) if key.layer == "Conv" else 1)
    if stride < 1 or tuple(-(-n // stride) for n in before) != after:
        return f"an output of {after[0]}x{after[1]} at stride {stride}"
    if key.layer != "expanded_conv":
        return None
    if key.settings["kernel"] < 1 or key.settings["expand"] < 1:
        return "a kernel or an expansion of 0"
    if key.settings["idskip"] and key.input != key.output:
        return "a skip between different shapes"
    flags = [key.settings.get(name, 0) for name in ("idskip", "se", "hs")]
    return None if all(flag in (0, 1) for flag in flags) else "a flag that is neither 0 nor 1"


def _ratio(before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """The stride that takes one size to the other, as near as can be told; no size is 0."""
    return -(-before[0] // after[0])


# --- blocks --------------------------------------------------------------------------------------------------------


def _block(key: _Key, batch: int, outside: str) -> Block:
    """The block a name stands for; `outside` is the activation of layers outside of blocks."""
    block = Block(key.text)
    height, width, channels = key.input
    x = block.input(batch, channels, height, width)
    if key.layer == "Conv":
        stride = _ratio(key.input, key.output)
        return block.finish(block.conv(x, key.output[2], _STEM_KERNEL_SIZE, stride, activation=outside))
    if key.layer in ("Conv_1", "Conv_2"):
        return block.finish(block.conv(x, key.output[2], 1, activation=outside))
    if key.layer == "AvgPool2D":
        return block.finish(block.global_pool(x))
    if key.layer == "Logits":
        pooled = block.global_pool(x) if (height, width) != (1, 1) else x
        return block.finish(block.linear(pooled, key.output[0]))
    return block.finish(_inverted_bottleneck(block, x, key))


def _inverted_bottleneck(block: Block, x: Tensor, key: _Key) -> Tensor:
    """Sandler et al. 2018 (arXiv:1801.04381); squeeze-excite as in MobileNetV3 (arXiv:1905.02244)."""
    told, channels = key.settings, x.shape[1]
    v3 = "se" in told
    expanded = told["expand"] if v3 else told["expand"] * channels
    activation = "relu6" if not v3 else "hardswish" if told["hs"] else "relu"
    y = block.conv(x, expanded, 1, activation=activation) if expanded != channels else x
    y = block.conv(y, expanded, told["kernel"], told["stride"], groups=expanded, activation=activation)
    if told.get("se"):
        squeezed = block.conv(block.global_pool(y), _squeezed(expanded), 1, activation="relu")
        y = block.binary("Mul", y, block.conv(squeezed, expanded, 1, activation="hardsigmoid"))
    y = block.conv(y, key.output[2], 1)
    return block.binary("Add", y, x) if told["idskip"] else y


def _squeezed(channels: int) -> int:
    """A quarter of the channels, rounded to a multiple of 8 and never by more than a tenth down."""
    wanted = channels // _SE_REDUCTION
    rounded = max(_SE_MULTIPLE, (wanted + _SE_MULTIPLE // 2) // _SE_MULTIPLE * _SE_MULTIPLE)
    return rounded + _SE_MULTIPLE if rounded < 0.9 * wanted else rounded


# --- YAML ----------------------------------------------------------------------------------------------------------


def _read_yaml(path: Path, what: str) -> Any:
    """YAML's plain values; a key that stands twice is an error."""
    text = read_text(path, what)
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingRuntimeError(
            asked=f"{what} in {path}",
            found="no package that reads YAML",
            next="pip install pyyaml, or give it as JSON.",
        ) from error

    class Loader(yaml.SafeLoader):
        """Refuses what a mapping would silently overwrite."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            repeated = [key for key, count in Counter(keys).items() if count > 1]
            if repeated:
                raise corrupt(path, what, f"{repeated[0]!r} twice, again in line {node.start_mark.line + 1}")
            return dict(super().construct_mapping(node, deep=deep))

    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise corrupt(path, what, f"no YAML ({' '.join(str(error).split())})") from error
