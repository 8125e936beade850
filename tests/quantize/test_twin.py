"""A folder of two forms, from the float model to the proof: what is shared, what is measured, and that one cache serves both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from aiasst.artifacts.card import bits_of_both, bits_per_weight, read_card
from aiasst.artifacts.model_folder import TWIN_WEIGHTS_NAME, WEIGHTS_NAME, ModelFolder
from aiasst.artifacts.recipe import Recipe, Rule, WeightFormat
from aiasst.errors import ArtifactError, BudgetRefused, ExportError, ResourceError, UsageError
from aiasst.evaluate.decoders import prepare_windows
from aiasst.evaluate.measure import measure_card
from aiasst.evaluate.perplexity import DecoderScorer, compare
from aiasst.progress import Progress
from aiasst.quantize import preview, quantize
from aiasst.quantize.calibrate.state import WorkState, work_folder
from aiasst.quantize.formats.w8a8 import W8A8
from aiasst.quantize.planning.budget import Budget
from aiasst.runtime.pair import PairedSession
from aiasst.runtime.session import DecoderSession

Tiny = Callable[[str], ModelFolder]

_INT8 = WeightFormat(format="int8", block_size=32)
SMALL = Recipe(
    name="small",
    description="small blocks for small models",
    algorithm="mse",
    default=WeightFormat(format="int4", block_size=32),
    rules=(Rule(roles=("embed", "lm_head"), use=_INT8),),
)


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen sequences of 40 tokens."""
    path = tmp_path_factory.mktemp("ids") / "ids.npz"
    np.savez(path, input_ids=np.random.default_rng(0).integers(4, 105, (12, 40)))
    return path


@pytest.fixture(scope="module")
def pair(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A small llama in two forms, rounded weight by weight."""
    with pytest.MonkeyPatch.context() as patch:
        # As `short_proofs`, which is for single tests.
        patch.setattr("aiasst.evaluate.decoders.DEFAULT_TOKENS", 1024)
        return quantize(tiny("llama"), tmp_path_factory.mktemp("pair") / "out", recipe=SMALL, twin=True)


def _hashes(folder: ModelFolder) -> dict[str, str]:
    return {name: file.sha256 for name, file in folder.manifest.files.items() if "onnx" in name}


def _places(graph: Path) -> dict[str, set[str]]:
    """File of weights → names of the tensors that a graph has there."""
    found: dict[str, set[str]] = {}
    for name, value in ir.load(graph).graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            found.setdefault(str(value.const_value.location), set()).add(name)
    return found


def test_what_the_manifest_says(pair: ModelFolder) -> None:
    pair.check_hashes()
    first, twin = pair.manifest, pair.manifest.twin
    assert twin is not None
    assert (twin.quantization.recipe, twin.quantization.algorithm) == ("w8a8", "mse")
    assert twin.weights.keys() == first.weights.keys()
    for name, row in twin.weights.items():
        if row.role in ("embed", "lm_head"):
            assert row.bytes == 0 and row.shared_with and row.format == first.weights[name].format
        elif row.layer is not None and len(row.shape) == 2:
            assert (row.format, row.shared_with) == ("w8a8", None) and first.weights[name].format != "w8a8"
    assert first.quantization is not None and first.quantization.bits_per_weight == bits_per_weight(first)
    # By itself the second form has all of what it shares.
    lent = sum(first.weights[name].bytes for name, row in twin.weights.items() if row.shared_with == name)
    counted = [row for row in first.weights.values() if row.role != "rotary" and row.shared_with is None]
    numbers = sum(int(np.prod(row.shape)) for row in counted)
    own = sum(row.bytes for row in twin.weights.values() if row.role != "rotary")
    lent -= sum(row.bytes for row in first.weights.values() if row.role == "rotary")
    assert twin.quantization.bits_per_weight == pytest.approx(8 * (own + lent) / numbers, abs=1e-3)


def test_what_both_have_alike_is_stored_once(pair: ModelFolder, tiny: Tiny, tmp_path: Path) -> None:
    first, second = _places(pair.graph), _places(pair.twin_graph)
    assert first.keys() == {WEIGHTS_NAME} and second.keys() == {WEIGHTS_NAME, TWIN_WEIGHTS_NAME}
    assert second[WEIGHTS_NAME] <= first[WEIGHTS_NAME]
    assert any("embed" in name for name in second[WEIGHTS_NAME])
    assert not any(name.endswith((".q", ".scale")) and "layers" in name for name in second[WEIGHTS_NAME])
    # The first form is what it is without a second, and the second's products are those of its recipe.
    alone = quantize(tiny("llama"), tmp_path / "alone", recipe=SMALL)
    assert _hashes(alone).items() <= _hashes(pair).items()
    w8a8 = quantize(tiny("llama"), tmp_path / "w8a8", recipe="w8a8", algorithm="mse")
    mine, theirs = (ir.load(graph).graph.initializers for graph in (pair.twin_graph, w8a8.graph))
    products = [name for name in mine if name.startswith("layers") and name.endswith(".q")]
    assert products
    for name in products:
        np.testing.assert_array_equal(mine[name].const_value.numpy(), theirs[name].const_value.numpy())


def _cache(session: DecoderSession, capacity: int) -> list[np.ndarray]:
    shape = (1, session.kv_heads, capacity, session.head_dim)
    return [np.full(shape, np.nan, session.cache_dtype) for _ in range(2 * session.layers)]


def test_one_cache_serves_both(pair: ModelFolder) -> None:
    """A prompt by the second form and an answer by the first: as composed by hand, and close to either alone."""
    both = PairedSession(DecoderSession.open(pair), DecoderSession.open(pair, twin=True), from_rows=12)
    tokens = np.random.default_rng(1).integers(4, 105, (1, 40))
    caches = [_cache(both.first, 64) for _ in range(4)]
    for begin, end in ((0, 30), (30, 31), (31, 32), (32, 40)):
        form = both.twin if end - begin >= 12 else both.first
        wanted = form.step(tokens[:, begin:end], [end], caches[0]).copy()
        np.testing.assert_array_equal(both.step(tokens[:, begin:end], [end], caches[1]), wanted)
        for session, cache in ((both.first, caches[2]), (both.twin, caches[3])):
            alone = session.step(tokens[:, begin:end], [end], cache)
            assert np.corrcoef(alone[0], wanted[0])[0, 1] > 0.97
    for mixed, composed in zip(caches[1], caches[0], strict=True):
        np.testing.assert_array_equal(mixed, composed)
    for composed, first, second in zip(caches[0], *caches[2:], strict=True):
        # Rows of the prompt are the second form's to the bit; what follows is neither's alone.
        np.testing.assert_array_equal(composed[:, :, :30], second[:, :, :30])
        assert not np.array_equal(composed[:, :, :30], first[:, :, :30])


def test_the_card_covers_both(pair: ModelFolder, tiny: Tiny) -> None:
    card = read_card(pair)
    assert card is not None and card.pair is not None
    windows = prepare_windows(pair, tokens=card.text.tokens if card.text else None)
    original, first, second = (
        DecoderSession.open(tiny("llama")), DecoderSession.open(pair), DecoderSession.open(pair, twin=True),
    )  # fmt: skip

    class Used:
        """Contexts by the second form, the rest by the first."""

        def __init__(self) -> None:
            self.__dict__.update({n: getattr(first, n) for n in ("layers", "kv_heads", "head_dim", "context_length")})
            self.cache_dtype = first.cache_dtype

        def step(self, ids: Any, lengths: Any, rows: Any, all_logits: bool = False) -> Any:
            return (first if all_logits else second).step(ids, lengths, rows, all_logits)

    measured = ((first, card), (Used(), card.pair), (second, card.pair.twin))
    for session, scores in measured:
        by_hand = compare(DecoderScorer(original), DecoderScorer(session), windows.text.ids, window=windows.length)
        assert scores.kl_mean == pytest.approx(by_hand.mean_kl, rel=1e-3, abs=1e-7)
        assert scores.perplexity_after == pytest.approx(by_hand.other.value, rel=1e-5)
        assert scores.top1_agreement == pytest.approx(by_hand.top1_agreement, abs=2e-3)
    assert card.pair.bytes == pair.weight_bytes + pair.twin_bytes and card.bytes == pair.weight_bytes
    assert card.pair.bits_per_weight == bits_of_both(pair.manifest) > card.bits_per_weight
    # eval gives the same, beside the original and alone.
    again = measure_card(pair, tiny("llama"), text=windows)
    assert again.pair is not None and again.pair.kl_mean == pytest.approx(card.pair.kl_mean, rel=1e-3, abs=1e-7)
    alone = measure_card(pair, text=windows)
    assert alone.pair is not None and alone.pair.kl_mean is None
    assert alone.pair.perplexity_after == pytest.approx(card.pair.perplexity_after)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_every_decoder_can_have_a_second_form(tiny: Tiny, tmp_path: Path, ids: Path, name: str) -> None:
    small = SMALL.model_copy(update={"algorithm": "gptq"})
    folder = quantize(tiny(name), tmp_path / "out", recipe=small, calibration=ids, twin=True)
    card, twin = read_card(folder), folder.manifest.twin
    assert card is not None and card.pair is not None and card.kl_mean is not None and twin is not None
    assert twin.quantization.algorithm == "awq"
    assert twin.quantization.calibration is not None and twin.quantization.calibration.used
    assert card.pair.twin.kl_mean is not None and card.pair.kl_mean is not None
    assert card.pair.twin.kl_mean < card.kl_mean and card.pair.kl_mean < 1.2 * card.kl_mean
    assert not work_folder(folder.path).exists()


def test_what_stops_in_the_second_calibration_goes_on_there(
    tiny: Tiny, tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(out: str, **more: Any) -> ModelFolder:
        small = SMALL.model_copy(update={"algorithm": "awq"})
        return quantize(tiny("gemma3"), tmp_path / out, recipe=small, calibration=ids, twin=True, **more)

    whole = _hashes(made("whole"))
    save = WorkState.save

    def full(self: WorkState, step: str, result: Any) -> None:
        if step == "layer-0003" and self.folder.name == "twin":
            raise OSError(28, "No space left on device")
        save(self, step, result)

    monkeypatch.setattr(WorkState, "save", full)
    with pytest.raises(ResourceError, match="disk is full"):
        made("out")
    monkeypatch.undo()
    kept = work_folder(tmp_path / "out")
    assert (kept / "twin" / "done" / "layer-0002.npz").exists() and not (tmp_path / "out").exists()
    events: list[Progress] = []
    assert _hashes(made("out", progress=events.append)) == whole
    # Nothing is left to do of the first calibration, and three layers are done of the second.
    assert not any(event.stage == "calibrate" for event in events)
    second = next(event.note for event in events if event.stage == "calibrate w8a8")
    assert second.startswith("layer 4 of ")
    assert not kept.exists()


def test_a_second_form_that_does_not_run_leaves_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = W8A8.pack

    def transposed(self: W8A8, *args: Any) -> Any:
        values, *rest = pack(self, *args)
        return (type(values)(values.suffix, values.array.T.copy()), *rest)

    monkeypatch.setattr(W8A8, "pack", transposed)
    with pytest.raises(ExportError, match="does not"):
        quantize(tiny("llama"), tmp_path / "out", recipe=SMALL, twin=True)
    assert not list(tmp_path.iterdir())


def test_force_replaces_both_forms(tiny: Tiny, tmp_path: Path) -> None:
    with_twin = quantize(tiny("llama"), tmp_path / "out", recipe=SMALL, twin=True)
    with pytest.raises(ArtifactError, match="already exists"):
        quantize(tiny("llama"), tmp_path / "out", recipe=SMALL, twin=True)
    assert with_twin.manifest.twin is not None
    one = quantize(tiny("llama"), tmp_path / "out", recipe=SMALL, force=True)
    assert one.manifest.twin is None and not (one.path / TWIN_WEIGHTS_NAME).exists()


def test_who_has_no_use_for_one_is_told(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="writes no text"):
        quantize(tiny("bert"), tmp_path / "out", recipe=SMALL, twin=True)
    with pytest.raises(UsageError, match="comes to the same"):
        quantize(tiny("llama"), tmp_path / "out", recipe="w8a8", algorithm="mse", twin=True)
    assert not list(tmp_path.iterdir())


def test_limits_of_accuracy_hold_for_both(tiny: Tiny, tmp_path: Path, pair: ModelFolder) -> None:
    card = read_card(pair)
    assert card is not None and card.pair is not None and card.kl_mean is not None
    assert card.pair.kl_mean is not None and card.pair.twin.kl_mean is not None
    worst = max(card.kl_mean, card.pair.kl_mean, card.pair.twin.kl_mean)
    with pytest.raises(BudgetRefused, match="KL divergence"):
        quantize(tiny("llama"), tmp_path / "out", recipe=SMALL, twin=True, budget=Budget(max_kld=0.99 * worst))
    kept = quantize(tiny("llama"), tmp_path / "out", recipe=SMALL, twin=True, budget=Budget(max_kld=1.01 * worst))
    assert kept.manifest.twin is not None


def test_the_estimate_counts_both(tiny: Tiny, tmp_path: Path, ids: Path, pair: ModelFolder) -> None:
    small = SMALL.model_copy(update={"algorithm": "awq"})
    one = preview(tiny("llama"), tmp_path / "out", recipe=small, calibration=ids)
    both = preview(tiny("llama"), tmp_path / "out", recipe=small, calibration=ids, twin=True)
    assert len(both.notes) == len(one.notes) + 1
    assert "calibration of the w8a8 form" in both.notes[0] and "calibration of" not in one.notes[0]
    assert "beside this one" in both.notes[1]
    assert one.bytes_after == both.bytes_after
    with pytest.raises(BudgetRefused):
        preview(tiny("llama"), tmp_path / "out", recipe=SMALL, max_ram=1 << 20, twin=True)


def test_both_forms_have_one_int8_cache(tiny: Tiny, ids: Path, tmp_path: Path, short_proofs: None) -> None:
    folder = quantize(tiny("llama"), tmp_path / "out", recipe=SMALL, twin=True, cache="int8", calibration=ids)
    sessions = [DecoderSession.open(folder, twin=twin) for twin in (False, True)]
    assert {session.cache_dtype for session in sessions} == {np.dtype(np.int8)}
    manifest = folder.manifest
    assert manifest.quantization is not None and manifest.twin is not None
    assert manifest.quantization.cache == manifest.twin.quantization.cache is not None
    # What one form has written is read by the other on the same scales.
    tokens = np.arange(4, 24)[None]
    answers = []
    for first, then in ((0, 0), (1, 0), (1, 1)):
        cache = [np.zeros((1, s.kv_heads, 32, s.head_dim), np.int8) for s in sessions[:1] * (2 * sessions[0].layers)]
        sessions[first].step(tokens[:, :19], (19,), cache)
        answers.append(sessions[then].step(tokens[:, 19:], (20,), cache)[0].copy())
    for answer in answers[1:]:  # the forms themselves differ by a tenth of it; keys of other scales are another text
        assert np.abs(answer - answers[0]).max() < 0.2 * np.ptp(answers[0])
