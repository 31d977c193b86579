# SPDX-License-Identifier: Apache-2.0
"""The program ``ghostnets``: its verbs, and the one place where errors become sentences and exit codes."""

from __future__ import annotations

import io
import os
import sys
import traceback

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from ghostnets import __version__
from ghostnets.cli.bench import bench
from ghostnets.cli.catalogue import list_
from ghostnets.cli.export import export
from ghostnets.cli.info import info
from ghostnets.cli.inspect import inspect
from ghostnets.cli.predict import predict
from ghostnets.cli.report import report
from ghostnets.cli.train import train
from ghostnets.cli.upgrade import upgrade
from ghostnets.cli.validate import validate
from ghostnets.errors import GhostnetsError, UserError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # 130 = 128 + SIGINT, as shells say it

app = App(
    name="ghostnets",
    help="Turn a trained convolutional network into a Ghost network; train, validate and try one.",
    help_epilogue="ghostnets VERB --help says more. --debug anywhere shows the traceback of an error.",
    help_format="plaintext",
    version=__version__,
    default_parameter=Parameter(negative=""),
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
app.command(upgrade)
app.command(export)
app.command(bench)
app.command(report)
app.command(list_, name="list")
app.command(info)
app.command(inspect)
app.command(predict)
app.command(train)
app.command(validate)


def main() -> None:
    """Run the command line and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    words = sys.argv[1:]
    debug = "--debug" in words
    sys.exit(_run([word for word in words if word != "--debug"], debug=debug))


def _run(words: list[str], *, debug: bool) -> int:
    try:
        app(words)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt as stop:
        _say(str(stop) or "interrupted")
        return INTERRUPTED
    except (GhostnetsError, CycloptsError) as error:
        if debug:
            traceback.print_exc()
        _say(_too_many(error) if isinstance(error, UnusedCliTokensError) else str(error))
        return BAD_INPUT if isinstance(error, UserError | CycloptsError) else FAILED
    return OK


def _too_many(error: UnusedCliTokensError) -> str:
    """A list of timm's is several words, ``--input-size 3 224 224``; one of ours is one, and cyclopts does not say so."""
    words = ", ".join(repr(word) for word in error.unused_tokens or ())
    verb = " ".join(["ghostnets", *(error.command_chain or ())])
    return (
        f"no place for {words}: a list is one word with commas (--input-size 224,224), "
        f"and {verb} --help shows what is taken"
    )


def _say(text: str) -> None:
    print(f"ghostnets: {' '.join(text.split())}", file=sys.stderr)
