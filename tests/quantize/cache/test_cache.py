"""An int8 cache from end to end: on every architecture near the float one, told in the folder, the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from aiasst.artifacts import signature
from aiasst.artifacts.card import read_card
from aiasst.artifacts.model_folder import GRAPH_NAME, WEIGHTS_NAME, ModelFolder
from aiasst.artifacts.recipe import Recipe, WeightFormat, load_recipe
from aiasst.engine.cache import CacheShape, budget_under
from aiasst.engine.engine import Engine
from aiasst.engine.requests import Request, Sampling
from aiasst.errors import ArtifactError, BudgetRefused, ResourceError
from aiasst.profile import needs_of
from aiasst.quantize import QuantConfig, preview, quantize
from aiasst.quantize.calibrate.activations import ActivationStore
from aiasst.quantize.calibrate.state import WorkState, work_folder
from aiasst.quantize.planning.budget import Budget
from aiasst.runtime.session import DecoderSession, GraphSession, SessionSettings
from tests import checkpoints
from tests.runtime.graphs import tiny_decoder

Tiny = Callable[[str], ModelFolder]

PLAIN = Recipe(name="plain", description="nothing but the cache", default=WeightFormat(format="fp32"))
RANDOM = np.random.default_rng(3)
PROMPTS = [tuple(RANDOM.integers(4, checkpoints.VOCABULARY, length).tolist()) for length in (40, 3, 21, 1, 33)]
SAMPLINGS = [Sampling(max_tokens=count, temperature=0.9, top_p=0.95, seed=count) for count in (6, 25, 12, 30, 4)]


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty sequences of 48 tokens, more than the scales are found on."""
    path = tmp_path_factory.mktemp("ids") / "ids.npz"
    np.savez(path, input_ids=np.random.default_rng(0).integers(4, checkpoints.VOCABULARY, (20, 48)))
    return path


@pytest.fixture(scope="module", params=checkpoints.DECODERS)
def pair(
    request: pytest.FixtureRequest, tiny: Tiny, ids: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelFolder, ModelFolder]:
    """A float folder, and the same with an int8 cache."""
    source = tiny(request.param)
    out = tmp_path_factory.mktemp(request.param) / "out"
    return source, quantize(source, out, recipe=PLAIN, cache="int8", calibration=ids)


def _session(folder: ModelFolder) -> DecoderSession:
    return DecoderSession.open(folder, SessionSettings(threads=1))


def _logits(session: DecoderSession, *pieces: int) -> np.ndarray:
    """Of every token of a prompt that is read in pieces, [tokens, vocabulary]; what the cache holds before is large."""
    prompt = np.array([PROMPTS[0]])
    cache = [
        np.full((1, session.kv_heads, 64, session.head_dim), 101, session.cache_dtype)
        for _ in range(2 * session.layers)
    ]
    found, begin = [], 0
    for piece in pieces:
        end = begin + piece
        found.append(session.step(prompt[:, begin:end], [end], cache, all_logits=True)[0])
        begin = end
    return np.concatenate(found)


def test_logits_are_near_those_of_a_float_cache(pair: tuple[ModelFolder, ModelFolder]) -> None:
    source, folder = pair
    session = _session(folder)
    assert session.cache_dtype == np.int8
    wanted, got = _logits(_session(source), 40), _logits(session, 40)
    spread = np.linalg.norm(wanted - wanted.mean(axis=-1, keepdims=True))
    assert 0 < np.linalg.norm(got - wanted) < 0.05 * spread


def test_a_prompt_in_chunks_is_the_same_prompt(pair: tuple[ModelFolder, ModelFolder]) -> None:
    session = _session(pair[1])
    whole = _logits(session, 40)
    for pieces in ([16, 16, 8], [39, 1], [1] * 40):
        np.testing.assert_allclose(_logits(session, *pieces), whole, atol=1e-4)


def test_ragged_requests_together_as_alone(pair: tuple[ModelFolder, ModelFolder]) -> None:
    session = _session(pair[1])

    def answers(jobs: range, slots: int, chunk: int) -> dict[int, list[int]]:
        engine = Engine(session, slots=slots, chunk=chunk)
        for job in jobs:
            engine.submit(Request(str(job), PROMPTS[job], SAMPLINGS[job]))
        got: dict[int, list[int]] = {job: [] for job in jobs}
        while engine.busy:
            for event in engine.step():
                if event.token is not None:
                    got[int(event.request_id)].append(event.token)
        return got

    together = answers(range(5), slots=3, chunk=8)
    for job in range(5):
        assert answers(range(job, job + 1), slots=1, chunk=256)[job] == together[job]


def test_the_folder_tells_of_its_cache(pair: tuple[ModelFolder, ModelFolder]) -> None:
    source, folder = pair
    record = folder.manifest.quantization
    assert record is not None and record.cache is not None
    assert (record.cache.format, record.cache.scales) == ("int8", "per-channel")
    seen = record.cache.calibration
    assert (seen.name, seen.sequences, seen.tokens, seen.used) == ("ids.npz", 16, 16 * 48, True)
    assert record.calibration is not None and not record.calibration.used
    assert source.cache_bytes_per_token == 4 * folder.cache_bytes_per_token > 0
    assert needs_of(folder).cache_bytes_per_token == folder.cache_bytes_per_token
    assert load_recipe(str(folder.path / "recipe.yaml")).cache == "int8"
    card = read_card(folder)
    assert card is not None and card.kl_mean is not None
    assert 0 < card.kl_mean < 0.01


def test_scales_are_positive_numbers(pair: tuple[ModelFolder, ModelFolder]) -> None:
    """Also where heads are padded, so that channels are dead."""
    scales = _scales(pair[1])
    session = _session(pair[1])
    assert len(scales) == 2 * session.layers
    for array in scales.values():
        assert array.shape == (1, session.kv_heads, 1, session.head_dim)
        assert np.isfinite(array).all()
        assert (array > 0).all()


def _scales(folder: ModelFolder) -> dict[str, np.ndarray]:
    model = onnx.load(folder.graph)
    return {
        t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith(("k_scale", "v_scale"))
    }


def test_the_engine_admits_four_times_the_tokens(pair: tuple[ModelFolder, ModelFolder]) -> None:
    def longest(folder: ModelFolder) -> int:
        session = _session(folder)
        shape = CacheShape(session.layers, session.kv_heads, session.head_dim, session.cache_dtype)
        assert shape.bytes_per_token == folder.cache_bytes_per_token
        ceiling = 300 * pair[0].cache_bytes_per_token
        return budget_under(ceiling, weight_bytes=0, working_bytes=0, shape=shape, slots=1, context=10_000).longest

    assert (longest(pair[0]), longest(pair[1])) == (300, 1200)


def _foreign(folder: Path) -> Path:
    """A graph of no folder, and ids.npz to calibrate it with."""
    (folder / "source").mkdir()
    np.savez(folder / "ids.npz", input_ids=np.arange(40).reshape(2, 20))
    return tiny_decoder(folder / "source" / "model.onnx")


def test_larger_values_than_were_seen_are_clipped(tmp_path: Path) -> None:
    """A model whose text is a hundredfold of the calibration's embedding: the answers stay numbers."""
    source = _foreign(tmp_path)
    folder = quantize(source, tmp_path / "out", recipe=PLAIN, cache="int8", calibration=tmp_path / "ids.npz")
    model = onnx.load(folder.graph)
    for tensor in model.graph.initializer:
        if tensor.name == "embed":
            tensor.CopyFrom(numpy_helper.from_array(100 * numpy_helper.to_array(tensor), "embed"))
    onnx.save(model, tmp_path / "loud.onnx")
    session = GraphSession.open(tmp_path / "loud.onnx")
    feeds = {signature.INPUT_IDS: np.arange(30).reshape(1, 30), signature.ATTENTION_MASK: np.ones((1, 30), np.int64)}
    feeds |= {past: np.zeros((1, 1, 0, 16), np.int8) for past, _ in signature.cache_pairs(2)}
    keys, logits = session.run(feeds, [signature.present_key(0), signature.LOGITS])
    assert (keys.min(), keys.max()) == (-128, 127)
    assert np.isfinite(logits).all()


def test_calibrated_weights_go_with_it_and_an_interruption_changes_nothing(
    tiny: Tiny, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(name: str) -> ModelFolder:
        return quantize(tiny("gemma3"), tmp_path / name, recipe="int4", cache="int8", calibration=ids)

    whole = made("whole")
    record = whole.manifest.quantization
    assert record is not None and record.cache is not None and record.calibration is not None
    assert record.calibration.used
    save, write = WorkState.save, ActivationStore.write

    def full_at_layer_three(self: WorkState, step: str, result: object) -> None:
        if step == "layer-0003":
            raise OSError(28, "No space left on device")
        save(self, step, result)  # type: ignore[arg-type]

    def full_at_the_cache(self: ActivationStore, *arguments: object) -> None:
        if "cache-" in str(self.folder):
            raise OSError(28, "No space left on device")
        write(self, *arguments)  # type: ignore[arg-type]

    for place, part, fault in (
        (WorkState, "save", full_at_layer_three),
        (ActivationStore, "write", full_at_the_cache),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, part, fault)
            with pytest.raises(ResourceError, match="disk is full"):
                made("out")
        assert work_folder(tmp_path / "out").exists()
    resumed = made("out")
    for name in (GRAPH_NAME, WEIGHTS_NAME):
        assert resumed.manifest.files[name] == whole.manifest.files[name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_folder_without_it_is_as_before(tiny: Tiny, tmp_path: Path, ids: Path) -> None:
    folder = quantize(tiny("llama_tied"), tmp_path / "out", recipe="int8", calibration=ids)
    record = folder.manifest.quantization
    assert record is not None and record.cache is None
    assert _session(folder).cache_dtype == np.float32
    assert folder.cache_bytes_per_token == tiny("llama_tied").cache_bytes_per_token


def test_the_caller_has_the_last_word(tiny: Tiny, ids: Path, tmp_path: Path) -> None:
    small = PLAIN.model_copy(update={"cache": "int8"})
    assert preview(tiny("llama"), recipe=small, calibration=ids).recipe.cache == "int8"
    assert preview(tiny("llama"), recipe=small, cache="float", calibration=ids).recipe.cache == "float"
    assert QuantConfig(weight_bits=8, cache="int8").recipe().cache == "int8"


def test_a_limit_of_size_counts_the_scales(tiny: Tiny, tmp_path: Path) -> None:
    """The plan fills what is allowed; what is allowed is for the folder as it will be."""
    limit = Budget(max_bytes=500_000)
    plan = preview(tiny("qwen2"), tmp_path / "out", cache="int8", sequences=2, budget=limit)
    assert plan.mix is not None
    assert plan.recipe.cache == plan.mix.recipe.cache == "int8"
    folder = quantize(tiny("qwen2"), tmp_path / "out", recipe=plan.recipe, algorithm="mse", sequences=2, budget=limit)
    assert 400_000 < folder.weight_bytes <= 500_000
    assert folder.manifest.quantization is not None and folder.manifest.quantization.cache is not None


def test_an_encoder_is_refused_before_the_work(tiny: Tiny, ids: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not generate text") as caught:
        quantize(tiny("bert"), tmp_path / "out", recipe="int8", cache="int8", calibration=ids)
    assert "--cache" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_without_text_there_are_no_scales(tmp_path: Path) -> None:
    source = _foreign(tmp_path)
    with pytest.raises(ArtifactError, match="scales of an int8 cache cannot be found: there is no tokenizer"):
        quantize(source, tmp_path / "out", recipe=PLAIN, cache="int8")


def test_numbers_that_are_not_finite_leave_nothing(tmp_path: Path) -> None:
    source = _foreign(tmp_path)
    model = onnx.load(source)
    model.graph.node.insert(0, helper.make_node("Reciprocal", ["nothing"], ["infinite"]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    for node in model.graph.node:
        if node.output[0] == "q1":
            node.output[0] = "q1.finite"
            broken = helper.make_node("Mul", ["q1.finite", "infinite"], ["q1"])
    model.graph.node.insert([n.output[0] for n in model.graph.node].index("q1.finite") + 1, broken)
    onnx.save(model, source)
    with pytest.raises(ArtifactError, match=r"the cache present.1.key holds numbers that are not finite"):
        quantize(source, tmp_path / "out", recipe=PLAIN, cache="int8", calibration=tmp_path / "ids.npz")
    assert not (tmp_path / "out").exists()


def test_too_little_memory_is_refused_and_the_plan_says_what_is_saved(tiny: Tiny, ids: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetRefused, match="of memory"):
        quantize(tiny("llama"), tmp_path / "out", recipe=PLAIN, cache="int8", calibration=ids, max_ram=1 << 20)
    notes = preview(tiny("llama"), recipe="int4", cache="int8", calibration=ids).notes
    assert any("128 bytes in int8, not 512" in note for note in notes)
