"""`wsol demo`: run the whole flow on what ships with the packages, offline; or map own photos (--image, --serve)."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence

from wsol.cli.parse import parse
from wsol.engine.demo_options import DemoConfig, ImageDemoConfig
from wsol.engine.serve_options import ServeConfig

_HINT = """With --image FILE...: score maps over your own photos (wsol demo --image --help lists those options).
With --serve: a page in the browser to play with (wsol demo --serve --help).

"""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(argv: Sequence[str]) -> int:
    """Parse the flags, run the demonstration, and say where its pictures lie; return the exit status."""
    if any(word == "--image" or word.startswith("--image=") for word in argv):
        return _image(argv)
    if "--serve" in argv:
        return _serve([word for word in argv if word != "--serve"])
    if "-h" in argv or "--help" in argv:
        sys.stdout.write(_HINT)
    config = parse(DemoConfig, argv, prog="wsol demo")
    from wsol.engine.demo import demo  # torch takes seconds: not for --help

    path = demo(config)
    sys.stdout.write(f"report: {path.resolve()}\n")
    return 0


def _image(argv: Sequence[str]) -> int:
    config = parse(ImageDemoConfig, argv, prog="wsol demo --image")
    from wsol.engine.demo_image import demo_image  # as above

    shown = demo_image(config)
    for path in shown.overlays:
        sys.stdout.write(f"{path}\n")
    sys.stdout.write(f"report: {shown.report.resolve()}\n")
    for reason in shown.failures.values():
        sys.stderr.write(f"{reason}\n")
    return 1 if shown.failures else 0


def _serve(argv: Sequence[str]) -> int:
    config = parse(ServeConfig, argv, prog="wsol demo --serve")
    from wsol.engine.serve import serve  # as above

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: temporary files are deleted
    try:
        with serve(config) as address:
            if config.host not in _LOOPBACK:
                sys.stderr.write(f"everyone who reaches {config.host} can use the page\n")
            sys.stdout.write(f"page: {address} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    return 0
