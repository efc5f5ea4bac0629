"""The `hawk` command: its subcommands, and how errors end it.

Each subcommand imports what it needs when it is called, so that `hawk --help` is quick.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hawk import __version__
from hawk.cli.batch import batch
from hawk.cli.convert import convert_app
from hawk.cli.evaluate import evaluate
from hawk.cli.generate import generate
from hawk.cli.info import info
from hawk.cli.interrupts import end_children, was_interrupted
from hawk.cli.measure import bench, compare, verify
from hawk.cli.options import unprintable
from hawk.cli.output import Output, nowhere
from hawk.cli.report import report
from hawk.cli.serve import serve
from hawk.cli.show import show
from hawk.cli.study import study
from hawk.cli.train import train_app
from hawk.errors import INTERRUPTED, TERMINATED, HawkError, TerminatedError, os_line

USAGE = 2
"""The exit code of bad input."""
CLOSED = 1
"""The exit code of a command whose standard output was closed by its reader, as typer's own."""
# The class of typer's own usage errors. It is found by name, because its package differs between versions of typer.
USAGE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException" and issubclass(kind, Exception)
)


class OneLineErrors(TyperGroup):
    """Commands that end bad input with one line on standard error and exit code 2, and Ctrl-C with exit code 130."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command, then exit with its code, or return the code if `standalone_mode` is False."""
        warnings.showwarning = _show_warning
        given, sys.stdout = sys.stdout, Output.around(sys.stdout)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            if code == INTERRUPTED:  # the code with which typer itself ends on Ctrl-C
                _interrupted()
            sys.stdout.flush()
        except HawkError as error:
            code = _fail(str(error))
        except OSError as error:
            code = _refused(error)
        except USAGE_ERROR as error:
            code = _usage(error)
        except (KeyboardInterrupt, typer.Abort):
            code = _interrupted()
        except TerminatedError:
            end_children()
            code = _fail("stopped by SIGTERM: what is done is saved, and the same command goes on", TERMINATED)
        except UnicodeEncodeError as error:  # text that standard output or a file name cannot hold
            code = _fail(unprintable(error))
        except MemoryError:
            code = _fail("not enough memory")
        except Exception:  # an import that Ctrl-C cut short raises what it likes
            if not was_interrupted():
                raise
            code = _interrupted()
        finally:
            sys.stdout = given if Output.flushed(given) else nowhere()
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = USAGE) -> int:
    print("hawk: " + " ".join(message.split()), file=sys.stderr)
    return code


def _refused(error: OSError) -> int:
    """End a command for which the system did not read or write something: a file, or standard output."""
    if isinstance(error, BrokenPipeError) and error.filename == Output.NAME:  # the reader, as `head`, has read enough
        return CLOSED
    return _fail(os_line(error))


def _interrupted() -> int:
    end_children()
    return _fail("interrupted", INTERRUPTED)


def _show_warning(message: Warning | str, *where: Any, **options: Any) -> None:
    """Print a warning as one line; Python's own form names a line of code and quotes it."""
    print("hawk: " + " ".join(str(message).split()), file=sys.stderr)


_WRONG_VALUE = re.compile(r"Invalid value for '(?P<name>[^']+)'(?: / '[^']+')*: Input should be (?P<what>.+)")
_WORDS = (
    (re.compile(r"greater than or equal to (\S+)"), r"\1 or more"),
    (re.compile(r"less than or equal to (\S+)"), r"\1 or less"),
    (re.compile(r"a valid integer.*"), "a whole number"),
    (re.compile(r"a valid number.*"), "a number"),
)


def plain_usage(message: str) -> str:
    """What is wrong with the value of an option, without the wording of the library that checked it."""
    found = _WRONG_VALUE.fullmatch(" ".join(message.split()))
    if found is None:
        return message
    for pattern, words in _WORDS:
        if pattern.fullmatch(found["what"]):
            return f"{found['name']} must be {pattern.sub(words, found['what'])}"
    return message


def _usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # a bare `hawk` or `hawk train`: the message is the help text
        print(error.format_message())
        return USAGE
    return _fail(plain_usage(error.format_message()))


app = typer.Typer(
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(train_app, name="train")
app.add_typer(convert_app, name="convert")


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"hawk {__version__}")
        raise typer.Exit()
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Draw images from text with autoregressive models: the same images as plain decoding, in fewer forwards."""


for command in (generate, batch, serve, compare, bench, verify, info, show, study, report):
    app.command()(command)
app.command("eval")(evaluate)
