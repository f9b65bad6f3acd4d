"""What a bundle says about one engine in it: what it was built for, from what, and what it turned out to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from akd_deploy.errors import AkdError, CorruptFileError
from akd_deploy.target import Target, target_from_dict

if TYPE_CHECKING:  # manifests are read without numpy
    from akd_deploy.engines.base import BuiltEngine, Engine

NATIVE_ENGINES = ("tensorrt", "tensorrt-rtx")
"""Engines whose files are machine code: they fit the GPUs and the version they were built for, and nothing else."""


@dataclass(frozen=True)
class EngineFacts:
    """One engine file of a bundle. Numbers are what was found in it, None where the runtime does not tell them.

    `network` is the file that it was built from, `parts` are the files it needs beside it, all by their names
    in the bundle. `device` has the fingerprint's facts of the machine it was built on, where it needed one;
    `compute_capabilities` are the GPUs that a native engine is for. `precision` counts layers by dtype, as
    audited; `memory` has `activation_bytes` and the like.
    """

    target: Target
    engine_version: str
    network: str | None
    parts: tuple[str, ...]
    device: Mapping[str, str] | None
    compute_capabilities: tuple[str, ...] | None
    precision: Mapping[str, int]
    memory: Mapping[str, int] | None

    @property
    def is_native(self) -> bool:
        return self.target.engine in NATIVE_ENGINES

    def renamed(self, name_of: Callable[[str], str]) -> EngineFacts:
        """The same facts in a bundle whose files have other names."""
        network = None if self.network is None else name_of(self.network)
        return EngineFacts(**{**self.__dict__, "network": network, "parts": tuple(map(name_of, self.parts))})

    def as_dict(self) -> dict[str, Any]:
        """JSON types; engine, batch and the rest stand beside the whole target for readers that know no targets."""
        capabilities = self.compute_capabilities
        return {
            "target": self.target.as_dict(),
            "engine": self.target.engine,
            "engine_version": self.engine_version,
            "batch": self.target.batch,
            "network": self.network,
            "parts": list(self.parts),
            "device": None if self.device is None else dict(self.device),
            "compute_capabilities": None if capabilities is None else list(capabilities),
            "precision": dict(self.precision),
            "memory": None if self.memory is None else dict(self.memory),
        }


def facts_of_built(engine: Engine, built: BuiltEngine) -> EngineFacts:
    """What an engine that was built just now is; `network` and `parts` are told by the bundle it gets into."""
    # TensorRT-RTX needs no device to build, and builds for none in particular.
    device = None if engine.target.engine == "tensorrt-rtx" else dict(engine.fingerprint().facts)
    capabilities = built.details.get("compute_capabilities")
    memory = {key: value for key, value in built.details.items() if key.endswith("_bytes") and isinstance(value, int)}
    return EngineFacts(
        target=engine.target,
        engine_version=built.engine_version,
        network=None,
        parts=(),
        device=device,
        compute_capabilities=tuple(map(str, capabilities)) if isinstance(capabilities, list) else None,
        precision=dict(built.precision),
        memory=memory or None,
    )


_TEXT_OR_NONE = (str, type(None))
_KEYS: Mapping[str, tuple[type, ...]] = {
    "target": (dict,),
    "engine": (str,),
    "engine_version": (str,),
    "batch": (int,),
    "network": _TEXT_OR_NONE,
    "parts": (list,),
    "device": (dict, type(None)),
    "compute_capabilities": (list, type(None)),
    "precision": (dict,),
    "memory": (dict, type(None)),
}


def engine_facts_from_dict(fields: object, where: str) -> EngineFacts:
    """Read what `as_dict` wrote.

    Raises:
        CorruptFileError: anything else.
    """
    if not isinstance(fields, dict) or set(fields) != set(_KEYS):
        raise _corrupt(where, f"not an object of {', '.join(_KEYS)}")
    for key, kinds in _KEYS.items():
        if not isinstance(fields[key], kinds) or isinstance(fields[key], bool):
            raise _corrupt(where, f"{key!r} is of the wrong type")
    for key in ("parts", "compute_capabilities"):
        if not all(isinstance(text, str) for text in fields[key] or ()):
            raise _corrupt(where, f"{key!r} holds something other than text")
    if not all(isinstance(value, str) for value in (fields["device"] or {}).values()):
        raise _corrupt(where, "'device' holds something other than text")
    for key in ("precision", "memory"):
        for value in (fields[key] or {}).values():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise _corrupt(where, f"{key!r} holds something other than whole numbers")
    capabilities = fields["compute_capabilities"]
    return EngineFacts(
        target=target_in_manifest(fields["target"], where),
        compute_capabilities=None if capabilities is None else tuple(capabilities),
        parts=tuple(fields["parts"]),
        **{key: fields[key] for key in ("engine_version", "network", "device", "precision", "memory")},
    )


def target_in_manifest(fields: Mapping[str, object], where: str) -> Target:
    """A target written by `Target.as_dict`.

    Raises:
        CorruptFileError: it is none.
    """
    others = dict(fields)
    name = others.pop("name", None)
    if not isinstance(name, str):
        raise _corrupt(where, "a target without a name")
    try:
        return target_from_dict(name, others, where)
    except AkdError as error:
        raise _corrupt(where, str(error)) from error


def _corrupt(where: str, found: str) -> CorruptFileError:
    return CorruptFileError(asked=f"a bundle's manifest in {where}", found=found, next="Package the bundle again.")
