"""The only place where the names of graph inputs and outputs exist. Knows no runtime and no exporter.

A causal decoder (task text-generation), whatever exporter made it:

    input_ids                    int64 [batch, sequence]
    attention_mask               int64 [batch, total_sequence]   1 for the tokens of a row (past and new), right-padded with 0
    past_key_values.{layer}.key  T     [batch, kv_heads, past_sequence or capacity, head_dim]   and .value
    all_logits                   bool  []   an overridable initializer, false by default: bind it only to ask for every row
    → logits                     T     [batch, 1, vocabulary]  (the last token of each row), or [batch, sequence, vocabulary]
    → present.{layer}.key        T     [batch, kv_heads, total_sequence or capacity, head_dim]  and .value

Positions follow from the mask: a row's new tokens start at max(row sum - sequence, 0). Past and present may share one
buffer of `capacity` >= total_sequence. Several new tokens with a past need batch 1 (a limit of GroupQueryAttention).

An encoder (feature-extraction, text-classification, ...):

    input_ids, attention_mask, token_type_ids (where the model has them)   int64 [batch, sequence]
    → last_hidden_state  T [batch, sequence, hidden]   or   logits  T [batch, labels] / [batch, sequence, labels]
"""

from __future__ import annotations

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
TOKEN_TYPE_IDS = "token_type_ids"
ALL_LOGITS = "all_logits"
LOGITS = "logits"
LAST_HIDDEN_STATE = "last_hidden_state"


def past_key(layer: int) -> str:
    """Name of the key cache input of `layer`."""
    return f"past_key_values.{layer}.key"


def past_value(layer: int) -> str:
    """Name of the value cache input of `layer`."""
    return f"past_key_values.{layer}.value"


def present_key(layer: int) -> str:
    """Name of the key cache output of `layer`."""
    return f"present.{layer}.key"


def present_value(layer: int) -> str:
    """Name of the value cache output of `layer`."""
    return f"present.{layer}.value"


def cache_pairs(layers: int) -> list[tuple[str, str]]:
    """(past input, present output) of every cache tensor, key then value, layer by layer; 2 x `layers` pairs."""
    pairs: list[tuple[str, str]] = []
    for layer in range(layers):
        pairs += [(past_key(layer), present_key(layer)), (past_value(layer), present_value(layer))]
    return pairs
