import fnmatch
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from aiasst.cli.app import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
UNIT = (DEPLOY / "systemd" / "aiasst.service").read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    told: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return told


def options_of_serve() -> set[str]:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def given_options() -> Iterator[tuple[str, str]]:
    """(Where, option) of every call of `aiasst serve` in what is deployed."""
    calls = {
        "Dockerfile": re.findall(r'^CMD (\[.*"serve".*\])$', DOCKERFILE, re.MULTILINE)[-1],
        "compose": " ".join(compose()["services"]["aiasst"]["command"]),
        "systemd": " ".join(re.findall(r"^(?:ExecStart|Environment)=(.*)$", UNIT, re.MULTILINE)),
    }
    for where, text in calls.items():
        for option in re.findall(r"--[a-z][a-z-]+", text):
            yield where, option


def test_what_is_deployed_calls_serve_with_options_that_it_has() -> None:
    known = options_of_serve()
    assert {where for where, _ in given_options()} == {"Dockerfile", "compose", "systemd"}
    for where, option in given_options():
        assert option in known, f"{where}: {option}"


def sent_to_the_builder(path: str) -> bool:
    """As .dockerignore says: the last pattern that fits a path or a folder above it decides."""
    sent = True
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    above = ["/".join(path.split("/")[: count + 1]) for count in range(path.count("/") + 1)]
    for pattern in filter(lambda line: line and not line.startswith("#"), lines):
        bare = pattern.removeprefix("!")
        fits = any(fnmatch.fnmatch(each, bare) or fnmatch.fnmatch(each, bare.removeprefix("**/")) for each in above)
        if fits:
            sent = pattern.startswith("!")
    return sent


def test_the_image_is_built_of_what_there_is_and_runs_as_nobody() -> None:
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"pyproject.toml", "constraints.txt", "aiasst", "recipes", "calibration", "checkpoints"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and sent_to_the_builder(source), source
    assert sent_to_the_builder("aiasst/cli/app.py")
    for kept in (".git/config", "tests/conftest.py", "secrets/keys", "aiasst/__pycache__/x.pyc", "models/a.onnx"):
        assert not sent_to_the_builder(kept), kept
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last and "VOLUME /models" in last and "STOPSIGNAL SIGTERM" in last
    assert DOCKERFILE.count("\nFROM ") == 2


def test_what_the_wheel_packs_is_copied() -> None:
    packed = re.findall(
        r'^"(\w+)" = "aiasst/_data/', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert packed and all(f"COPY {folder} {folder}" in DOCKERFILE for folder in packed)


def test_compose_names_files_secrets_and_volumes_that_there_are() -> None:
    told = compose()
    for name, service in told["services"].items():
        assert service["security_opt"] == ["no-new-privileges:true"] and service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        for volume in service["volumes"]:
            source = volume.split(":")[0] if not volume.startswith("$") else None
            if source is not None and source.startswith("./"):
                assert (DEPLOY / source).exists(), volume
            elif source is not None:
                assert source in told["volumes"], volume
        for secret in service.get("secrets", []):
            assert (secret if isinstance(secret, str) else secret["source"]) in told["secrets"]
        for needed in service.get("depends_on", []):
            assert needed in told["services"]
        if "image" in service:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name


def test_prometheus_and_grafana_find_each_other_by_the_names_of_compose() -> None:
    told = compose()
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = scrape["scrape_configs"]
    assert job["job_name"] == "aiasst"  # the dashboard and the alerts ask for it
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert host in told["services"] and f":{port}" in told["services"][host]["ports"][0]
    key = job["authorization"]["credentials_file"]
    assert key in [secret["target"] for secret in told["services"]["prometheus"]["secrets"]]
    assert all((DEPLOY / "prometheus" / rule).exists() for rule in scrape["rule_files"])
    (source,) = yaml.safe_load(
        (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text(encoding="utf-8")
    )["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in told["services"]
    (boards,) = yaml.safe_load(
        (DEPLOY / "grafana" / "provisioning" / "dashboards" / "aiasst.yml").read_text(encoding="utf-8")
    )["providers"]
    assert any(volume.endswith(f":{boards['options']['path']}:ro") for volume in told["services"]["grafana"]["volumes"])


def test_the_unit_is_one_and_is_hardened(tmp_path: Path) -> None:
    assert all(not line or line[0] in "#[" or "=" in line for line in UNIT.splitlines())
    for demand in ("NoNewPrivileges=yes", "ProtectSystem=strict", "DynamicUser=yes", "CapabilityBoundingSet=\n"):
        assert demand in UNIT
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    (program,) = re.findall(r"^ExecStart=(\S+)", UNIT, re.MULTILINE)
    unit = tmp_path / "aiasst.service"
    unit.write_text(UNIT.replace(program, shutil.which("true") or "/bin/true"), encoding="utf-8")
    verified = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True)
    assert verified.returncode == 0 and not verified.stderr, verified.stderr
    rated = subprocess.run([analyze, "security", "--offline=true", str(unit)], capture_output=True, text=True)
    exposure = re.search(r"Overall exposure level.*: ([\d.]+)", rated.stdout)
    assert exposure is not None and float(exposure[1]) <= 1.5


def test_the_command_of_the_unit_is_one_line_of_words() -> None:
    (command,) = re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    assert shlex.split(command)[1] == "serve"
