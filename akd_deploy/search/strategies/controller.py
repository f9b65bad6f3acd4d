"""AKD's controller: an LSTM that writes an encoding token by token, and how it learns from rewards.

The network of Zoph & Le 2017 (arXiv:1611.01578, section 3.1): every token is drawn from a softmax over its choice's
options, and is the next step's input. It is trained by REINFORCE (Williams 1992) or by PPO's clipped objective
(Schulman et al. 2017, arXiv:1707.06347, equation 7), both with an entropy bonus and a moving-average baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

INITIAL_RANGE = 0.1
"""Weights begin uniform in ± this much, so that every option is about equally likely."""
LEAST_DEVIATION = 1e-6
"""Rewards that differ by less than this do not tell candidates apart."""


class Controller(nn.Module):
    """A distribution over rows of tokens, `sizes[i]` options for the i-th."""

    def __init__(self, sizes: Sequence[int], hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]) + 1  # 0 stands before the first token
        self._offsets = torch.tensor(offsets[: len(self.sizes)], dtype=torch.long)
        self.embedding = nn.Embedding(1 + sum(sizes), hidden)
        self.cell = nn.LSTMCell(hidden, hidden)
        self.heads = nn.ModuleList(nn.Linear(hidden, size) for size in sizes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -INITIAL_RANGE, INITIAL_RANGE, generator=generator)

    @torch.no_grad()
    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, choices) tokens drawn from the distribution."""
        state, step = None, torch.zeros(count, dtype=torch.long)
        tokens = np.zeros((count, len(self.sizes)), np.int64)
        for i, head in enumerate(self.heads):
            state = self.cell(self.embedding(step), state)
            chances = torch.softmax(head(state[0]).double(), -1).numpy().cumsum(1)
            tokens[:, i] = (rng.random((count, 1)) * chances[:, -1:] > chances).sum(1)
            step = self._offsets[i] + torch.from_numpy(tokens[:, i])
        return tokens

    def log_distributions(self, tokens: Tensor) -> list[Tensor]:
        """(n, choices) tokens → for each choice (n, options) logarithms of the chances that it was drawn by."""
        state, step = None, torch.zeros(len(tokens), dtype=torch.long)
        found = []
        for i, head in enumerate(self.heads):
            state = self.cell(self.embedding(step), state)
            found.append(torch.log_softmax(head(state[0]), -1))
            step = self._offsets[i] + tokens[:, i]
        return found

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, choices) tokens → (n, choices) logarithms of their probabilities given those before them, and the (n,
        choices) entropies of what each was drawn from, in nats."""
        found = self.log_distributions(tokens)
        log_probabilities = [log_p.gather(1, tokens[:, i : i + 1])[:, 0] for i, log_p in enumerate(found)]
        entropies = [-(log_p.exp() * log_p).sum(-1) for log_p in found]
        return torch.stack(log_probabilities, 1), torch.stack(entropies, 1)


def reinforce_loss(log_probabilities: Tensor, advantages: Tensor) -> Tensor:
    """−E[A log π(candidate)], whose gradient is REINFORCE's estimate; (n, choices) and (n,) → a number."""
    return -(log_probabilities.sum(1) * advantages).mean()


def ppo_loss(log_probabilities: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's clipped surrogate, negated: every token is an action, and its candidate's advantage is the token's.

    Args:
        log_probabilities: (n, choices), of the tokens now.
        old: (n, choices), of the same tokens when they were drawn; no gradient.
        advantages: (n,).
        clip: a probability may move by this share before it stops to count.
    """
    ratio = (log_probabilities - old).exp()
    gain = advantages[:, None]
    return -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).sum(1).mean()


def skip_loss(log_distributions: Sequence[Tensor], target: float) -> Tensor:
    """How far binary choices are from being taken with chance `target`: KL(policy || target) in nats, summed over the
    choices and averaged over the candidates (ENAS, Pham et al. 2018, arXiv:1802.03268, as released).

    Args:
        log_distributions: (n, 2) for each choice, the second option being the one taken.
        target: above 0 and below 1.
    """
    wanted = torch.tensor([1 - target, target]).log()
    divergences = [(log_p.exp() * (log_p - wanted)).sum(-1).mean() for log_p in log_distributions]
    return torch.stack(divergences).sum() if divergences else torch.zeros(())


@dataclass
class Baseline:
    """An exponential moving average of batches' mean rewards; the first batch's own mean to begin with."""

    decay: float
    value: float | None = None

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """(n,) how much better each reward is than what was usual before, in standard deviations of the batch; the
        batch then becomes part of what is usual. Zeros where all rewards are equal and as usual."""
        mean = float(rewards.mean())
        usual = mean if self.value is None else self.value
        self.value = self.decay * usual + (1 - self.decay) * mean
        deviation = float(np.sqrt(np.mean((rewards - usual) ** 2)))
        return (rewards - usual) / max(deviation, LEAST_DEVIATION)
