"""Sessions on a tiny real decoder: binding by pointer, rows of one cache, errors in our own words."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from aiasst.errors import ArtifactError, ResourceError
from aiasst.runtime.session import DecoderSession, GraphSession, SessionSettings
from tests.runtime.graphs import CONTEXT, HEAD_DIM, KV_HEADS, LAYERS, VOCABULARY, tiny_decoder

ONE_THREAD = SessionSettings(threads=1)


def opened(path: Path, dtype: type = np.float32, *, prune: bool = True) -> DecoderSession:
    graph = GraphSession.open(tiny_decoder(path / "model.onnx", dtype, prune=prune), ONE_THREAD)
    return DecoderSession(graph, context_length=CONTEXT)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> DecoderSession:
    return opened(tmp_path_factory.mktemp("tiny"))


def new_cache(rows: int, capacity: int = 32, dtype: type = np.float32) -> list[np.ndarray]:
    """Full of NaN: a token that is read before it is written shows in the logits."""
    return [np.full((rows, KV_HEADS, capacity, HEAD_DIM), np.nan, dtype) for _ in range(2 * LAYERS)]


def whole(session: DecoderSession, tokens: list[int]) -> np.ndarray:
    """Logits [tokens, vocabulary] in one run."""
    return session.step(
        np.array([tokens]), [len(tokens)], new_cache(1, dtype=session.cache_dtype.type), all_logits=True
    )[0]


def test_what_the_graph_tells(session: DecoderSession) -> None:
    assert (session.layers, session.kv_heads, session.head_dim) == (LAYERS, KV_HEADS, HEAD_DIM)
    assert (session.vocab_size, session.cache_dtype) == (VOCABULARY, np.float32)


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_by_one_and_in_chunks_as_in_one_run(tmp_path: Path, dtype: type, prune: bool) -> None:
    session = opened(tmp_path, dtype, prune=prune)
    tokens = list(range(3, 15))
    wanted = whole(session, tokens)
    assert wanted.dtype == np.float32 and not np.isnan(wanted).any()
    tolerance = 1e-5 if dtype is np.float32 else 2e-2
    for size in (1, 5, 12):
        cache = new_cache(1, dtype=dtype)
        for end in [*range(size, len(tokens), size), len(tokens)]:
            start = (end - 1) // size * size
            logits = session.step(np.array([tokens[start:end]]), [end], cache)
            assert logits.shape == (1, VOCABULARY) and logits.dtype == np.float32
            np.testing.assert_allclose(logits[0], wanted[end - 1], atol=tolerance)


def test_ragged_rows_of_one_cache_as_alone(session: DecoderSession) -> None:
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15], [20, 21]]
    cache = new_cache(5)
    for row, prompt in enumerate(prompts):
        session.step(np.array([prompt]), [len(prompt)], [array[row + 1 : row + 2] for array in cache])
    rows = [array[1:4] for array in cache]
    for _ in range(3):
        for prompt in prompts:
            prompt.append(prompt[0])
        ids = np.array([[prompt[-1]] for prompt in prompts])
        logits = session.step(ids, [len(prompt) for prompt in prompts], rows)
        for row, prompt in enumerate(prompts):
            np.testing.assert_allclose(logits[row], whole(session, prompt)[-1], atol=1e-5)
    assert all(np.isnan(array[[0, 4]]).all() for array in cache)  # rows of others are not touched


def test_a_shorter_length_rewinds(session: DecoderSession) -> None:
    cache = new_cache(1)
    session.step(np.array([[1, 2, 3, 4, 5]]), [5], cache)
    logits = session.step(np.array([[9]]), [3], cache)
    np.testing.assert_allclose(logits[0], whole(session, [1, 2, 9])[-1], atol=1e-5)


def test_a_replaced_cache_is_let_go(session: DecoderSession) -> None:
    cache = new_cache(1)
    gone = [weakref.ref(array) for array in cache]
    session.step(np.array([[1]]), [1], cache)
    del cache
    gc.collect()
    assert all(ref() is None for ref in gone)
    for _ in range(100):  # new arrays may come to lie where old ones were
        cache = new_cache(1)
        session.step(np.array([[1]]), [1], cache)
        assert not np.isnan(cache[0][0, :, 0]).any()


@pytest.mark.parametrize("ids,lengths", [([[1, 2]], [1]), ([[1]], [33]), ([[1, 2], [3, 4]], [2, 3])])
def test_lengths_that_contradict_are_refused(session: DecoderSession, ids: list, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not go with"):
        session.step(np.array(ids), lengths, new_cache(len(ids)))


def test_a_graph_runs_by_names(session: DecoderSession) -> None:
    graph = session.graph
    feeds = {name: np.zeros((1, KV_HEADS, 0, HEAD_DIM), np.float32) for name in graph.input_names[2:]}
    feeds |= {"input_ids": np.array([[4, 5]]), "attention_mask": np.ones((1, 2), np.int64)}
    (logits,) = graph.run(feeds, ["logits"])
    np.testing.assert_allclose(logits[0, 0], whole(session, [4, 5])[-1], atol=1e-5)
    assert graph.optional_names == ("all_logits",)
    assert graph.input_shape("input_ids") == ("batch", "sequence")
    with pytest.raises(ArtifactError, match=r"cannot run model\.onnx"):
        graph.run(feeds | {"input_ids": np.zeros((1, 2), np.float32)})


def test_a_graph_in_memory_opens(tmp_path: Path) -> None:
    path = tiny_decoder(tmp_path / "model.onnx")
    assert GraphSession.open(path.read_bytes(), ONE_THREAD).output_names[0] == "logits"


def test_files_that_are_no_graph_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot use absent\.onnx"):
        GraphSession.open(tmp_path / "absent.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 100)
    with pytest.raises(ArtifactError, match=r"cannot use junk\.onnx"):
        GraphSession.open(tmp_path / "junk.onnx")


def test_a_graph_without_a_cache_is_no_decoder() -> None:
    from aiasst.runtime.providers._loads import tiny_graph

    with pytest.raises(ArtifactError, match="no causal decoder"):
        DecoderSession(GraphSession.open(tiny_graph()), context_length=8)


def test_an_unknown_or_absent_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no execution provider 'abacus'"):
        GraphSession.open(tmp_path, SessionSettings(provider="abacus"))


def test_weights_that_are_handed_over_are_neither_copied_nor_asked_for(tmp_path: Path) -> None:
    """A table and a factor of 64 MB each, memory-mapped: of the table two rows are read, of the factor all, in place."""
    size = 4096
    for name in ("table", "factor"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(4 * size * size)
    mapped = {name: np.memmap(tmp_path / name, np.float32, "r", shape=(size, size)) for name in ("table", "factor")}
    shapes = {"ids": (TensorProto.INT64, ["rows"]), **dict.fromkeys(mapped, (TensorProto.FLOAT, [size, size]))}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "factor"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    before = _anonymous_bytes()
    session = GraphSession.open(model.SerializeToString(), weights=mapped)
    assert session.input_names == ("ids",)
    assert not session.run({"ids": np.array([1, 7])})[0].any()
    assert _anonymous_bytes() - before < 32 << 20


def _anonymous_bytes() -> int:
    """Memory that is ours alone; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
