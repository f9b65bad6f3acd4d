"""A compiled space is read back as it was written, and made again when anything it depends on is another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_device import SyntheticDevice, executed_by, table_of

from akd_deploy.predictor.compiled import CompiledSpace, compile_space
from akd_deploy.predictor.compiled_cache import KEPT, compiled_key, compiled_of
from akd_deploy.predictor.fitting import fit_predictor
from akd_deploy.search_space import load_space

pytestmark = pytest.mark.xdist_group("compiled")  # the predictor is fitted once

SPACE = load_space("mobile", {"widths": [8, 16], "strides": [1, 2], "layers": [[1, 2], [1, 2]]})


@pytest.fixture(scope="module")
def compiled() -> CompiledSpace:
    predictor = fit_predictor(table_of(SyntheticDevice(), SPACE, probes=80, networks=20, seed=0))

    def whole(architecture):
        return 1.02 * predictor.predict(executed_by(SPACE.layers(architecture))).latency_s

    rng = np.random.default_rng(0)
    return compile_space(SPACE, predictor, lambda chains: [executed_by(tuple(c)) for c in chains], whole, rng)


def never() -> CompiledSpace:
    raise AssertionError("compiled again")


def test_what_was_written_is_read_back_and_not_made_again(compiled: CompiledSpace, tmp_path: Path) -> None:
    key = compiled_key(compiled.predictor, SPACE, "1.0", 0)
    assert compiled_of(tmp_path, key, SPACE, compiled.predictor, lambda: compiled) is compiled
    again = compiled_of(tmp_path, key, SPACE, compiled.predictor, never)
    tokens = SPACE.sample_tokens(50, np.random.default_rng(1))
    for mine, theirs in zip(again.latencies_s(tokens), compiled.latencies_s(tokens), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.slack == compiled.slack > 0


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: b"", lambda content: b"no archive"])
def test_a_torn_file_is_made_again(compiled: CompiledSpace, tmp_path: Path, damage) -> None:
    key = compiled_key(compiled.predictor, SPACE, "1.0", 0)
    compiled_of(tmp_path, key, SPACE, compiled.predictor, lambda: compiled)
    (path,) = tmp_path.glob("compiled-*.npz")
    path.write_bytes(damage(path.read_bytes()))
    assert compiled_of(tmp_path, key, SPACE, compiled.predictor, lambda: compiled) is compiled
    assert compiled_of(tmp_path, key, SPACE, compiled.predictor, never).slack == compiled.slack


def test_anything_it_depends_on_gives_another_key(compiled: CompiledSpace) -> None:
    predictor = compiled.predictor
    other_space = load_space("mobile", {**SPACE.settings, "widths": [8, 32]})
    keys = [
        compiled_key(predictor, SPACE, "1.0", 0),
        compiled_key(predictor, SPACE, "1.1", 0),
        compiled_key(predictor, SPACE, "1.0", 1),
        compiled_key(predictor, other_space, "1.0", 0),
        compiled_key(replace(predictor, table_digest="0" * 16), SPACE, "1.0", 0),
        compiled_key(replace(predictor, coverage=0.8), SPACE, "1.0", 0),
    ]
    assert len(set(keys)) == len(keys)
    assert compiled_key(predictor, SPACE, "1.0", 0) == keys[0]


def test_the_oldest_make_room(compiled: CompiledSpace, tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        compiled_of(tmp_path, f"{number:016x}", SPACE, compiled.predictor, lambda: compiled)
    assert len(list(tmp_path.glob("compiled-*.npz"))) == KEPT


def test_a_read_only_place_costs_only_the_cache(compiled: CompiledSpace, tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("no folder")
    assert compiled_of(folder, "0" * 16, SPACE, compiled.predictor, lambda: compiled) is compiled
