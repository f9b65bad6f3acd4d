"""Settings that all tests share."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Contracts are importable everywhere, with pytest's explanations of failed asserts, before any test imports one.
_TESTS = str(Path(__file__).parent)
if _TESTS not in sys.path:
    sys.path.insert(0, _TESTS)
pytest.register_assert_rewrite("contracts.engine_contract", "contracts.strategy_contract")

# A deadline would make tests depend on how busy the machine is.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")

# A shell that runs the tests in the background starts them with Ctrl-C ignored, and every process they start inherits
# that; what is tested about interruptions is the ordinary case.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def a_users_data_directory_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests build is not recorded among what the person who runs them has built."""
    os.environ.setdefault("AKD_DEPLOY_HOME", str(tmp_path_factory.mktemp("home")))
