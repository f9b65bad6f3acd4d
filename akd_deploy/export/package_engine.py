"""Package one engine that was built here: its network, its facts, its bench and its runner, as any other bundle."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isclose
from pathlib import Path
from typing import Any

import onnx

import akd_deploy
from akd_deploy.certificate import certify
from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, UsageError
from akd_deploy.export.bundle import BundleFile, GeneratedFile, write_bundle
from akd_deploy.export.engine_facts import EngineFacts, engine_facts_from_dict
from akd_deploy.export.gate import read_bench
from akd_deploy.export.manifest import BundleFacts, Manifest, allowed_name
from akd_deploy.export.onnx_file import read_onnx
from akd_deploy.export.package import package_bundle
from akd_deploy.export.runner import RUNNER_NAME, has_runner, runner_source
from akd_deploy.export.trusted import built_record, network_built_from
from akd_deploy.measurement import Measurement
from akd_deploy.storage import file_sha256
from akd_deploy.target import Target

SAMPLES_NAME = "latency_samples.json"


def package_engine(
    engine: Path,
    format: str,
    out: Path,
    *,
    bench: Path | None = None,
    source: Path | None = None,
    key: Path | None = None,
    force: bool = False,
) -> Manifest:
    """Write what `build` wrote here as a bundle.

    Args:
        engine: the engine file, as it was built.
        format, out, key, force: as those of `package_bundle`.
        bench: what `bench -o` wrote about this very file, for the latency and the certificate, which are computed
            again from its samples; those go into the bundle too.
        source: the network before it was cast or quantised: of the same inputs and outputs. Where names are the same,
            or none that a bundle may have, they are others in the bundle.

    Raises:
        VerificationError: the file was not built here, or changed since.
        MissingFileError, MismatchError: the network it was built from is gone, or another one now; the bench is
            of another file or target, or says what its samples do not; the source is of another network.
        UsageError: a network whose weights are in files of their own.
    """
    record = built_record(engine)
    built = engine_facts_from_dict(record["facts"], f"the record of {engine}")
    target = built.target
    files = [] if target.engine == "torch" else [BundleFile(*_network(engine), "onnx")]
    if source is not None:
        _check_source(source, files)
        taken = {"engines", *(file.name.lower() for file in files)}
        inside = allowed_name(source.name)
        files.append(BundleFile(f"source_{inside}" if inside.lower() in taken else inside, source, "source"))
    folder = f"engines/{target.name}"
    # What has further files names them inside, or is found by its name beside them.
    inside = engine.name if record["parts"] else allowed_name(engine.name)
    name, parts = f"{folder}/{inside}", tuple(f"{folder}/{part}" for part in record["parts"])
    facts = replace(built, network=files[0].name if files and files[0].role == "onnx" else None, parts=parts)
    files.append(BundleFile(name, engine, "engine"))
    files += [BundleFile(f"{folder}/{part}", engine.parent / part, "engine_part") for part in record["parts"]]
    told = {} if bench is None else _bench(bench, engine, facts)
    with tempfile.TemporaryDirectory(prefix="akd-package-") as temporary:
        bundle = Path(temporary) / engine.stem
        if told:
            samples = Path(temporary) / SAMPLES_NAME
            samples.write_text(samples_document(target, told["blocks_s"]), encoding="utf-8")
            files.append(BundleFile(samples.name, samples, "document"))
        runner = [GeneratedFile(RUNNER_NAME, "runner", runner_source)] if has_runner(target) else []
        write_bundle(bundle, files, _facts(name, facts, told, record), generated=runner)
        return package_bundle(bundle, format, out, key=key, force=force)


def _network(engine: Path) -> tuple[str, Path]:
    """Name in the bundle and place of the network, which must be the one that the engine was built from."""
    path = network_built_from(engine)
    tensors = onnx.load(path, format="protobuf", load_external_data=False).graph.initializer
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise UsageError(
            asked=f"{path} in a bundle",
            found="a network whose weights are in files of their own",
            next="Save it as one file and build the engine again.",
        )
    return allowed_name(path.name), path


def samples_document(target: Target, blocks_s: Mapping[str, Sequence[float]]) -> str:
    """The samples that a bundle's latency and certificate come from, process by process, as JSON."""
    blocks = {block: [float(sample) for sample in samples] for block, samples in blocks_s.items()}
    return json.dumps({"target": target.name, "blocks_s": blocks}) + "\n"


def _check_source(source: Path, files: Sequence[BundleFile]) -> None:
    """A network's source has its inputs and outputs, whatever their precision."""
    if not files:
        raise UsageError(
            asked=f"{source} as what a torch archive was made from",
            found="an archive, which is made from a module and not from a network in a file",
            next="Package it without --source.",
        )
    for file in files:
        wanted, found = (_interface(path) for path in (file.source, source))
        if wanted != found:
            raise MismatchError(
                asked=f"{source} as what {file.source.name} was made from",
                found=f"{found}, not {wanted}",
                next="Give the network that was cast or quantised.",
            )


def _interface(path: Path) -> str:
    graph = read_onnx(path).graph
    weights = {tensor.name for tensor in graph.initializer}

    def told(values: Iterable[onnx.ValueInfoProto]) -> str:
        shapes = {value.name: value.type.tensor_type.shape.dim for value in values if value.name not in weights}
        # What is open in the one may be fixed in the other.
        return ", ".join(f"{name} of {len(dims)} dimensions" for name, dims in shapes.items())

    return f"inputs {told(graph.input)} and outputs {told(graph.output)}"


def _bench(bench: Path, engine: Path, facts: EngineFacts) -> dict[str, Any]:
    """A bench's record, which must be of this file on this target, and say what its samples say."""
    try:
        told = json.loads(bench.read_text(encoding="utf-8"))
        measured_s, target = told["latency_stats_s"], told["target"]
        sha256, device, version = told["sha256"], told["device"], told["engine_version"]
        found = {"target": target, "file": sha256, "engine_version": version}
        certificate, blocks_s = told["certificate"], told["blocks"]
        if not isinstance(measured_s, dict) or not isinstance(device, dict) or not isinstance(blocks_s, dict):
            raise TypeError("latency_stats_s, device and blocks are no objects")
        measured = Measurement(
            engine.name,
            tuple(sample for samples in blocks_s.values() for sample in samples),
            tuple(int(block) for block, samples in blocks_s.items() for _ in samples),
        )
        anew = None
        if certificate is not None:
            asked = (float(certificate[key]) for key in ("budget_s", "percentile", "confidence"))
            anew = certify(measured.blocks, *asked).as_dict()
    except OSError as error:
        raise MissingFileError(asked=f"the bench {bench}", found=str(error), next="Check the path.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            asked=f"a bench in {bench}",
            found=f"something else ({type(error).__name__}: {error})",
            next="Write one with `akd-deploy bench --engine … -o FILE`.",
        ) from error
    wanted = {"target": facts.target.as_dict(), "file": file_sha256(engine), "engine_version": facts.engine_version}
    differing = [key for key, value in wanted.items() if found[key] != value]
    if differing:
        raise MismatchError(
            asked=f"{bench} as the bench of {engine}",
            found=f"another {', '.join(differing)}: {', '.join(str(found[key]) for key in differing)}",
            next="Measure this file on this target.",
        )
    said = [
        *(f"a {name} of {measured_s.get(name)}, not {value}" for name, value in measured.statistics_s().items()
          if not _same(measured_s.get(name), value)),
        *(f"{name} {certificate.get(name)} in its certificate, not {value}" for name, value in (anew or {}).items()
          if not _same(certificate.get(name, value), value)),
    ]  # fmt: skip
    if said:
        raise MismatchError(
            asked=f"{bench} as the bench of {engine}",
            found=f"{'; '.join(said)} by its own samples",
            next="Measure again: nothing is signed that was not measured.",
        )
    read = read_bench(bench)  # refuses an accuracy that its answers do not have
    accuracy, correct = read.accuracy, [] if read.correct is None else read.correct.tolist()
    protocol = told.get("protocol")
    how = {key: protocol[key] for key in ("boundary", "idle_s") if isinstance(protocol, dict) and key in protocol}
    how |= {key: told[key] for key in ("disturbed", "remeasured") if isinstance(told.get(key), int)}
    return {
        "how": how,
        "measured_s": measured.statistics_s(),
        "device": device,
        "certificate": anew,
        "blocks_s": blocks_s,
        "accuracy": {"test": accuracy, "images": len(correct)} if correct else None,
    }


def _same(stated: object, found: object) -> bool:
    """Equal, or numbers that are but for rounding."""
    if isinstance(found, float) and isinstance(stated, int | float) and not isinstance(stated, bool):
        return isclose(stated, found, rel_tol=1e-9)
    return stated == found


def _facts(name: str, facts: EngineFacts, bench: dict[str, Any], record: dict[str, Any]) -> BundleFacts:
    certificate = bench.get("certificate")
    latency = {"measured_s": bench["measured_s"], **bench["how"]} if bench else {}
    if certificate is not None:
        latency["budget_s"] = certificate["budget_s"]
    return BundleFacts(
        target=facts.target,
        device=DeviceFingerprint(bench.get("device") or facts.device or {}),
        versions={
            "akd-deploy": akd_deploy.__version__,
            "python": platform.python_version(),
            "onnx": onnx.__version__,
            facts.target.engine: facts.engine_version,
        },
        latency=latency,
        certificate=certificate,
        accuracy=bench.get("accuracy"),
        provenance={"network": {"name": Path(record["network"]["path"]).name, "sha256": record["network"]["sha256"]}},
        engines={name: facts},
    )
