"""Search spaces: one file per space, behind one small contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from akd_deploy.architecture import Architecture
from akd_deploy.errors import UnknownNameError
from akd_deploy.search_space.augmented import AugmentedSpace
from akd_deploy.search_space.base import Layer, SearchSpace, Segment
from akd_deploy.search_space.mobile import MOBILENET_SETTINGS, MobileSpace

__all__ = ["SPACES", "Layer", "SearchSpace", "Segment", "load_space", "space_of"]

SPACES: Mapping[str, tuple[type[SearchSpace], Mapping[str, Any]]] = {
    "augmented": (AugmentedSpace, {}),
    "mobile": (MobileSpace, {}),
    "mobilenet": (MobileSpace, MOBILENET_SETTINGS),
}
"""Name → the space's class and the settings it starts from: `mobilenet` is `mobile` at 224×224, seven blocks."""


def load_space(name: str, settings: Mapping[str, Any] | None = None) -> SearchSpace:
    """The space of that name with these settings instead of the ones it starts from.

    Raises:
        UnknownNameError: no such space or setting.
    """
    if name not in SPACES:
        raise UnknownNameError("search space", name, SPACES)
    space, start = SPACES[name]
    return space({**start, **(settings or {})})


def space_of(architecture: Architecture) -> SearchSpace:
    """The space an architecture says it belongs to."""
    return load_space(architecture.space, architecture.settings)
