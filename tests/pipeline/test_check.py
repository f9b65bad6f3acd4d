"""What makes no sense in a run.toml is refused before anything is measured, trained or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from akd_deploy.configuration import configuration_from_dict
from akd_deploy.errors import MismatchError, UnknownNameError, UsageError
from akd_deploy.pipeline.check import check_configuration
from akd_deploy.pipeline.context import Run
from akd_deploy.pipeline.shrink import ShrinkRun
from akd_deploy.pipeline.stages import do_stages


def check(**fields: Any) -> None:
    check_configuration(configuration_from_dict({"target": "cpu_onnxruntime_fp32", "budget": "1ms", **fields}, "here"))


def searching(*strategies: str, **settings: dict[str, Any]) -> dict[str, Any]:
    return {"strategies": list(strategies), "settings": settings}


def test_strategies_may_have_settings_of_their_own() -> None:
    check(search=searching("akd-ppo", "tpe", **{"akd-ppo": {"entropy": 0.02, "batch": 4}}))
    check(search=searching("random", random={}))
    check(search=searching("akd-ppo", **{"akd-ppo": {"entropy": 0, "baseline_decay": 0.0}}))
    check(search=searching("constrained_evolution", constrained_evolution={"crossover": 0.0}))


def test_settings_of_what_does_not_search_are_refused_with_what_is_possible() -> None:
    with pytest.raises(UnknownNameError, match=r"'akd-pop' in \[search.settings\].*Did you mean 'akd-ppo'.*tpe"):
        check(search=searching("akd-ppo", **{"akd-pop": {"entropy": 0.02}}))
    with pytest.raises(UsageError, match=r"a search by akd-ppo, tpe\. Add \"evolution\" to strategies"):
        check(search=searching("akd-ppo", "tpe", evolution={"population_size": 4}))
    with pytest.raises(UnknownNameError, match=r"'epoch' in strategy akd-ppo.*Did you mean 'epochs'.*batch"):
        check(search=searching("akd-ppo", **{"akd-ppo": {"epoch": 2}}))
    with pytest.raises(UsageError, match="setting clip of strategy akd-ppo as a positive float"):
        check(search=searching("akd-ppo", **{"akd-ppo": {"clip": -0.2}}))
    with pytest.raises(UsageError, match="setting entropy of strategy akd-ppo as a number of at least 0"):
        check(search=searching("akd-ppo", **{"akd-ppo": {"entropy": -0.1}}))
    with pytest.raises(UsageError, match="baseline_decay of strategy akd-ppo as a share from 0 to 1"):
        check(search=searching("akd-ppo", **{"akd-ppo": {"baseline_decay": 1.1}}))


def test_a_member_of_an_ensemble_that_would_learn_from_nothing_is_refused() -> None:
    check(teacher={"members": 10, "skew": 1.0})
    check(teacher={"members": 20, "skew": 0.9})
    with pytest.raises(UsageError, match=r"20 members.*10 classes: 10 would learn from no image\. Lower skew"):
        check(teacher={"members": 20, "skew": 1.0})
    glyphs = {"name": "glyphs"}
    fits = {"settings": {"resolution": 32, "in_channels": 3, "classes": 24}}
    check(data=glyphs, space=fits, teacher={"members": 20, "skew": 1.0})
    with pytest.raises(UsageError, match=r"25 members.*24 classes: 1 would learn from no image"):
        check(data=glyphs, space=fits, teacher={"members": 25, "skew": 1.0})


def test_a_space_that_does_not_fit_the_data_is_refused_where_settings_tell() -> None:
    fits = {"resolution": 32, "in_channels": 3, "classes": 12}
    glyphs = {"name": "glyphs", "settings": {"shapes": 3, "textures": 1, "orientations": 2, "colours": 2}}
    check(data=glyphs, space={"settings": fits})
    with pytest.raises(
        MismatchError, match=r"images \(3, 32, 32\) of dataset glyphs.*space mobile with images \(1, 12, 12\)"
    ):
        check(data=glyphs)
    with pytest.raises(MismatchError, match=r"classes 12 of dataset glyphs.*with classes 10"):
        check(data=glyphs, space={"settings": {**fits, "classes": 10}})
    with pytest.raises(MismatchError, match="classes 100 of dataset cifar100"):
        check(data={"name": "cifar100", "settings": {"root": "nowhere"}}, space={"settings": fits})
    folder = {"name": "image_folder", "settings": {"root": "nowhere", "resolution": 32}}
    check(data=folder, space={"settings": fits})  # only the files know the classes
    with pytest.raises(MismatchError, match=r"images \(3, 64, 64\) of dataset image_folder"):
        check(data={**folder, "settings": {"root": "nowhere", "resolution": 64}}, space={"settings": fits})


def test_settings_of_a_dataset_are_tried_without_its_files() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'labelled'"):
        check(data={"settings": {"labeled": 20}})
    with pytest.raises(UsageError, match=r"setting 'root' of dataset cifar10; found none"):
        check(data={"name": "cifar10"})


def test_a_backbone_is_not_trained_alone_where_something_is_always_added() -> None:
    space = {"name": "augmented", "settings": {"operators": ["conv3", "conv5"]}}
    search = {"weights": "shared", "shared": {"backbone": {"steps": 5}}}
    check(space={"name": "augmented"}, search=search)
    check(space=space, search={"weights": "shared"})
    with pytest.raises(UsageError, match=r'operators conv3, conv5, and no identity among them\. Add "identity"'):
        check(space=space, search=search)


def test_a_run_of_parts_of_the_teacher_has_no_space_to_fit(tmp_path: Path) -> None:
    fields = {"target": "cpu_onnxruntime_fp32", "budget": "1ms", "data": {"name": "glyphs"}}
    configuration = configuration_from_dict(fields, "here")
    do_stages(ShrinkRun, configuration, tmp_path, False, None, 1, {})
    with pytest.raises(MismatchError, match="dataset glyphs"):
        do_stages(Run, configuration, tmp_path / "other", False, None, 1, {})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("teacher", "found"), [({"members": 3}, "an ensemble"), ({"source": "onnx"}, "an ONNX file")])
def test_a_part_of_what_is_no_network_of_torch_is_refused(tmp_path: Path, teacher: dict[str, Any], found: str) -> None:
    if "source" in teacher:
        path = tmp_path / "teacher.onnx"
        path.touch()
        teacher = {**teacher, "onnx": str(path)}
    fields = {"target": "cpu_onnxruntime_fp32", "budget": "1ms", "teacher": teacher}
    configuration = configuration_from_dict(fields, "here")
    check_configuration(configuration)
    with pytest.raises(UsageError, match=f"asked for a part of the teacher; found {found}.*Give one torch network"):
        check_configuration(configuration, of_space=False)
