"""docs/run-toml.md and its schema say what `run.toml` takes: every key, with its default."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import pytest
from documents import ROOT
from pydantic import BaseModel

from akd_deploy.configuration import GatesTable, ProcessTable, RunConfiguration, SharedTable
from akd_deploy.data.cifar import CifarSettings
from akd_deploy.data.digits import DigitsSettings
from akd_deploy.data.glyphs import GlyphsSettings
from akd_deploy.data.image_folder import ImageFolderSettings
from akd_deploy.distill.settings import TrainingSettings
from akd_deploy.recipes.better_students import GateSearchSettings
from akd_deploy.search.strategies.constrained_evolution import ConstrainedEvolutionSettings
from akd_deploy.search.strategies.nni_tuners import EvolutionSettings, TpeSettings
from akd_deploy.search.strategies.policy_gradient import PpoSettings, ReinforceSettings
from akd_deploy.search_space import load_space

DOCUMENT = ROOT / "docs" / "run-toml.md"
SCHEMA = ROOT / "docs" / "run.schema.json"


def tables() -> list[tuple[str, dict[str, str]]]:
    """(heading above and head of the first column, key → default as written) of every table in order."""
    found: list[tuple[str, dict[str, str]]] = []
    heading = ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").strip("`")
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 3 or set(cells[0]) <= {"-"}:
            continue
        if cells[1] == "default":
            found.append((f"{heading}: {cells[0]}", {}))
        else:
            found[-1][1][cells[0].strip("`")] = cells[1].strip("`")
    return found


def told(defaults: Mapping[str, Any]) -> dict[str, str]:
    """Defaults as the document writes them; – where there is none."""
    return {key: "–" if value is None else json.dumps(value) for key, value in defaults.items()}


def of_model(model: type[BaseModel]) -> dict[str, str]:
    """A table's keys and defaults; tables inside are told by themselves."""
    own = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        is_table = isinstance(inner, type) and issubclass(inner, BaseModel)
        if is_table and name != "training":
            continue
        default = {} if is_table else None if field.is_required() else field.get_default(call_default_factory=True)
        own[name] = default
    return told(own)


def of_dataclass(settings: type) -> dict[str, str]:
    own = {}
    for field in dataclasses.fields(settings):
        missing = field.default is dataclasses.MISSING
        own[field.name] = (
            None if missing else list(field.default) if isinstance(field.default, tuple) else field.default
        )
    return told(own)


def test_every_key_is_there_with_its_default_and_no_other() -> None:
    models = {name: field.annotation for name, field in RunConfiguration.model_fields.items()}
    training = of_dataclass(TrainingSettings)
    del training["max_bank_bytes"]
    gates = of_dataclass(GateSearchSettings)
    del gates["temperature"]  # that of its training
    assert set(GatesTable.model_fields) == set(gates)
    spaces = [told(load_space(name).settings) for name in ("mobile", "augmented")]
    beds = [of_dataclass(kind) for kind in (DigitsSettings, GlyphsSettings, CifarSettings, ImageFolderSettings)]
    strategies = [
        of_dataclass(kind)
        for kind in (ConstrainedEvolutionSettings, EvolutionSettings, TpeSettings, PpoSettings, ReinforceSettings)
    ]
    expected = [
        of_model(RunConfiguration), of_model(models["data"]), *beds, of_model(models["teacher"]),
        of_model(models["space"]), *spaces,
        of_model(models["profile"]), of_model(models["search"]), *strategies, of_model(SharedTable),
        of_model(models["shrink"]), gates, of_model(models["distill"]), training,
        of_model(ProcessTable),
        *(of_model(models[name]) for name in ("export", "certificate")),
    ]  # fmt: skip
    assert [keys for _, keys in tables()] == expected


def test_the_schema_is_that_of_the_configuration() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == RunConfiguration.model_json_schema()


@pytest.mark.parametrize("text", re.findall(r"^```toml\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.M | re.S))
def test_examples_are_read(text: str) -> None:
    RunConfiguration.model_validate({"target": "t", "budget": "1ms", **tomllib.loads(text)})
