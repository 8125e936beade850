"""A JSON schema, a regular expression or a Lark grammar to the tokens that may come next. Knows no model and no request.

The work is llguidance's: an Earley parser over the bytes of the tokens, a lexer of derivatives of regular expressions, and
a walk over the trie of the vocabulary for each mask. What is here: constraints are checked before anything is computed,
compiled once however many rows have them, and an answer that cannot go on ends instead of saying what it must not.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from aiasst.engine.requests import Finished, Guide
from aiasst.errors import PromptError
from aiasst.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Kind = Literal["json_schema", "regex", "grammar"]
"""`grammar` is a Lark grammar in llguidance's dialect."""

KEPT = 16
"""Compiled constraints that are kept; rows of one file have one or a few."""

_NAMES: dict[Kind, str] = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
_HINTS: dict[Kind, str] = {
    "json_schema": "a schema may use the keywords that llguidance's docs/json_schema.md lists, and no references to the net",
    "regex": "a regex is one of Rust's crate 'regex', for the whole answer; look-around and back-references are not in it",
    "grammar": "a grammar is written in Lark's syntax and begins with the rule 'start'",
}
_WHITESPACE = r"[ ]|\n[ \t]{0,40}"
"""Between the parts of JSON: a space, or a line break and an indent. Without a bound small models go on with it for ever."""


@dataclass(frozen=True)
class Constraint:
    """What the whole answer must be."""

    kind: Kind
    text: str
    """The schema as JSON, the regular expression, or the grammar."""


class Constrainer:
    """Makes guides for the tokens of one model.

    Args:
        tokenizer: of the model.
        stop_ids: tokens that end an answer; they are allowed where the answer is complete.
        vocabulary: how many logits the model computes; often more than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int], vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._vocabulary = vocabulary
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def guide(self, constraint: Constraint) -> Guide:
        """A guide for one answer.

        Raises:
            PromptError: the constraint is not valid, or no answer can fulfil it; or the tokenizer is of a kind that cannot be
                constrained.
        """
        matcher = self._compiled.get(constraint)
        if matcher is None:
            matcher = self._compile(constraint)
            self._compiled[constraint] = matcher
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(constraint)
        guide = _MatcherGuide(matcher.deep_copy(), self._vocabulary)
        if not guide.alive:
            what = _NAMES[constraint.kind]
            raise PromptError(
                f"no answer of this model can fulfil the {what}: {_excerpt(constraint)}", _HINTS[constraint.kind]
            )
        return guide

    def _compile(self, constraint: Constraint) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(
            self._of_tokenizer(),
            _grammar(constraint),
            log_level=0,
            limits=LLParserLimits(verbose_errors=False),
        )
        if matcher.is_error():
            raise _refusal(constraint, matcher.get_error())
        return matcher

    def _of_tokenizer(self) -> LLTokenizer:
        if self._tokens is None:
            from llguidance import LLTokenizer

            own = self._tokenizer.backend.get_vocab_size(with_added_tokens=True)
            try:
                self._tokens = LLTokenizer(
                    self._tokenizer.backend.to_str(),
                    n_vocab=max(own, self._vocabulary),
                    eos_token=list(self._stop_ids) or None,
                )
            except ValueError as error:
                raise PromptError(
                    f"answers of this model cannot be constrained, its tokenizer is of another kind: {error}",
                    "leave the schema, regex or grammar out",
                ) from None
        return self._tokens


class _MatcherGuide:
    """A guide that follows one matcher."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self.allowed = self._mask()

    @property
    def alive(self) -> bool:
        """Whether any token is possible; False too where the parser has given up."""
        return not self._matcher.is_error() and bool(self.allowed.any())

    def accept(self, token: int) -> Finished | None:
        self._matcher.consume_token(token)
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return "stop"
        self.allowed = self._mask()
        return None if self.alive else "length"

    def _mask(self) -> npt.NDArray[np.bool_]:
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        # The matcher's vocabulary is the model's or larger, see `Constrainer`.
        return np.unpackbits(packed, count=self._vocabulary, bitorder="little").view(np.bool_)


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's own form.

    Raises:
        PromptError: the schema is no JSON.
    """
    from llguidance import LLMatcher

    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    if constraint.kind == "grammar":
        return LLMatcher.grammar_from_lark(constraint.text)
    try:
        schema = json.loads(constraint.text)
    except (ValueError, RecursionError) as error:
        raise _refusal(constraint, str(error)) from None
    if schema is True:  # the shortest way to say "any JSON"
        schema = {}
    if not isinstance(schema, dict):
        raise _refusal(constraint, "it is no object")
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults={"whitespace_pattern": _WHITESPACE})


def _refusal(constraint: Constraint, error: str) -> PromptError:
    """The error that says what the library found wrong: its first line, and its verdict where that comes below."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["it is not understood"]
    verdict = [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")]
    found = re.sub(r"^at \d+\(\d+\): ", "", lines[0]) if not verdict else verdict[0]
    return PromptError(f"the {_NAMES[constraint.kind]} cannot be used: {found}", _HINTS[constraint.kind])


def _excerpt(constraint: Constraint, length: int = 60) -> str:
    text = " ".join(constraint.text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
