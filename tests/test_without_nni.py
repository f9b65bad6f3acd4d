"""Where NNI has no wheel, everything but the search works, and the search says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys

WITHOUT_NNI = """
import sys
sys.modules["nni"] = None
import importlib, pkgutil, akd_deploy
for module in pkgutil.walk_packages(akd_deploy.__path__, "akd_deploy."):
    needs_nni = module.name.startswith("akd_deploy.search.strategies.") or module.name.endswith(
        ("experiment.bridge", "search.nas_profiler")
    )
    if not needs_nni and module.name != "akd_deploy.__main__":
        importlib.import_module(module.name)
from akd_deploy.cli.app import run
run(["doctor", "--json"])
"""

SEARCH = """
import sys
sys.modules["nni"] = None
from pathlib import Path
import numpy as np
from akd_deploy.errors import MissingRuntimeError
from akd_deploy.search import SearchSettings, search
from akd_deploy.search_space import load_space
from akd_deploy.search.experiment import NniExperiment
def factory():
    raise AssertionError
factory.__module__ = "elsewhere"
for begin in (
    lambda: search(
        load_space("mobile"), "tpe", lambda a: (np.ones(len(a)),) * 2, lambda a, s: None, SearchSettings(1, 2.0)
    ),
    lambda: NniExperiment(load_space("mobile"), factory, {}, Path("nowhere")),
):
    try:
        begin()
    except MissingRuntimeError as error:
        print(error)
"""


def _run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_every_module_but_the_strategies_imports_and_doctor_names_what_is_missing() -> None:
    report = json.loads(_run(WITHOUT_NNI))
    assert [problem["found"] for problem in report["problems"] if problem["what"] == "nni"]


def test_a_search_says_that_nni_is_missing() -> None:
    assert _run(SEARCH).lower().count("install nni==3.0") == 2  # with the driver in this process, and with NNI's
