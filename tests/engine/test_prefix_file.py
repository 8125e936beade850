"""Keys and values on disk: what was written is read, what is damaged or another model's never is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.engine.cache import CacheShape
from aiasst.engine.prefix_file import MOST_PIECES, Piece, is_prefix_file, read, write
from aiasst.errors import ArtifactError, ResourceError

MODEL = "5e" * 32
SHAPES = [
    CacheShape(2, 1, 4, np.dtype(np.float32)),
    CacheShape(1, 3, 2, np.dtype(np.float16)),
    CacheShape(2, 2, 4, np.dtype(np.int8)),
]


def pieces(shape: CacheShape, lengths: list[int], seed: int = 0) -> list[Piece]:
    random = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        arrays = [
            random.integers(-100, 100, (shape.kv_heads, length + 3, shape.head_dim)).astype(shape.dtype)
            for _ in range(2 * shape.layers)
        ]
        made.append(Piece(random.integers(0, 9, length), int(random.integers(-1, number)), arrays))
    return made


def everything(tokens: int, segments: int) -> int:
    return tokens


def same(piece: Piece, original: Piece, length: int | None = None) -> None:
    count = len(original.tokens) if length is None else length
    assert piece.parent == original.parent
    assert piece.tokens.tolist() == original.tokens[:count].tolist()
    for array, expected in zip(piece.arrays, original.arrays, strict=True):
        assert array.dtype == expected.dtype
        assert array.tobytes() == expected[:, :count].tobytes()


@settings(max_examples=40)
@given(
    shape=st.sampled_from(SHAPES),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    seed=st.integers(0, 9),
    room=st.integers(0, 30),
)
def test_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, shape: CacheShape, lengths: list[int], seed: int, room: int
) -> None:
    path, originals = tmp_path_factory.mktemp("p") / "some.kv", pieces(shape, lengths, seed)
    size = write(path, originals, model=MODEL, shape=shape)
    assert path.stat().st_size == size
    for found, original in zip(read(path, model=MODEL, shape=shape, room=everything), originals, strict=True):
        same(found, original)
    left = room
    for found, original in zip(read(path, model=MODEL, shape=shape, room=lambda *_: room), originals, strict=False):
        same(found, original, min(left, len(original.tokens)))
        left -= len(found.tokens)
    assert left == max(0, room - sum(lengths))


def test_others_can_read_it(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.numpy").load_file
    shape = SHAPES[0]
    originals = pieces(shape, [3, 2])
    write(tmp_path / "a.kv", originals, model=MODEL, shape=shape)
    tensors = load_file(tmp_path / "a.kv")
    assert tensors["tokens"].tolist() == [*originals[0].tokens, *originals[1].tokens]
    assert tensors["lengths"].tolist() == [3, 2]
    expected = np.concatenate([p.arrays[3][:, : len(p.tokens)] for p in originals], axis=1)
    np.testing.assert_array_equal(tensors["cache.3"], expected)


@settings(max_examples=120)
@given(data=st.data(), kind=st.sampled_from(["flip", "cut", "add"]))
def test_a_damaged_file_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str) -> None:
    path, shape = tmp_path_factory.mktemp("p") / "some.kv", SHAPES[1]
    write(path, pieces(shape, [3, 1]), model=MODEL, shape=shape)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "flip":
        damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    else:
        damaged = whole[:at] if kind == "cut" else whole + bytes(data.draw(st.binary(min_size=1, max_size=9)))
    path.write_bytes(damaged)
    with pytest.raises(ArtifactError):
        read(path, model=MODEL, shape=shape, room=everything)


def test_another_model_and_another_cache_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    write(path, pieces(SHAPES[0], [3]), model=MODEL, shape=SHAPES[0])
    with pytest.raises(ArtifactError, match="another model"):
        read(path, model="5f" * 32, shape=SHAPES[0], room=everything)
    with pytest.raises(ArtifactError, match=r"cache of 2 layers, 1 heads of 4, float32, this model's is .* float16"):
        read(path, model=MODEL, shape=CacheShape(2, 1, 4, np.dtype(np.float16)), room=everything)
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(ArtifactError, match="version 2, this program reads 1"):
        read(path, model=MODEL, shape=SHAPES[0], room=everything)
    with pytest.raises(ArtifactError, match="there is no file"):
        read(tmp_path / "absent.kv", model=MODEL, shape=SHAPES[0], room=everything)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read(tmp_path, model=MODEL, shape=SHAPES[0], room=everything)


def with_header(path: Path, change: dict) -> None:
    """The same file with a header that says something else."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length]) | change
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": {"dtype": "I64", "shape": [2**40], "data_offsets": [0, 2**43]}},
        {"tokens": {"dtype": "I64", "shape": [-3], "data_offsets": [0, 24]}},
        {"tokens": {"dtype": "I64", "shape": [3.0], "data_offsets": [0, 24]}},
        {"lengths": {"dtype": "I64", "shape": [MOST_PIECES + 1], "data_offsets": [0, 24]}},
        {"cache.0": {"dtype": "F32", "shape": [1, 3, 4], "data_offsets": [0, 48]}},
        {"extra": 1},
        {"tokens": []},
        {"__metadata__": "none"},
    ],
)
def test_a_header_is_believed_in_nothing(tmp_path: Path, change: dict) -> None:
    path, asked = tmp_path / "a.kv", []

    def room(tokens: int, segments: int) -> int:
        asked.append(tokens)
        return tokens

    write(path, pieces(SHAPES[0], [3]), model=MODEL, shape=SHAPES[0])
    with_header(path, change)
    with pytest.raises(ArtifactError, match="damaged"):
        read(path, model=MODEL, shape=SHAPES[0], room=room)
    assert asked == []  # no memory was taken


@pytest.mark.parametrize("text", [b"", b"\x05", b"\xff" * 100, (2).to_bytes(8, "little") + b"{}", b"[" * 2**16])
def test_what_is_no_such_file_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.kv").write_bytes(text)
    with pytest.raises(ArtifactError, match="damaged"):
        read(tmp_path / "a.kv", model=MODEL, shape=SHAPES[0], room=everything)


@pytest.mark.parametrize(
    "table", [[3, 1, -1, 1], [3, 1, -1, -2], [3, 1, 0, 0], [0, 4, -1, -1], [5, -1, -1, -1], [3, 2, -1, -1]]
)
def test_pieces_that_do_not_fit_together_are_refused(tmp_path: Path, table: list[int]) -> None:
    path, shape = tmp_path / "a.kv", SHAPES[0]
    write(path, pieces(shape, [3, 1]), model=MODEL, shape=shape)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header, data = whole[:end], whole[end : end + 32] + np.array(table, "<i8").tobytes() + whole[end + 64 :]
    told = json.loads(header[8:])["__metadata__"]["sha256"].encode()
    digest = hashlib.sha256(header.replace(told, b"0" * 64) + data).hexdigest().encode()
    path.write_bytes(header.replace(told, digest) + data)
    with pytest.raises(ArtifactError, match="damaged"):
        read(path, model=MODEL, shape=shape, room=everything)


def test_only_files_of_its_kind_are_replaced(tmp_path: Path) -> None:
    path, shape = tmp_path / "a.kv", SHAPES[0]
    path.write_text("the user's own")
    with pytest.raises(ArtifactError, match="not replaced"):
        write(path, pieces(shape, [3]), model=MODEL, shape=shape)
    assert path.read_text() == "the user's own"
    assert not is_prefix_file(path)
    write(path, pieces(shape, [3]), model=MODEL, shape=shape, force=True)
    assert is_prefix_file(path)
    write(path, pieces(shape, [4]), model=MODEL, shape=shape)
    assert len(read(path, model=MODEL, shape=shape, room=everything)[0].tokens) == 4
    with pytest.raises(ArtifactError, match="not replaced"):
        write(tmp_path, pieces(shape, [3]), model=MODEL, shape=shape)
    with pytest.raises(ResourceError, match="may not write"):
        write(tmp_path / "absent" / "a.kv", pieces(shape, [3]), model=MODEL, shape=shape)
    assert [file.name for file in tmp_path.iterdir()] == ["a.kv"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, shape = tmp_path / "a.kv", SHAPES[0]
    write(path, pieces(shape, [3]), model=MODEL, shape=shape)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ResourceError, match="No space left"):
        write(path, pieces(shape, [4]), model=MODEL, shape=shape)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
