"""What all trainings of an experiment share, as the search writes it down for them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from akd_deploy.search.trainings import ScoreFunction


@dataclass(frozen=True)
class Specification:
    """What all trainings of an experiment share; a JSON file in the experiment's folder.

    `module`, `function` and `arguments` say how a process of its own gets at the score function.
    """

    socket: str
    working_directory: str
    import_path: list[str]
    space: str
    settings: Mapping[str, Any]
    module: str
    function: str
    arguments: Mapping[str, Any]

    def score(self) -> ScoreFunction:
        """Import the factory and call it."""
        factory = getattr(importlib.import_module(self.module), self.function)
        return factory(**self.arguments)
