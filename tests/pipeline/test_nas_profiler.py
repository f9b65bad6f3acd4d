"""Our predictions behind NNI's `Profiler`: for model spaces that nobody here wrote."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from torch import nn

from akd_deploy.engines import load_engine
from akd_deploy.errors import UsageError
from akd_deploy.pipeline.nas_profiler import latency_profiler
from akd_deploy.predictor.features import macs
from akd_deploy.target import Target

nni = pytest.importorskip("nni")
nni.set_default_framework("none")  # it wants Lightning otherwise
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # NNI of 2023 about torch of today
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace

    from akd_deploy.search.nas_profiler import within_latency


class Space(ModelSpace):
    """Three choices of two or three layers each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*(
            LayerChoice({"conv": nn.Conv2d(16, 16, 3, padding=1), "wide": nn.Conv2d(16, 16, 5, padding=2),
                         "none": nn.Identity()}, label=f"block{i}")
            for i in range(3)
        ))  # fmt: skip
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Counting:
    """Stands for a target's table: a network takes a nanosecond a multiply-accumulate, and 10 % more at its upper
    end."""

    def __init__(self, engine: str = "onnxruntime") -> None:
        self.target = Target("t", "cpu", engine, batch=2)
        self.paths: list[Path] = []

    def predict_model(self, path: Path, *, remember: bool) -> SimpleNamespace:
        assert not remember
        self.paths.append(path)
        model = onnx.load(path)
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
        engine = load_engine(Target("t", "cpu", "onnxruntime", batch=2))
        seconds = 1e-9 * sum(macs(executed.kernel) for executed in engine.executed_kernels(path))
        return SimpleNamespace(latency_s=seconds, upper_s=1.1 * seconds)


def samples(space: ModelSpace, n: int) -> list[dict]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        sample: dict = {}
        space.random(sample, random_state=np.random.RandomState(int(rng.integers(2**31))))
        found.append(sample)
    return found


def test_a_sample_costs_what_the_network_that_it_stands_for_does() -> None:
    counting, space = Counting(), Space()
    profiler = latency_profiler(space, counting, (3, 8, 8))  # type: ignore[arg-type]
    position = 2 * 8 * 8
    for sample in samples(space, 6):
        layers = [{"conv": 16 * 16 * 9, "wide": 16 * 16 * 25, "none": 0}[sample[f"block{i}"]] for i in range(3)]
        expected = 1e-9 * (position * (16 * 3 * 9 + sum(layers)) + 2 * 160)
        # Pools and means are counted as reading what they read.
        assert profiler.profile(sample) == pytest.approx(expected, rel=0.02)


def test_a_sample_asked_for_again_is_not_exported_again_and_nothing_is_left_on_the_disk() -> None:
    counting, space = Counting(), Space()
    lower, upper = (latency_profiler(space, counting, (3, 8, 8), upper=u) for u in (False, True))  # type: ignore[arg-type]
    sample = samples(space, 1)[0]
    first = lower.profile(sample)
    assert lower.profile(dict(sample)) == first
    assert len(counting.paths) == 1
    assert upper.profile(sample) == pytest.approx(1.1 * first)
    assert not any(path.exists() for path in counting.paths)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # NNI leaves its log open
def test_nnis_own_strategies_search_under_the_limit(tmp_path: Path) -> None:
    logging.getLogger("nni").setLevel(logging.CRITICAL)
    from nni.nas.evaluator import FunctionalEvaluator
    from nni.nas.experiment import NasExperiment
    from nni.nas.experiment.config import NasExperimentConfig
    from nni.nas.strategy import Random
    from nni.nas.strategy.middleware import Chain, Filter

    space, counting = Space(), Counting()
    profiler = latency_profiler(space, counting, (3, 8, 8))  # type: ignore[arg-type]
    every = sorted(profiler.profile(sample) for sample in samples(space, 30))
    budget_s, seen = every[10], []

    def accuracy(model) -> None:
        import nni

        seen.append(profiler.profile(model.sample) if hasattr(model, "sample") else None)
        nni.report_final_result(0.5)

    evaluator = FunctionalEvaluator(accuracy)
    strategy = Chain(Random(dedup=False), Filter(within_latency(profiler, budget_s)))
    config = NasExperimentConfig(
        "sequential", "simplified", "local", max_trial_number=8, experiment_working_directory=tmp_path
    )
    experiment = NasExperiment(space, evaluator, strategy, config=config)
    experiment.run()
    models = experiment.export_top_models(8, formatter="dict")
    experiment.stop()
    assert len(models) == 8
    assert all(profiler.profile(sample) <= budget_s for sample in models)


@pytest.mark.parametrize("budget_s", [0, -1.0, float("nan")])
def test_a_limit_is_a_positive_number(budget_s: float) -> None:
    with pytest.raises(UsageError, match="budget"):
        within_latency(latency_profiler(Space(), Counting(), (3, 8, 8)), budget_s)  # type: ignore[arg-type]


def test_targets_that_read_no_onnx_are_refused() -> None:
    with pytest.raises(UsageError, match="torch"):
        latency_profiler(Space(), Counting("torch"), (3, 8, 8))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_space_of_nnis_hub_is_exported_and_its_every_kernel_read() -> None:
    from benchmarks.networks.nni_hub import hub_module

    space, counting = hub_module("mobilenetv3").MobileNetV3Space(), Counting()
    profiler = latency_profiler(space, counting, (3, 224, 224))  # type: ignore[arg-type]
    found = [profiler.profile(sample) for sample in samples(space, 2)]
    assert all(1e-9 * 2 * 1e8 < seconds < 1e-9 * 2 * 2e9 for seconds in found)
    assert found[0] != found[1]
