"""Write networks of the zoo as ONNX files.

python -m benchmarks.networks --output DIR [--strangers] [--only NAME …] [--image-size 224] [--batch 1] [--seed 0]

Files that are there already are left alone. A network that cannot be written (a size it does not take) is named, the
others are written all the same, and the exit code is 2. With --skeletons the files are skeletons (`skeleton.py`),
`NAME.onnx.gz`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx

from akd_deploy.errors import AkdError
from akd_deploy.models.onnx_skeleton import write_skeleton
from benchmarks.networks import NETWORKS, STRANGERS
from benchmarks.networks.export import write_onnx


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--only", nargs="+", choices=sorted({**NETWORKS, **STRANGERS}), metavar="NAME", help="all unless given"
    )
    parser.add_argument("--strangers", action="store_true", help="the networks that no general profile knows instead")
    parser.add_argument("--image-size", type=int, help="of the networks that take images, 224 unless given")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skeletons", action="store_true", help="leave the weights out")
    given = parser.parse_args(arguments)
    networks = STRANGERS if given.strangers else NETWORKS
    if strange := sorted({*(given.only or ())} - {*networks}):
        parser.error(f"not among the {'strangers' if given.strangers else 'networks'}: {', '.join(strange)}")

    given.output.mkdir(parents=True, exist_ok=True)
    refused = False
    for name in given.only or networks:
        path = given.output / (f"{name}.onnx.gz" if given.skeletons else f"{name}.onnx")
        if path.exists():
            continue
        print(name, file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=given.output) as scratch:
            try:
                written = write_onnx(
                    networks[name], Path(scratch), image_size=given.image_size, batch=given.batch, seed=given.seed
                )
            except AkdError as error:
                refused = True
                print(error, file=sys.stderr)
                continue
            if given.skeletons:
                write_skeleton(onnx.load(written), path)
            else:
                written.replace(path)
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
