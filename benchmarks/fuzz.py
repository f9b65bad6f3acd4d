"""Bundles changed at random, and what the verifier makes of them: how many it accepted, how many crashed it.

    python -m benchmarks.fuzz
    python -m benchmarks.fuzz --mutations 100000 --seed 1

The mutations are those of the tests (tests/export/mutations.py): bits, cuts and splices of any file, files missing,
renamed, added and swapped, facts of the manifest changed with and without a checksum that fits, and headers, names and
order of the ZIP file. A quarter each is of a folder and of a ZIP file, unsigned and signed. Key or digest is given only
where nothing else can tell: for a manifest that was forged as a whole.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from akd_deploy.export.package import package_bundle
from akd_deploy.export.verify import verify_bundle

MUTATIONS = 10_000
TESTS = Path(__file__).parents[1] / "tests" / "export"


def figures(mutations: int = MUTATIONS, seed: int = 10) -> dict[str, Any]:
    """Mutations tried, accepted, and that raised an error; of each kind how many, and the first that went wrong."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    from bundles import bytes_of, write_keys, write_small_bundle
    from mutations import mutated_in_place

    began = time.monotonic()
    tried: Counter[str] = Counter()
    accepted, crashed = [], []
    shares = [(form, signed) for form in ("dir", "zip") for signed in (False, True)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        private, public = write_keys(folder)
        write_small_bundle(folder)
        for part, (form, signed) in enumerate(shares):
            path, plain = folder / f"{part}.{form}", folder / f"plain{part}"
            key = private if signed else None
            digest = package_bundle(folder / "bundle", form, path, key=key).digest
            package_bundle(folder / "bundle", "dir", plain, key=key)
            count = mutations * (part + 1) // len(shares) - mutations * part // len(shares)
            for kind in mutated_in_place(path, bytes_of(plain), count, np.random.default_rng([seed, part])):
                tried[kind] += 1
                proof = ({"key": public} if signed else {"digest": digest}) if kind == "forged fact" else {}
                what = f"{kind} of a {'signed' if signed else 'unsigned'} {form}, number {tried.total()}"
                try:
                    verification = verify_bundle(path, **proof)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                    crashed.append(f"{what}: {type(error).__name__}: {error}")
                    continue
                if verification.ok or verification.authentic:
                    accepted.append(what)
            if not verify_bundle(path).ok:
                raise AssertionError(f"the untouched bundle {path.name} is refused: no refusal says anything")
    return {
        "mutations": tried.total(),
        "accepted": len(accepted),
        "crashed": len(crashed),
        "kinds": dict(sorted(tried.items())),
        "first": [*accepted[:5], *crashed[:5]],
        "seed": seed,
        "seconds": time.monotonic() - began,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=MUTATIONS)
    parser.add_argument("--seed", type=int, default=10)
    given = parser.parse_args(arguments)
    found = figures(given.mutations, given.seed)
    print(json.dumps(found, indent=1))
    return 0 if found["accepted"] == found["crashed"] == 0 else 3


if __name__ == "__main__":
    sys.exit(main())
