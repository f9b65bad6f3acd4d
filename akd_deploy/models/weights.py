"""Weights in files: safetensors written, safetensors and weights-only checkpoints read."""

from __future__ import annotations

import pickle  # noqa: TID251 - for the name of the error that weights_only raises; nothing is unpickled here
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from akd_deploy.errors import CorruptFileError, MissingFileError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts commonly keep the weights in a checkpoint."""


_DAMAGED = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    struct.error,
)  # fmt: skip
"""What torch raises for damaged bytes (found by damaging thousands of checkpoints)."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Parameter name → tensor, on the CPU.

    A `.safetensors` file, or a torch checkpoint of tensors alone; a checkpoint that holds the weights under
    `state_dict`, `model_state_dict` or `model` is unwrapped, and the `module.` that data-parallel training
    puts before every name is taken off.

    Raises:
        MissingFileError: no such file.
        CorruptFileError: the file is damaged, or a pickle of more than weights.
    """
    asked = f"weights in {path}"
    if not path.is_file():
        raise MissingFileError(asked=asked, found="no such file", next="Check the path.")
    if path.suffix == ".safetensors":
        import safetensors
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except safetensors.SafetensorError as error:
            raise CorruptFileError(
                asked=asked, found=f"no whole safetensors file ({error})", next="Copy or save it again."
            ) from error
    try:
        with warnings.catch_warnings():
            # Whether a newer pickle protocol could be read, the result says by itself.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CorruptFileError(
            asked=f"{asked} and nothing else",
            found="a pickle that holds more than tensors, and could run any code when read",
            next="Save the weights alone, where the network can be trusted: "
            "safetensors.torch.save_file(network.state_dict(), 'weights.safetensors').",
            reason=str(error).splitlines()[0],
        ) from error
    except _DAMAGED as error:
        raise CorruptFileError(
            asked=asked,
            found=f"no whole checkpoint ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            next="Copy or save it again, best as safetensors.",
        ) from error
    return _state(loaded, path)


def _state(loaded: object, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        found = (
            f"keys {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        )
        raise CorruptFileError(
            asked=f"names and tensors in {path}",
            found=found,
            next=f"Save network.state_dict(), by itself or under one of: {', '.join(_WRAPPERS)}.",
        )
    state = {str(key): value for key, value in loaded.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state
