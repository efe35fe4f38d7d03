"""Makes the local index that the search tools of web_search and llm_compiler read, out of HotpotQA files.

python -m llmsched.apps.web_search.corpus build --data hotpot_dev_distractor_v1.json --out corpus.db
python -m llmsched.apps.web_search.corpus search --corpus corpus.db "Scott Derrickson"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from llmsched import InvalidInput
from llmsched.runtime.tools.corpus import Corpus, hotpot_pages


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 where files are not what they should be."""
    about = "Makes the local index that the search tools of web_search and llm_compiler read."
    parser = argparse.ArgumentParser(prog="python -m llmsched.apps.web_search.corpus", description=about)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write an index of the paragraphs of HotpotQA files")
    build.add_argument("--data", type=Path, nargs="+", required=True, help="HotpotQA files (.json, or .json.gz)")
    build.add_argument("--out", type=Path, required=True, help="the index to write")
    search = commands.add_parser("search", help="show what a search finds")
    search.add_argument("--corpus", type=Path, required=True, help="an index")
    search.add_argument("text", help="a title, or a few words")
    given = parser.parse_args(arguments)
    try:
        print(_build(given.data, given.out) if given.command == "build" else _search(given.corpus, given.text))
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _build(data: Sequence[Path], out: Path) -> str:
    count = Corpus.build(out, chain.from_iterable(hotpot_pages(path) for path in data))
    return f"{out}: {count:,} pages, {out.stat().st_size / 1e6:,.1f} MB"


def _search(path: Path, text: str) -> str:
    with Corpus.open(path) as corpus:
        page = corpus.page(text)
        return "\n".join(corpus.similar(text)) if page is None else "\n".join([page.title, "", *page.sentences])


if __name__ == "__main__":
    sys.exit(main())
