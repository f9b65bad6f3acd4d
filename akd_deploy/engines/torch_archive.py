"""Read and write `torch.export` archives (.pt2) without ever reading or writing a pickle.

An archive still is code: torch rebuilds a graph and symbolic expressions from it. Check files of unknown
origin against their manifest's hash before they come here.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
import zlib
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from akd_deploy.errors import AkdError, BuildError, CorruptFileError, MissingFileError, UsageError
from akd_deploy.kernel import Shape
from akd_deploy.storage import write_atomically

_HOW_TO_EXPORT = "Write a .pt2 file with torch.export.save, or with akd_deploy.engines.torch_archive.export_module."
# Constants that are neither tensors nor numbers are stored pickled, under these names.
_PICKLED_PREFIXES = ("custom_obj_", "opaque_obj_")


def read_archive(path: Path) -> tuple[ExportedProgram, bytes]:
    """The program in a .pt2 file, and the file's content without the sample inputs that came with it.

    Raises:
        MissingFileError: no such file.
        UsageError: another kind of model file, or an archive that holds pickled objects or compiled code.
        CorruptFileError: the file is no archive, or cannot be read.
    """
    if path.suffix == ".onnx":
        raise UsageError(
            asked=f"the torch engine for {path.name}",
            found="an ONNX file, which torch cannot run",
            next=f"{_HOW_TO_EXPORT} Or choose a target whose engine reads ONNX.",
        )
    if not path.is_file():
        raise MissingFileError(asked=f"the archive {path}", found="no such file", next="Check the path.")
    content = _without_sample_inputs(path)
    try:
        return torch.export.load(io.BytesIO(content)), content
    except (RuntimeError, KeyError, ValueError, AssertionError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise _corrupt(path, f"contents that torch {torch.__version__} cannot read ({error})") from error


def _corrupt(path: Path, found: str) -> CorruptFileError:
    return CorruptFileError(asked=f"a torch.export archive in {path}", found=found, next="Export the model again.")


def _without_sample_inputs(path: Path) -> bytes:
    """The archive with its sample inputs emptied (they are pickled); refuses every other pickle."""
    content = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as kept:
            entries = {info.filename.partition("/")[2]: info for info in source.infolist()}
            if "models/model.json" not in entries:
                old = any(info.filename == "serialized_exported_program.json" for info in source.infolist())
                raise _corrupt(path, "an archive of torch 2.7 or older" if old else "a zip file without a model")
            for name, info in entries.items():
                if name.startswith("data/aotinductor/") or name in ("data/weights/model.pt", "data/constants/model.pt"):
                    raise _unsafe(path, f"{name}, compiled code or a pickle")
                data = source.read(info)
                if name.endswith("_config.json"):
                    _refuse_pickles(path, json.loads(data))
                kept.writestr(zipfile.ZipInfo(info.filename), b"" if "data/sample_inputs/" in name else data)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, AkdError):
            raise
        raise _corrupt(path, f"bytes that are no archive ({error})") from error
    return content.getvalue()


def _refuse_pickles(path: Path, payload: dict[str, dict[str, dict[str, object]]]) -> None:
    for name, stored in payload.get("config", {}).items():
        if stored.get("use_pickle") or str(stored.get("path_name", "")).startswith(_PICKLED_PREFIXES):
            raise _unsafe(path, f"{name!r}, a pickled object")


def _unsafe(path: Path, found: str) -> UsageError:
    return UsageError(
        asked=f"an archive of a graph and plain tensors in {path}",
        found=found,
        next="Loading it could run any code. Export a module whose constants are plain tensors.",
    )


def exported(module: nn.Module, input_shape: Shape, *, dynamic_batch: bool = False) -> ExportedProgram:
    """The inference graph of a module of one floating input, in the dtype of its parameters.

    The module is copied first: what is done to the program later does not reach it.

    Args:
        input_shape: of the input, batch first.
        dynamic_batch: leave the batch open, so that one archive serves targets of any batch.

    Raises:
        BuildError: torch cannot export it.
    """
    module = copy.deepcopy(module).eval()
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    # torch specialises dimensions of size 0 and 1; a dynamic batch has to be exported with more.
    example_shape = (max(2, input_shape[0]), *input_shape[1:]) if dynamic_batch else input_shape
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    shapes = ({0: Dim("batch")},) if dynamic_batch else None
    try:
        example = torch.zeros(example_shape, dtype=dtype, device=device)
        return torch.export.export(module, (example,), dynamic_shapes=shapes)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise BuildError(
            asked=f"a graph of {type(module).__name__} for an input of shape {input_shape}",
            found=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            next="torch.export must be able to trace the module; see its message for the line.",
        ) from error


def export_module(module: nn.Module, input_shape: Shape, path: Path, *, dynamic_batch: bool = False) -> Path:
    """Write the inference graph of a module with its weights as a .pt2 archive; see `exported`."""
    content = io.BytesIO()
    torch.export.save(exported(module, input_shape, dynamic_batch=dynamic_batch), content)
    write_atomically(path, content.getvalue())
    return path
