"""Distillation: trains one student with a teacher, outputs cached for a bank of views."""

from __future__ import annotations

from akd_deploy.distill.bank import TeacherBank, teacher_bank
from akd_deploy.distill.ensemble import EnsembleStatistics, ensemble_statistics, train_member
from akd_deploy.distill.evaluation import Agreement, Evaluation, agreement, evaluate, evaluate_logits, logits_of
from akd_deploy.distill.methods import METHODS, Method
from akd_deploy.distill.settings import PROXY_SETTINGS, TrainingSettings
from akd_deploy.distill.teachers import TEACHER_SETTINGS, train_teacher
from akd_deploy.distill.trainer import TrainingResult, train

__all__ = [
    "METHODS",
    "PROXY_SETTINGS",
    "TEACHER_SETTINGS",
    "Agreement",
    "EnsembleStatistics",
    "Evaluation",
    "Method",
    "TeacherBank",
    "TrainingResult",
    "TrainingSettings",
    "agreement",
    "ensemble_statistics",
    "evaluate",
    "evaluate_logits",
    "logits_of",
    "teacher_bank",
    "train",
    "train_member",
    "train_teacher",
]
