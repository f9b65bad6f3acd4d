"""Settings of one training."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, isfinite, pi

from akd_deploy.errors import UnknownNameError, UsageError

OPTIMISERS = ("sgd", "adamw")


@dataclass(frozen=True)
class TrainingSettings:
    """How one student (or teacher) is trained.

    `steps` batches of `batch_size` views. `optimiser` "sgd" has Nesterov `momentum`, "adamw" ignores it; weight
    decay spares biases and norms. The learning rate rises linearly over the first `warmup` share of the steps
    and falls to 0 along a half cosine. The loss is (1 − `kd_weight`) CE + `kd_weight` × the method's, at
    `temperature`; `oracle_beta` is the β of `soft_oracle_kd_loss` and of `relative_oracle_kd_loss`. `fresh_views`
    draws views outside the bank: no view is ever seen twice. Views are held in memory up to `max_bank_bytes`, and
    made batch by batch beyond that.

    The defaults were chosen once, on the digits bed's tuning split, for small convolutional students. `dkd_beta` is
    8 in the paper, which here, beside so large a learning rate, is worse than 0.5 to 2.
    """

    steps: int = 600
    batch_size: int = 32
    optimiser: str = "sgd"
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-3
    warmup: float = 0.1
    temperature: float = 4.0
    kd_weight: float = 0.9
    dkd_alpha: float = 1.0
    dkd_beta: float = 2.0
    dist_beta: float = 1.0
    dist_gamma: float = 1.0
    oracle_beta: float = 2.0
    fresh_views: bool = False
    max_bank_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise UnknownNameError("optimiser", self.optimiser, OPTIMISERS, where="the training settings")
        ranges = {
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 1,
            "learning_rate": isfinite(self.learning_rate) and self.learning_rate > 0,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "warmup": 0 <= self.warmup < 1,
            "temperature": isfinite(self.temperature) and self.temperature > 0,
            "kd_weight": 0 <= self.kd_weight <= 1,
            "oracle_beta": isfinite(self.oracle_beta) and self.oracle_beta >= 0,
        }
        for name, holds in ranges.items():
            if not holds:
                raise UsageError(
                    asked=f"training setting {name}",
                    found=f"{getattr(self, name)!r}",
                    next="Give one within its range.",
                )

    def learning_rate_at(self, step: int) -> float:
        """The rate of step `step`, 0 to `steps` − 1: linear warm-up, then half a cosine down to 0."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        return self.learning_rate * 0.5 * (1 + cos(pi * (step - warm) / (self.steps - warm)))


PROXY_SETTINGS = TrainingSettings(steps=240)
"""The short training that scores a candidate during a search."""
