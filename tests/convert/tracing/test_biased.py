"""Layers whose attention adds a bias of positions: what stands in their place gives what they give, and only then stands there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from aiasst.convert.tracing import biased
from tests.checkpoints import VOCABULARY

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3,
    "max_position_embeddings": 600, "attn_implementation": "eager",
}  # fmt: skip
DEBERTA = {"relative_attention": True, "position_buckets": 16, "position_biased_input": False, "type_vocab_size": 0}


def deberta(**own: Any) -> torch.nn.Module:
    return transformers.DebertaV2Model(transformers.DebertaV2Config(**SHAPE, **DEBERTA, **own))


MODELS = {
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**SHAPE)),
    "shared": lambda: deberta(pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm"),
    "own": lambda: deberta(pos_att_type=["p2c", "c2p"]),
    "one": lambda: deberta(pos_att_type=["c2p"], share_att_key=True),
    "none": lambda: deberta(pos_att_type=[]),
}


def made(name: str) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_replacement_gives_what_the_layer_gives(name: str) -> None:
    model = made(name)
    ids = torch.arange(3 * 300).reshape(3, 300) % 97 + 4  # farther than distances are told apart
    mask = torch.ones_like(ids)
    mask[1, 40:] = mask[2, 299:] = 0
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert biased.replace(model) == 2
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask == 1], expected[mask == 1], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["mpnet", "own"])
def test_a_layer_that_computes_something_else_stays_as_it_is(name: str) -> None:
    model = made(name)
    kind = {"mpnet": "MPNetSelfAttention", "own": "DisentangledSelfAttention"}[name]
    layers = [module for module in model.modules() if type(module).__name__ == kind]

    def doubled(original: Any) -> Any:
        return lambda *args, **given: (2 * original(*args, **given)[0], None)

    for layer in layers:
        layer.forward = doubled(layer.forward)
    kept = [layer.forward for layer in layers]
    assert biased.replace(model) == 0
    assert [layer.forward for layer in layers] == kept
    assert biased.replace(torch.nn.Linear(2, 2)) == 0
