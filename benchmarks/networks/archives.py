"""Networks of the zoo as `torch.export` archives, for the torch engine: `python -m benchmarks.networks.archives -h`."""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from akd_deploy.errors import AkdError
from akd_deploy.models.export_archive import archive_from_inputs
from benchmarks.networks import NETWORKS
from benchmarks.networks.export import inputs_of, seeded


def write_archive_of(name: str, folder: Path, precision: str, batch: int, seed: int = 0) -> Path:
    """Write one network with seeded weights; the file is named after it."""
    torch.set_num_threads(1)
    network = NETWORKS[name]
    inputs = [torch.ones(shape, dtype=getattr(torch, dtype)) for _, shape, dtype in inputs_of(network, batch=batch)]
    return archive_from_inputs(seeded(network.build().eval(), seed), inputs, folder / f"{name}.pt2", precision)


def _told(name: str, folder: Path, precision: str, batch: int) -> str:
    try:
        return str(write_archive_of(name, folder, precision, batch))
    except (AkdError, ImportError) as error:
        return f"not written: {error}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS), metavar="NAME")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(given.jobs) as pool:
        futures = {n: pool.submit(_told, n, given.output, given.precision, given.batch) for n in given.only}
        for name, future in futures.items():
            print(f"{name}: {future.result()}", flush=True)


if __name__ == "__main__":
    main()
