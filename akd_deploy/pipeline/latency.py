"""Latency of a target: its table, its predictor, and predictions of networks, architectures and whole spaces."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np

from akd_deploy.architecture import Architecture
from akd_deploy.configuration import CertificateTable
from akd_deploy.device import DeviceFingerprint, cpu_fingerprint
from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.errors import BuildError, MismatchError, UncoveredOperatorError
from akd_deploy.kernel import ExecutedKernel
from akd_deploy.latency_table import HEADER_NAME, NETWORK, PROBE, LatencyTable, find_table, read_table
from akd_deploy.pipeline.expected_error import Enough
from akd_deploy.pipeline.kernels import AUTO, FileKernels, KernelReader, Recent
from akd_deploy.pipeline.space_plan import plan_space
from akd_deploy.pipeline.typed import mode_for, typed_network
from akd_deploy.predictor.cache import predictor_of
from akd_deploy.predictor.compiled import CompiledSpace, KernelsOf, compile_space
from akd_deploy.predictor.compiled_cache import compiled_key, compiled_of
from akd_deploy.predictor.predictor import Prediction, Predictor
from akd_deploy.predictor.tails import certificate_factor
from akd_deploy.profiling.profile import ProfilePlan, measure_subjects
from akd_deploy.search_space import Layer, SearchSpace, space_of
from akd_deploy.target import Target, user_data_dir

CHAINS_PER_MODEL = 16
"""How many stretches share one model when kernels are read off; more of them slow rules and optimisers down."""
TYPED_CHAINS_PER_MODEL = 8
"""So many where the model must be quantised first, which takes longer than in proportion to its size."""


@dataclass(frozen=True)
class TargetLatency:
    """A target with its engine, table and predictor, and what reads off the kernels of a file."""

    target: Target
    engine: Engine
    table: LatencyTable
    directory: Path
    predictor: Predictor
    reader: KernelReader
    _predicted: Recent[FileKernels, Prediction] = field(default_factory=Recent, compare=False, repr=False)
    _certificate_factors: dict[tuple[float, float, int, int], float] = field(
        default_factory=dict, compare=False, repr=False
    )

    def predict_model(self, path: Path, kernels: str = AUTO, *, remember: bool = True) -> Prediction:
        """Predict a model file.

        Args:
            kernels: who says what is executed: "runtime", "rules", or "auto" for rules where they hold.
            remember: for the next time that this file, or one of the same structure, is asked for.

        Raises:
            UncoveredOperatorError: names every operator the table says nothing about, or the engine does not execute.
            AkdError: what `KernelReader.read` raises.
        """
        asked = f"the latency of {path.name}"
        try:
            found = self.reader.read(path, kernels, remember=remember)
        except BuildError as error:
            if not error.details.get("operators"):
                raise
            # Nobody's table holds an operator that the engine itself does not execute.
            operators = cast("list[str]", error.details["operators"])
            raise UncoveredOperatorError(operators, asked, f"{error.next} ({error.found})") from error
        prediction = self._predicted.get(found)
        if prediction is None:
            try:
                prediction = self.predictor.predict(found.executed, asked, found.kernels_from)
            except UncoveredOperatorError as error:
                raise UncoveredOperatorError(error.uncovered, asked, self._how_to_cover(path)) from error
            if remember:
                self._predicted.keep(found, prediction)
        return prediction

    def _how_to_cover(self, path: Path) -> str:
        """What to do about operators of a file that the table says nothing about."""
        header = self.table.header
        if header.transfer is not None:
            sources = ", ".join(source.target for source in header.transfer.sources)
            return (
                f"This table was transferred: profile them on its sources ({sources}) and transfer again, or delete it "
                "and profile the target itself."
            )
        if header.imported_from is not None:
            return (
                f"This table was imported: have {header.imported_from} measure a network that has them, then "
                f"`akd-deploy import-table {header.imported_from} FILES --target {self.target.name} --append`."
            )
        return f"Profile them: `akd-deploy profile --target {self.target.name} --onnx {path} --resume`."

    def predict_architecture(self, architecture: Architecture, kernels: str = AUTO) -> Prediction:
        """Predict an architecture from the kernels its whole network executes; `kernels` as for `predict_model`."""
        with tempfile.TemporaryDirectory(prefix="akd-predict-") as scratch:
            return self.predict_model(write_model(self.target, architecture, Path(scratch)), kernels, remember=False)

    def certificate_factor(self, table: CertificateTable) -> float:
        """What a certificate asks of a budget over the latency at full speed; see `tails.certificate_factor`.

        The tail factor where the latency table's rows are single numbers. The draws are the same every time.

        Raises:
            UsageError: the latency table has no samples enough for its percentile.
        """
        least = self.predictor.tail_factor(table.percentile)
        key = (table.percentile, table.confidence, table.blocks, table.samples_per_block)
        if key not in self._certificate_factors:
            rows, rng = self.table.of_kind(NETWORK) or self.table.of_kind(PROBE), np.random.default_rng(0)
            self._certificate_factors[key] = certificate_factor(rows, *key, rng) or least
        return max(least, self._certificate_factors[key])

    def compile(self, space: SearchSpace, seed: int = 0) -> CompiledSpace:
        """Tabulate a space's costs for fast scoring, or read back what was tabulated beside the table."""

        def tabulated() -> CompiledSpace:
            return compile_space(
                space,
                self.predictor,
                chain_kernels(self.reader),
                lambda architecture: self.predict_architecture(architecture).latency_s,
                np.random.default_rng(seed),
            )

        key = compiled_key(self.predictor, space, self.table.header.engine_version, seed)
        return compiled_of(self.directory, key, space, self.predictor, tabulated)


def write_model(target: Target, architecture: Architecture, folder: Path, seed: int = 0) -> Path:
    """An untrained network of the architecture as the target's engine reads it."""
    if target.engine == "torch":
        from akd_deploy.models.export_archive import archive_from_layers

        layers = space_of(architecture).layers(architecture)
        return archive_from_layers(layers, folder / f"{architecture.digest}.pt2", target.batch, seed, target.precision)
    import onnx

    from akd_deploy.models.onnx_from_student import onnx_from_architecture

    path = folder / f"{architecture.digest}.onnx"
    onnx.save_model(onnx_from_architecture(architecture, np.random.default_rng(seed), target.batch), path)
    return typed_network(path, target, seed)


def profile_target(
    target: Target,
    space: SearchSpace,
    plan: ProfilePlan,
    directory: Path,
    *,
    resume: bool,
    on_model: Callable[[int, int], None],
) -> tuple[LatencyTable, float]:
    """The table of a space, with probes in the precision that the target ships, and the seconds it took."""
    rows = read_table(directory).rows if resume and (directory / HEADER_NAME).is_file() else ()
    planned = plan_space(
        target, space, Enough(plan.probes, least_gain=None), plan.networks, plan.seed, rows, within_s=plan.within_s
    )
    within = planned.within_what_is_left(plan)
    profiled = measure_subjects(target, planned.subjects, within, directory, resume=resume, on_model=on_model)
    return profiled.table, profiled.seconds + planned.seconds


def chain_kernels(reader: KernelReader) -> KernelsOf:
    """How the reader's engine executes stretches of networks, many stretches at a time."""
    target = reader.engine.target

    def executed_by(path: Path) -> tuple[ExecutedKernel, ...]:
        return reader.read(path, remember=False).executed

    def one_by_one(chains: Sequence[Sequence[Layer]]) -> list[tuple[ExecutedKernel, ...]]:
        from akd_deploy.models.export_archive import archive_from_layers

        with tempfile.TemporaryDirectory(prefix="akd-kernels-") as scratch:
            return [
                executed_by(archive_from_layers(chain, Path(scratch) / f"{i}.pt2", target.batch, 0, target.precision))
                for i, chain in enumerate(chains)
            ]

    def together(chains: Sequence[Sequence[Layer]]) -> list[tuple[ExecutedKernel, ...]]:
        import onnx

        from akd_deploy.models.onnx_from_student import CHAIN_SEPARATOR, onnx_from_chains

        result: list[list[ExecutedKernel]] = [[] for _ in chains]
        with tempfile.TemporaryDirectory(prefix="akd-kernels-") as scratch:
            path = Path(scratch) / "chains.onnx"
            per_model = CHAINS_PER_MODEL if mode_for(target) == "fp32" else TYPED_CHAINS_PER_MODEL
            for start in range(0, len(chains), per_model):
                onnx.save_model(onnx_from_chains(chains[start : start + per_model], target.batch), path)
                for executed in executed_by(typed_network(path, target)):
                    if not executed.nodes:
                        raise MismatchError(
                            asked=f"the layer that kernel {executed.name} belongs to",
                            found="none",
                            next="This is a defect of the engine's attribution; please report it with the model.",
                        )
                    number = executed.nodes[0].partition(CHAIN_SEPARATOR)[0]
                    nodes = tuple(node.partition(CHAIN_SEPARATOR)[2] for node in executed.nodes)
                    result[start + int(number)].append(replace(executed, nodes=nodes))
        return [tuple(kernels) for kernels in result]

    return one_by_one if target.engine == "torch" else together


def device_of(engine: Engine) -> DeviceFingerprint:
    """The device a target would run on; this CPU where the runtime is not here to be asked."""
    return engine.fingerprint() if engine.why_not() is None else cpu_fingerprint()


def target_latency(target: Target, directory: Path | None = None) -> TargetLatency:
    """Find the target's table and its predictor.

    Args:
        directory: the folder of a table; looked for in the usual places where None.

    Raises:
        MissingFileError: no table of this device.
        MismatchError: the table given is of another target or device.
    """
    engine = load_engine(target)
    found = directory or find_table(target, device_of(engine))
    table = read_table(found)
    if table.header.target.engine != target.engine or table.header.target.as_dict() != target.as_dict():
        raise MismatchError(
            asked=f"a latency table of target {target.name}",
            found=f"one of {table.header.target.as_dict()} in {found}",
            next="Profile this target, or name the table's own.",
        )
    if engine.why_not() is None and table.header.engine_version != engine.version():
        raise MismatchError(
            asked=f"a latency table of {target.engine} {engine.version()} for {target.name}",
            found=f"one of {table.header.engine_version} in {found}",
            next=f"Profile again (move {found} away first), or install the version of the table.",
        )
    if target.is_generic and table.header.device != device_of(engine):
        raise MismatchError(
            asked=f"a latency table of this device for {target.name}",
            found=f"one of another device in {found}: " + "; ".join(table.header.device.differences(device_of(engine))),
            next=f"Run `akd-deploy profile --target {target.name}` here.",
        )
    predictor = predictor_of(table, found)
    reader = KernelReader(engine, table.header.device, table.header.engine_version, user_data_dir() / "kernels")
    # What the first prediction would otherwise wait for: rules, and features of the measured kernels.
    reader.prepare()
    predictor.costs(predictor.model.kernels[:1])
    return TargetLatency(target, engine, table, found, predictor, reader)
