"""docs/tutorial.md, followed word for word in an empty folder: files made, commands typed."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.examples.terminal import Terminal, free_port
from tests.pages import DOCS, blocks

PAGE = DOCS / "tutorial.md"
SECONDS = 4  # of load; the page says more, so that people have the time to look


@pytest.mark.skipif(sys.platform == "win32", reason="local clusters need Linux or macOS")
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("flask", "gunicorn")),
    reason="needs flask and gunicorn, from the extra `examples` (`make examples` installs it)",
)
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
        "LC_ALL": "C.UTF-8",
    }
    environment.pop("DATABASE_URL", None)
    web = free_port()
    database = ""  # the port of the cluster, once it is there

    def adapted(text: str) -> str:
        """As it must be on a machine where others use the ports of the page."""
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{web}")
        text = text.replace("ybsmart demo", "ybsmart demo --seconds 1")
        text = text.replace("load.py 20", f"load.py {SECONDS}")
        return text.replace(":5433", f":{database}") if database else text

    with ExitStack() as stack:
        terminals: dict[int, Terminal] = {}

        def terminal(number: int) -> Terminal:
            if number not in terminals:
                terminals[number] = Terminal(tmp_path, environment)
                stack.callback(terminals[number].close)
            return terminals[number]

        current = 1
        for block in blocks(PAGE):
            if not block.is_executed:
                continue
            text = adapted(block.text)
            named = re.fullmatch(r"terminal (\d+)", block.note)
            if block.file:
                (tmp_path / block.file).write_text(text, encoding="utf-8")
            elif block.language == "sh":
                current = int(named[1]) if named else 1
                if current == 1:
                    terminal(1).run(text)
                else:
                    terminal(current).type(text)
            elif block.language == "pycon":
                assert named is not None, block
                for line in text.splitlines():
                    terminal(int(named[1])).type(f"{line.removeprefix('>>> ')}\n")
                terminal(int(named[1])).type("print('done', 'so far')\n")
                terminal(int(named[1])).expect("done so far")
            elif not database and ":5433" in text:
                current_output = terminal(current)
                current_output.expect(text.replace("5433", "..."))
                database = current_output.last(r"@127\.0\.0\.1:(\d+)/")
            else:
                terminal(int(named[1]) if named else current).expect(text)
