"""The command `wsol`: finds the verb and imports nothing but that."""

from __future__ import annotations

import ast
import errno
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from wsol import __version__
from wsol.errors import WsolError, did_you_mean

_VERBS = ("train", "cam", "refine", "eval", "segment", "demo", "bench", "report", "info", "data")


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after `wsol`; those of the process by default.

    Returns:
        Exit status: 0 done, 1 done but some images failed, 2 a mistake in what was asked, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if words[0] in ("-V", "--version", "version"):
        sys.stdout.write(f"wsol {__version__}\n")
        return 0
    _log_to_stderr()
    try:
        if words[0] not in _VERBS:
            raise WsolError(f"unknown verb '{words[0]}'", hint=did_you_mean(words[0], _VERBS))
        verb = importlib.import_module(f"wsol.cli.{words[0]}")
        from wsol.cli.parse import RUNS  # tyro: not for --version

        with RUNS:
            return int(verb.run(words[1:]))
    except WsolError as error:
        if debug:
            raise
        sys.stderr.write(f"wsol: {error}\n")
        return 2
    except BrokenPipeError:
        # The reader of a pipe is gone (wsol ... | head): not an error, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RuntimeError, MemoryError, OSError) as error:
        reason = _lost(error)
        if debug or reason is None:
            raise
        sys.stderr.write(f"wsol: {reason}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("wsol: interrupted; run the same command again to continue\n")
        return 130


def _lost(error: BaseException) -> str | None:
    """Return a line for what the machine could not do; None where the error is a fault of the program."""
    again = "run the same command again to continue"
    if isinstance(error, MemoryError):
        return f"out of memory ({again}, with fewer --workers)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or 'temporary files: set TMPDIR to a folder with room'})"
    # By their names and words, for torch may not even be imported.
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
        return "not enough memory for the network and its batch (a smaller --batch-size or --img-size)"
    if type(error).__name__ == "BrokenProcessPool" or str(error).startswith("DataLoader worker"):
        return f"a worker process was killed, perhaps for memory ({again}, with fewer --workers)"
    return None


def _help() -> str:
    lines = [
        "usage: wsol VERB [OPTIONS]   (wsol VERB --help lists the options)",
        "",
        "Boxes and masks from image-level labels.",
        "",
    ]
    for verb in _VERBS:
        source = (Path(__file__).parent / f"{verb}.py").read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        lines.append(f"  {verb:<8} {summary.partition(': ')[2] or summary}")
    return "\n".join([*lines, "", "Add --debug to any verb for a traceback. Documentation: docs/start.md", ""])


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the current sys.stderr, which a progress bar replaces while it is on screen."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _log_to_stderr() -> None:
    logger = logging.getLogger("wsol")
    if not logger.handlers:
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
