"""A GGUF file unpacks to the model it was made from, and a damaged one to an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from aiasst.convert.sources import gguf_config, resolve
from aiasst.errors import AiasstError, CheckpointError, ResourceError, UnsupportedModelError
from aiasst.tokenizer import Tokenizer
from tests.convert.sources import gguf_writer

GGML = gguf.GGMLQuantizationType
SIZES: dict[str, Any] = {
    "vocab_size": len(gguf_writer.TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 5e4,
}
GPT2_SIZES = {"vocab_size": len(gguf_writer.TOKENS), "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
PARTIAL = {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5}

CONFIGS = {
    "llama": ("llama", transformers.LlamaConfig(**SIZES)),
    "llama-tied-wide-heads": ("llama", transformers.LlamaConfig(**SIZES, tie_word_embeddings=True, head_dim=32)),
    "llama-with-biases": ("llama", transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "qwen2": ("qwen2", transformers.Qwen2Config(**SIZES)),
    "qwen3": ("qwen3", transformers.Qwen3Config(**SIZES, head_dim=32)),
    "phi3": ("phi3", transformers.Phi3Config(**SIZES, sliding_window=8)),
    "phi3-partly-rotary": ("phi3", transformers.Phi3Config(**SIZES, rope_parameters=PARTIAL)),
    "gemma2": ("gemma2", transformers.Gemma2Config(**SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=8)),
    "gemma3": (
        "gemma3",
        transformers.Gemma3TextConfig(**SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=8),
    ),
    "gpt2": ("gpt2", transformers.GPT2Config(**GPT2_SIZES, bos_token_id=1, eos_token_id=2)),
}


def random_model(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(torch.arange(3, 43)[None]).logits
    return output


@contextmanager
def unpacked(path: Path) -> Iterator[Any]:
    with resolve(str(path)) as checkpoint:
        yield transformers.AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32).eval()


def test_every_known_architecture_is_tested_here() -> None:
    assert {architecture for architecture, _ in CONFIGS.values()} == set(gguf_config.ARCHITECTURES)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_unpacked_model_computes_what_the_original_computes(name: str, tmp_path: Path) -> None:
    architecture, config = CONFIGS[name]
    model = random_model(config)
    gguf_writer.write(tmp_path / "m.gguf", model, architecture)
    with unpacked(tmp_path / "m.gguf") as copy:
        torch.testing.assert_close(logits(copy), logits(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [GGML.F16, GGML.BF16, GGML.Q8_0, GGML.Q4_0, GGML.Q5_0, GGML.Q5_1])
def test_packed_weights_become_exactly_the_values_they_stand_for(kind: GGML, tmp_path: Path) -> None:
    model = random_model(CONFIGS["llama"][1])
    gguf_writer.write(tmp_path / "m.gguf", model, "llama", kind)
    with resolve(str(tmp_path / "m.gguf")) as checkpoint:
        weights = load_file(checkpoint.path / "model.safetensors")
    original = model.state_dict()
    assert set(weights) == set(original)
    for name in (
        "model.embed_tokens.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
    ):
        values = original[name].numpy()
        expected = gguf.dequantize(gguf.quantize(values, kind), kind)
        np.testing.assert_array_equal(weights[name], expected, err_msg=name)
        assert not np.array_equal(expected, values)  # else the format would not have been exercised
    # Rows of Q and K are stored in another order; each row is packed by itself, so the order can be undone exactly.
    query = original["model.layers.0.self_attn.q_proj.weight"].numpy()
    np.testing.assert_array_equal(
        weights["model.layers.0.self_attn.q_proj.weight"], gguf.dequantize(gguf.quantize(query, kind), kind)
    )
    assert all(array.dtype == np.float32 for array in weights.values())


def test_k_quants_are_dequantized(tmp_path: Path) -> None:
    """gguf cannot pack Q4_K, so the blocks are made of bytes; what they stand for is said by the reference."""
    config = transformers.LlamaConfig(
        **{**SIZES, "hidden_size": 256, "tie_word_embeddings": True, "num_hidden_layers": 1}
    )
    rows, block = 256, 144
    blocks = np.random.default_rng(0).integers(0, 255, (rows, block), dtype=np.uint8)
    blocks[:, :4] = np.frombuffer(np.array([0.01, 0.02], "<f2").tobytes(), np.uint8)  # scale and minimum of each block
    model = random_model(config)
    model.model.layers[0].self_attn.o_proj.weight.data = torch.from_numpy(gguf.dequantize(blocks, GGML.Q4_K))
    path = tmp_path / "m.gguf"
    gguf_writer.write(path, model, "llama", packed={"blk.0.attn_output.weight": (blocks, GGML.Q4_K)})
    with unpacked(path) as copy:
        torch.testing.assert_close(logits(copy), logits(model), rtol=0, atol=1e-6)


def test_tokenizer_and_template_come_along(tmp_path: Path) -> None:
    gguf_writer.write(
        tmp_path / "m.gguf", random_model(CONFIGS["llama"][1]), "llama", metadata={"tokenizer.ggml.eot_token_id": 7}
    )
    with resolve(str(tmp_path / "m.gguf")) as checkpoint:
        tokenizer = Tokenizer.load(checkpoint.path)
        assert tokenizer.encode("ab") == [1, gguf_writer.TOKENS.index("▁ab")]
        assert tokenizer.decode(tokenizer.encode("ab a b")[1:]) == "ab a b"
        assert tokenizer.decode(tokenizer.encode("é")[1:]) == "é"
        assert tokenizer.eos_ids == (2, 7)
        assert (checkpoint.path / "chat_template.jinja").read_text() == gguf_writer.CHAT_TEMPLATE
        assert json.loads((checkpoint.path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_source_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_writer.write(path, random_model(CONFIGS["llama"][1]), "llama")
    with resolve(str(path)) as checkpoint:
        place = checkpoint.path
        assert (checkpoint.source.kind, checkpoint.source.name) == ("gguf", "tiny.gguf")
        assert checkpoint.model_type == "llama"
    assert not place.exists()


def test_the_rotary_factors_of_llama3_become_its_parameters(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    config = transformers.LlamaConfig(**{**SIZES, "rope_parameters": rope, "head_dim": 64, "rope_theta": None})
    model = random_model(config)
    factors = gguf_config.llama3_factors(5e5, 64, 32.0).astype(np.float32)
    path = tmp_path / "m.gguf"
    gguf_writer.write(path, model, "llama", extra={"rope_freqs.weight": factors})
    with unpacked(path) as copy:
        assert copy.config.rope_parameters == {k: pytest.approx(v) if k == "factor" else v for k, v in rope.items()}
        torch.testing.assert_close(logits(copy), logits(model), rtol=0, atol=1e-6)
    gguf_writer.write(path, model, "llama", extra={"rope_freqs.weight": factors * 1.01})
    with pytest.raises(UnsupportedModelError, match="rotary factors"), resolve(str(path)):
        pass


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_context_extension_is_read(kind: str, tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 5e4, "factor": 4.0}
    keys: dict[str, Any] = {"qwen2.rope.scaling.type": kind, "qwen2.rope.scaling.factor": 4.0}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = keys["qwen2.rope.scaling.original_context_length"] = 64
    model = random_model(transformers.Qwen2Config(**{**SIZES, "rope_parameters": rope}))
    path = tmp_path / "m.gguf"
    gguf_writer.write(path, model, "qwen2", metadata=keys)
    with unpacked(path) as copy:
        torch.testing.assert_close(logits(copy), logits(model), rtol=0, atol=1e-6)
    gguf_writer.write(path, model, "qwen2", metadata={**keys, "qwen2.rope.scaling.type": "longrope"})
    with pytest.raises(UnsupportedModelError, match="longrope"), resolve(str(path)):
        pass


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    gguf_writer.write(path, random_model(CONFIGS["llama"][1]), "llama")
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.01, 0.03, 0.5, 0.999])
def test_a_truncated_file_is_an_error(sound: bytes, share: float, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(sound[: int(len(sound) * share)])
    with pytest.raises(CheckpointError) as caught, resolve(str(path)):
        pass
    assert "m.gguf" in caught.value.message


def test_a_damaged_file_never_gives_another_kind_of_failure(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    random = np.random.default_rng(0)
    failures = 0
    for _ in range(12):
        content = bytearray(sound)
        # The counts and the first keys; a byte among the weights is damage that only a hash can see.
        for where in random.integers(4, 900, 4):
            content[where] = random.integers(0, 256)
        path.write_bytes(content)
        try:
            with resolve(str(path)):
                pass
        except AiasstError:
            failures += 1
    assert failures > 6


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"not at all" * 10)
    with pytest.raises(CheckpointError, match=r"m\.gguf"), resolve(str(path)):
        pass


def test_half_a_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = random_model(CONFIGS["llama"][1])
    gguf_writer.write(path, model, "llama", without=("blk.1.ffn_up.weight",))
    with (
        pytest.raises(CheckpointError, match=r"lacks the weight 'model\.layers\.1\.mlp\.up_proj\.weight'"),
        resolve(str(path)),
    ):
        pass
    gguf_writer.write(path, model, "llama", extra={"blk.0.attn_sinks.weight": np.zeros(4, np.float32)})
    with pytest.raises(UnsupportedModelError, match="attn_sinks"), resolve(str(path)):
        pass


def test_unknown_architectures_and_parts_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = random_model(CONFIGS["llama"][1])
    gguf_writer.write(path, model, "mamba")
    with pytest.raises(UnsupportedModelError, match="'mamba'"), resolve(str(path)):
        pass
    gguf_writer.write(path, model, "llama", metadata={"llama.expert_count": 8})
    with pytest.raises(UnsupportedModelError, match="mixture of experts"), resolve(str(path)):
        pass
    gguf_writer.write(path, model, "llama", metadata={"split.count": 3})
    with pytest.raises(CheckpointError, match="one of 3 parts"), resolve(str(path)):
        pass


def test_too_little_disk_is_said_before_anything_is_written(
    sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(sound)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError) as caught, resolve(str(path)):
        pass
    assert "TMPDIR" in caught.value.hint
