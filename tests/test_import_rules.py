"""Who may import whom: the rows of the design, read off every module's source, imports inside functions included."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "akd_deploy"
MODULES = sorted(PACKAGE.rglob("*.py"))

ROWS = [
    {"errors", ""},  # "": the package itself, which everything may ask for its version
    {
        "target",
        "kernel",
        "architecture",
        "measurement",
        "binomial",
        "bounds",
        "comparison",
        "rank_distributions",
        "paired_accuracy",
        "certificate",
        "storage",
        "device",
        "interruption",
        "units",
    },
    {"search_space", "latency_table"},
    {"engines", "fusion", "models", "losses", "data"},
    {"profiling", "predictor", "distill", "search", "export", "report"},
    {"configuration", "recipes", "pipeline", "cli", "__main__"},
]
STAGES = ROWS[4]
WITHIN_A_ROW = {
    ("measurement", "bounds"),
    ("bounds", "binomial"),
    ("certificate", "bounds"),
    ("certificate", "binomial"),
    ("paired_accuracy", "binomial"),
    ("comparison", "rank_distributions"),
    ("certificate", "comparison"),  # whose names it goes on giving
    ("fusion", "engines"),  # kernels are named, ordered and attributed as the engine that they stand for does it
    ("recipes", "configuration"),
    ("pipeline", "configuration"),
    ("pipeline", "recipes"),
    ("cli", "configuration"),
    ("cli", "recipes"),
    ("cli", "pipeline"),
    ("__main__", "cli"),
}
"""(importer, imported): the one order there is inside a row."""

NOUNS_MAY_IMPORT = {"numpy"}
NOUNS_MAY_IMPORT_INSIDE_FUNCTIONS = {"numpy", "platformdirs", "psutil"}
PRINTING = {"cli", "__main__"}
RUNTIMES = {"torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "nni"}

IMPORT_LIMIT_S = 0.3
ATTEMPTS = 7
"""Fresh processes of which the fastest counts: a busy machine slows some of them down, never all for the better."""


def unit_of(module: str) -> str:
    """`akd_deploy.search.driver` → `search`; the package itself is ""."""
    return [*module.split("."), ""][1]


def unit_of_file(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


@cache
def nodes_of(source: str) -> list[tuple[ast.AST, bool]]:
    """(node, inside a function) of everything in a module's source."""
    found: list[tuple[ast.AST, bool]] = []
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(source), False)]
    while waiting:
        node, inside = waiting.pop()
        found.append((node, inside))
        within = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        waiting += [(child, within) for child in ast.iter_child_nodes(node)]
    return found


@cache
def imports_of(source: str) -> list[tuple[str, int, bool]]:
    """(module, line, inside a function) of every import, and of every text that names one of our modules."""
    return list(_imports_of(source))


def _imports_of(source: str) -> Iterator[tuple[str, int, bool]]:
    for node, inside in nodes_of(source):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full"
            assert node.module is not None
            # `from akd_deploy import cli` imports akd_deploy.cli
            names = [f"akd_deploy.{a.name}" for a in node.names] if node.module == "akd_deploy" else [node.module]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if re.fullmatch(r"akd_deploy(\.[a-z_0-9]+)+", node.value) else []
        for name in names:
            yield name, getattr(node, "lineno", 0), inside


def row_of(unit: str) -> int:
    (row,) = [i for i, units in enumerate(ROWS) if unit in units]
    return row


def against_the_rows(unit: str, source: str) -> list[str]:
    """One line for each import that is not of a row above."""
    found = []
    for module, line, _ in imports_of(source):
        other = unit_of(module)
        if module.split(".")[0] != "akd_deploy" or other == unit or (unit, other) in WITHIN_A_ROW:
            continue
        if other not in set().union(*ROWS) or row_of(other) >= row_of(unit):
            found.append(f"line {line}: {unit} (row {row_of(unit)}) imports {module}")
    return found


def against_the_nouns(source: str) -> list[str]:
    """One line for each third-party import that a noun may not have."""
    found = []
    for module, line, inside in imports_of(source):
        top = module.split(".")[0]
        allowed = NOUNS_MAY_IMPORT_INSIDE_FUNCTIONS if inside else NOUNS_MAY_IMPORT
        if top != "akd_deploy" and top not in sys.stdlib_module_names and top not in allowed:
            found.append(f"line {line}: {module}")
    return found


def prints(source: str) -> list[str]:
    """One line for each way to print: `print`, `sys.stdout`, rich and typer."""
    found = [f"line {line}: {m}" for m, line, _ in imports_of(source) if m.split(".")[0] in {"rich", "typer", "click"}]
    for node, _ in nodes_of(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"line {node.lineno}: print()")
        is_stdout = isinstance(node, ast.Attribute) and node.attr in {"stdout", "__stdout__"}
        if is_stdout and ast.unparse(node) in {"sys.stdout", "sys.__stdout__"}:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def breaches(paths: Iterable[Path], rule: Callable[[str, str], list[str]]) -> dict[str, list[str]]:
    """Module → what its source, given after its unit, breaks of a rule; modules that break nothing are left out."""
    found = {name_of(path): rule(unit_of_file(path), path.read_text(encoding="utf-8")) for path in paths}
    return {name: lines for name, lines in found.items() if lines}


def test_modules_import_only_rows_above_them():
    assert breaches([path for path in MODULES if unit_of_file(path)], against_the_rows) == {}


def test_stages_never_import_each_other():
    def of_others(unit: str, source: str) -> list[str]:
        modules = [module for module, _, _ in imports_of(source) if module.startswith("akd_deploy")]
        return [module for module in modules if unit_of(module) in STAGES - {unit}]

    assert breaches([path for path in MODULES if unit_of_file(path) in STAGES], of_others) == {}


def test_nouns_import_the_standard_library_and_numpy_alone():
    nouns = [PACKAGE / f"{name}.py" for name in ROWS[1] | {"errors"}]
    assert breaches(nouns, lambda _, source: against_the_nouns(source)) == {}


def test_only_the_command_line_prints():
    quiet = [path for path in MODULES if unit_of_file(path) not in PRINTING]
    assert breaches(quiet, lambda _, source: prints(source)) == {}


def test_whatever_module_breaks_a_rule_is_named():
    assert set(breaches(MODULES, lambda unit, _: [unit] if unit == "search" else [])) == {
        name_of(path) for path in MODULES if path.is_relative_to(PACKAGE / "search")
    }


def test_every_module_has_a_row():
    assert {unit_of_file(path) for path in MODULES} <= set().union(*ROWS)


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("search", "def f():\n    from akd_deploy.distill.trainer import train"),
        ("search", "import akd_deploy.predictor.predictor as p"),
        ("search", "from akd_deploy import export"),
        ("target", "from akd_deploy.latency_table import read_table"),
        ("models", "if True:\n    from akd_deploy.engines import load_engine"),
        ("engines", "import_module('akd_deploy.profiling.worker')"),
        ("pipeline", "from akd_deploy.cli.app import app"),
        ("configuration", "from akd_deploy.pipeline.run import run_pipeline"),
        ("kernel", "from akd_deploy.nowhere import x"),
    ],
)
def test_a_forbidden_import_is_seen_wherever_it_stands(unit, source):
    assert len(against_the_rows(unit, source)) == 1


def test_an_import_of_a_row_above_is_allowed():
    source = (
        "from akd_deploy.errors import AkdError\nfrom akd_deploy.search_space import base\nimport akd_deploy, torch"
    )
    assert against_the_rows("search", source) == []
    assert against_the_rows("measurement", "from akd_deploy.bounds import samples_needed") == []
    assert len(against_the_rows("bounds", "from akd_deploy.measurement import Measurement")) == 1


def test_a_forbidden_third_party_and_a_print_are_seen():
    assert against_the_nouns("import numpy as np\nimport json\ndef f():\n    import psutil") == []
    assert len(against_the_nouns("import psutil")) == 1
    assert len(against_the_nouns("def f():\n    import pyarrow.parquet")) == 1
    assert len(prints("def f():\n    print(1)\n    sys.stdout.write('')\n    from rich.console import Console")) == 3


def in_a_fresh_process(code: str) -> dict:
    """What `code` puts into `answer`, run by a new interpreter without coverage measuring it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    program = f"import json, sys, time\n{code}\nsys.stdout.write(json.dumps(answer))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["akd_deploy", "akd_deploy.cli.app", "akd_deploy.engines", "akd_deploy.__main__"])
def test_importing_loads_no_torch_and_no_runtime(module):
    loaded = in_a_fresh_process(f"import {module}\nanswer = sorted(sys.modules)")
    assert module in loaded
    assert RUNTIMES & set(loaded) == set()


def test_every_engine_module_is_imported_without_its_runtime():
    code = (
        "import importlib\nfrom akd_deploy.engines import ENGINES\n"
        "for module, _ in ENGINES.values():\n    importlib.import_module(module)\n"
        "answer = sorted(sys.modules)"
    )
    assert RUNTIMES & set(in_a_fresh_process(code)) == set()


def test_importing_the_package_takes_less_than_300_milliseconds():
    code = "begin = time.perf_counter()\nimport akd_deploy\nanswer = time.perf_counter() - begin"
    seconds = []
    for _ in range(ATTEMPTS):
        seconds.append(in_a_fresh_process(code))
        if seconds[-1] < IMPORT_LIMIT_S:
            return
    pytest.fail(f"the fastest of {ATTEMPTS} fresh processes took {min(seconds):.2f} s")
