"""A student that is a part of its teacher: the extracted network with what was kept, and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError
from akd_deploy.models.gated_network import GatedNetwork, extract
from akd_deploy.storage import write_atomically

FORMAT = 1


class Part(nn.Module):
    """Maps images (batch, channels, height, width) to logits (batch, classes); `mask` (units,) says what was kept."""

    def __init__(self, gated: GatedNetwork, mask: np.ndarray) -> None:
        super().__init__()
        self.network = extract(gated, mask)
        self.mask = np.asarray(mask, bool)
        self.input_shape = gated.graph.input_shape

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def reset(self, seed: int) -> Part:
        """Give every module fresh weights; one seed gives one set, and no global state is moved.

        Parameters of no module that knows how it begins, such as a scale of channels, are drawn from a normal
        distribution with the mean and the scatter that they have: how they began is not known.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # noqa: TID251 - inside fork_rng: reset_parameters knows no generator argument
            begun: set[int] = set()
            modules: list[Any] = list(self.network.modules())
            for module in modules:
                begin = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
                if begin is not None:
                    begin()
                    begun |= {id(parameter) for parameter in module.parameters(recurse=False)}
            with torch.no_grad():
                for parameter in self.network.parameters():
                    if id(parameter) not in begun and parameter.numel() > 1:
                        mean, scatter = parameter.mean(), parameter.std()
                        parameter.normal_().mul_(scatter).add_(mean)
        return self


def mask_text(mask: np.ndarray) -> str:
    """A mask as a text of 0 and 1, one for each unit."""
    return "".join("1" if kept else "0" for kept in mask)


def mask_from_text(text: str) -> np.ndarray:
    return np.array([character == "1" for character in text])


def save_part(part: Part, path: Path) -> None:
    """Write weights and mask to one `.safetensors` file; the network itself is the teacher's, and is not in it."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in part.state_dict().items()}
    write_atomically(path, save(state, metadata={"part": json.dumps({"format": FORMAT, "mask": mask_text(part.mask)})}))


def load_part(path: Path, gated: GatedNetwork) -> Part:
    """Read what `save_part` wrote, as a part of the same teacher with the same units; in evaluation mode.

    Raises:
        MissingFileError, CorruptFileError: the file is not there, or not such a file.
        MismatchError: it is a part of another network.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingFileError(asked=f"the student {path}", found="no such file", next="Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            fields: dict[str, Any] = json.loads((file.metadata() or {})["part"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
            mask = mask_from_text(fields["mask"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CorruptFileError(
            asked=f"a part of a teacher in {path}", found=f"no whole one ({error})", next="Train or copy it again."
        ) from error
    part = Part(gated, mask)
    try:
        part.load_state_dict(state)
    except RuntimeError as error:
        raise MismatchError(
            asked=f"weights of this teacher's part in {path}",
            found=str(error).splitlines()[0],
            next="Use the teacher, and the units, that it was cut from.",
        ) from error
    return part.eval()
