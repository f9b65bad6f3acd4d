"""What lint finds in networks with seeded defects is what is wrong with them, no less and no more."""

import pytest
from export_graphs import saved
from lint_corpus import BAD, SECOND, Bad

from akd_deploy.export.lint import lint_onnx


def found(bad: Bad, tmp_path) -> set[tuple[str, str]]:
    return {(f.rule, f.node) for f in lint_onnx(saved(bad.make(), tmp_path / "m.onnx"), bad.target)}


@pytest.mark.parametrize("name", BAD)
def test_every_seeded_defect_is_found_and_nothing_else(tmp_path, name):
    assert found(BAD[name], tmp_path) == BAD[name].expected


@pytest.mark.parametrize("name", SECOND)
def test_defects_that_no_rule_was_written_for_are_found_too(tmp_path, name):
    assert found(SECOND[name], tmp_path) == SECOND[name].expected
