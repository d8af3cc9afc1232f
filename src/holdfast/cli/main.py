"""The command line: ``holdfast COMMAND``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from holdfast.cli import (
    attack,
    audit,
    bench,
    bench_attacks,
    certify,
    check,
    columns,
    demo,
    doctor,
    harden,
    methods,
    report,
    study,
    study_manifold,
    study_scalability,
    verify,
)
from holdfast.cli.console import fault, volume
from holdfast.core.errors import HoldfastError, ModelError

__all__ = ["app", "main"]

_INTERNAL = 3

app = typer.Typer(
    name="holdfast",
    help="Audit a deep-learning model from both sides: what breaks it, and what is proved safe. "
    "Then harden it, and audit again.",
    epilog="Exit codes: 0 fine, 1 below --fail-under, 2 usage, 3 incomplete or contradiction, 4 unsafe file. "
    "NO_COLOR and HOLDFAST_DEBUG are respected.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,  # plain and quick off a terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _function, _panel in (
    (audit.audit, "Audit"),
    (audit.resume, "Audit"),
    (audit.recheck, "Audit"),
    (report.report, "Audit"),
    (report.diff, "Audit"),
    (attack.attack, "One method"),
    (certify.certify, "One method"),
    (verify.verify, "Verify"),
    (check.check, "Verify"),
    (harden.harden, "One method"),
    (methods.methods, "Help"),
    (doctor.doctor, "Help"),
    (columns.columns, "Help"),
    (demo.demo, "Help"),
):
    app.command(rich_help_panel=_panel)(_function)

bench.bench.command()(bench_attacks.attacks)
app.add_typer(bench.bench, name="bench", rich_help_panel="Audit")
study.study.command()(study_manifold.manifold)
study.study.command()(study_scalability.scalability)
app.add_typer(study.study, name="study", rich_help_panel="Audit")


def _version(asked: bool) -> None:
    if asked:
        from holdfast.core.version import __version__

        print(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def _holdfast(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_version, show_default=False
    ),
) -> None: ...


def main() -> None:
    """Runs the command line and exits with its code; every error is one line that names the fix."""
    command = typer.main.get_command(app)
    _watch(command)
    try:
        command(prog_name="holdfast")
    except HoldfastError as error:
        _told(error, str(error), error.exit_code)
    except OSError as error:
        _told(error, f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 2)
    except Exception as error:  # a fault of ours: a person gets one line, not a traceback
        _told(error, f"internal error: {type(error).__name__}: {error}; -v shows where, please report it", _INTERNAL)


def _watch(command: Any) -> None:
    """No command of ours ends the program, so where one ends it was code that it runs: that is no success, whatever it says."""
    for inner in getattr(command, "commands", {}).values():
        _watch(inner)
    run = command.callback

    def watched(*given: Any, **options: Any) -> Any:
        try:
            return run(*given, **options)
        except SystemExit as error:
            if isinstance(
                error.__context__, BrokenPipeError
            ):  # rich's: who read the output, as `head` does, has enough
                raise
            raise ModelError(
                f"code that the model or its data need ended the program (sys.exit({error.code!r})); let it raise an "
                "exception, or return"
            ) from error

    if run is not None:
        command.callback = watched


def _told(error: Exception, text: str, code: int) -> None:
    if volume.verbose or os.environ.get("HOLDFAST_DEBUG"):
        import traceback

        traceback.print_exception(error)
    fault(text)
    sys.exit(code)
