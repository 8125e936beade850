"""What a checkpoint recommends is used, what it does not say or says wrongly is not invented."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiasst.engine.defaults import FALLBACK, default_sampling
from aiasst.engine.requests import Sampling
from aiasst.errors import ArtifactError


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({}, FALLBACK),
        ({"temperature": 0.1}, FALLBACK),  # not in use there either
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05},
            Sampling(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05),
        ),
        ({"do_sample": True, "top_k": None}, Sampling()),
        ({"repetition_penalty": 1.1}, Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.1)),
        ({"do_sample": True, "top_p": 7}, FALLBACK),
        ({"do_sample": True, "temperature": "hot"}, FALLBACK),
        ([], FALLBACK),
    ],
)
def test_what_a_checkpoint_recommends(tmp_path: Path, config: object, sampling: Sampling) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert default_sampling(tmp_path) == sampling


def test_a_folder_without_the_file_or_with_a_broken_one(tmp_path: Path) -> None:
    assert default_sampling(tmp_path) == FALLBACK
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        default_sampling(tmp_path)
