"""What an engine executes for many stretches at once is what it executes for each of them."""

import numpy as np
import onnx
import pytest

from akd_deploy.engines import load_engine
from akd_deploy.errors import MismatchError, MissingFileError, UnknownNameError
from akd_deploy.latency_table import LatencyTable, TableHeader, write_table
from akd_deploy.models.onnx_from_student import onnx_from_layers
from akd_deploy.pipeline.kernels import KernelReader
from akd_deploy.pipeline.latency import chain_kernels, target_latency, write_model
from akd_deploy.pipeline.spaces import named_space
from akd_deploy.search_space import load_space
from akd_deploy.target import Target

SPACE = load_space("mobile", {"widths": [8, 16], "strides": [1, 2], "layers": [[1], [2]]})
TARGET = Target("t", "cpu", "onnxruntime")


def test_kernels_of_many_chains_are_those_of_each_alone(tmp_path, monkeypatch):
    # Two chains to a model, so that five of them take three models.
    monkeypatch.setattr("akd_deploy.pipeline.latency.CHAINS_PER_MODEL", 2)
    engine, rng = load_engine(TARGET), np.random.default_rng(0)
    chains = [SPACE.layers(SPACE.sample(rng))[1:3] for _ in range(5)]
    together = chain_kernels(KernelReader(engine, engine.fingerprint(), engine.version()))(chains)
    for i, chain in enumerate(chains):
        path = tmp_path / f"{i}.onnx"
        onnx.save_model(onnx_from_layers(chain, rng, TARGET.batch), path)
        alone = engine.executed_kernels(path)
        assert [e.kernel for e in together[i]] == [e.kernel for e in alone]
        # The last node of a model is named after its output; the first of a kernel tells its layer.
        for mine, own in zip(together[i], alone, strict=True):
            if "logits" not in own.nodes[0]:
                assert mine.nodes[0] == own.nodes[0]


def test_a_model_written_twice_is_the_same_file(tmp_path):
    architecture = SPACE.sample(np.random.default_rng(1))
    first = write_model(TARGET, architecture, tmp_path)
    content = first.read_bytes()
    assert first.name == f"{architecture.digest}.onnx"
    assert write_model(TARGET, architecture, tmp_path).read_bytes() == content


def test_a_space_is_named_or_taken_from_a_run_toml(tmp_path):
    assert named_space("mobile").settings == load_space("mobile").settings
    config = tmp_path / "run.toml"
    config.write_text('target = "t"\nbudget = "1ms"\n[space.settings]\nkernels = [3]\n', encoding="utf-8")
    assert named_space(str(config)).settings["kernels"] == [3]
    with pytest.raises(MissingFileError, match=r"gone\.toml"):
        named_space(str(tmp_path / "gone.toml"))
    with pytest.raises(UnknownNameError, match="mobile"):
        named_space("mobil")


def test_a_table_of_another_engine_version_or_target_is_refused(tmp_path):
    engine = load_engine(TARGET)
    header = TableHeader(TARGET, engine.fingerprint(), "0.0.1", {"seconds": 0.01}, "2026-01-01T00:00:00+00:00")
    write_table(LatencyTable(header, ()), tmp_path)
    with pytest.raises(MismatchError, match=r"0\.0\.1") as caught:
        target_latency(TARGET, tmp_path)
    assert engine.version() in str(caught.value)
    with pytest.raises(MismatchError, match="Profile this target"):
        target_latency(Target("t", "cpu", "onnxruntime", precision="int8"), tmp_path)
