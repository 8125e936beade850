"""The worker of llama.cpp in its own process, on a stub of the library; the real one is measured by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.bench import bench
from aiasst.bench.peers import PeerModel, check_peer, started
from aiasst.errors import ResourceError, UsageError
from tests.bench.conftest import SHAPE


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PeerModel:
    """A file for the stub, which stands where the worker finds it."""
    package = tmp_path / "packages" / "llama_cpp"
    package.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("llama_stub.py"), package / "__init__.py")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(60))
    return PeerModel("llama.cpp", file)


def test_the_worker_measures_what_it_is_asked_for(model: PeerModel) -> None:
    with started(model, SHAPE, threads=3) as peer:
        assert (peer.name, peer.version, peer.model, peer.model_bytes) == ("llama.cpp", "9.9.9", "stub 1B Q4_0", 64)
        assert len(peer.prefill(1100, seed=0)) == 3
        steps = peer.decode(4, prompt=16, steps=8, seed=0)
        assert len(steps) == 8 and min(steps) > 0
        assert len(peer.decode(4, prompt=16, steps=600, seed=1)) == 600


def test_ratios_come_with_the_report(model: PeerModel, tiny: ModelFolder, alone: DeviceConfig) -> None:
    three = alone.decisions.threads.model_copy(update={"value": 3})
    config = alone.model_copy(update={"decisions": alone.decisions.model_copy(update={"threads": three})})
    report = bench(tiny, config, seconds=0.1, prompt_tokens=8, sequences=(1, 2), against=model)
    peer = report.against
    assert peer is not None
    assert (peer.peer, peer.version) == ("llama.cpp", "9.9.9")
    assert [one.sequences for one in peer.decode] == [1, 2]
    assert peer.prefill_ratio > 0 and all(one.ratio > 0 for one in peer.decode)


def test_a_python_without_the_package(model: PeerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_ABSENT", "1")
    with (
        pytest.raises(ResourceError, match=r"'llama_cpp' of llama\.cpp is not installed") as refused,
        started(model, SHAPE, 3),
    ):
        pass
    assert "pip install llama-cpp-python" in refused.value.hint and "--peer-python" in refused.value.hint


def test_another_model_is_refused(model: PeerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_SHAPE", "16,2048,128256")
    with pytest.raises(UsageError, match=r"another model \(16 layers, hidden 2048"), started(model, SHAPE, 3):
        pass


def test_a_file_that_is_none(model: PeerModel) -> None:
    model.file.write_bytes(b"nothing")
    with pytest.raises(ResourceError, match="cannot open"), started(model, SHAPE, 3):
        pass


def test_a_worker_that_dies_leaves_its_last_words(model: PeerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_DIES", "1")
    with started(model, SHAPE, 3) as peer, pytest.raises(ResourceError, match="out of everything"):
        peer.prefill(4, seed=0)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (PeerModel("abacus", Path("x")), "no runtime"),
        (PeerModel("llama.cpp", Path("absent.gguf")), "no file absent.gguf"),
        (PeerModel("llama.cpp", Path(__file__), Path("absent/python")), "no Python absent"),
    ],
)
def test_what_is_not_there_is_said_before_the_work(wanted: PeerModel, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_peer(wanted)
