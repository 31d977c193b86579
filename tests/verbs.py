# SPDX-License-Identifier: Apache-2.0
"""The command line, run in the process of the tests: loading PyTorch takes seconds, and most questions need no process."""

from __future__ import annotations

import io
import os
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from ghostnets.cli import app


def ghostnets(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What the command says and how it ends, in a folder."""
    said, noted, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with redirect_stdout(said), redirect_stderr(noted):
            code = app._run(list(words), debug=False)
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(words, code, said.getvalue(), noted.getvalue())
