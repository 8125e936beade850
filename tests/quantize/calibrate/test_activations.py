from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aiasst.quantize.calibrate.activations import ActivationStore

_ANY = arrays.arrays(
    st.sampled_from([np.float32, np.float16, np.int64, np.int32, np.bool_]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@settings(max_examples=40)
@given(batches=st.lists(st.dictionaries(st.text(max_size=9), _ANY, max_size=4), max_size=4))
def test_what_is_written_is_read(
    batches: list[dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = ActivationStore(tmp_path_factory.mktemp("stores") / "store")
    for number, batch in enumerate(batches):
        store.write(number, batch)
    for number, batch in enumerate(batches):
        read = store.read(number)
        assert list(read) == list(batch)
        for name, array in batch.items():
            assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(read[name], array)
            assert read[name].flags.writeable


def test_one_array_of_many_is_read(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "store")
    store.write(0, {"a": np.arange(5), "b": np.arange(6.0).reshape(2, 3), "c": np.array(7)})
    assert list(store.read(0, ["c", "b"])) == ["c", "b"]
    assert store.read(0, ["c", "b"])["c"] == 7
    with pytest.raises(KeyError):
        store.read(0, ["d"])


def test_only_a_whole_store_is_complete(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "store")
    assert not store.is_complete
    store.write(0, {"a": np.arange(5)})
    store.write(1, {"a": np.arange(5)})
    assert not store.is_complete
    store.complete()
    assert ActivationStore(store.folder).is_complete
    (store.folder / "0001.bin").write_bytes((store.folder / "0001.bin").read_bytes()[:-3])
    assert not store.is_complete
    with pytest.raises(OSError, match="cut short"):
        store.read(1)
    store.write(1, {"a": np.arange(5)})
    assert not store.is_complete, "what is written again must be finished again"
    store.remove()
    assert not store.folder.exists()
    store.remove()
