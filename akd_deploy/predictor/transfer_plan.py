"""What is settled of a transfer before its target is measured: items, prior, design, and the width of intervals."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError
from akd_deploy.kernel import kernel_from_signature
from akd_deploy.latency_table import LatencyTable, TransferOrigin, TransferSource
from akd_deploy.predictor.cold_weights import ColdWeights
from akd_deploy.predictor.fitting import COVERAGE
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.predictor.transfer_prior import Setting, TransferPrior
from akd_deploy.predictor.transferred import Item, transfer_predictor
from akd_deploy.storage import write_atomically

FORMAT_VERSION = 5
PLAN_NAME = "transfer.npz"
"""Beside the table, so that it needs none of its sources any more."""


@dataclass(frozen=True)
class TransferPlan:
    """`prior` is that of `items`, its settings weighted by how often they held where sources played the target.

    `width` is that of intervals at `coverage`, rehearsed on the sources; None where they are of one family, so that
    none could play. `criterion` is the design's, `cold_weights` what the sources know of them (`shared_cold_weights`).
    """

    items: tuple[Item, ...]
    prior: TransferPrior
    criterion: str
    width: float | None
    sources: tuple[TransferSource, ...]
    coverage: float = COVERAGE
    cold_weights: ColdWeights | None = None

    def _document(self) -> str:
        kernels = list(dict.fromkeys(kernel for item in self.items for kernel, _ in item.kernels))
        position = {kernel: k for k, kernel in enumerate(kernels)}
        fields = {
            "format_version": FORMAT_VERSION,
            "kernels": [kernel.signature for kernel in kernels],
            "items": [
                [item.name, item.kind, item.family, [[position[kernel], count] for kernel, count in item.kernels]]
                for item in self.items
            ],
            "prior_sources": self.prior.sources,
            "settings": [asdict(setting) for setting in self.prior.settings],
            "criterion": self.criterion,
            "width": self.width,
            "coverage": self.coverage,
            "sources": [asdict(source) for source in self.sources],
        }
        if self.cold_weights is not None:  # plans had none of these once, and keep their digest
            fields["cold_weights"] = {name: array.tolist() for name, array in asdict(self.cold_weights).items()}
        return json.dumps(fields, sort_keys=True)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"bases": np.stack(self.prior.bases), "log_weights": self.prior.log_weights}

    @cached_property
    def origin(self) -> TransferOrigin:
        """What a table's header says of it: the sources, and a digest over everything."""
        hasher = hashlib.sha256(self._document().encode())
        for _, array in sorted(self._arrays().items()):
            hasher.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return TransferOrigin(self.sources, hasher.hexdigest()[:16])

    def predictor(self, table: LatencyTable) -> Predictor:
        """That of the target whose table has measured some of the items; see `transfer_predictor`.

        Raises:
            MismatchError: the table was measured by another plan.
            UsageError: it has measured too few items.
        """
        if table.header.transfer != self.origin:
            raise MismatchError(
                asked=f"a predictor of target {table.header.target.name} by transfer",
                found=f"a {PLAN_NAME} that is not the one its table was measured by",
                next="Put the two files of one profile together again.",
            )
        return transfer_predictor(self.prior, self.items, table, self.coverage, self.width, self.cold_weights)

    def save(self, directory: Path) -> Path:
        """Write it beside the table.

        Raises:
            StorageError: the place cannot be written.
        """
        content = io.BytesIO()
        np.savez_compressed(content, json=np.array(self._document()), **self._arrays())  # type: ignore[arg-type]
        path = directory / PLAN_NAME
        write_atomically(path, content.getvalue())
        return path


def read_plan(directory: Path) -> TransferPlan:
    """The plan beside a table.

    Raises:
        MissingFileError: there is none.
        CorruptFileError: it is torn, or another version's.
    """
    path = directory / PLAN_NAME
    if not path.is_file():
        raise MissingFileError(
            asked=f"the plan of the transfer that the table in {directory} was measured by",
            found=f"no {PLAN_NAME} beside it",
            next="Copy it there, too, or profile again with --transfer-from.",
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            fields: Mapping[str, Any] = json.loads(str(archive["json"]))
            bases, log_weights = archive["bases"], archive["log_weights"]
        if fields["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {fields['format_version']}")
        prior = TransferPrior(
            tuple(bases), fields["prior_sources"], tuple(Setting(**one) for one in fields["settings"]), log_weights
        )
        sources = tuple(TransferSource(**source) for source in fields["sources"])
        cold = None
        if "cold_weights" in fields:
            cold = ColdWeights(**{name: np.array(values) for name, values in fields["cold_weights"].items()})
        coverage = float(fields["coverage"])
        return TransferPlan(_items(fields), prior, fields["criterion"], fields["width"], sources, coverage, cold)
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFileError(
            asked=f"the plan of a transfer in {path}",
            found=f"{type(error).__name__}: {error}",
            next="Restore it, or profile again with --transfer-from.",
        ) from error


def _items(fields: Mapping[str, Any]) -> tuple[Item, ...]:
    kernels = [kernel_from_signature(text) for text in fields["kernels"]]
    entries: Sequence[tuple[str, str, str, Sequence[tuple[int, int]]]] = fields["items"]
    return tuple(
        Item(name, kind, family, tuple((kernels[position], int(count)) for position, count in counts))
        for name, kind, family, counts in entries
    )
