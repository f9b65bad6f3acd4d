"""Student search: rewards, strategies behind NNI's Tuner, the journal, the drivers."""

from __future__ import annotations

from akd_deploy.search.driver import Predict, SearchSettings, search
from akd_deploy.search.journal import Journal, open_journal, read_journal
from akd_deploy.search.result import SearchResult
from akd_deploy.search.reward import REWARD_PRESETS, RewardShape, reward_shape
from akd_deploy.search.strategies import STRATEGIES
from akd_deploy.search.trainings import ScoreFunction, Trainings
from akd_deploy.search.trial import Score, Trial

__all__ = [
    "REWARD_PRESETS",
    "STRATEGIES",
    "Journal",
    "Predict",
    "RewardShape",
    "Score",
    "ScoreFunction",
    "SearchResult",
    "SearchSettings",
    "Trainings",
    "Trial",
    "open_journal",
    "read_journal",
    "reward_shape",
    "search",
]
