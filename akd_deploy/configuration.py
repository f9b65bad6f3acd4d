"""What a user writes in `run.toml`: pydantic models that forbid unknown keys."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from akd_deploy.certificate import MIN_BLOCKS, samples_needed
from akd_deploy.errors import CorruptFileError, MissingFileError, UnknownNameError, UsageError


class _Table(BaseModel):
    # Strict, because TOML has types: "16" or true for a number is a mistake.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataTable(_Table):
    """`[data]`: a dataset's name and its own settings."""

    name: str = "digits"
    settings: dict[str, Any] = Field(default_factory=dict)


class TrainingTable(_Table):
    """How long and how fast a network learns; what is left out keeps the stage's default."""

    steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    optimiser: str | None = None
    learning_rate: float | None = Field(default=None, gt=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float | None = Field(default=None, ge=0)
    warmup: float | None = Field(default=None, ge=0, lt=1)
    temperature: float | None = Field(default=None, gt=0)
    kd_weight: float | None = Field(default=None, ge=0, le=1)
    dkd_alpha: float | None = Field(default=None, ge=0)
    dkd_beta: float | None = Field(default=None, ge=0)
    dist_beta: float | None = Field(default=None, ge=0)
    dist_gamma: float | None = Field(default=None, ge=0)
    oracle_beta: float | None = Field(default=None, ge=0)
    fresh_views: bool | None = None

    def given(self) -> dict[str, Any]:
        """The settings that were written down."""
        return self.model_dump(exclude_none=True)


_Path = Annotated[Path, Field(strict=False)]
File = _Path | None
"""TOML has texts for paths."""


class TeacherTable(_Table):
    """`[teacher]`: trained by us, or a factory with weights, or an ONNX file.

    An ensemble has `members` trained by us, the more different the greater `skew`, or several files of `weights`, of
    one `factory` or of one each, with `arguments` for all or for each.
    """

    source: Literal["train", "factory", "onnx"] = "train"
    factory: str | list[str] | None = None
    arguments: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    weights: _Path | list[_Path] | None = None
    onnx: File = None
    members: int = Field(default=1, ge=1)
    skew: float = Field(default=0.0, ge=0, le=1)
    training: TrainingTable = TrainingTable()

    @model_validator(mode="after")
    def _complete(self) -> TeacherTable:
        if self.source == "factory" and (self.factory is None or self.weights is None):
            raise ValueError('source = "factory" needs factory = "package.module:function" and weights = "file"')
        if self.source == "onnx" and self.onnx is None:
            raise ValueError('source = "onnx" needs onnx = "file"')
        for source, keys in (("factory", ("factory", "weights")), ("onnx", ("onnx",))):
            unused = [key for key in keys if self.source != source and getattr(self, key) is not None]
            if unused:
                raise ValueError(f'{" and ".join(unused)} would not be used: write source = "{source}"')
        if self.weights == []:
            raise ValueError("weights names no file")
        for key in ("factory", "arguments"):
            listed = getattr(self, key)
            if isinstance(listed, list) and len(listed) != len(self.weight_files):
                raise ValueError(f"{key} has {len(listed)} entries for {len(self.weight_files)} files of weights")
        if self.source != "train" and self.members > 1:
            raise ValueError('members are trained by us: write source = "train", or give several files of weights')
        if self.skew and self.members == 1:
            raise ValueError("skew is between members: write members = 2 or more")
        return self

    @property
    def weight_files(self) -> list[Path]:
        """The files of `weights`, one for each teacher."""
        if self.weights is None:
            return []
        return self.weights if isinstance(self.weights, list) else [self.weights]

    @property
    def built(self) -> list[tuple[str, dict[str, Any], Path]]:
        """(factory, its arguments, file of weights) of every teacher that is built."""
        files = self.weight_files
        factories = self.factory if isinstance(self.factory, list) else [self.factory or ""] * len(files)
        arguments = self.arguments if isinstance(self.arguments, list) else [self.arguments] * len(files)
        return list(zip(factories, arguments, files, strict=True))

    @property
    def teachers(self) -> int:
        """How many teach together."""
        return self.members if self.source == "train" else max(1, len(self.weight_files))


class SpaceTable(_Table):
    """`[space]`: a search space's name and its own settings."""

    name: str = "mobile"
    settings: dict[str, Any] = Field(default_factory=dict)


class ProfileTable(_Table):
    """`[profile]`: how much is measured where the latency table is missing."""

    probes: int = Field(default=240, ge=20)
    networks: int = Field(default=40, ge=0)
    blocks: int = Field(default=3, ge=1)


class SharedTable(_Table):
    """`[search.shared]`: `rounds` of training one network's weights on `trained` candidates in turn (a round's
    `training`), after each of which the strategy is told about `judged` others; of the last `derived` the best are
    trained by themselves. In `warmup` rounds before them candidates are drawn at random, and before these the backbone
    of space augmented is trained alone, where `backbone` says how. Candidates with more than `most_bytes` of weights
    are refused, or with `memory_reward` traded off against accuracy as latency is."""

    backbone: TrainingTable | None = None
    warmup: int = Field(default=0, ge=0)
    rounds: int = Field(default=10, ge=1)
    trained: int = Field(default=16, ge=1)
    judged: int = Field(default=8, ge=1)
    derived: int = Field(default=32, ge=1)
    most_bytes: int | None = Field(default=None, ge=1)
    memory_reward: str | None = None
    training: TrainingTable = TrainingTable()


HOW_SEARCHED = ("driver", "trial_limit_s", "portal_port")
"""Keys of `[search]` that say how it is done, not what: a run goes on under other ones."""


class SearchTable(_Table):
    """`[search]`: each strategy gets its own `trials` trainings; with `weights` "shared" of the candidates that it
    found with weights that all share. `settings` has a table for each strategy whose own are not its defaults.

    `driver` "nni" has them made as trials of an NNI experiment on this machine, as many at a time as `--jobs` says;
    one that takes longer than `trial_limit_s` (an hour, where it is left out) is killed and counts as failed. The
    portal is on this machine's loopback address, on a free port unless `portal_port` says which.
    """

    strategies: list[str] = Field(default=["constrained_evolution"], min_length=1)
    settings: dict[str, dict[str, Any]] | None = None
    trials: int = Field(default=16, ge=1)
    reward: str = "soft"
    constraint: Literal["upper", "none"] = "upper"
    driver: Literal["in-process", "nni"] = "in-process"
    trial_limit_s: float | None = Field(default=None, gt=0)
    portal_port: int | None = Field(default=None, ge=1, le=65535)
    weights: Literal["own", "shared"] = "own"
    shared: SharedTable = SharedTable()
    training: TrainingTable = TrainingTable()

    @model_validator(mode="after")
    def _used(self) -> SearchTable:
        unused = [key for key in HOW_SEARCHED[1:] if self.driver != "nni" and getattr(self, key) is not None]
        if unused:
            raise ValueError(f'{" and ".join(unused)} would not be used: write driver = "nni"')
        if self.shared.memory_reward is not None and self.shared.most_bytes is None:
            raise ValueError("shared.memory_reward would not be used: write shared.most_bytes")
        if self.weights != "shared" and self.shared != SharedTable():
            raise ValueError('shared would not be used: write weights = "shared"')
        return self

    @field_validator("strategies")
    @classmethod
    def _different(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("name each strategy once")
        return names

    def settings_of(self, strategy: str) -> dict[str, Any]:
        """Of a strategy, those that were written down."""
        return (self.settings or {}).get(strategy, {})


class GatesTable(_Table):
    """`[shrink.gates]`: settings of the search for gates; what is left out keeps its default."""

    gate_rate: float | None = None
    gate_momentum: float | None = None
    strength: float | None = None
    growth: float | None = None
    opening: float | None = None
    closing: float | None = None
    kd_weight: float | None = None
    ce_weight: float | None = None
    reverse: bool | None = None

    def given(self) -> dict[str, Any]:
        """The settings that were written down."""
        return self.model_dump(exclude_none=True)


class ShrinkTable(_Table):
    """`[shrink]`: how a part of the teacher is chosen. Channels are dropped `group` at a time (0: the target's
    granularity), and with `branches` whole residual branches too. Penalties are in proportion to what a unit adds to
    `weigh`; gates learn from the student's `images`, or from the teacher's, whose labels they do not need."""

    group: int = Field(default=0, ge=0)
    branches: bool = True
    weigh: Literal["latency", "operations", "parameters"] = "latency"
    images: Literal["student", "teacher"] = "student"
    gates: GatesTable = GatesTable()
    training: TrainingTable = TrainingTable()


class ProcessTable(_Table):
    """`[distill.process]`: pathways between the teacher's layers and the student's, and how their weights are found:
    by so many `searches`, each a `training`, or in a `file` that an earlier search wrote. What weights add up to, on
    average over the training, is one of `totals`: the one with which students score best on the tuning images."""

    file: File = None
    totals: list[Annotated[float, Field(gt=0)]] | None = Field(default=None, min_length=1)
    searches: int = Field(default=2, ge=1)
    rule: str = "up"
    transforms: list[str] = Field(default=["linear"], min_length=1)
    distance: str = "hcl"
    logits: bool = True
    normalisation: str = "biased-softmax"
    gradient: str = "exact"
    ahead: int = Field(default=4, ge=1)
    training: TrainingTable = TrainingTable()


METHODS_OF_BETA = ("soft-oracle", "relative-oracle")
"""Distillation methods between the mean of all teachers and the oracle, nearer to the one or the other by a β."""


class DistillTable(_Table):
    """`[distill]`: the method, and the long training of finalists. Of `betas` that of a soft or relative oracle is
    chosen on the winner, unless `training` has an `oracle_beta`."""

    method: str = "kd"
    seeds: int = Field(default=3, ge=2)
    betas: list[Annotated[float, Field(ge=0)]] | None = Field(default=None, min_length=2)
    process: ProcessTable = ProcessTable()
    training: TrainingTable = TrainingTable()

    @model_validator(mode="after")
    def _used(self) -> DistillTable:
        if self.method != "process" and self.process != ProcessTable():
            raise ValueError('process would not be used: write method = "process"')
        searching = ("searches", "normalisation", "gradient", "ahead", "training")
        unused = [key for key in searching if getattr(self.process, key) != getattr(ProcessTable(), key)]
        if self.process.file is not None and unused:
            raise ValueError(f"process.{' and process.'.join(unused)} would not be used beside process.file")
        if self.process.ahead != ProcessTable().ahead and self.process.gradient != "multi-step":
            raise ValueError('process.ahead would not be used: write gradient = "multi-step"')
        if self.betas is not None:
            if self.method not in METHODS_OF_BETA:
                raise ValueError('betas would not be used: write method = "soft-oracle" or "relative-oracle"')
            if self.training.oracle_beta is not None:
                raise ValueError("betas would not be used beside training.oracle_beta: write one of them")
            if len(set(self.betas)) < len(self.betas):
                raise ValueError("name each of betas once")
        return self


class ExportTable(_Table):
    """`[export]`: what else to build and measure besides the target itself."""

    targets: list[str] = Field(default_factory=list)
    quantize: list[Literal["fp16", "bf16", "int8", "fp8"]] = Field(default_factory=list)


class CertificateTable(_Table):
    """`[certificate]`: of the winner, on the target."""

    percentile: float = Field(default=90, ge=50, lt=100)
    confidence: float = Field(default=0.99, gt=0.5, lt=1)
    blocks: int = Field(default=MIN_BLOCKS, ge=MIN_BLOCKS)
    samples_per_block: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _reachable(self) -> CertificateTable:
        samples, needed = self.blocks * self.samples_per_block, samples_needed(self.percentile, self.confidence)
        if samples < needed:
            raise ValueError(
                f"{samples} samples can never certify p{self.percentile:g} at {self.confidence:.4g} confidence; "
                f"raise blocks or samples_per_block to {needed} samples in all"
            )
        return self


class RunConfiguration(_Table):
    """A whole run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    target: str
    budget: str
    data: DataTable = DataTable()
    teacher: TeacherTable = TeacherTable()
    space: SpaceTable = SpaceTable()
    profile: ProfileTable = ProfileTable()
    search: SearchTable = SearchTable()
    shrink: ShrinkTable = ShrinkTable()
    distill: DistillTable = DistillTable()
    export: ExportTable = ExportTable()
    certificate: CertificateTable = CertificateTable()

    def as_dict(self) -> dict[str, Any]:
        """JSON types only, keys without a value left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def what_is_run(self) -> dict[str, Any]:
        """`as_dict` without the keys under which a run may go on when they have changed."""
        fields = self.as_dict()
        fields["search"] = {key: value for key, value in fields["search"].items() if key not in HOW_SEARCHED}
        return fields


def configuration_from_dict(fields: dict[str, Any], where: str) -> RunConfiguration:
    """Check what was written.

    Raises:
        UnknownNameError: a key nobody knows; the message lists the known ones.
        UsageError: a value that is missing, of the wrong type or out of range.
    """
    try:
        return RunConfiguration.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UnknownNameError("key", path, _known_keys(first["loc"][:-1]), where=where) from error
        found = "nothing" if first["type"] == "missing" else repr(first["input"])
        raise UsageError(asked=f"{path or 'the tables'} in {where}", found=found, next=f"{first['msg']}.") from error


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys a table knows, with its path in front."""
    model: type[BaseModel] = RunConfiguration
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    prefix = "".join(f"{part}." for part in location)
    return [prefix + name for name in model.model_fields]


def read_configuration(path: Path) -> RunConfiguration:
    """Read a `run.toml`.

    Raises:
        MissingFileError, CorruptFileError: no such file, or no TOML.
        UnknownNameError, UsageError: as for `configuration_from_dict`.
    """
    if not path.is_file():
        raise MissingFileError(asked=f"the run configuration {path}", found="no such file", next="Check the path.")
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorruptFileError(
            asked=f"a run configuration in {path}", found=f"no valid TOML ({error})", next="Correct the file."
        ) from error
    return configuration_from_dict(fields, where=str(path))


def toml_from_dict(fields: dict[str, Any]) -> str:
    """TOML text of JSON types (TOML has no null): scalars and lists first, then tables, in the order given."""
    lines: list[str] = []

    def write(table: dict[str, Any], prefix: str) -> None:
        plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
        for key, value in plain.items():
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
        for key, value in table.items():
            if isinstance(value, dict):
                path = f"{prefix}{_toml_key(key)}"
                lines.extend(["", f"[{path}]"])
                write(value, f"{path}.")

    write(fields, "")
    return "\n".join(lines) + "\n"


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's too; DEL is the one character that only TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"no TOML for {type(value).__name__}")
