"""Score functions for trainings in processes of their own."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

from contracts.strategy_contract import accuracy

from akd_deploy.architecture import Architecture
from akd_deploy.errors import TrainingError
from akd_deploy.search import Score, ScoreFunction


def plain() -> ScoreFunction:
    """As the in-process tests have it, so that both drivers come to the same journal."""
    return lambda architecture, seed: Score(accuracy(architecture), {"seed": seed}, seconds=0.5)


def uneven(slowest_s: float) -> ScoreFunction:
    """Ends in another order than it begins, by the seed."""

    def score(architecture: Architecture, seed: int) -> Score:
        time.sleep(slowest_s * (seed % 5) / 4)
        return Score(accuracy(architecture), {"seed": seed, "text": architecture.text}, seconds=0.5)

    return score


def troubled(folder: str) -> ScoreFunction:
    """The first to begin crashes, the second fails, the third hangs with a child of its own, the others are well."""

    def score(architecture: Architecture, seed: int) -> Score:
        order = next(n for n in range(100) if _is_first(Path(folder) / str(n)))
        if order == 0:
            ctypes.string_at(0)
        if order == 1:
            raise TrainingError("a finite loss", "nan", "Lower the learning rate.")
        if order == 2:
            if os.fork() == 0:
                time.sleep(3600)
            time.sleep(3600)
        return Score(accuracy(architecture), {"seed": seed})

    return score


def _is_first(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def endless(folder: str) -> ScoreFunction:
    """Says that it has begun, and never ends."""

    def score(architecture: Architecture, seed: int) -> Score:
        (Path(folder) / f"pid-{os.getpid()}").touch()
        time.sleep(3600)
        raise AssertionError

    return score
