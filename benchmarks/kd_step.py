"""What a distillation step costs beside a cross-entropy step, with the teacher's logits cached and without.

    python benchmarks/kd_step.py
    python benchmarks/kd_step.py --rounds 30 --threads 4 --json

Short trainings by every method take turns, in an order that turns around each round; steps are timed from one
to the next (batch, forward, loss, backward, update), the first ones of each training dropped. The ratio is that of
paired rounds' medians, with an exact distribution-free interval. The claim holds where the whole interval of `kd` to
`ce` is at most 1.3 at every size (else exit code 3); `kd_live` runs the teacher in every step instead, and claims
nothing. It takes two to three minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from akd_deploy.certificate import ratio_interval
from akd_deploy.data import Split, ViewBank, ViewSettings
from akd_deploy.distill import TeacherBank, TrainingSettings, teacher_bank, train
from akd_deploy.models.convnet import ConvNetSettings, convnet
from akd_deploy.models.teacher import Teacher, teacher_from_module
from akd_deploy.units import format_seconds

CLAIM = 1.3
DROPPED = 3
"""First steps of each training: allocation and lazily built kernels."""


@dataclass(frozen=True)
class Case:
    """A student on images of a size; the teacher is three times as wide and twice as deep."""

    name: str
    side: int
    channels: int
    classes: int
    batch: int
    widths: tuple[int, ...]
    images: int = 256
    views: int = 8


CASES = (
    Case("tiny student, 12×12, 10 classes, batch 32", 12, 1, 10, 32, (4, 8, 16)),
    Case("small student, 12×12, 10 classes, batch 32", 12, 1, 10, 32, (8, 16, 32)),
    Case("small student, 12×12, 10 classes, batch 128", 12, 1, 10, 128, (8, 16, 32)),
    Case("medium student, 32×32, 100 classes, batch 64", 32, 3, 100, 64, (16, 32, 64)),
    Case("small student, 32×32, 1000 classes, batch 64", 32, 3, 1000, 64, (8, 16, 32)),
)


def step_seconds(
    case: Case, views: ViewBank, method: str, teacher: TeacherBank | list[Teacher] | None, steps: int, seed: int
) -> float:
    """Median seconds of one step of a fresh training."""
    generator = torch.Generator().manual_seed(seed)
    student = convnet(ConvNetSettings(case.channels, case.classes, case.widths, depth=1), generator)
    settings = TrainingSettings(steps=steps + DROPPED, batch_size=case.batch, learning_rate=0.01)
    stamps: list[float] = []
    train(
        student,
        views,
        settings,
        generator,
        method=method,
        teacher=teacher,
        on_step=lambda step, total, loss: stamps.append(time.perf_counter()),
    )
    return float(np.median(np.diff(stamps)[DROPPED - 1 :]))


def bed_of(case: Case) -> tuple[ViewBank, Teacher]:
    """Random images to learn from, and a teacher with random weights."""
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((case.images, case.channels, case.side, case.side), dtype=np.float32)
    split = Split(pixels, rng.integers(0, case.classes, case.images), np.arange(case.images))
    views = ViewBank(split, ViewSettings(views=case.views, shift=1), seed=0)
    wide = ConvNetSettings(case.channels, case.classes, tuple(3 * w for w in case.widths), depth=2)
    network = convnet(wide, torch.Generator().manual_seed(0))
    shape = (case.channels, case.side, case.side)
    return views, teacher_from_module(network, shape, case.classes, "benchmark")


def in_turns(seconds_of: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, np.ndarray]:
    """Subject → (rounds,) seconds that it took in each; the order turns around, and a first round warms up.

    Args:
        seconds_of: subject → seed → seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in seconds_of}
    for turn in range(-1, rounds):
        order = list(seconds_of) if turn % 2 else list(reversed(seconds_of))
        for name in order:
            taken = seconds_of[name](max(turn, 0))
            if turn >= 0:
                seconds[name].append(taken)
    return {name: np.array(taken) for name, taken in seconds.items()}


def measure(case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds per step of every method, and its ratio to cross-entropy."""
    views, teacher = bed_of(case)
    bank = teacher_bank([teacher], views)
    subjects: dict[str, tuple[str, TeacherBank | list[Teacher] | None]] = {
        "ce": ("ce", None),
        "kd": ("kd", bank),
        "dkd": ("dkd", bank),
        "dist": ("dist", bank),
        "oracle": ("oracle", bank),
        "kd_live": ("kd", [teacher]),
    }
    seconds = in_turns(
        {
            name: partial(step_seconds, case, views, method, taught, steps)
            for name, (method, taught) in subjects.items()
        },
        rounds,
    )
    ratios = {
        name: asdict(ratio_interval(seconds["ce"], taken, paired=True))
        for name, taken in seconds.items()
        if name != "ce"
    }
    return {
        "case": case.name,
        "seconds_per_step": {name: float(np.median(taken)) for name, taken in seconds.items()},
        "ratio_to_ce": ratios,
        "holds": ratios["kd"]["high"] <= CLAIM,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="paired rounds per size, at least 6")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    if given.rounds < 6 or given.steps < 1 or given.threads < 1:
        parser.error("at least 6 rounds, 1 step and 1 thread are needed")

    torch.set_num_threads(given.threads)
    results = []
    for case in CASES:
        results.append(measure(case, given.rounds, given.steps))
        print(f"{len(results)}/{len(CASES)} {case.name}", file=sys.stderr)
    holds = all(result["holds"] for result in results)
    if given.json:
        print(json.dumps({"claim": CLAIM, "holds": holds, "threads": given.threads, "cases": results}))
    else:
        for result in results:
            print(result["case"])
            for name, taken in result["seconds_per_step"].items():
                ratio = result["ratio_to_ce"].get(name)
                beside = f"{ratio['ratio']:.2f} × ce [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else ""
                print(f"  {name:8s} {format_seconds(taken):>10s}  {beside}")
        print(f"kd with the bank costs at most {CLAIM} × ce: {'yes' if holds else 'no'}")
    raise SystemExit(0 if holds else 3)


if __name__ == "__main__":
    main()
