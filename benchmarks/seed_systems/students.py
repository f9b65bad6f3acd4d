"""Beds of a study and the training of one student on one: what processes of a ledger do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from akd_deploy.architecture import Architecture, architecture_from_dict
from akd_deploy.data import Dataset, ViewBank, load_dataset
from akd_deploy.distill import (
    TeacherBank,
    TrainingResult,
    TrainingSettings,
    evaluate_logits,
    logits_of,
    teacher_bank,
    train,
    train_member,
)
from akd_deploy.models.convnet import load_convnet, save_convnet
from akd_deploy.models.mixer import MixerSettings, mixer
from akd_deploy.models.student import Student, load_student, save_student, student_from_architecture
from akd_deploy.models.teacher import Teacher, teacher_from_module
from akd_deploy.models.weights import read_weights
from akd_deploy.storage import write_atomically
from benchmarks.seed_systems.ledger import key_of
from benchmarks.seed_systems.residual_network import residual_network

VIEW_SEED = 0
OWN_KIND = 10_000
"""First seed of teachers that are students themselves."""


@lru_cache(maxsize=4)
def _dataset(settings: str) -> Dataset:
    return load_dataset("glyphs", json.loads(settings))


def dataset_of(settings: Mapping[str, Any]) -> Dataset:
    """Glyphs with these settings."""
    return _dataset(json.dumps(settings, sort_keys=True))


@lru_cache(maxsize=2)
def _views(settings: str) -> ViewBank:
    dataset = _dataset(settings)
    return ViewBank(dataset.train, dataset.views, VIEW_SEED)


def views_of(settings: Mapping[str, Any]) -> ViewBank:
    """The student's views, the same in every process, and made once in each: that takes as long as a hundred steps."""
    return _views(json.dumps(settings, sort_keys=True))


def teacher_job(
    folder: Path,
    data: Mapping[str, Any],
    kind: str,
    training: Mapping[str, Any],
    member: int = 0,
    members: int = 1,
    skew: float = 0.0,
) -> dict[str, Any]:
    """What `train_teacher` is told."""
    return {
        "folder": str(folder), "data": dict(data), "kind": kind, "seed": 0, "member": member, "members": members,
        "skew": skew, "training": dict(training),
    }  # fmt: skip


def own_kind_job(
    folder: Path, data: Mapping[str, Any], architecture: Architecture, training: Mapping[str, Any], member: int
) -> dict[str, Any]:
    """The same of a teacher that is such a student itself, taught by the labels of the student's images."""
    return {
        "folder": str(folder), "data": dict(data), "kind": "student", "arch": architecture.as_dict(),
        "member": member, "training": dict(training),
    }  # fmt: skip


def train_teacher(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train one teacher and keep its weights in the job's `folder`.

    `kind` is "convnet", "mixer", "resnet", or "student" of a job by `own_kind_job`.
    """
    teacher, dataset = load_teacher(job), dataset_of(job["data"])
    return {
        split: evaluate_logits(teacher.logits(torch.tensor(images.images)), images.labels).accuracy
        for split, images in (("tuning", dataset.tuning_val), ("test", dataset.test))
    }


def _fresh(kind: str, dataset: Dataset, seed: int) -> nn.Module:
    """A network of a kind with fresh weights, for the dataset's images."""
    channels, side, _ = dataset.input_shape
    if kind == "mixer":
        settings = MixerSettings(in_channels=channels, classes=dataset.classes, resolution=side)
        return mixer(settings, torch.Generator().manual_seed(seed))
    return residual_network(dataset.classes, seed)


def save_trained(network: nn.Module, dataset: Dataset, seed: int, settings: TrainingSettings, path: Path) -> None:
    """Train a network on the teacher's images by their labels and write its weights."""
    from safetensors.torch import save

    views = ViewBank(dataset.teacher_train, dataset.views, seed)
    train(network, views, settings, torch.Generator().manual_seed(seed), method="ce")
    write_atomically(path, save({name: t.contiguous() for name, t in network.state_dict().items()}))


def teacher_path(job: Mapping[str, Any]) -> Path:
    """Where a teacher's weights are; another file for whatever they depend on."""
    return Path(job["folder"]) / f"{job['kind']}-{key_of(job)}.safetensors"


def load_teacher(job: Mapping[str, Any]) -> Teacher:
    """The teacher of `train_teacher`; trained here if its weights are not there, as where the ledger is another's."""
    path, dataset = teacher_path(job), dataset_of(job["data"])
    if job["kind"] == "student":
        return _of_own_kind(job, path, dataset)
    if not path.is_file():
        settings = TrainingSettings(**job["training"])
        if job["kind"] == "convnet":
            save_convnet(train_member(dataset, job["member"], job["members"], job["seed"], job["skew"], settings), path)
        else:
            save_trained(_fresh(job["kind"], dataset, job["seed"]), dataset, job["seed"], settings, path)
    if job["kind"] == "convnet":
        network: nn.Module = load_convnet(path)
    else:
        network = _fresh(job["kind"], dataset, 0)
        network.load_state_dict(read_weights(path))
    return teacher_from_module(network, dataset.input_shape, dataset.classes, f"{job['kind']} {job['seed']}")


def _of_own_kind(job: Mapping[str, Any], path: Path, dataset: Dataset) -> Teacher:
    architecture, seed = architecture_from_dict(job["arch"], "a job"), OWN_KIND + job["member"]
    if not path.is_file():
        training = {"data": job["data"], "teachers": [], "method": "ce", "seed": seed, "training": job["training"]}
        save_student(trained_student({**training, "arch": job["arch"]})[0], path)
    student = load_student(path)
    return teacher_from_module(student, dataset.input_shape, dataset.classes, f"{architecture.digest} {seed}")


@lru_cache(maxsize=4)
def _bank(data: str, teachers: str) -> TeacherBank:
    jobs = json.loads(teachers)
    folder = Path(jobs[0]["folder"]) / "logits"
    return teacher_bank([load_teacher(job) for job in jobs], views_of(json.loads(data)), cache_dir=folder)


def bank_of(data: Mapping[str, Any], teachers: list[Mapping[str, Any]]) -> TeacherBank | None:
    """The teachers' logits of the student's views; None without a teacher."""
    if not teachers:
        return None
    return _bank(json.dumps(data, sort_keys=True), json.dumps(teachers, sort_keys=True))


def trained_student(job: Mapping[str, Any]) -> tuple[Student, TrainingResult]:
    """The student of a job that names `data`, `teachers` (jobs of `train_teacher`), `arch`, `method`, `seed` and
    `training`."""
    settings = TrainingSettings(**job["training"])
    student = student_from_architecture(architecture_from_dict(job["arch"], "a job"), job["seed"])
    bank = bank_of(job["data"], job["teachers"])
    generator = torch.Generator().manual_seed(job["seed"])
    return student, train(student, views_of(job["data"]), settings, generator, method=job["method"], teacher=bank)


def train_student(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train one student and score it: `reward` and `tuning` for choices, `test` for the report.

    With `predictions` in the job the test split's predicted classes are kept too.
    """
    student, result = trained_student(job)
    scores = scored(student, dataset_of(job["data"]), bool(job.get("predictions")))
    return {**scores, "training_s": result.seconds, "last_loss": float(np.mean(result.losses[-10:]))}


def scored(student: nn.Module, dataset: Dataset, predictions: bool = False) -> dict[str, Any]:
    """Accuracies by the names of `SCORED`, and the test split's predicted classes where they are asked for."""
    logits = {name: logits_of(student, getattr(dataset, split).images) for name, split in SCORED.items()}
    scores: dict[str, Any] = {
        name: evaluate_logits(logits[name], getattr(dataset, split).labels).accuracy for name, split in SCORED.items()
    }
    if predictions:
        scores["predicted"] = logits["test"].argmax(dim=1).tolist()
    return scores


SCORED = {"reward": "reward_val", "tuning": "tuning_val", "test": "test"}
"""A score's name → the split it is measured on."""
