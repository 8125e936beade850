"""`aiasst profile` as a person starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiasst.artifacts.device import SensorFact, load_device_config
from aiasst.artifacts.shipped import default_model
from aiasst.cli import profile
from aiasst.profile.hardware import read_hardware
from aiasst.profile.host import this_host


def start(*arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiasst", "profile", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": str(columns)},
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_the_page_fits_and_says_how_to_keep_it(columns: int) -> None:
    shown = start("--quick", columns=columns)
    assert shown.returncode == 0
    assert max(map(len, shown.stdout.splitlines())) <= columns
    for word in ("Machine", "CPU", "Readings", "rapl", "Decided", "threads", "memory ceiling", "temperature limit"):
        assert word in shown.stdout
    assert "aiasst profile -o device.json" in shown.stderr


def test_json_is_one_document_and_quiet_says_nothing() -> None:
    shown = start("--quick", "--json", "--quiet")
    assert (shown.returncode, shown.stderr) == (0, "")
    document = json.loads(shown.stdout)
    assert document["decisions"]["threads"]["value"] >= 1
    assert document["decisions"]["threads"]["reason"]
    assert document["decisions"]["temperature_limit_celsius"]["value"] is None
    sensors = document["hardware"]["sensors"]
    assert {"rapl", "hwmon", "battery"} <= {sensor["source"] for sensor in sensors}
    assert all(sensor["available"] != bool(sensor["reason"]) for sensor in sensors)


def test_what_was_measured_is_written_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    # The program with fewer products to measure: less than a minute is still too long for a test.
    code = (
        "from dataclasses import replace\n"
        "from aiasst.profile import measure\n"
        "measure.QUICK = replace(measure.QUICK, cached=(), attention=(), form_seconds=0.0)\n"
        "measure.FORMS = measure.FORMS[:1]\n"
        "from aiasst.cli.app import main\n"
        "main()\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, "profile", "-o", str(file)], capture_output=True, text=True, check=False,
        env=os.environ | {"COLUMNS": "120"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "memory read" in shown.stdout
    assert "int4-b128" in shown.stdout
    assert f"--config {file}" in shown.stderr.replace("\n", " ")
    config = load_device_config(file)
    assert config.costs.bandwidth
    assert {point.rows for point in config.costs.matmul} >= {1}
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]


def test_an_existing_file_is_refused_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    file.write_text("mine")
    refused = start("--quick", "-o", str(file))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "already exists" in refused.stderr
    assert "--force" in refused.stderr
    assert file.read_text() == "mine"
    assert start("--quick", "-o", str(file), "--force").returncode == 0
    load_device_config(file)


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    refused = start(str(tmp_path / "absent"))
    assert refused.returncode == 1
    assert "there is no folder" in refused.stderr


def test_run_warns_of_another_machines_config_and_takes_safe_values(tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    assert start("--quick", "-o", str(file)).returncode == 0
    data = json.loads(file.read_text())
    data["hardware"] |= {"machine_id": "0" * 16, "cpu_model": "Zilog Z80", "physical_cores": 1}
    data["decisions"]["memory_ceiling_bytes"]["value"] = 2  # nothing fits into that: it must not be obeyed
    file.write_text(json.dumps(data))
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text('{"prompt": "Once"}\n')
    command = [
        "run",
        str(default_model()),
        "--config",
        str(file),
        str(prompts),
        "-o",
        str(answers),
        "--max-tokens",
        "4",
    ]
    ended = subprocess.run([sys.executable, "-m", "aiasst", *command], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said = " ".join(ended.stderr.split())
    assert "written on another machine (Zilog Z80, 1 core," in said
    assert "safe values for this machine" in said
    assert len(answers.read_text().splitlines()) == 1


def test_tuning_needs_a_model_folder() -> None:
    refused = start("--tune", "--quick")
    assert refused.returncode == 1
    assert "aiasst profile DIR --tune" in refused.stderr
    both = start("--quick", "--full")
    assert both.returncode == 1


def test_readings_are_told_by_their_source() -> None:
    cores = [
        SensorFact(source="hwmon", kind="temperature", name=f"coretemp Core {n}", available=True) for n in range(6)
    ]
    missing = SensorFact(source="rapl", name="package-0", available=False, reason="it may not be read")
    zone = SensorFact(source="thermal_zones", kind="temperature", name="acpitz", available=True)
    hardware = read_hardware(this_host(), thorough=False).model_copy(update={"sensors": (*cores, zone, missing)})
    assert profile._readings(hardware) == [
        ("hwmon", "temperature of coretemp Core 0, coretemp Core 1, coretemp Core 2, coretemp Core 3 and 2 more"),
        ("thermal zones", "temperature of acpitz"),
        ("rapl", "missing: it may not be read"),
    ]
