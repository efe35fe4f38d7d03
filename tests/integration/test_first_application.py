"""docs/first-application.md, done as it says: its files written, its commands run in order, their output compared.

A block with a `title` is a file. In a `console` block a line that begins with `$ ` is a command, and the lines below it
stand somewhere in what it prints, in that order; `…` stands for anything. The word behind `console` says more:
`server`: it stays; `fails`: its last command does; `later`: what it prints comes true within seconds. Other blocks are
not run.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from llmsched.runtime.supervise import free_port

PAGE = Path(__file__).parents[2] / "docs/first-application.md"
SECONDS = 30.0


class Block(NamedTuple):
    language: str
    title: str | None
    word: str
    text: str

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command with the lines it should print."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            elif line.strip() not in ("", "…"):
                found[-1][1].append(line)
        return found


def blocks() -> Iterator[Block]:
    for language, info, text in re.findall(
        r"^```(\w+)([^\n]*)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    ):
        title = re.search(r'title="([^"]+)"', info)
        yield Block(language, title and title[1], "" if title else info.strip(), text)


def stands_in(lines: list[str], printed: str) -> bool:
    """Whether the lines stand in what was printed, in order; spaces do not count."""
    left = iter(printed.splitlines())
    return all(any(re.search(_pattern(line), "".join(p.split())) for p in left) for line in lines)


def _pattern(line: str) -> str:
    return ".*".join(map(re.escape, "".join(line.split()).split("…")))


class Reader:
    """Someone who does what the page says in a folder of their own, with a port of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        kept = {k: v for k, v in os.environ.items() if not k.startswith("LLMSCHED_")}
        url = f"http://127.0.0.1:{self.port}"
        own = {"LLMSCHED_PORT": str(self.port), "LLMSCHED_URL": url, "COLUMNS": "200"}
        self.environment = kept | own | {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"}
        self.server: subprocess.Popen[bytes] | None = None

    def do(self, block: Block) -> None:
        if block.title:
            (self.folder / block.title).write_text(block.text)
            return
        for command, lines in block.commands if block.language == "console" else ():
            if command.startswith("export "):
                self.environment |= dict(pair.split("=", 1) for pair in shlex.split(command)[1:])
            elif block.word == "server":
                self._start(command)
            else:
                self._run(command, lines, block.word, is_last=command == block.commands[-1][0])

    def _start(self, command: str) -> None:
        log = self.folder / "server.log"
        with log.open("wb") as file:
            self.server = subprocess.Popen(
                shlex.split(command), cwd=self.folder, env=self.environment, stdout=file, stderr=file
            )
        deadline = time.monotonic() + SECONDS
        while "listens on" not in log.read_text():
            assert self.server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def _run(self, command: str, lines: list[str], word: str, *, is_last: bool) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            done = subprocess.run(
                ["bash", "-c", command.replace("localhost:8000", f"127.0.0.1:{self.port}")],
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            printed = done.stdout + done.stderr
            if word != "later" or stands_in(lines, printed) or time.monotonic() > deadline:
                break
        assert done.returncode == (2 if word == "fails" and is_last else 0), f"$ {command}\n{printed}"
        assert stands_in(lines, printed), f"$ {command}\n{printed}\nshould have\n" + "\n".join(lines)

    def leave(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            assert self.server.wait(SECONDS) == 0


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    someone = Reader(tmp_path)
    yield someone
    someone.leave()


def test_the_page_works_as_it_stands(reader: Reader) -> None:
    done = list(blocks())
    for block in done:
        reader.do(block)

    assert [b.title for b in done if b.title] == [
        *("my_handlers.py", "slogans.yaml", "script.yaml", "slogans.py", "many.py"),
    ]
    assert sum(len(b.commands) for b in done if b.language == "console") == 14


def test_lines_are_looked_for_in_order() -> None:
    printed = "a  1 x\n\nb 2 y\nc 3\n"

    assert stands_in(["a … x", "c 3"], printed)
    assert stands_in(["b 2", "c"], printed)
    assert not stands_in(["c 3", "a 1"], printed)
    assert not stands_in(["a 1 y"], printed)
