"""Shape profiles of TensorRT engines: written as text, checked against a network, chosen for what is fed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.kernel import Shape

if TYPE_CHECKING:
    import onnx

_INPUT = re.compile(r"(?P<name>\S+):(?P<shapes>\d+(?:x\d+)*(?:,\d+(?:x\d+)*){0,2})")


@dataclass(frozen=True)
class ShapeRange:
    """The smallest shape of an input, the one that kernels are chosen for, and the largest."""

    min: Shape
    opt: Shape
    max: Shape

    def __contains__(self, shape: Shape) -> bool:
        sizes = zip(self.min, shape, self.max, strict=True)
        return len(shape) == len(self.min) and all(low <= size <= high for low, size, high in sizes)

    def __str__(self) -> str:
        return ",".join("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))


Profile = Mapping[str, ShapeRange]
"""Input → its range."""


def parse_profiles(texts: Sequence[str], what: str) -> tuple[dict[str, ShapeRange], ...]:
    """Profiles from texts like "x:1x3x224x224,4x3x224x224,8x3x224x224 mask:1x10,4x10,8x10", one profile each.

    After an input's name come its min, opt and max shapes; one shape alone is all three.

    Args:
        what: the option, for messages.

    Raises:
        UsageError: a text that is no profile, or min ≤ opt ≤ max does not hold.
    """
    return tuple(_parsed(text, what) for text in texts)


def _parsed(text: str, what: str) -> dict[str, ShapeRange]:
    profile: dict[str, ShapeRange] = {}
    for part in text.split():
        match = _INPUT.fullmatch(part)
        shapes = [tuple(map(int, s.split("x"))) for s in match["shapes"].split(",")] if match else []
        if match is None or len(shapes) == 2 or match["name"] in profile:
            raise UsageError(
                asked=f"a shape profile in {what}",
                found=repr(text),
                next='Write each input once, with its min, opt and max: "x:1x3x224x224,4x3x224x224,8x3x224x224".',
            )
        low, opt, high = shapes * 3 if len(shapes) == 1 else shapes
        ordered = len(low) == len(opt) == len(high) and all(0 < a <= b <= c for a, b, c in zip(low, opt, high))  # noqa: B905
        if not ordered:
            raise UsageError(
                asked=f"min ≤ opt ≤ max for input {match['name']!r} in {what}",
                found=match["shapes"],
                next="Write three shapes of one rank, none smaller than the one before in any dimension.",
            )
        profile[match["name"]] = ShapeRange(low, opt, high)
    if not profile:
        raise UsageError(asked=f"a shape profile in {what}", found=repr(text), next="Write input:min,opt,max.")
    return profile


def checked_profiles(
    profiles: Sequence[Profile], inputs: Sequence[onnx.ValueInfoProto], what: str
) -> tuple[dict[str, ShapeRange], ...]:
    """The profiles with a range for every input of a network, those of fixed shape included.

    Raises:
        UnknownNameError: a range for no input.
        UsageError: a dynamic input without a range, or a range that its fixed dimensions do not allow.
    """
    declared = {value.name: [d.dim_value or None for d in value.type.tensor_type.shape.dim] for value in inputs}
    for profile in profiles:
        for name, shapes in profile.items():
            if name not in declared:
                raise UnknownNameError("input", name, declared, where=what)
            fixed = declared[name]
            fits = len(fixed) == len(shapes.min) and all(
                size in (None, low) and size in (None, high)
                for size, low, high in zip(fixed, shapes.min, shapes.max, strict=True)
            )
            if not fits:
                raise UsageError(
                    asked=f"input {name!r} of {what} in the shapes {shapes}",
                    found="×".join("dynamic" if size is None else str(size) for size in fixed),
                    next="Keep the fixed dimensions as they are; only dynamic ones have a range.",
                )
    missing = [
        (i, name)
        for i, profile in enumerate(profiles)
        for name, fixed in declared.items()
        if None in fixed and name not in profile
    ]
    if missing:
        raise UsageError(
            asked=f"a range for every dynamic input of {what}",
            found="; ".join(f"none for {name!r} in profile {i}" for i, name in missing),
            next="Add input:min,opt,max to the profile.",
        )
    fixed_ranges = {
        name: ShapeRange(shape, shape, shape)
        for name, sizes in declared.items()
        if None not in sizes and (shape := tuple(size for size in sizes if size is not None))
    }
    return tuple({**fixed_ranges, **profile} for profile in profiles)


def profile_for(profiles: Sequence[Profile], shapes: Mapping[str, Shape], where: str) -> int:
    """Which profile to run inputs of these shapes in: of those that hold them all, the one optimised for the nearest.

    Raises:
        UsageError: no profile holds them.
    """
    fitting = [i for i, profile in enumerate(profiles) if all(shape in profile[n] for n, shape in shapes.items())]
    if not fitting:
        asked = ", ".join(f"{name} of {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        told = "; ".join(" ".join(f"{name}:{profile[name]}" for name in shapes) for profile in profiles)
        raise UsageError(
            asked=f"{asked} in {where}",
            found=f"profiles {told}",
            next="Feed shapes within one of the profiles, or build with one that holds them.",
        )

    def distance(i: int) -> float:
        sizes = ((prod(shape), prod(profiles[i][name].opt)) for name, shape in shapes.items())
        return sum(max(a, b) / max(1, min(a, b)) for a, b in sizes)

    return min(fitting, key=distance)
