"""A predictor on disk: beside its table, keyed by the table's hash, never a pickle."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import CorruptFileError, StorageError
from akd_deploy.latency_table import LatencyTable
from akd_deploy.predictor.cold_weights import ColdWeights
from akd_deploy.predictor.fitting import fit_predictor
from akd_deploy.predictor.kernel_cost import (
    model_from_arrays,
)
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.predictor.scores import Scores
from akd_deploy.predictor.transfer_plan import read_plan
from akd_deploy.storage import write_atomically

FORMAT_VERSION = 13
COLD_ARRAYS = tuple(field.name for field in fields(ColdWeights))


def save_predictor(predictor: Predictor, directory: Path) -> Path:
    """Write `predictor-<table digest>.npz` (arrays and one JSON text; no pickle); other ones there are removed."""
    arrays, model = predictor.model.as_arrays()
    arrays |= {f"cold_{name}": getattr(predictor.cold_weights, name) for name in COLD_ARRAYS}
    document = {
        "format_version": FORMAT_VERSION,
        "target": predictor.target,
        "device": dict(predictor.device.facts),
        "table_digest": predictor.table_digest,
        "factor": predictor.factor,
        "width": predictor.width,
        "coverage": predictor.coverage,
        "tail_factors": list(predictor.tail_factors.items()),
        "sigma": predictor.sigma,
        "calibrated_on": predictor.calibrated_on,
        "left_out": predictor.left_out,
        "scores": asdict(predictor.scores),
        "model": model,
    }
    path = directory / f"predictor-{predictor.table_digest}.npz"
    content = io.BytesIO()
    np.savez_compressed(content, json=np.array(json.dumps(document)), **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())
    for old in directory.glob("predictor-*.npz"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def read_predictor(path: Path) -> Predictor:
    """Read what `save_predictor` wrote.

    Raises:
        CorruptFileError: the file is torn or another version's; it can simply be deleted.
    """
    try:
        # numpy leaves a file open that it opened itself and found torn.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            document: Mapping[str, object] = json.loads(str(archive["json"]))
            arrays = {name: archive[name] for name in archive.files if name != "json"}
        if document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {document['format_version']}")
        values = {
            name: document[name]
            for name in (
                "target",
                "table_digest",
                "factor",
                "width",
                "coverage",
                "sigma",
                "calibrated_on",
                "left_out",
            )
        }
        return Predictor(
            device=DeviceFingerprint(document["device"]),  # type: ignore[arg-type]
            model=model_from_arrays(arrays, document["model"]),  # type: ignore[arg-type]
            tail_factors=dict(document["tail_factors"]),  # type: ignore[call-overload]
            scores=Scores(**document["scores"]),  # type: ignore[arg-type]
            cold_weights=ColdWeights(*(arrays[f"cold_{name}"] for name in COLD_ARRAYS)),
            **values,  # type: ignore[arg-type]
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFileError(
            asked=f"a predictor in {path}",
            found=f"{type(error).__name__}: {error}",
            next="Delete it; it is fitted again.",
        ) from error


def predictor_of(table: LatencyTable, directory: Path) -> Predictor:
    """The predictor cached beside the table when its key is the table's, else a fitted one, cached if possible.

    A table that builds on others is fitted with the plan of that transfer, which lies beside it.

    Raises:
        UsageError: too few rows to fit.
        MissingFileError, CorruptFileError, MismatchError: the plan of a transfer is not there, or not the table's.
    """
    path = directory / f"predictor-{table.digest()}.npz"
    if path.is_file():
        try:
            return read_predictor(path)
        except CorruptFileError:
            path.unlink(missing_ok=True)
    predictor = fit_predictor(table) if table.header.transfer is None else read_plan(directory).predictor(table)
    try:
        save_predictor(predictor, directory)
    except StorageError:
        # A read-only place for tables is legitimate; the predictor is only a cache.
        return predictor
    return predictor
