"""A small bundle with real files, for the tests of packaging and verification."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from export_graphs import convnet, saved

from akd_deploy.device import DeviceFingerprint
from akd_deploy.export.bundle import BundleFile, write_bundle
from akd_deploy.export.manifest import BundleFacts, Manifest
from akd_deploy.target import Target


def facts(engine: str = "onnxruntime", **changes) -> BundleFacts:
    fields = {
        "target": Target("cpu_test", "cpu", engine, "fp32", engine_options={"threads": 2} if engine[0] == "o" else {}),
        "device": DeviceFingerprint({"kind": "cpu", "model": "Test CPU"}),
        "versions": {"akd-deploy": "0.1.0", engine: "1.0"},
        "latency": {
            "measured_s": {"median": 1.5e-3, "p90": 1.75e-3, "p99": 2e-3},
            "predicted_s": 1.4e-3,
            "interval_s": [1.3e-3, 1.6e-3],
            "budget_s": 2e-3,
        },
        "certificate": {"percentile": 90, "confidence": 0.99, "samples": 1000, "exceeding": 2, "ok": True},
        "accuracy": {"mean": 0.91, "spread": 0.002, "seeds": 3},
        "parity": {"max_abs": 1e-6, "cosine": 1.0, "top1_agreement": 1.0},
        "provenance": {"teacher": {"sha256": "00", "factory": "package.module:net"}, "data": {"name": "digits"}},
    }
    return BundleFacts(**(fields | changes))


def write_small_bundle(
    folder: Path, key: Path | None = None, engine: str = "onnxruntime", force: bool = False, **changes
) -> Manifest:
    """`folder`/bundle with an ONNX file, an engine in a subfolder and a document; sources beside it."""
    sources = folder / "sources"
    sources.mkdir(exist_ok=True)
    model = saved(convnet(channels=2, classes=3), sources / "m.onnx")
    (sources / "engine.bin").write_bytes(bytes(range(200)))
    (sources / "labels.txt").write_text("cat\ndog\nbird\n", encoding="utf-8")
    files = [
        BundleFile("student.onnx", model, "onnx"),
        BundleFile("engines/cpu_test.engine", sources / "engine.bin", "engine"),
        BundleFile("labels.txt", sources / "labels.txt", "document"),
    ]
    return write_bundle(folder / "bundle", files, facts(engine, **changes), key=key, force=force)


def write_keys(folder: Path, name: str = "key", seed: int = 1) -> tuple[Path, Path]:
    """PEM files of a fixed private key and its public key."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def bytes_of(path: Path) -> dict[str, bytes]:
    """Name → contents of a file, or of every file below a directory."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
