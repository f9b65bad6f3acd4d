"""The command `akd-deploy`: its sub-commands, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer
from typer.exceptions import TyperException

import akd_deploy
from akd_deploy.cli import (
    bench_command,
    device_commands,
    import_commands,
    latency_commands,
    model_commands,
    predict_command,
    run_commands,
    ship_commands,
)
from akd_deploy.cli.output import emit_error, stderr, writing_stdout
from akd_deploy.errors import AkdError, DefectError, InterruptionError, StorageError, UsageError

RESUMABLE = ("profile", "search", "run", "shrink", "demo")
"""Commands that go on where they were interrupted."""

app = typer.Typer(
    name="akd-deploy",
    help="Distil a student that provably meets a latency budget on a device, and ship it as an engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (
    device_commands,
    latency_commands,
    bench_command,
    import_commands,
    model_commands,
    predict_command,
    run_commands,
    ship_commands,
):
    group.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        with writing_stdout():
            sys.stdout.write(f"akd-deploy {akd_deploy.__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Exit codes: 0 ok, 2 bad input, 3 constraint or gate violated, 4 parity failed, 5 environment unsuitable,
    6 build failed, 130 interrupted (profile, search, run and demo go on with --resume); 1 is a defect of ours."""


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    with writing_stdout():  # for one that is closed; what the commands print, they guard themselves
        pass
    code = _exit_code(sys.argv[1:] if arguments is None else arguments)
    with writing_stdout():  # what was only buffered until now
        pass
    sys.exit(code)


def _exit_code(given: list[str]) -> int:
    """Run one command, and print its error if it ends with one."""
    as_json, command = "--json" in given, f"akd-deploy {' '.join(given)}"
    try:
        code = app(args=given, standalone_mode=False, prog_name="akd-deploy")
        if code == InterruptionError.exit_code:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
    except AkdError as error:
        emit_error(error, as_json)
        return error.exit_code
    except TyperException as error:
        if as_json:
            emit_error(UsageError(command, error.format_message(), "See --help."), as_json)
        elif error.format_message():  # without arguments there is none, and the help is printed already
            stderr.print(f"error: {error.format_message()} Try --help.", markup=False, highlight=False)
        return UsageError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        resumes = bool(given) and given[0] in RESUMABLE
        kept = "What was finished is kept; --resume continues." if resumes else "Run it again."
        emit_error(InterruptionError(command, "Ctrl-C", kept), as_json)
        return InterruptionError.exit_code
    except OSError as error:
        with writing_stdout():  # leaves where this was what failed
            pass
        # Ours are AkdErrors with a better message; this one comes from a library that was writing or reading a file.
        emit_error(StorageError(command, str(error), "Free some space, or choose another place."), as_json)
        return StorageError.exit_code
    except Exception as error:  # noqa: BLE001  (whatever it is: an answer of --json is one object, and codes are as promised)
        traceback.print_exc()
        emit_error(
            DefectError(command, f"{type(error).__name__}: {error}", "Please report it with the lines above."), as_json
        )
        return DefectError.exit_code
    return code if isinstance(code, int) else 0
