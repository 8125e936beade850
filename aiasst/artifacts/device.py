"""The device config `device.json`: Hardware (what the host is), Costs (what was measured), Decisions (what to do, and why).

Written by `aiasst profile`, obeyed by run, chat and serve. Knows no probe and no runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aiasst.artifacts.document import Document, read_json, write_text_atomically
from aiasst.errors import ArtifactError

DEVICE_CONFIG_VERSION: Literal[1] = 1


class Accelerator(Document):
    """A GPU or NPU that the host shows."""

    kind: Literal["gpu", "npu"]
    name: str
    memory_bytes: int | None = None
    driver: str | None = None


class Provider(Document):
    """An execution provider of ONNX Runtime: whether it really loads here, and why not."""

    name: str
    available: bool
    reason: str


class Cache(Document):
    """One level of the CPU's caches, summed over its instances."""

    level: int
    kind: Literal["data", "instruction", "unified"]
    bytes: int
    instances: int


class Hardware(Document):
    """What the host is, read and not measured."""

    machine_id: str
    """Hash of CPU model, core count, architecture and total memory: the same machine gives the same id, and nothing personal."""
    system: str
    architecture: str
    cpu_model: str
    physical_cores: int
    logical_cores: int
    usable_cores: float
    """What affinity and container quota leave: may be 0.5."""
    instruction_sets: tuple[str, ...]
    caches: tuple[Cache, ...]
    numa_nodes: int
    memory_total_bytes: int
    memory_limit_bytes: int
    """The smaller of the memory and the container's limit."""
    memory_free_bytes: int
    accelerators: tuple[Accelerator, ...] = ()
    providers: tuple[Provider, ...] = ()


class BandwidthPoint(Document):
    """Memory read bandwidth with this many threads."""

    threads: int
    gigabytes_per_second: float


class MatmulPoint(Document):
    """Time of one product [rows, k] x [k, n] in a weight format."""

    format: str
    rows: int
    k: int
    n: int
    threads: int
    microseconds: float
    gigamacs_per_second: float


class Costs(Document):
    """What was measured on this host, in seconds of work."""

    bandwidth: tuple[BandwidthPoint, ...] = ()
    matmul: tuple[MatmulPoint, ...] = ()


class IntDecision(Document):
    """A number and why."""

    value: int
    reason: str


class TextDecision(Document):
    """A name and why."""

    value: str
    reason: str


class CoresDecision(Document):
    """Core numbers to pin threads to (None: leave it to the system) and why."""

    value: tuple[int, ...] | None
    reason: str


class Decisions(Document):
    """What run, chat and serve obey, each value with its reason."""

    provider: TextDecision
    threads: IntDecision
    affinity: CoresDecision
    slots: IntDecision
    """Sequences decoded at once."""
    memory_ceiling_bytes: IntDecision
    """Weights and cache together may take this much."""


class DeviceConfig(Document):
    """`device.json`."""

    schema_version: Literal[1] = DEVICE_CONFIG_VERSION
    aiasst_version: str
    onnxruntime_version: str
    created: str
    """UTC, ISO 8601."""
    hardware: Hardware
    costs: Costs
    decisions: Decisions


def load_device_config(path: Path) -> DeviceConfig:
    """Read `device.json`.

    Raises:
        ArtifactError: absent, broken, of another version, or with an unknown key.
    """
    hint = "write a new one with: aiasst profile -o device.json"
    data = read_json(path, "device config", hint)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != DEVICE_CONFIG_VERSION:
        raise ArtifactError(f"{path} has schema version {version}, this program reads {DEVICE_CONFIG_VERSION}", hint)
    return DeviceConfig.parse(data, str(path))


def save_device_config(path: Path, config: DeviceConfig) -> None:
    """Write `device.json`, whole or not at all."""
    write_text_atomically(path, config.to_json())
