"""The header of a GGUF file is believed only as far as the file goes."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiasst.convert.sources import gguf_header
from aiasst.errors import CheckpointError
from tests.convert.sources import gguf_writer


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_float32("llama.a", 0.5)
    writer.add_array("llama.list", [1, 2, 3])
    gguf_writer.add_vocabulary(writer)
    writer.add_tensor("a", np.zeros((5, 64), np.float32))
    writer.add_tensor("b", gguf.quantize(np.ones((3, 64), np.float32), gguf.GGMLQuantizationType.Q8_0), raw_dtype=8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_is_read_as_the_reference_reads_it(sound: Path) -> None:
    header = gguf_header.read(sound)
    reference = gguf.GGUFReader(sound)
    assert header.shapes == {t.name: tuple(reversed(t.shape.tolist())) for t in reference.tensors}
    assert set(header.metadata) == {name for name in reference.fields if not name.startswith("GGUF.")}
    assert header.metadata["general.architecture"] == "llama"
    assert (header.metadata["llama.block_count"], header.metadata["llama.a"]) == (3, 0.5)
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.metadata["llama.list"] == 3
    assert header.metadata["tokenizer.ggml.tokens"] == len(gguf_writer.TOKENS)


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_keeps_it_busy_or_lets_another_error_out(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(sound.read_bytes())
    where = data.draw(st.integers(0, len(content) - 9))
    damage = data.draw(st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 8))
    content[where : where + len(damage)] = damage
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    try:
        gguf_header.read(path)
    except CheckpointError as error:
        assert "m.gguf" in error.message


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_no_part_of_a_file_passes_for_the_whole(sound: Path, tmp_path: Path, share: float) -> None:
    content = sound.read_bytes()
    path = tmp_path / "m.gguf"
    # The last tensor is followed by less than 32 bytes of filling.
    path.write_bytes(content[: int((len(content) - 32) * share)])
    with pytest.raises(CheckpointError):
        gguf_header.read(path)


def test_other_versions_and_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(CheckpointError, match="version 1"):
        gguf_header.read(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match="letters GGUF"):
        gguf_header.read(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty"):
        gguf_header.read(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(CheckpointError, match="architecture"):
        gguf_header.read(path)
