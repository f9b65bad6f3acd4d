"""Distillation losses: pure functions on tensors."""

from __future__ import annotations

from akd_deploy.losses.dist import dist_loss, pearson_correlation
from akd_deploy.losses.dkd import dkd_loss, non_target_class_kd, target_class_kd
from akd_deploy.losses.hcl import hcl_loss
from akd_deploy.losses.kd import kd_loss, majority_vote_kd_loss, mean_kd_loss, mean_logit_kd_loss
from akd_deploy.losses.maps import mse_loss
from akd_deploy.losses.oracle import (
    correct_teachers,
    oracle_kd_loss,
    relative_oracle_kd_loss,
    soft_oracle_kd_loss,
)

__all__ = [
    "correct_teachers",
    "dist_loss",
    "dkd_loss",
    "hcl_loss",
    "kd_loss",
    "majority_vote_kd_loss",
    "mean_kd_loss",
    "mean_logit_kd_loss",
    "mse_loss",
    "non_target_class_kd",
    "oracle_kd_loss",
    "pearson_correlation",
    "relative_oracle_kd_loss",
    "soft_oracle_kd_loss",
    "target_class_kd",
]
