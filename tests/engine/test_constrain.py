"""Constraints on the story tokenizer: whatever the model wants, the answer is what was asked for."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.artifacts.shipped import story_checkpoint
from aiasst.engine.constrain import KEPT, Constrainer, Constraint
from aiasst.engine.engine import Engine
from aiasst.engine.requests import Guide, Sampling
from aiasst.engine.text import TextEngine, TextEvent, TextRequest
from aiasst.errors import PromptError
from aiasst.tokenizer import Tokenizer
from tests.engine.fakes import FakeDecoder

STORY = Tokenizer.load(story_checkpoint())
END = 0
CONSTRAINER = Constrainer(STORY, (END,), 4096)
DOG = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SUM = """
start: term (("+" | "-") term)~2
term: NUMBER | "(" NUMBER ")"
NUMBER: /[0-9]{1,3}/
"""


class Wild(FakeDecoder):
    """Wants any token with the same right, another one at each place."""

    vocab_size = 4096

    def next_logits(self, tokens: list[int]) -> np.ndarray:
        return np.random.default_rng(list(tokens)).normal(size=self.vocab_size).astype(np.float32) * 4


ENGINE = TextEngine.of(STORY, Engine(Wild(context_length=256), slots=4), (END,))


def schema(value: object) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


def follow(guide: Guide, text: str) -> list[str | None]:
    """What the guide says behind each token of `text`, which must all be allowed."""
    said = []
    for token in STORY.backend.encode(text, add_special_tokens=False).ids:
        assert guide.allowed[token], f"{STORY.decode([token])!r} in {text!r}"
        said.append(guide.accept(token))
    return said


def answers(*wanted: tuple[Constraint | None, Sampling]) -> list[tuple[str, str | None]]:
    """The answers of a wild model to these requests, all at once, and why they ended."""
    for index, (constraint, sampling) in enumerate(wanted):
        ENGINE.submit(TextRequest(str(index), "Once", None, sampling, constraint=constraint))
    events: list[TextEvent] = []
    while ENGINE.busy:
        events += ENGINE.step()
    mine = [[event for event in events if event.request_id == str(index)] for index in range(len(wanted))]
    return [("".join(event.text for event in each), each[-1].finished) for each in mine]


@pytest.mark.parametrize(
    "text", ['{"name": "Rex", "age": 3}', '{"name":"Rex","age":3}', '{\n    "name": "Rex",\n    "age": 3\n}']
)
def test_json_may_be_written_in_the_usual_ways_and_ends_with_its_last_bracket(text: str) -> None:
    said = follow(CONSTRAINER.guide(schema(DOG)), text)
    assert said == [None] * (len(said) - 1) + ["stop"]


def test_whitespace_in_json_has_an_end() -> None:
    guide = CONSTRAINER.guide(schema(DOG))
    follow(guide, "{ ")
    (space,) = STORY.backend.encode(" ", add_special_tokens=False).ids
    assert not guide.allowed[space]


@pytest.mark.parametrize("temperature", [0, 3])
def test_a_model_that_wants_anything_writes_what_it_must(temperature: float) -> None:
    sampling = Sampling(max_tokens=200, temperature=temperature, seed=1)
    dog, code, total = (
        text
        for text, finished in answers(
            (schema(DOG), sampling),
            (Constraint("regex", "[a-f]{3}-(é|🦊){2,4}!"), sampling),
            (Constraint("grammar", SUM), sampling),
        )
        if finished == "stop"
    )
    parsed = json.loads(dog)
    assert set(parsed) == {"name", "age"} and 0 <= parsed["age"] <= 20 and len(parsed["name"]) <= 12
    assert re.fullmatch("[a-f]{3}-(é|🦊){2,4}!", code)
    assert re.fullmatch(r"(\d{1,3}|\(\d{1,3}\))([+-](\d{1,3}|\(\d{1,3}\))){2}", total)


@settings(deadline=None, max_examples=15)
@given(
    pattern=st.sampled_from(["[0-9]{4}", "(yes|no)", "a+b?", "(ä|ö|🦊)+x", ".{0,5}"]),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 9),
)
def test_every_regex_answer_matches_or_is_a_beginning_cut_at_the_limit(
    pattern: str, temperature: float, seed: int
) -> None:
    ((text, finished),) = answers(
        (Constraint("regex", pattern), Sampling(max_tokens=12, temperature=temperature, seed=seed))
    )
    if finished == "stop":
        assert re.fullmatch(pattern, text)
    else:
        assert finished == "length"


def test_rows_without_a_constraint_do_not_notice_the_others() -> None:
    free = [Sampling(max_tokens=12, temperature=1, seed=seed) for seed in range(2)]
    alone = [answers((None, sampling))[0] for sampling in free]
    held = (schema(DOG), Sampling(max_tokens=60, seed=3))
    assert answers((None, free[0]), held, (None, free[1])) == [alone[0], answers(held)[0], alone[1]]


def test_where_the_answer_may_end_the_end_is_allowed_and_elsewhere_not() -> None:
    guide = CONSTRAINER.guide(Constraint("regex", "ab*"))
    assert not guide.allowed[END]
    follow(guide, "a")
    assert guide.allowed[END]


def test_logits_beyond_the_tokenizer_are_never_allowed() -> None:
    guide = Constrainer(STORY, (END,), 5000).guide(Constraint("regex", r"(.|\n)*"))
    assert guide.allowed.shape == (5000,)
    assert not guide.allowed[4096:].any() and guide.allowed[:4096].sum() > 3000


def test_a_model_with_fewer_logits_than_tokens_allows_what_it_has() -> None:
    assert Constrainer(STORY, (END,), 300).guide(Constraint("regex", "[a-z]*")).allowed.shape == (300,)


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Constraint("json_schema", "{"), "JSON schema cannot be used"),
        (Constraint("json_schema", "[" * 100_000), "JSON schema cannot be used"),
        (Constraint("json_schema", "[]"), "no object"),
        (schema({"type": "strin"}), "Invalid type: strin"),
        (schema({"type": "string", "minLength": 5, "maxLength": 2}), "Unsatisfiable"),
        (schema({"$ref": "https://example.com/x.json"}), "cannot be used"),
        (schema({"not": {"type": "string"}}), "not"),
        (Constraint("regex", "("), "unclosed group"),
        (Constraint("regex", "(?=a)b"), "look-around"),
        (Constraint("regex", r"a[^\s\S]"), "no answer of this model can fulfil the regular expression"),
        (Constraint("grammar", ""), "Empty grammar"),
        (Constraint("grammar", 'start: "a" c'), 'unknown name: "c"'),
        (Constraint("grammar", 'begin: "a"'), "start"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(constraint: Constraint, words: str) -> None:
    decoder = Wild()
    engine = TextEngine.of(STORY, Engine(decoder, slots=1))
    with pytest.raises(PromptError, match=re.escape(words)) as caught:
        engine.submit(TextRequest("a", "Once", None, Sampling(), constraint=constraint))
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert not engine.busy and not decoder.shapes


def test_a_constraint_is_compiled_once_and_each_answer_begins_anew() -> None:
    constrainer = Constrainer(STORY, (END,), 4096)
    first = constrainer.guide(Constraint("regex", "a[bc]?"))
    follow(first, "a")
    second = constrainer.guide(Constraint("regex", "a[bc]?"))
    assert follow(second, "a") == [None]
    assert follow(first, "b") == ["stop"]
    assert len(constrainer._compiled) == 1
    for count in range(KEPT + 3):
        constrainer.guide(Constraint("regex", f"a{{{count + 1}}}"))
    assert len(constrainer._compiled) == KEPT


def test_a_tokenizer_of_another_kind_is_a_clear_refusal() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel

    words = Tokenizer(Backend(WordLevel({"a": 0, "b": 1}, unk_token="a")), {}, (), None, None)
    with pytest.raises(PromptError, match="cannot be constrained"):
        Constrainer(words, (), 2).guide(Constraint("regex", "b"))
