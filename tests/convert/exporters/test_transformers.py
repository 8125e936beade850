"""The transformers exporter on architectures no list here names: same logits as torch, ragged rows and a cache included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.convert import convert
from aiasst.convert.exporters import load
from aiasst.convert.sources import resolve
from aiasst.errors import ExportError
from aiasst.progress import Progress
from aiasst.runtime.session import GraphSession
from tests import checkpoints

exporter = load("transformers")

COMMON: dict[str, Any] = {
    "vocab_size": 105, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.1] * 8, "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 24,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "stablelm, a quarter of each head turns": ("StableLmConfig", {"partial_rotary_factor": 0.25, "qk_layernorm": True}),
    "cohere2, neighbours turn together, layers without rotary": ("Cohere2Config", {"num_hidden_layers": 4, "sliding_window": 16}),
    "olmo3, windows and norms over the full width": ("Olmo3Config", {"num_hidden_layers": 4, "sliding_window": 16}),
    "gpt_neox, q k v packed head by head": ("GPTNeoXConfig", {"num_key_value_heads": None}),
    "llama with the frequencies of llama 3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "phi3 with two sets of frequencies": ("Phi3Config", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24}),
}  # fmt: skip


def write(folder: Path, kind: str, own: dict[str, Any], auto_class: str = "AutoModelForCausalLM") -> Path:
    values = {name: value for name, value in {**COMMON, **own}.items() if value is not None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, auto_class).from_config(getattr(transformers, kind)(**values)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    checkpoints.write_tokenizer(folder)
    return folder


def run(
    session: GraphSession, folder: ModelFolder, ids: np.ndarray, lengths: list[int], caches: list[np.ndarray]
) -> Any:
    """(all logits, new caches) of rows right-padded to the width of `ids`, `lengths` tokens each."""
    shape = folder.manifest.shape
    assert shape is not None
    pairs = signature.cache_pairs(shape.layers)
    mask = (np.arange(max(lengths))[None] < np.array(lengths)[:, None]).astype(np.int64)
    feeds = {name: cache for (name, _), cache in zip(pairs, caches, strict=True)}
    feeds |= {signature.INPUT_IDS: ids, signature.ATTENTION_MASK: mask, signature.ALL_LOGITS: np.array(True)}
    logits, *new = session.run(feeds, [signature.LOGITS, *(present for _, present in pairs)])
    return logits, new


def reference(checkpoint: Path, ids: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(ids)[None]).logits[0])


@pytest.mark.parametrize("case", CASES)
def test_ragged_rows_with_a_cache_equal_torch(case: str, tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "checkpoint", *CASES[case])
    folder = convert(checkpoint, tmp_path / "model", exporter="transformers")
    shape = folder.manifest.shape
    assert shape is not None
    ids = np.random.default_rng(0).integers(3, 105, (2, 40))
    session = GraphSession.open(folder.graph)
    # Row 0 stays longer, row 1 shorter than the window (16) and than the change of frequencies (24).
    lengths = [36, 11]
    empty = [np.zeros((2, shape.kv_heads, 0, shape.head_dim), np.float32)] * (2 * shape.layers)
    logits, caches = run(session, folder, ids[:, :36], lengths, empty)
    expected = [reference(checkpoint, ids[row, :length]) for row, length in enumerate(lengths)]
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], expected[row], atol=1e-4)
    for _ in range(3):
        new = np.array([[ids[row, length]] for row, length in enumerate(lengths)])
        lengths = [length + 1 for length in lengths]
        logits, caches = run(session, folder, new, lengths, caches)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(logits[row, 0], reference(checkpoint, ids[row, :length])[-1], atol=1e-4)


@pytest.fixture(scope="module")
def smollm3(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    folder = checkpoints.build("smollm3", tmp_path_factory.mktemp("smollm3"))
    with resolve(str(folder)) as checkpoint:
        return exporter.export(checkpoint, "text-generation")


def test_a_decoder_keeps_its_contract(smollm3: ir.Model) -> None:
    graph = smollm3.graph
    names = [signature.INPUT_IDS, signature.ATTENTION_MASK, *(past for past, _ in signature.cache_pairs(4))]
    assert [value.name for value in graph.inputs] == names
    assert [value.name for value in graph.outputs] == [signature.LOGITS, *(new for _, new in signature.cache_pairs(4))]
    nodes = [node for node in graph if node.op_type == "GroupQueryAttention"]
    assert [node.attributes["do_rotary"].as_int() for node in nodes] == [1, 1, 1, 0]  # the fourth layer has none
    left = {node.op_type for node in graph}
    assert not left & {"Softmax", "Cos", "Sin", "Slice", "Concat", "Where", "Pow", "Expand"}
    cos = graph.initializers["rotary.cos"]
    assert cos.shape == ir.Shape([256, 8])


def test_weights_keep_the_names_of_the_checkpoint(smollm3: ir.Model) -> None:
    names = set(smollm3.graph.initializers)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "input_layernorm"):
        assert any(each.startswith(f"model.layers.1.{name}.weight") for each in names), name
    assert not [name for name in names if "lifted" in name]


def test_the_tables_are_the_models_own_frequencies(smollm3: ir.Model) -> None:
    config = transformers.SmolLM3Config(**{**COMMON, "num_hidden_layers": 4})
    rotary = transformers.models.smollm3.modeling_smollm3.SmolLM3RotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), torch.arange(256)[None])
    for name, expected in (("rotary.cos", cos), ("rotary.sin", sin)):
        tensor = smollm3.graph.initializers[name].const_value
        assert tensor is not None
        np.testing.assert_allclose(tensor.numpy(), expected[0, :, :8].numpy(), atol=1e-6)


def test_progress_is_told(tmp_path: Path) -> None:
    events: list[Progress] = []
    folder = write(tmp_path, "BertConfig", {"num_key_value_heads": None}, "AutoModel")
    with resolve(str(folder)) as checkpoint:
        model = exporter.export(checkpoint, "feature-extraction", events.append)
    assert [event.note for event in events if event.stage == "export"] == ["load", "trace", "tidy up", "done"]
    assert [value.name for value in model.graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [value.name for value in model.graph.outputs] == ["last_hidden_state"]
    assert sum(node.op_type == "Attention" for node in model.graph) == 2


MIXTURE = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
LOCAL = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("BloomConfig", {"n_head": 4}, "it does something of its own with the attention mask"),
    ("GPTNeoConfig", LOCAL, "its attention is written into the layer"),
    ("DeepseekV3Config", MIXTURE, "layer 0: query, key and value heads differ in size"),
    ("HunYuanDenseV1Config", {"head_dim": 16}, "layer 0: what positions do to query and key is no rotary embedding"),
    ("GptOssConfig", {"head_dim": 16, "num_local_experts": 4}, "layer 0: the attention takes 's_aux'"),
]


@pytest.mark.parametrize(("kind", "own", "said"), REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(kind: str, own: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write(tmp_path, kind, own)
    with resolve(str(folder)) as checkpoint, pytest.raises(ExportError) as caught:
        exporter.export(checkpoint, "text-generation")
    assert said in caught.value.message
    assert "--exporter" in caught.value.hint


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "BertConfig", {"num_key_value_heads": None}, "AutoModel")
    with (
        resolve(str(folder)) as checkpoint,
        pytest.raises(ExportError, match=r"no head for text-classification \(classifier.bias is missing"),
    ):
        exporter.export(checkpoint, "text-classification")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with resolve(str(folder)) as checkpoint, pytest.raises(ExportError, match="lacks 1 weights of the model, encoder"):
        exporter.export(checkpoint, "feature-extraction")


@pytest.mark.parametrize(
    ("task", "change", "said"),
    [
        ("text-generation", {}, "knows 'llama' for text-generation"),
        ("image-classification", {}, "no model class is known for image-classification"),
        ("text-generation", {"model_type": "nobody"}, "does not know the model type 'nobody'"),
        ("fill-mask", {}, "no class of 'llama' for fill-mask"),
    ],
)
def test_supports_reads_no_weights(
    task: str, change: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    folder = checkpoints.build("llama", tmp_path)
    with resolve(str(folder)) as checkpoint:
        (folder / "model.safetensors").unlink()
        known, reason = exporter.supports(replace(checkpoint, **change), task)  # type: ignore[arg-type]
    assert said in reason
    assert known == (said == "knows 'llama' for text-generation")


def test_available_says_why() -> None:
    assert exporter.available() == (True, "transformers and torch are installed")


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = checkpoints.build("gpt2", tmp_path)
    capfd.readouterr()
    with resolve(str(folder)) as checkpoint:
        exporter.export(checkpoint, "text-generation")
    assert capfd.readouterr() == ("", "")
