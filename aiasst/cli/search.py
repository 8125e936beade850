"""`aiasst search`: the passages of a file that mean what a query asks for. Translates and prints; the stage does the work."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiasst.cli import output
from aiasst.cli.options import Config, Folder, Json, Quiet
from aiasst.errors import UsageError

if TYPE_CHECKING:
    from aiasst.search import Hit

EXAMPLES = (
    'aiasst search minilm-w8a8 corpus.jsonl "What do cats eat?"\n\n'
    "cat questions.txt | aiasst search minilm-w8a8 corpus.jsonl - --top 3 --json\n\n"
    'A row of the corpus:  {"id": "a", "text": "Cats eat mice."}'
)


def command(
    folder: Folder,
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="JSON Lines, a passage a line.")],
    queries: Annotated[list[str], typer.Argument(metavar="QUERY…", help="What to look for; - is lines of stdin.")],
    top: Annotated[int, typer.Option("--top", "-n", metavar="N", min=1, help="Show the N nearest passages.")] = 5,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare every passage, also where an index would be faster.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Embed the corpus anew.")] = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the passages of a file that are nearest in meaning to a query.

    The file is embedded once; its vectors stay beside it (CORPUS.vectors) and
    are used again as long as file and model are the same. Over 50,000 passages
    an index is built, if the package usearch is installed
    (pip install 'aiasst[search]'); it may miss a passage, --exact does not.
    """
    from aiasst.run import Encoder, load
    from aiasst.search import Search

    asked = [line.strip() for line in sys.stdin if line.strip()] if queries == ["-"] else queries
    encoder = load(folder, config)
    if not isinstance(encoder, Encoder):
        raise UsageError(f"{folder} generates text, it makes no vectors", "take a model that embeds texts")
    if not quiet:
        for remark in encoder.remarks:
            output.note(output.plain(remark))
    with output.progress(quiet=quiet) as progress:
        opened = Search.open(encoder, corpus, exact=exact, restart=restart, progress=progress)
    found = []
    for query in asked:
        began = time.perf_counter()
        hits = opened.find(query, top)
        found.append((query, hits, (time.perf_counter() - began) * 1000))
    if json:
        answers = [
            {"query": query, "milliseconds": round(took, 3), "hits": [asdict(hit) for hit in hits]}
            for query, hits, took in found
        ]
        output.document({
            "corpus": str(corpus), "rows": len(opened.corpus), "embedded_now": opened.fresh, "cut": opened.cut,
            "exact": opened.exact, "queries": answers,
        })  # fmt: skip
        return
    for query, hits, took in found:
        _show(query, hits)
        if not quiet:
            output.note(f"{len(opened.corpus):,} passages in {took:.1f} ms, the query's own vector included")
    if opened.cut and not quiet:
        output.note(f"{opened.cut} passages are longer than the model reads: what comes behind is not found")


command.__name__ = "search"


def _show(query: str, hits: Sequence[Hit]) -> None:
    rows = [(f"{hit.score:.3f}", hit.id, " ".join(hit.text.split())) for hit in hits]
    output.table(query, ("score", "id", "text"), rows, right=("score",))
