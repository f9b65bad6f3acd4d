"""Errors that say what was asked, what was found, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class AkdError(Exception):
    """Base of every error raised for something the user can act on.

    Args:
        asked: what was asked for, as a noun phrase.
        found: what was found instead.
        next: what to do about it, as a sentence.
        details: anything a program reading `--json` may want besides; JSON types only.
    """

    kind = "error"
    exit_code = 2

    def __init__(self, asked: str, found: str, next: str, **details: object) -> None:
        self.asked = asked
        self.found = found
        self.next = next
        self.details = details
        super().__init__(f"asked for {asked}; found {found}. {next}")

    def __str__(self) -> str:
        # KeyError and friends would print the repr of the message.
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        # Python's own way is to call the class with `args`, the finished message, which no class here takes.
        return rebuilt_error, (type(self), self.asked, self.found, self.next, self.details), self.__dict__

    def as_dict(self) -> dict[str, object]:
        """The error as JSON types, as every `--json` command prints it."""
        return {
            "kind": self.kind,
            "asked": self.asked,
            "found": self.found,
            "next": self.next,
            **self.details,
        }


def rebuilt_error(kind: type[AkdError], asked: str, found: str, next: str, details: Mapping[str, object]) -> AkdError:
    """An error that another process raised, from its parts: classes that write their own message do not again."""
    error = kind.__new__(kind)
    AkdError.__init__(error, asked, found, next, **details)
    return error


class UsageError(AkdError, ValueError):
    """A value, key or combination of options that makes no sense."""

    kind = "usage"


class UnknownNameError(AkdError, LookupError):
    """A key or name that nobody knows; the message lists the known ones."""

    kind = "unknown_name"

    def __init__(self, what: str, name: str, known: Iterable[str], where: str = "") -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        super().__init__(
            asked=f"{what} {name!r}" + (f" in {where}" if where else ""),
            found=f"no such {what}",
            next=f"{hint}Known: {', '.join(known) if known else '(none)'}.",
            name=name,
            known=known,
        )


class MissingFileError(AkdError, FileNotFoundError):
    """A file or folder that should be there and is not."""

    kind = "missing_file"


class CorruptFileError(AkdError, ValueError):
    """A file that is there and cannot be what it claims to be; names the file and the place in it."""

    kind = "corrupt_file"


class StorageError(AkdError, OSError):
    """A place that cannot be written: full, read-only, or locked by another process."""

    kind = "storage"
    exit_code = 5


class UncoveredOperatorError(AkdError, LookupError):
    """Operators of a network that no row of the latency table says anything about."""

    kind = "uncovered_operator"

    def __init__(self, uncovered: Iterable[str], asked: str, next: str) -> None:
        self.uncovered = sorted(set(uncovered))
        super().__init__(
            asked=asked,
            found=f"no measured cost for {', '.join(self.uncovered)}",
            next=next,
            uncovered=self.uncovered,
        )


class MismatchError(AkdError, ValueError):
    """Two things that must agree and do not: headers, devices, classes, a run and its configuration."""

    kind = "mismatch"


class TrainingError(AkdError, ArithmeticError):
    """A training that went wrong: the loss became NaN or infinite."""

    kind = "training"


class ExperimentError(AkdError, RuntimeError):
    """Processes that a search has its candidates trained by, and that broke down; what was finished is kept."""

    kind = "experiment"
    exit_code = 5


class InfeasibleBudgetError(AkdError, ValueError):
    """A budget that nothing reaches; the message says the fastest reachable."""

    kind = "infeasible_budget"
    exit_code = 3


class GateError(AkdError, ValueError):
    """A gate or certificate that did not hold."""

    kind = "gate"
    exit_code = 3


class ParityError(AkdError, ArithmeticError):
    """An exported network whose outputs differ from its source's by more than the tolerance."""

    kind = "parity"
    exit_code = 4


class MissingRuntimeError(AkdError, ImportError):
    """A runtime, device or package that is not here; the message says what to install."""

    kind = "missing_runtime"
    exit_code = 5


class BuildError(AkdError, RuntimeError):
    """An engine that could not be built, or was built as something else than was asked for."""

    kind = "build"
    exit_code = 6


class VerificationError(AkdError, ValueError):
    """A bundle or engine whose bytes are not those its manifest promises."""

    kind = "verification"
    exit_code = 3


class DefectError(AkdError, RuntimeError):
    """Something that no command should end with: a mistake in this project, to be reported."""

    kind = "defect"
    exit_code = 1


class InterruptionError(AkdError, RuntimeError):
    """Ctrl-C: what was finished is kept."""

    kind = "interrupted"
    exit_code = 130
