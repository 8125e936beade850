"""Tiny random checkpoints of real architectures, with odd shapes and a tokenizer of 105 tokens: what tests convert and run.

`build("qwen3", folder)` writes a Hugging Face folder in well under a second. The weights are random but not small, so a
wrong window, norm or position shows in the logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARY = 105
PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3
_MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("e", "r")]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

# Hidden 172 and 576 are no multiple of a quantization block; head sizes 8, 16, 64, 80 and 128 all appear.
_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip
_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"hidden_size": 172, "head_dim": 16, "intermediate_size": 576}),
    "llama_tied": ("LlamaConfig", {"head_dim": 8, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"head_dim": 80, "sliding_window": 16}),
    "qwen2": ("Qwen2Config", {"hidden_size": 256, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 128, "tie_word_embeddings": True}),
    "qwen3_narrow": ("Qwen3Config", {"head_dim": 8}),
    "phi3": ("Phi3Config", {}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 7},
    ),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "granite": (
        "GraniteConfig",
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0625, "logits_scaling": 8.0},
    ),
    "olmo2": ("Olmo2Config", {"num_attention_heads": 8, "num_key_value_heads": 4}),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 256}),
    "bert": ("BertConfig", {}),
    "roberta": ("RobertaConfig", {"type_vocab_size": 1}),
    "distilbert": ("DistilBertConfig", {"dim": 64, "hidden_dim": 172, "n_layers": 2, "n_heads": 4}),
    "deberta_v2": (
        "DebertaV2Config",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "share_att_key": True,
         "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
    ),
    "mpnet": ("MPNetConfig", {"pad_token_id": 1, "bos_token_id": 0}),
    "electra": ("ElectraConfig", {"embedding_size": 32}),
    "modernbert": (
        "ModernBertConfig",
        {"num_hidden_layers": 4, "global_attn_every_n_layers": 3, "local_attention": 16, "cls_token_id": BOS,
         "sep_token_id": EOS},
    ),
}  # fmt: skip
ENCODERS = ("bert", "roberta", "distilbert", "deberta_v2", "mpnet", "electra", "modernbert")
ARCHITECTURES = tuple(name for name in _OWN if name != "qwen3_narrow" and name not in ENCODERS[1:])
"""The thirteen that must convert."""
DECODERS = tuple(name for name in ARCHITECTURES if name != "bert")
TIED = ("llama_tied", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3", "gpt2")
QK_NORM = ("qwen3", "gemma3", "olmo2")


def build(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    tokenizer: bool = True,
    chat_template: bool = False,
    dtype: str = "float32",
    auto_class: str | None = None,
    **overrides: Any,
) -> Path:
    """Write the checkpoint `name` (one of ARCHITECTURES or ENCODERS, or qwen3_narrow) into `folder`; returns it.

    Args:
        name: Which architecture.
        folder: Created where absent.
        seed: Of the weights.
        tokenizer: Whether tokenizer files go along.
        chat_template: Whether chat_template.jinja goes along.
        dtype: How the weights are stored: float32, float16 or bfloat16.
        auto_class: transformers class that makes the model, where it is not the causal decoder (bert: AutoModel).
        overrides: Values of the configuration to change.
    """
    import torch
    import transformers

    kind, own = _OWN[name]
    common = {} if kind == "GPT2Config" else _BASE
    special = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    if name in ENCODERS:
        common = {key: value for key, value in _BASE.items() if key != "num_key_value_heads"}
    config = getattr(transformers, kind)(**{**special, **common, **own, **overrides})
    maker: Callable[..., Any] = getattr(
        transformers, auto_class or ("AutoModel" if name in ENCODERS else "AutoModelForCausalLM")
    ).from_config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = maker(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if tokenizer:
        write_tokenizer(folder, encoder=name in ENCODERS, chat_template=chat_template, begins=config.bos_token_id)
    return folder


def write_tokenizer(
    folder: Path, *, encoder: bool = False, chat_template: bool = False, begins: int | None = BOS
) -> None:
    """A character-level BPE of 105 tokens: 4 special, newline, printable ASCII, five merges.

    Of an encoder it ends every text, puts pairs together and knows ~ as its mask. Where texts begin with the id 0 (MPNet), padding
    is 1.
    """
    from tokenizers import Tokenizer, decoders, models, processors

    first = ["<s>", "<pad>"] if begins == 0 else ["<pad>", "<s>"]
    pieces = [*first, "</s>", "<unk>", "\n", *(chr(code) for code in range(32, 127))]
    vocabulary = {piece: index for index, piece in enumerate(pieces + ["".join(pair) for pair in _MERGES])}
    assert len(vocabulary) == VOCABULARY
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_MERGES, unk_token="<unk>", fuse_unk=True))
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>", *(["~"] if encoder else [])])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if encoder else "<s> $A",
        pair="<s> $A </s> $B:1 </s>:1" if encoder else "<s> $A $B",
        special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", EOS)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    names |= {"mask_token": "~"} if encoder else {}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if chat_template:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
