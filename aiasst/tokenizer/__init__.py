"""Text to token ids and back, with the checkpoint's own tokenizer and chat template. Knows no model and no session.

tokenizer.json                                   read by `tokenizers`
chat_template.jinja or tokenizer_config.json     the chat template (see chat_template.py)
tokenizer_config.json, generation_config.json    special tokens
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aiasst.artifacts.document import read_json, read_text
from aiasst.errors import ArtifactError
from aiasst.tokenizer.chat_template import ChatTemplate, Message, find_template
from aiasst.tokenizer.detokenizer import Detokenizer

if TYPE_CHECKING:
    import tokenizers

__all__ = ["ChatTemplate", "Detokenizer", "Message", "Tokenizer", "has_chat_template"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_HINT = "use the folder of a model that generates text, with its tokenizer.json"


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a checkpoint or model folder."""

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str]
    """bos_token, eos_token, pad_token, … as the configuration names them."""
    eos_ids: tuple[int, ...]
    bos_id: int | None
    template: ChatTemplate | None

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of `folder`.

        Raises:
            ArtifactError: no tokenizer.json, or a file that is broken.
        """
        backend = _load_backend(folder / "tokenizer.json")
        config = _optional_json(folder / "tokenizer_config.json")
        special = _special_tokens(_optional_json(folder / "special_tokens_map.json") | config)
        source = find_template(folder, config)
        return cls(
            backend=backend,
            special_tokens=special,
            eos_ids=_eos_ids(backend, special, _optional_json(folder / "generation_config.json")),
            bos_id=backend.token_to_id(special["bos_token"]) if "bos_token" in special else None,
            template=None if source is None else ChatTemplate.parse(source, special),
        )

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, with the special tokens that the checkpoint's own post-processor adds."""
        ids: list[int] = self.backend.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        return text

    def detokenizer(self) -> Detokenizer:
        """A decoder for one stream of ids."""
        return self._first_detokenizer.fresh()

    @cached_property
    def _first_detokenizer(self) -> Detokenizer:
        return Detokenizer(self.backend)

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return self.template is not None

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] = _NOTHING,
    ) -> str:
        """`messages` as the text that the model was trained to answer; `variables` as in `ChatTemplate.render`.

        Raises:
            ArtifactError: there is no chat template, or it is broken.
            PromptError: the template refuses these messages.
        """
        if self.template is None:
            raise ArtifactError("this model has no chat template", "give it a prompt to continue instead")
        return self.template.render(messages, add_generation_prompt=add_generation_prompt, variables=variables)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] = _NOTHING,
    ) -> list[int]:
        """The ids of the rendered messages; the template alone writes the special tokens, so that none is doubled.

        Raises:
            ArtifactError, PromptError: see `render_chat`.
        """
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, variables=variables)
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids


def has_chat_template(folder: Path) -> bool:
    """Whether messages can be rendered with the tokenizer of `folder`, which is not loaded for it.

    Raises:
        ArtifactError: a file that is broken.
    """
    return find_template(folder, _optional_json(folder / "tokenizer_config.json")) is not None


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    text = read_text(path, "tokenizer", _HINT)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises the base class itself
        raise ArtifactError(f"{path} is not a tokenizer that can be read: {error}", _HINT) from error
    # A file saved with the settings of a training run would cut prompts in silence.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _optional_json(path: Path) -> dict[str, Any]:
    """The object in a foreign JSON file, {} where there is no file."""
    if not path.is_file():
        return {}
    data = read_json(path, path.stem, _HINT)
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} holds no JSON object", _HINT)
    return data


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The `…_token` entries: strings, or objects with the string in `content` (older files)."""
    found: dict[str, str] = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _eos_ids(
    backend: tokenizers.Tokenizer, special: Mapping[str, str], generation: Mapping[str, Any]
) -> tuple[int, ...]:
    named = generation.get("eos_token_id")
    ids: Iterable[Any] = named if isinstance(named, list) else [named]
    own = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return tuple(dict.fromkeys(i for i in (own, *ids) if isinstance(i, int)))
