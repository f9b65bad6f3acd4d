"""What makes no sense in a run.toml is refused before anything is measured, trained or written."""

from __future__ import annotations

from typing import Any

import pytest

from akd_deploy.configuration import configuration_from_dict
from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.pipeline.check import check_configuration


def check(**fields: Any) -> None:
    check_configuration(configuration_from_dict({"target": "cpu_onnxruntime_fp32", "budget": "1ms", **fields}, "here"))


def searching(*strategies: str, **settings: dict[str, Any]) -> dict[str, Any]:
    return {"strategies": list(strategies), "settings": settings}


def test_strategies_may_have_settings_of_their_own() -> None:
    check(search=searching("akd-ppo", "tpe", **{"akd-ppo": {"entropy": 0.02, "batch": 4}}))
    check(search=searching("random", random={}))


def test_settings_of_what_does_not_search_are_refused_with_what_is_possible() -> None:
    with pytest.raises(UnknownNameError, match=r"'akd-pop' in \[search.settings\].*Did you mean 'akd-ppo'.*tpe"):
        check(search=searching("akd-ppo", **{"akd-pop": {"entropy": 0.02}}))
    with pytest.raises(UsageError, match=r"a search by akd-ppo, tpe\. Add \"evolution\" to strategies"):
        check(search=searching("akd-ppo", "tpe", evolution={"population_size": 4}))
    with pytest.raises(UnknownNameError, match=r"'epoch' in strategy akd-ppo.*Did you mean 'epochs'.*batch"):
        check(search=searching("akd-ppo", **{"akd-ppo": {"epoch": 2}}))
    with pytest.raises(UsageError, match="setting clip of strategy akd-ppo as a positive float"):
        check(search=searching("akd-ppo", **{"akd-ppo": {"clip": -0.2}}))
