"""`aiasst advise`, and `aiasst profile` of a model that is not here, as a person starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aiasst.artifacts.device import (
    DEVICE_CONFIG_VERSION,
    BandwidthPoint,
    Costs,
    DeviceConfig,
    MatmulPoint,
    load_device_config,
    save_device_config,
)
from aiasst.artifacts.shipped import default_model, story_checkpoint
from aiasst.cli.app import app
from aiasst.profile import library, quick_config
from tests.convert.sources import hub_server
from tests.convert.sources.hub_server import Hub

SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 16, "hidden_size": 2048,
    "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiasst", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "100"} | environment,
    )


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device config with costs, as a profile of this machine writes it."""
    config: DeviceConfig = quick_config()
    points = tuple(
        MatmulPoint(
            format=label,
            rows=rows,
            k=2048,
            n=2048,
            threads=1,
            microseconds=us,
            gigamacs_per_second=rows * 4.2e3 / us,
            noise=0.02,
        )
        for label, each in (("int4-b128", 23.0), ("int8-b128", 22.0), ("w8a8", 15.0))
        for rows, us in ((1, 90.0), (8, 50.0 + 8 * each), (128, 128 * each))
    )
    costs = Costs(bandwidth=(BandwidthPoint(threads=1, gigabytes_per_second=20.0, noise=0.0),), matmul=points)
    path = tmp_path / "device.json"
    save_device_config(path, config.model_copy(update={"costs": costs}))
    return path


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "config.json").write_text(json.dumps(SHAPE))
    (repository / "model.safetensors").write_bytes(b"never fetched")
    with hub_server.serve(repository) as served:
        yield served


def test_a_table_of_models_for_a_machine_one_does_not_have() -> None:
    shown = start("advise", "--device", "raspberry-pi-5-8gb", "--speed", "5")
    assert shown.returncode == 0, shown.stderr
    assert "Raspberry Pi 5, 8 GB" in shown.stdout
    assert "none fits" in next(line for line in shown.stdout.splitlines() if "Llama-3.3-70B" in line)
    assert "GB/s" in shown.stdout
    assert "SmolLM2-135M " in shown.stdout
    assert "ranges are wide" in shown.stderr.replace("\n", " ")
    assert "aiasst profile" in shown.stderr


def test_json_has_the_stable_names_and_quiet_says_nothing() -> None:
    shown = start("advise", "--device", "n100-mini-pc-16gb", "--json", "--quiet", "--context", "2048")
    assert (shown.returncode, shown.stderr) == (0, "")
    document = json.loads(shown.stdout)
    assert document["machine"]["measured"] is False
    assert len(document["models"]) >= 30
    model = document["models"][0]
    assert model["source"].startswith("https://")
    assert model["context"] == 2048
    predicted = model["predicted"]
    assert predicted["fits"] is True
    for one in (predicted, predicted["low"], predicted["high"]):
        assert one["prefill_tokens_per_second"] > 0
        assert one["decode_tokens_per_second"]["1"] < one["decode_tokens_per_second"]["8"]
    assert document["models"][-1]["predicted"] is None
    assert document["models"][-1]["formats"]


def test_memory_is_a_limit() -> None:
    def formats(*options: str) -> dict[str, str | None]:
        shown = start("advise", "--device", "mac-mini-m4-16gb", "--json", *options)
        assert shown.returncode == 0, shown.stderr
        return {model["model"]: model["recommended"] for model in json.loads(shown.stdout)["models"]}

    free, tight = formats(), formats("--memory", "2GB")
    assert sum(form is None for form in tight.values()) > sum(form is None for form in free.values())
    assert all(free[name] is not None for name, form in tight.items() if form is not None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "rasberry-pi-5"), "raspberry-pi-5-8gb"),
        (("--device", "n100-mini-pc-16gb", "--memory", "much"), "no size"),
        (("--device", "n100-mini-pc-16gb", "--speed", "0"), "--speed 10"),
        (("--device", "absent.json"), "there is no device config"),
    ],
)
def test_what_makes_no_sense_is_told(options: tuple[str, ...], words: str) -> None:
    refused = start("advise", *options)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert words in refused.stderr.replace("\n", " ")


def test_the_machines_are_listed() -> None:
    shown = start("advise", "--devices")
    assert shown.returncode == 0
    for name in library.names():
        assert name in shown.stdout
    listed = json.loads(start("advise", "--devices", "--json").stdout)
    assert tuple(sorted(listed)) == library.names()
    assert listed["raspberry-pi-5-8gb"]["sources"][0]["url"].startswith("https://")


def test_a_measured_machine_is_advised_from_its_device_config(device: Path) -> None:
    document = json.loads(start("advise", "--device", str(device), "--json").stdout)
    assert document["machine"]["measured"] is True
    names = {form["format"] for form in document["models"][0]["formats"]}
    assert {"int8", "w8a8", "int4"} <= names
    assert "int2" not in names


def test_a_checkpoint_is_predicted_by_its_configuration(device: Path) -> None:
    for named in (story_checkpoint(), story_checkpoint() / "config.json"):
        shown = start("profile", str(named), "--device", str(device), "--context", "512", "--json")
        assert shown.returncode == 0, shown.stderr
        document = json.loads(shown.stdout)
        assert document["recommended"] == "int8"
        assert document["predicted"]["fits"] is True
        assert document["context"] == 512
        assert [line.split()[1] for line in document["commands"]] == ["convert", "quantize", "chat"]
        assert "--recipe int8" in document["commands"][1]


def test_the_page_says_what_to_take_and_how_to_go_on() -> None:
    shown = start("profile", str(story_checkpoint()), "--device", "steam-deck-lcd")
    assert shown.returncode == 0, shown.stderr
    assert "int8 *" in shown.stdout
    assert "TTFT" in shown.stdout
    talk = shown.stderr.replace("\n", " ")
    assert "Take int8" in talk
    assert "aiasst convert" in talk
    assert "aiasst quantize" in talk


def test_a_hub_id_is_asked_for_its_configuration_only(hub: Hub, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    shown = start("profile", "org/tiny", "--device", "mac-mini-m1-16gb", "--json", **environment)
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert document["parameters"] == pytest.approx(1.236e9, rel=1e-3)
    assert document["commands"][0] == "aiasst convert org/tiny -o tiny-onnx"
    assert {name.rpartition("/")[2] for name in hub.fetched()} == {"config.json"}


def test_offline_is_obeyed(tmp_path: Path) -> None:
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    refused = start("profile", "org/tiny", "--device", "mac-mini-m1-16gb", **environment)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "HF_HUB_OFFLINE" in refused.stderr


def test_a_converted_folder_is_predicted_in_its_own_form(device: Path) -> None:
    document = json.loads(start("profile", str(default_model()), "--device", str(device), "--json").stdout)
    assert [form["format"] for form in document["formats"]] == ["int8"]
    assert document["commands"] == [f"aiasst chat {default_model()}"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "steam-deck-lcd"), "needs a model"),
        (("MODEL", "--device", "steam-deck-lcd", "-o", "device.json"), "nothing is measured or written"),
        (("MODEL", "--quick"), "--quick takes none"),
        (("--revision", "main"), "belongs to a hub id"),
        (("MODEL", "--revision", "main", "--device", "steam-deck-lcd"), "belongs to a hub id"),
        (("/absent/folder", "--device", "steam-deck-lcd"), "there is no folder"),
        (("a/b/c", "--device", "steam-deck-lcd"), "there is no folder"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], words: str) -> None:
    arguments = [str(story_checkpoint()) if option == "MODEL" else option for option in options]
    refused = start("profile", *arguments)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert words in refused.stderr.replace("\n", " ")


def test_a_checkpoint_on_the_machine_that_was_just_measured(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_device_config(device)
    monkeypatch.setattr("aiasst.profile.profile", lambda *_, **__: config)
    kept = tmp_path / "kept.json"
    shown = CliRunner().invoke(app, ["profile", str(story_checkpoint()), "-o", str(kept), "--json", "-q"])
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.stdout)
    assert document["machine"]["measured"] is True
    assert document["predicted"]["decode_tokens_per_second"]["1"] > 0
    assert load_device_config(kept) == config
    # Of a folder that is converted, the figures stand beside the device config's own keys.
    shown = CliRunner().invoke(app, ["profile", str(default_model()), "--json", "-q"])
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.stdout)
    assert document["schema_version"] == DEVICE_CONFIG_VERSION
    assert document["predicted"]["fits"] is True
    shown = CliRunner().invoke(app, ["profile", str(default_model()), "-q"])
    assert "Predicted" in shown.stdout
    shown = CliRunner().invoke(app, ["advise", "--json", "-q", "--memory", "1GB"])
    assert json.loads(shown.stdout)["machine"]["memory_ceiling_bytes"] == 1_000_000_000


def test_a_quick_profile_explains_itself() -> None:
    shown = start("profile", "--quick", "--explain", "--quiet")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert max(map(len, shown.stdout.splitlines())) <= 100
    for word in ("threads", "slots", "memory ceiling", "Nothing was measured"):
        assert word in shown.stdout
    document = json.loads(start("profile", "--quick", "--explain", "--json", "--quiet").stdout)
    assert document["decisions"]["threads"]["reason"] in document["explained"]["threads"]


def test_a_device_config_of_any_machine_is_explained(device: Path) -> None:
    shown = start("profile", "--explain", "--device", str(device), "--quiet")
    assert shown.returncode == 0, shown.stderr
    assert "int4-b128" in shown.stdout
