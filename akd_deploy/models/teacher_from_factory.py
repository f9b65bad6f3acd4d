"""A teacher from the user's own code: a factory function and a file of weights."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.models.teacher import Teacher, teacher_from_module
from akd_deploy.models.weights import read_weights
from akd_deploy.storage import file_sha256

_NAMED = 5
"""How many keys an error lists before it counts the rest."""


def teacher_from_factory(
    factory: str,
    weights: Path,
    input_shape: Sequence[int],
    classes: int,
    arguments: Mapping[str, object] | None = None,
) -> Teacher:
    """Your own network: `package.module:function` builds it, `weights` fills it.

    The working directory is searched for the package too. The function's code runs; the weights' file cannot
    run any: it is safetensors, or a checkpoint that `torch.load(weights_only=True)` accepts.

    Raises:
        UsageError: the factory cannot be imported or does not give a module.
        MissingFileError, CorruptFileError: the weights' file is not there, or not weights alone.
        MismatchError: the weights do not fit the network, or the network does not fit the data.
    """
    module = _built(factory, dict(arguments or {}))
    state = read_weights(weights)
    fill(module, state, weights)
    return teacher_from_module(module, input_shape, classes, f"{factory} with {weights.name}", file_sha256(weights))


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """A console script does not see the working directory; a user's own module usually lies there."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _built(factory: str, arguments: dict[str, object]) -> nn.Module:
    module_name, separator, function_name = factory.partition(":")
    if not separator or not module_name or not function_name:
        raise UsageError(
            asked=f"the teacher's factory {factory!r}",
            found="no package.module:function",
            next="Write it like my_package.my_module:build_teacher.",
        )
    with _working_directory_on_path():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # the user's own code may raise anything
            raise UsageError(
                asked=f"the module {module_name} of the teacher's factory {factory}",
                found=f"it cannot be imported: {_told(error)}",
                next=f"Install it, or run where its folder is (looked in {Path.cwd()} too).",
            ) from error
        build = getattr(module, function_name, None)
        if not callable(build):
            callables = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
            raise UsageError(
                asked=f"the function {function_name} of {module_name}",
                found="no such function" if build is None else f"{type(build).__name__}, which cannot be called",
                next=f"It has: {', '.join(callables) or '(no function)'}.",
            )
        try:
            built = build(**arguments)
        except Exception as error:  # the user's own code may raise anything
            raise UsageError(
                asked=f"{factory} called with {arguments or 'no arguments'}",
                found=_told(error),
                next="Correct the factory, or its arguments.",
            ) from error
    if not isinstance(built, nn.Module):
        raise UsageError(
            asked=f"a torch module from {factory}",
            found=type(built).__name__,
            next="Let the function return the network itself.",
        )
    return built


def _told(error: Exception) -> str:
    """What was raised, and the line of the user's code that raised it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _prefix_told(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """What to do where all that is wrong is a prefix of all keys, such as that of a network in another one."""
    for one, other, told in (
        (state, expected, "Take {!r} off its keys"),
        (expected, state, "Put {!r} before its keys"),
    ):
        shortest = min(other, key=len, default="")
        for key in one:
            prefix = key.removesuffix(shortest)
            if prefix.endswith(".") and {name.removeprefix(prefix) for name in one} == set(other):
                return told.format(prefix) + ": they are the network's but for that."
    return None


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load weights of which none is missing, unknown or of another shape.

    Raises:
        MismatchError: names the keys that do not fit.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (("missing", missing), ("unknown", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise MismatchError(
            asked=f"the weights of {type(module).__name__} in {path}",
            found="; ".join(problems),
            next=_prefix_told(expected, state)
            or "Build the network with the arguments it was trained with, or use its own checkpoint.",
            missing=missing,
            unexpected=unexpected,
        )
    module.load_state_dict(dict(state), strict=False)
