"""The tests that every engine passes: subclass `EngineContract`, give it an engine and a small model file.

    class TestTorchEngine(EngineContract):
        runtime_modules = ("torch",)

        @pytest.fixture
        def engine(self): return TorchEngine(Target("t", "cpu", "torch"))

        @pytest.fixture
        def model(self, tmp_path): return ModelCase(path=…, feeds=…, expected=…)

What needs a device that is missing here is checked to be refused with `MissingRuntimeError` instead.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from akd_deploy.engines import ENGINES, load_engine
from akd_deploy.engines.base import BuiltEngine, Engine, Session
from akd_deploy.errors import CorruptFileError, MissingFileError, MissingRuntimeError, UnknownNameError, UsageError
from akd_deploy.kernel import BYTES_PER_ELEMENT, kernel_from_signature


@dataclass(frozen=True)
class ModelCase:
    """A model file, one batch for it, and what a slow, independent implementation answers.

    `nodes` are the names that `ExecutedKernel.nodes` may use; None where the engine has its own names.
    """

    path: Path
    feeds: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]
    nodes: frozenset[str] | None = None
    tolerance: float = 1e-4


class EngineContract:
    """Subclasses provide the fixtures `engine` and `model`, and name the modules that importing must not load."""

    runtime_modules: tuple[str, ...] = ()
    model_suffix = ".onnx"

    @pytest.fixture
    def engine(self) -> Engine:
        raise NotImplementedError

    @pytest.fixture
    def model(self, tmp_path: Path) -> ModelCase:
        raise NotImplementedError

    def bound_outputs(self, session: Session) -> dict[str, np.ndarray] | None:
        """What the call made by the last `bind` has computed; None where the engine does not show it."""
        bound = getattr(session, "bound_outputs", None)
        return None if bound is None else bound()

    @pytest.fixture
    def built(self, engine: Engine, model: ModelCase, tmp_path: Path) -> BuiltEngine:
        if engine.why_not_build() is not None:
            pytest.skip(f"cannot build here: {engine.why_not_build()}")
        return engine.build(model.path, tmp_path / "built")

    @pytest.fixture
    def session(self, engine: Engine, built: BuiltEngine):
        if engine.why_not() is not None:
            pytest.skip(f"cannot run here: {engine.why_not()}")
        with engine.load(built.path) as session:
            yield session

    # --- options and identity -------------------------------------------------------------------------------

    def test_engine_is_found_by_the_name_targets_write(self, engine):
        assert engine.name in ENGINES
        assert type(load_engine(engine.target)) is type(engine)

    def test_unknown_option_is_an_error_that_lists_the_known_ones(self, engine):
        with pytest.raises(UnknownNameError) as caught:
            type(engine)(replace(engine.target, engine_options={"no_such_option": 1}))
        assert all(option in str(caught.value) for option in engine.options)

    def test_option_of_the_wrong_type_is_an_error(self, engine):
        for option, default in engine.options.items():
            wrong: object = 1 if isinstance(default, str) else "text"
            with pytest.raises(UsageError, match=option):
                type(engine)(replace(engine.target, engine_options={option: wrong}))

    def test_importing_and_constructing_load_no_runtime(self, engine):
        code = (
            "import sys; from akd_deploy.engines import load_engine; from akd_deploy.target import Target;"
            f"load_engine(Target('t', {engine.target.device!r}, {engine.name!r}, {engine.target.precision!r},"
            f"engine_options={dict(engine.target.engine_options)!r}));"
            f"print(sorted(set({self.runtime_modules!r}) & set(sys.modules)))"
        )
        assert self.runtime_modules, "name the runtime's modules"
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert answer.stdout.strip() == "[]"

    def test_version_starts_with_a_number(self, engine):
        if engine.why_not_build() is not None:
            pytest.skip(f"no runtime here: {engine.why_not_build()}")
        assert engine.version()[0].isdigit()

    def test_fingerprint_is_the_same_twice(self, engine):
        if engine.why_not() is not None:
            pytest.skip(f"cannot run here: {engine.why_not()}")
        assert engine.fingerprint() == engine.fingerprint()
        assert engine.fingerprint().facts["kind"] in ("cpu", "gpu")

    def test_what_cannot_run_here_is_refused_with_the_reason(self, engine, model):
        reason = engine.why_not()
        if reason is None:
            return
        with pytest.raises(MissingRuntimeError):
            engine.load(model.path)

    # --- build ----------------------------------------------------------------------------------------------

    def test_build_reports_exactly_the_files_it_wrote(self, engine, built, tmp_path):
        assert built.path == built.files[0]
        assert built.path.suffix == engine.suffix
        assert sorted(built.files) == sorted(p for p in (tmp_path / "built").rglob("*") if p.is_file())
        assert built.size_bytes == sum(p.stat().st_size for p in built.files)

    def test_build_reports_time_version_and_audited_precision(self, engine, built):
        assert built.seconds > 0
        assert built.engine_version == engine.version()
        assert built.precision
        assert all(dtype in BYTES_PER_ELEMENT for dtype in built.precision)
        assert all(layers > 0 for layers in built.precision.values())

    def test_build_leaves_the_model_file_alone(self, engine, model, tmp_path):
        if engine.why_not_build() is not None:
            pytest.skip(f"cannot build here: {engine.why_not_build()}")
        before = model.path.read_bytes()
        engine.build(model.path, tmp_path / "built")
        assert model.path.read_bytes() == before

    def test_missing_model_is_named(self, engine, tmp_path):
        if engine.why_not_build() is not None:
            pytest.skip(f"cannot build here: {engine.why_not_build()}")
        with pytest.raises(MissingFileError, match="nowhere"):
            engine.build(tmp_path / f"nowhere{self.model_suffix}", tmp_path / "built")

    @pytest.mark.parametrize("content", [b"", b"these bytes are no model", None], ids=["empty", "text", "truncated"])
    def test_corrupt_model_is_named(self, engine, model, tmp_path, content):
        if engine.why_not_build() is not None:
            pytest.skip(f"cannot build here: {engine.why_not_build()}")
        whole = model.path.read_bytes()
        corrupt = tmp_path / f"corrupt{self.model_suffix}"
        corrupt.write_bytes(whole[: len(whole) // 2] if content is None else content)
        with pytest.raises(CorruptFileError, match="corrupt"):
            engine.build(corrupt, tmp_path / "built")

    # --- load, run, bind ------------------------------------------------------------------------------------

    def test_missing_engine_file_is_named(self, engine, tmp_path):
        if engine.why_not() is not None:
            pytest.skip(f"cannot run here: {engine.why_not()}")
        with pytest.raises(MissingFileError, match="nowhere"):
            engine.load(tmp_path / f"nowhere{engine.suffix}")

    def test_built_files_run_from_another_place(self, engine, model, built, tmp_path):
        if engine.why_not() is not None:
            pytest.skip(f"cannot run here: {engine.why_not()}")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        for file in built.files:
            shutil.move(file, elsewhere / file.name)
        with engine.load(elsewhere / built.path.name) as session:
            _assert_close(session.run(model.feeds), model)

    def test_session_declares_inputs_and_outputs_with_the_batch_resolved(self, session, model):
        assert {s.name: (s.shape, s.dtype) for s in session.inputs} == {
            name: (array.shape, array.dtype.name) for name, array in model.feeds.items()
        }
        assert {s.name: (s.shape, s.dtype) for s in session.outputs} == {
            name: (array.shape, array.dtype.name) for name, array in model.expected.items()
        }

    def test_run_agrees_with_the_reference(self, session, model):
        _assert_close(session.run(model.feeds), model)

    def test_run_twice_gives_the_same_and_its_answers_stay(self, session, model):
        first = session.run(model.feeds)
        kept = {name: array.copy() for name, array in first.items()}
        other = {name: np.ones_like(array) for name, array in model.feeds.items()}
        session.run(other)
        again = session.run(model.feeds)
        for name in kept:
            np.testing.assert_array_equal(first[name], kept[name])
            np.testing.assert_array_equal(again[name], kept[name])

    def test_run_refuses_what_does_not_fit_the_inputs(self, session, model):
        name, array = next(iter(model.feeds.items()))
        others = {n: a for n, a in model.feeds.items() if n != name}
        with pytest.raises(UsageError, match=name):
            session.run(others)
        with pytest.raises(UnknownNameError, match="no_such_input"):
            session.run({**model.feeds, "no_such_input": array})
        with pytest.raises(UsageError, match=name):
            session.run({**others, name: array[..., :-1]})
        with pytest.raises(UsageError, match=name):
            session.run({**others, name: array.astype("float64")})

    def test_bind_refuses_what_does_not_fit_the_inputs(self, session, model):
        with pytest.raises(UsageError):
            session.bind({})

    def test_bound_call_computes_what_run_computes(self, session, model):
        expected = session.run(model.feeds)
        call = session.bind(model.feeds)
        assert call() is None
        call()
        bound = self.bound_outputs(session)
        if bound is not None:
            assert set(bound) == set(expected)
            for name, array in expected.items():
                np.testing.assert_array_equal(bound[name], array)

    def test_binding_other_feeds_gives_their_outputs(self, session, model):
        other = {name: np.ones_like(array) for name, array in model.feeds.items()}
        expected = session.run(other)
        session.bind(model.feeds)()
        session.bind(other)()
        bound = self.bound_outputs(session)
        if bound is not None:
            for name, array in expected.items():
                np.testing.assert_array_equal(bound[name], array)

    def test_closing_twice_is_harmless(self, engine, built):
        if engine.why_not() is not None:
            pytest.skip(f"cannot run here: {engine.why_not()}")
        session = engine.load(built.path)
        session.close()
        session.close()

    # --- executed kernels -----------------------------------------------------------------------------------

    def test_executed_kernels_are_the_same_twice_and_have_readable_signatures(self, engine, model):
        if engine.why_not_build() is not None:
            pytest.skip(f"cannot build here: {engine.why_not_build()}")
        kernels = engine.executed_kernels(model.path)
        assert kernels
        assert kernels == engine.executed_kernels(model.path)
        for executed in kernels:
            assert executed.name
            assert executed.kernel.outputs
            assert kernel_from_signature(executed.kernel.signature) == executed.kernel

    def test_every_kernel_covers_nodes_of_the_model_and_none_twice(self, engine, model):
        if engine.why_not_build() is not None:
            pytest.skip(f"cannot build here: {engine.why_not_build()}")
        if model.nodes is None:
            pytest.skip("the engine has its own names for nodes")
        for executed in engine.executed_kernels(model.path):
            assert set(executed.nodes) <= model.nodes
            assert len(set(executed.nodes)) == len(executed.nodes)


def _assert_close(outputs: Mapping[str, np.ndarray], model: ModelCase) -> None:
    assert set(outputs) == set(model.expected)
    for name, expected in model.expected.items():
        assert outputs[name].dtype == expected.dtype
        np.testing.assert_allclose(outputs[name], expected, rtol=model.tolerance, atol=model.tolerance)
