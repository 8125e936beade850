"""From machine to device config, for a model or for none; and the config of another machine is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from aiasst.artifacts.model_folder import (
    Manifest,
    ModelFolder,
    Quantization,
    Shape,
    Source,
    Twin,
    Weight,
    record_files,
    staged_folder,
    write_manifest,
)
from aiasst.errors import ArtifactError
from aiasst.profile import check_machine, fitted, needs_of, profile, quick_config
from aiasst.profile.host import Host
from aiasst.progress import Progress


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    """A folder of a decoder with 4 layers of 2 heads of 16: 1024 bytes of cache a token."""
    shape = Shape(
        model_type="llama",
        layers=4,
        hidden_size=64,
        vocab_size=100,
        context_length=512,
        heads=4,
        kv_heads=2,
        head_dim=16,
    )
    with staged_folder(tmp_path / "tiny") as staging:
        (staging / "model.onnx").write_bytes(bytes(1000))
        weights = {
            "embed_tokens.weight": Weight(role="embed", layer=None, shape=(100, 64), format="fp32", bytes=90000),
            "layers.0.qkv_proj.weight": Weight(role="qkv", layer=0, shape=(64, 128), format="w8a8", bytes=8000),
            "layers.0.o_proj.weight": Weight(role="o", layer=0, shape=(64, 64), format="int4-b32", bytes=2000),
        }
        manifest = Manifest(
            aiasst_version="0",
            task="text-generation",
            exporter="none",
            source=Source(kind="folder", name="test"),
            shape=shape,
            weights=weights,
            files=record_files(staging),
        )
        write_manifest(staging, manifest)
    return ModelFolder.open(tmp_path / "tiny")


def test_needs_of_a_model(model: ModelFolder) -> None:
    needs = needs_of(model)
    assert (needs.name, needs.weight_bytes, needs.cache_bytes_per_token) == ("tiny", 1000, 2 * 4 * 2 * 16 * 4)
    assert (needs.context_length, needs.weight_format) == (512, "w8a8")


def test_an_encoder_needs_no_cache(model: ModelFolder) -> None:
    encoder = ModelFolder(model.path, model.manifest.model_copy(update={"task": "feature-extraction"}))
    assert needs_of(encoder).cache_bytes_per_token == 0
    foreign = ModelFolder(model.path, model.manifest.model_copy(update={"shape": None}))
    assert needs_of(foreign).cache_bytes_per_token == 0


def test_profile_without_measuring(model: ModelFolder) -> None:
    events: list[Progress] = []
    config = profile(model.path, measure=False, progress=events.append)
    assert config.model == "tiny"
    assert config.costs.bandwidth == config.costs.matmul == ()
    assert config.hardware.providers
    assert events[-1].done == events[-1].total
    assert "tiny" in config.decisions.memory_ceiling_bytes.reason


def test_quick_and_thorough_agree_on_the_machine(model: ModelFolder) -> None:
    quick, thorough = quick_config(model), profile(measure=False)
    assert quick.hardware.machine_id == thorough.hardware.machine_id
    check_machine(quick)
    check_machine(thorough)


def test_quick_is_quick_enough_for_every_start() -> None:
    quick_config(None)
    # A tenth of a second is the promise; the factor is for a busy machine.
    fastest = min(_seconds() for _ in range(5))
    assert fastest < 1.0


def _seconds() -> float:
    begun = time.perf_counter()
    quick_config(None)
    return time.perf_counter() - begun


def test_quick_asks_no_command(plant, raspberry: Host) -> None:
    from dataclasses import replace

    def asked(command: object) -> str:
        raise AssertionError(command)

    assert quick_config(None, host=replace(raspberry, run=asked)).decisions.threads.value == 4


def test_another_machine_is_named(raspberry: Host, hybrid_laptop: Host) -> None:
    config = quick_config(None, host=raspberry)
    check_machine(config, host=raspberry)
    with pytest.raises(ArtifactError) as refused:
        check_machine(config, host=hybrid_laptop)
    assert "Raspberry Pi 5" in refused.value.message
    assert "Core(TM) Ultra 7" in refused.value.message
    assert "aiasst profile" in refused.value.hint


def test_a_container_limit_makes_no_other_machine(raspberry: Host) -> None:
    config = quick_config(None, host=raspberry)
    group = raspberry.root / "sys/fs/cgroup/user.slice"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("50000 100000\n")
    limited = quick_config(None, host=raspberry)
    assert (limited.decisions.threads.value, config.decisions.threads.value) == (1, 4)
    check_machine(config, host=raspberry)


def test_nothing_of_one_system_is_imported() -> None:
    """The modules that exist on one system alone are refused, and the import still works."""
    code = (
        "import sys\n"
        "for name in ('fcntl', 'resource', 'winreg', 'grp', 'pwd'):\n"
        "    sys.modules[name] = None\n"
        "import aiasst.profile, aiasst.profile.measure, aiasst.profile.probes\n"
        "assert 'psutil' not in sys.modules\n"
        "aiasst.profile.profile(measure=False)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


# ---------------------------------------------------------------------- a folder of two forms


@pytest.fixture
def pair(model: ModelFolder) -> ModelFolder:
    """The same folder with a second form of 500 bytes, which shares the embedding."""
    (model.path / "twin.onnx").write_bytes(bytes(400))
    (model.path / "twin.onnx.data").write_bytes(bytes(100))
    embed = model.manifest.weights["embed_tokens.weight"]
    shared = embed.model_copy(update={"bytes": 0, "shared_with": "embed_tokens.weight"})
    form = Quantization(recipe="w8a8", algorithm="rtn", bits_per_weight=8)
    twin = Twin(quantization=form, weights={"embed_tokens.weight": shared})
    files = record_files(model.path)
    write_manifest(model.path, model.manifest.model_copy(update={"twin": twin, "files": files}))
    return ModelFolder.open(model.path)


def test_needs_of_both_forms(pair: ModelFolder) -> None:
    assert needs_of(pair).twin_bytes == 500 + 90000
    decided = quick_config(pair).decisions.twin
    assert decided is not None and decided.use and decided.from_rows == 12


def test_a_config_without_a_word_on_it_is_fitted_to_the_folder(model: ModelFolder, pair: ModelFolder) -> None:
    general = quick_config()
    assert general.decisions.twin is None
    found = fitted(general, pair)
    assert found.decisions.twin is not None and found.decisions.twin.use
    assert found.model_copy(update={"decisions": general.decisions}) == general
    little = general.decisions.memory_ceiling_bytes.model_copy(update={"value": 1000})
    tight = general.model_copy(
        update={"decisions": general.decisions.model_copy(update={"memory_ceiling_bytes": little})}
    )
    found = fitted(tight, pair)
    assert found.decisions.twin is not None and not found.decisions.twin.use
    assert fitted(general, model) is general


def test_what_a_config_says_of_its_own_model_is_obeyed(pair: ModelFolder) -> None:
    own = quick_config(pair)
    assert own.decisions.twin is not None
    edited = own.decisions.model_copy(update={"twin": own.decisions.twin.model_copy(update={"from_rows": 99})})
    config = own.model_copy(update={"decisions": edited})
    assert fitted(config, pair) is config
    elsewhere = config.model_copy(update={"model": "another"})
    decided = fitted(elsewhere, pair).decisions.twin
    assert decided is not None and decided.from_rows == 12
