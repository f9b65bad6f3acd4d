"""nn-Meter's kernel data: its configuration and profiled-result JSON files, or the CSV they are collected into.

A JSON file holds `{kernel type: {id: {"config": {HW, CIN, COUT, …}, "latency": "37.5 +- 0.3"}}}`, the two often in
files of their own. A CSV has one row a kernel: `model_path` (which begins with the kernel type), the configuration,
derived `feature_N` columns, `latency`. Latencies are means in milliseconds.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from akd_deploy.errors import MismatchError, UsageError
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

Config = Mapping[str, int]
Writer = Callable[[Block, Config, int], Block]
"""Adds a kernel of this configuration, at this batch, to an empty block."""

_LATENCY = re.compile(r"\s*(?P<mean>[^\s+]+)\s*(?:\+-\s*(?P<deviation>\S+)\s*)?")
_DERIVED = re.compile(r"feature_\d+")
_SE_RATIO = 0.25
"""Of nn-Meter's squeeze-excite kernel."""


@dataclass(frozen=True)
class KernelType:
    """A kernel type of nn-Meter: the configuration it needs, what it may have besides, and how it is written."""

    needs: tuple[str, ...]
    write: Writer
    may_have: tuple[str, ...] = ()


def _image(block: Block, config: Config, batch: int, channels: str = "CIN") -> Tensor:
    return block.input(batch, config[channels], config["HW"], config["HW"])


def _conv(activation: str) -> KernelType:
    def write(block: Block, config: Config, batch: int) -> Block:
        x = _image(block, config, batch)
        return block.finish(
            block.conv(x, config["COUT"], config["KERNEL_SIZE"], config["STRIDES"], activation=activation)
        )

    return KernelType(("HW", "CIN", "COUT", "KERNEL_SIZE", "STRIDES"), write)


def _dwconv(activation: str) -> KernelType:
    def write(block: Block, config: Config, batch: int) -> Block:
        x, channels = _image(block, config, batch), config["CIN"]
        return block.finish(
            block.conv(x, channels, config["KERNEL_SIZE"], config["STRIDES"], groups=channels, activation=activation)
        )

    return KernelType(("HW", "CIN", "KERNEL_SIZE", "STRIDES"), write, ("COUT",))


def _pool(operator: str) -> KernelType:
    def write(block: Block, config: Config, batch: int) -> Block:
        x = _image(block, config, batch)
        return block.finish(block.pool(x, operator, config["KERNEL_SIZE"], config["POOL_STRIDES"]))

    return KernelType(("HW", "CIN", "KERNEL_SIZE", "POOL_STRIDES"), write, ("COUT", "STRIDES"))


def _on_image(add: Callable[[Block, Tensor], Sequence[Tensor]]) -> KernelType:
    def write(block: Block, config: Config, batch: int) -> Block:
        return block.finish(*add(block, _image(block, config, batch)))

    return KernelType(("HW", "CIN"), write)


def _write_fc(block: Block, config: Config, batch: int) -> Block:
    return block.finish(block.linear(block.input(batch, config["CIN"]), config["COUT"]))


def _write_concat(block: Block, config: Config, batch: int) -> Block:
    used = [name for name in ("CIN1", "CIN2", "CIN3", "CIN4") if config[name]]
    return block.finish(block.concat([_image(block, config, batch, name) for name in used]))


def _squeeze_excite(block: Block, x: Tensor) -> list[Tensor]:
    channels = x.shape[1]
    squeezed = block.conv(block.global_pool(x), max(1, int(channels * _SE_RATIO)), 1, activation="relu")
    return [block.binary("Mul", x, block.conv(squeezed, channels, 1, activation="hardswish"))]


KERNEL_TYPES: Mapping[str, KernelType] = {
    **{f"conv-{rest}": _conv(a) for rest, a in (
        ("block", "none"), ("bn", "none"), ("relu", "relu"), ("relu6", "relu6"), ("hswish", "hardswish"),
        ("bn-relu", "relu"), ("bn-relu6", "relu6"), ("bn-hswish", "hardswish"),
    )},
    **{f"dwconv-{rest}": _dwconv(a) for rest, a in (
        ("block", "none"), ("bn", "none"), ("relu", "relu"), ("relu6", "relu6"),
        ("bn-relu", "relu"), ("bn-relu6", "relu6"), ("bn-hswish", "hardswish"),
    )},
    "maxpool": _pool("MaxPool"),
    "avgpool": _pool("AveragePool"),
    "fc": KernelType(("CIN", "COUT"), _write_fc),
    "concat": KernelType(("HW", "CIN1", "CIN2", "CIN3", "CIN4"), _write_concat),
    "split": _on_image(lambda b, x: b.split(x)),
    "channelshuffle": _on_image(lambda b, x: [b.transpose_channels(x, 2)]),
    "se": _on_image(_squeeze_excite),
    "global-avgpool": _on_image(lambda b, x: [b.global_pool(x)]),
    "bn": _on_image(lambda b, x: [b.batch_norm(x)]),
    "bnrelu": _on_image(lambda b, x: [b.batch_norm(x, "relu")]),
    "relu": _on_image(lambda b, x: [b.activation(x, "relu")]),
    "hswish": _on_image(lambda b, x: [b.activation(x, "hardswish")]),
    "add": _on_image(lambda b, x: [b.binary("Add", x, b.input(*x.shape))]),
    "addrelu": _on_image(lambda b, x: [b.binary("Add", x, b.input(*x.shape), "relu")]),
}  # fmt: skip
"""What nn-Meter calls its kernels. Batch norms are folded into the convolution before them."""

_ALIASES = {"bn-relu": "bnrelu", "add-relu": "addrelu", "SE": "se"}
"""The same kernels where nn-Meter writes them otherwise."""


@dataclass
class _Entry:
    """What the files say of one kernel."""

    kind: str
    path: Path
    config: dict[str, int] | None = None
    latencies_s: list[float] = field(default_factory=list)


def blocks_from_nn_meter(files: Sequence[Path], batch: int) -> tuple[list[MeasuredBlock], tuple[str, ...]]:
    """Every kernel with a latency, and the names of those without one.

    A kernel that several files give a latency was measured as often.

    Args:
        files: configurations and results, in the same or in different JSON files; or CSV files.
        batch: that the kernels were measured at; nn-Meter's own is 1.

    Raises:
        UsageError: no file.
        MissingFileError, CorruptFileError, UnknownNameError: a file cannot be read, or names what is not known.
        MismatchError: a latency without a configuration, or two configurations of one kernel.
    """
    if not files:
        raise UsageError(asked="nn-Meter's kernel data", found="no file", next="Give its JSON or CSV files.")
    entries: dict[str, _Entry] = {}
    for path in files:
        (_read_csv if path.suffix.lower() == ".csv" else _read_json)(path, entries)
    measured, unmeasured = [], []
    for name, entry in entries.items():
        if entry.config is None:
            raise MismatchError(
                asked=f"the configuration of {name}, whose latency is in {entry.path}",
                found="none in the files given",
                next="Give the configuration file too (nn-Meter names it <kernel type>_<mark>.json).",
            )
        if not entry.latencies_s or min(entry.latencies_s) == 0:
            unmeasured.append(name)
            continue
        block = KERNEL_TYPES[entry.kind].write(Block(name), entry.config, batch)
        measured.append(MeasuredBlock(block, entry.kind, tuple(entry.latencies_s)))
    return measured, tuple(unmeasured)


def _kind(name: str, where: str) -> str:
    known_keys([name], [*KERNEL_TYPES, *_ALIASES], "kernel type of nn-Meter", where)
    return _ALIASES.get(name, name)


def _read_json(path: Path, entries: dict[str, _Entry]) -> None:
    content = read_json(path, "nn-Meter's kernel data")
    if not isinstance(content, dict) or not all(isinstance(kernels, dict) for kernels in content.values()):
        raise corrupt(path, "nn-Meter's kernel data", "no object of kernel types, each an object of ids")
    for told, kernels in content.items():
        kind = _kind(told, str(path))
        for identity, fields in kernels.items():
            name = f"{kind}/{identity}"
            if not isinstance(fields, dict):
                raise corrupt(path, f"kernel {name}", f"{fields!r}, which is no object")
            known_keys(fields, ("model", "shapes", "config", "latency"), "key", f"kernel {name} of {path}")
            entry = entries.setdefault(name, _Entry(kind, path))
            if "config" in fields:
                config = _config(fields["config"], kind, name, path)
                if entry.config not in (None, config):
                    raise MismatchError(
                        asked=f"one configuration of {name}",
                        found=f"{entry.config}, and {config} in {path}",
                        next="Import results that were given the same ids separately.",
                    )
                entry.config = config
            if "latency" in fields:
                entry.path = path
                entry.latencies_s.append(_latency_s(fields["latency"], name, path))


def _latency_s(value: object, name: str, path: Path) -> float:
    """The mean out of "37.53 +- 0.314", in seconds."""
    match = _LATENCY.fullmatch(value) if isinstance(value, str) else None
    if match and match["deviation"] is not None:
        seconds_from_ms(match["deviation"], f"deviation of the latency of {name}", path)
    return seconds_from_ms(match["mean"] if match else value, f"latency of {name}", path)


def _config(fields: object, kind: str, name: str, path: Path) -> dict[str, int]:
    """The configuration, complete and of whole numbers."""
    if not isinstance(fields, dict):
        raise corrupt(path, f"the configuration of {name}", repr(fields))
    described = KERNEL_TYPES[kind]
    where = f"kernel {name} of {path}"
    known_keys(fields, (*described.needs, *described.may_have), "key of a configuration", where)
    values = dict(fields)
    if "POOL_STRIDES" in described.needs:
        values.setdefault("POOL_STRIDES", values.get("STRIDES"))
    missing = [key for key in described.needs if values.get(key) is None]
    if missing:
        raise corrupt(path, f"{', '.join(missing)} of {name}", f"only {', '.join(fields) or 'nothing'}")
    result = {
        key: whole_number(value, f"{key} of {name}", path, least=0 if key[:-1] == "CIN" else 1)
        for key, value in values.items()
    }
    if "COUT" in described.may_have and result.get("COUT", result["CIN"]) != result["CIN"]:
        raise corrupt(path, f"COUT of {name} equal to CIN", f"{result['COUT']} and {result['CIN']}")
    if kind == "concat" and not any(result[f"CIN{i}"] for i in range(1, 5)):
        raise corrupt(path, f"channels of {name}", "none")
    if kind in ("split", "channelshuffle") and (result["CIN"] < 2 or (kind == "channelshuffle" and result["CIN"] % 2)):
        raise corrupt(path, f"CIN of {name} that can be halved", str(result["CIN"]))
    return result


def _read_csv(path: Path, entries: dict[str, _Entry]) -> None:
    rows = list(csv.reader(io.StringIO(read_text(path, "nn-Meter's kernel data"))))
    header = rows[0] if rows else []
    if "model_path" not in header or "latency" not in header:
        found = f"columns {', '.join(header)}" if header else "an empty file"
        raise corrupt(path, "columns model_path and latency", found)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise corrupt(path, f"line {number} with {len(header)} values", f"{len(row)}")
        values: dict[str, Any] = {}
        for column, value in zip(header, row, strict=True):
            if values.setdefault(column, value) != value:  # nn-Meter writes CIN twice for kernels with two inputs
                raise corrupt(path, f"one {column} in line {number}", f"{values[column]} and {value}")
        identity, latency = values.pop("model_path"), values.pop("latency")
        kind = _kind(identity.partition("_")[0], f"line {number} of {path}")
        name = f"{kind}/{identity}"
        if name in entries and entries[name].path == path:
            raise corrupt(path, f"line {number} with a model_path of its own", repr(identity))
        config = {key: value for key, value in values.items() if not _DERIVED.fullmatch(key)}
        entry = entries.setdefault(name, _Entry(kind, path))
        entry.path = path
        entry.config = _config(config, kind, name, path)
        entry.latencies_s.append(_latency_s(latency, name, path))
