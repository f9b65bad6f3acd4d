"""Makes `contracts` importable here, with pytest's explanations of failed asserts."""

import sys
from pathlib import Path

import pytest

_TESTS = str(Path(__file__).parents[1])
if _TESTS not in sys.path:
    sys.path.insert(0, _TESTS)
pytest.register_assert_rewrite("contracts.strategy_contract")
