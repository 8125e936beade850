"""Log probabilities in the two forms that OpenAI's API has for them. Knows no route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiasst.engine.text import TokenReport, TokenText

_PART_OF_A_CHARACTER = "\ufffd"


def of_chat(reports: Sequence[TokenReport]) -> dict[str, Any]:
    """As chat completions have them: an entry a token, with the likeliest ones beside it."""
    return {
        "content": [
            {**_entry(report.chosen), "top_logprobs": [_entry(other) for other in report.likeliest]}
            for report in reports
        ],
        "refusal": None,
    }


def of_completion(reports: Sequence[TokenReport], offset: int) -> dict[str, Any]:
    """As completions have them: lists side by side; `offset` is the place in the text where the first token begins."""
    offsets = []
    for report in reports:
        offsets.append(offset)
        offset += len(report.chosen.text)
    return {
        "tokens": [report.chosen.text for report in reports],
        "token_logprobs": [report.chosen.logprob for report in reports],
        "top_logprobs": [{other.text: other.logprob for other in report.likeliest} for report in reports],
        "text_offset": offsets,
    }


def _entry(token: TokenText) -> dict[str, Any]:
    whole = _PART_OF_A_CHARACTER not in token.text
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode()) if whole else None}
