"""A workshop with a small measured latency table, and a finished run in it: the demo's smaller twin, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import TARGET, Answer, call, written

SPACE = """
[space.settings]
widths = [8, 16]
strides = [1, 2]
layers = [[1], [1, 2]]
operators = ["conv", "dw_separable"]
kernels = [3]
"""

# The budget is a duration, not a share of the teacher's measured latency: searches of one seed are then equal.
RUN = """
name = "twin"
target = "{target}"
budget = "{budget}"

[data.settings]
labelled = 100
teacher_images = 300
corruptions = 1
views = 4
{space}
[profile]
probes = 40
networks = 12
blocks = 2

[search]
strategies = ["constrained_evolution", "tpe"]
trials = 2

[search.training]
steps = {steps}
learning_rate = {learning_rate}

[teacher.training]
steps = 20

[distill]
seeds = 2

[distill.training]
steps = 40

[certificate]
blocks = 10
samples_per_block = 30
"""


@dataclass(frozen=True)
class Workshop:
    """A working directory with a latency table in it; what a test writes, it writes elsewhere."""

    folder: Path
    table: Path
    profiled: Answer
    feasible: Answer
    budget: str

    def call(self, *arguments: object) -> Answer:
        """A command in this working directory."""
        return call(self.folder, *arguments)

    def run_toml(self, path: Path, extra: str = "", **changes: object) -> Path:
        """A small run's configuration with other values, and tables appended."""
        fields = {"target": TARGET, "budget": self.budget, "space": SPACE, "steps": 30, "learning_rate": 0.2, **changes}
        return written(path, RUN.format(**fields) + extra)

    @property
    def config(self) -> Path:
        """The twin's own."""
        return self.folder / "run.toml"


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The table is measured here and now, small and therefore rough; nothing asserts how good it is."""
    folder = tmp_path_factory.mktemp("workshop")
    space = written(folder / "space.toml", f'target = "{TARGET}"\nbudget = "1ms"\n{SPACE}')
    size = ("--probes", 40, "--networks", 12, "--blocks", 2)
    profiled = call(folder, "profile", "--target", TARGET, "--space", space, *size, "--json")
    assert profiled.code == 0, profiled
    feasible = call(folder, "feasible", "--target", TARGET, "--space", space, "--json")
    assert feasible.code == 0, feasible
    # Room enough that even a disturbed machine usually keeps it.
    budget = f"{feasible.data['median_s'] * 20e9:.0f}ns"
    made = Workshop(folder, Path(profiled.data["table"]), profiled, feasible, budget)
    made.run_toml(made.config)
    return made


@dataclass(frozen=True)
class Twin:
    """A finished run."""

    workshop: Workshop
    directory: Path
    answer: Answer

    @property
    def onnx(self) -> Path:
        return self.directory / "engines" / "student.onnx"

    @property
    def student(self) -> Path:
        return next(iter(sorted((self.directory / "students").glob("kd-*.safetensors"))))


@pytest.fixture(scope="session")
def twin(workshop: Workshop) -> Twin:
    """Made once; tests read it, or change a copy."""
    answer = workshop.call("run", "--config", "run.toml", "--json")
    assert answer.code in (0, 3), answer
    return Twin(workshop, workshop.folder / "runs" / "twin", answer)


@pytest.fixture
def architecture_file(twin: Twin, tmp_path: Path) -> Path:
    """The winner's architecture as a file."""
    import json

    return written(tmp_path / "arch.json", json.dumps(twin.answer.data["winner"]["arch"]))


@pytest.fixture
def refused(workshop: Workshop) -> Callable[..., dict]:
    """Run a command that must be refused with this code; returns its error object."""

    def check(code: int, *arguments: object) -> dict:
        answer = workshop.call(*arguments, "--json")
        assert answer.code == code, answer
        return answer.error

    return check


@pytest.hookimpl(tryfirst=True)  # before the plugin that reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process of a parallel run takes all of these: it makes the workshop and the twin once."""
    here = str(Path(__file__).parent)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.xdist_group("cli"))
