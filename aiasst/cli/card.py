"""An accuracy card as rows to print. Knows the card's words, no command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiasst.cli import output

if TYPE_CHECKING:
    from aiasst.artifacts.card import AccuracyCard


def brief(card: AccuracyCard) -> list[tuple[str, str]]:
    """Names and values, then on what and where they were measured."""
    from aiasst.artifacts.card import text_in_words

    rows = [(name, value) for name, value, _ in card.measures()]
    if card.text is not None:
        rows.append(("text", text_in_words(card.text)))
    threads = f", {card.threads} threads" if card.threads else ""
    rows.append(("through", f"{card.provider}, ONNX Runtime {card.onnxruntime_version}{threads}, {card.cpu}"))
    return rows


def show(card: AccuracyCard, title: str = "") -> None:
    """Print a card with a line on what each number means, under `title` (else the names of the two models)."""
    compared = f" against {card.original}" if card.original else ""
    measures = list(card.measures())
    rest = [(*row, "") for row in brief(card)[len(measures) :]]
    output.table(title or f"{card.model}{compared}", ("measure", "value", "what it means"), measures)
    output.section("", rest)
