"""The device config `device.json`: Hardware (what the host is), Costs (what was measured), Decisions (what to do, and why).

Written by `aiasst profile`, obeyed by run and chat; every key is explained in docs/device.md. Knows no probe and no runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aiasst.artifacts.document import Document, read_json, write_text_atomically
from aiasst.artifacts.model_folder import disk_errors
from aiasst.errors import ArtifactError, ResourceError

DEVICE_CONFIG_VERSION: Literal[2] = 2
READ_VERSIONS = (1, DEVICE_CONFIG_VERSION)
"""Version 2 adds costs (attention, overheads, loading, products in the cache) and decisions (spinning, chunk)."""
_HINT = "write a new one with: aiasst profile -o device.json"

CoreNumber = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class Accelerator(Document):
    """A GPU or NPU that the host shows."""

    kind: Literal["gpu", "npu"]
    name: str
    memory_bytes: int | None = None
    """Its own memory; None where it shares the main memory, or does not tell."""
    driver: str | None = None


class Provider(Document):
    """An execution provider of ONNX Runtime: whether it really loads here, and why not."""

    name: str
    available: bool
    reason: str


class Cache(Document):
    """One kind of cache of the CPU."""

    level: int
    kind: Literal["data", "instruction", "unified"]
    bytes: int
    """Of all instances together."""
    instances: int


class NumaNode(Document):
    """Cores with memory of their own."""

    cpus: tuple[CoreNumber, ...]
    memory_bytes: int


class CoreGroup(Document):
    """Cores of one kind that this process may use."""

    kind: Literal["performance", "efficiency"]
    """All cores of a machine without two kinds are performance cores."""
    physical_cores: int
    cpus: tuple[CoreNumber, ...] = ()
    """The first hardware thread of each core, as the system numbers them; empty where it does not."""


class SensorFact(Document):
    """A reading of energy, heat or clocks: whether it is to be had here, and why not."""

    source: str
    """rapl, hwmon, thermal_zones, cpufreq, throttling, battery, raspberry, nvidia."""
    kind: str | None = None
    """energy, power, temperature, frequency, throttle events, throttled, under-voltage; None where none was found."""
    name: str
    """As the system labels it; empty where the whole source is missing."""
    available: bool
    reason: str = ""


class Hardware(Document):
    """What the host is, read and not measured."""

    machine_id: str
    """Hash of architecture, CPU model, core counts and total memory: the same machine gives the same id, and nothing personal."""
    system: str
    architecture: str
    cpu_model: str
    physical_cores: int
    """Of the machine, whatever part of it this process may use."""
    logical_cores: int
    """Hardware threads: twice the physical cores with SMT."""
    usable_cores: float
    """Hardware threads that affinity and container quota leave: may be 0.5."""
    cpu_quota: float | None = None
    """CPUs' worth of time that the container may take; None: no limit."""
    core_groups: tuple[CoreGroup, ...] = ()
    """The physical cores behind `usable_cores`, performance cores first."""
    instruction_sets: tuple[str, ...]
    """Those that the kernels care about: avx2, avx512_vnni, amx_int8, neon, dotprod, i8mm, ..."""
    caches: tuple[Cache, ...]
    numa: tuple[NumaNode, ...] = ()
    memory_total_bytes: int
    memory_limit_bytes: int
    """The smaller of the memory and the container's limit."""
    memory_free_bytes: int
    """What could be taken when this was written, by the machine's and the container's count."""
    accelerators: tuple[Accelerator, ...] = ()
    providers: tuple[Provider, ...] = ()
    sensors: tuple[SensorFact, ...] = ()


class BandwidthPoint(Document):
    """Memory read bandwidth with this many threads."""

    threads: int
    gigabytes_per_second: float
    noise: float
    """How far another visit lies from the best, or the median of a single visit's repeats: 0.1 is a tenth."""


class MatmulPoint(Document):
    """Time of one product [rows, k] x [k, n] in a weight format."""

    format: str
    rows: int
    k: int
    n: int
    threads: int
    microseconds: float
    gigamacs_per_second: float
    """Milliards of multiplications (each with its addition) a second."""
    noise: float
    """As of the bandwidth."""
    cached: bool = False
    """Whether the weights stayed in the processor's cache between two products; else they came from memory."""


class AttentionPoint(Document):
    """Time of the attention of one layer, its cache in float32 or int8."""

    cache: Literal["float32", "int8"]
    rows: int
    """Sequences at once."""
    new_tokens: int
    """Of each sequence: 1 is a decode step, more a piece of a prompt."""
    past: int
    """Tokens behind them."""
    heads: int
    kv_heads: int
    head_dim: int
    threads: int
    microseconds: float
    noise: float
    """As of the bandwidth."""


class OverheadPoint(Document):
    """What is neither product nor attention: a node of the graph, a step of the engine, the choice of a token."""

    kind: Literal["node", "layer", "step"]
    """node: a norm in a chain of them; layer: a whole small layer of a decoder in a chain of them; step: engine, choice of tokens,
    and the run of a session that does next to nothing."""
    rows: int
    """Sequences of a step; of a node, rows of 576 numbers that it goes over."""
    vocabulary: int
    """Scores for each sequence of a step; 0 for a node."""
    threads: int
    microseconds: float
    noise: float
    """As of the bandwidth."""
    cached: bool = False
    """Of a layer: whether its weights stayed in the processor's cache."""


class LoadingPoint(Document):
    """How fast weights of a format become a session; the disk is not in it."""

    format: str
    load_gigabytes_per_second: float
    """Bytes of the weights by the time that opening takes without packing."""
    packed_gigabytes_per_second: float
    """The same for opening with packing into the kernels' own order, as models are opened."""
    noise: float
    """As of the bandwidth, the larger of the two."""


class FormsPoint(Document):
    """Time of one run of this many new tokens through each form of a folder that has two."""

    tokens: int
    """Rows of the products: sequences times new tokens of each."""
    first_milliseconds: float
    twin_milliseconds: float
    """Of the second form, w8a8."""
    noise: float
    """As of the bandwidth; the larger of the two."""


class Costs(Document):
    """What was measured on this host; empty where nothing was."""

    bandwidth: tuple[BandwidthPoint, ...] = ()
    matmul: tuple[MatmulPoint, ...] = ()
    attention: tuple[AttentionPoint, ...] = ()
    overheads: tuple[OverheadPoint, ...] = ()
    loading: tuple[LoadingPoint, ...] = ()
    forms: tuple[FormsPoint, ...] = ()
    """Of the model that was named, where its folder has two forms."""


class CountDecision(Document):
    """A number of at least one, and why."""

    value: AtLeastOne
    reason: str


class TextDecision(Document):
    """A name and why."""

    value: str
    reason: str


class CoresDecision(Document):
    """Core numbers to pin threads to (None: leave it to the system) and why."""

    value: tuple[CoreNumber, ...] | None
    reason: str


class SwitchDecision(Document):
    """Yes or no, and why."""

    value: bool
    reason: str


USUAL_SPINNING = SwitchDecision(
    value=True,
    reason="a decode step is a chain of short products: threads that sleep between them cost more than they save",
)
USUAL_CHUNK = CountDecision(
    value=256, reason="usual: longer pieces of a prompt are hardly faster and delay other answers"
)
USUAL_INTER_TOKEN_LATENCY = CountDecision(
    value=250, reason="a little faster than people read; prompts are read in pieces that delay other answers by no more"
)


class TwinDecision(Document):
    """Whether a folder's second form is kept in memory as well, from which size of a run on it serves, and why."""

    use: bool
    from_rows: AtLeastOne
    """Runs of so many rows or more (sequences times new tokens of each) go through the second form."""
    reason: str


class LimitDecision(Document):
    """A limit above 0 (None: none is kept) and why."""

    value: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    reason: str = "no limit was asked for"


class Decisions(Document):
    """What run and chat obey, each value with its reason."""

    provider: TextDecision
    threads: CountDecision
    affinity: CoresDecision
    spinning: SwitchDecision = USUAL_SPINNING
    """Whether threads wait awake for the next product."""
    chunk: CountDecision = USUAL_CHUNK
    """Tokens of a prompt that are read in one run, at most."""
    slots: CountDecision
    """Sequences decoded at once."""
    memory_ceiling_bytes: CountDecision
    """Weights and cache together may take this much."""
    inter_token_latency_ms: CountDecision = USUAL_INTER_TOKEN_LATENCY
    """While answers are under way, prompts are read in pieces that delay their next token by no more than this."""
    twin: TwinDecision | None = None
    """For a folder of two forms; None: it is decided when such a folder is loaded."""
    temperature_limit_celsius: LimitDecision = LimitDecision()
    """Of the processor; kept by pauses between steps."""
    power_limit_watts: LimitDecision = LimitDecision()
    """On average, of what the energy readings speak for; kept by pauses between steps."""


class DeviceConfig(Document):
    """`device.json`."""

    schema_version: Literal[2] = DEVICE_CONFIG_VERSION
    aiasst_version: str
    onnxruntime_version: str
    created: str
    """UTC, ISO 8601."""
    model: str | None = None
    """Name of the model folder that slots and memory were decided for; None: for no model in particular."""
    hardware: Hardware
    costs: Costs
    decisions: Decisions


def load_device_config(path: Path) -> DeviceConfig:
    """Read `device.json`.

    Raises:
        ArtifactError: absent, broken, of another version, or with an unknown key.
    """
    data = read_json(path, "device config", _HINT)
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} is no device config", _HINT)
    version = data.get("schema_version")
    if version not in READ_VERSIONS or isinstance(version, bool):
        known = " and ".join(map(str, READ_VERSIONS))
        raise ArtifactError(f"{path} has schema version {version}, this program reads {known}", _HINT)
    return DeviceConfig.parse(data | {"schema_version": DEVICE_CONFIG_VERSION}, str(path))


def refuse_existing_config(path: Path, *, force: bool) -> None:
    """Called before the work begins.

    Raises:
        ArtifactError: `path` is a folder, or it exists and `force` is not set.
    """
    elsewhere = "choose another file with -o"
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder", elsewhere)
    if not path.exists():
        return
    if not force:
        raise ArtifactError(f"{path} already exists", f"{elsewhere}, or --force to replace it")


def save_device_config(path: Path, config: DeviceConfig) -> None:
    """Write `device.json`, whole or not at all.

    Raises:
        ResourceError: the folder is missing or may not be written, or the disk is full.
    """
    if not path.parent.is_dir():
        raise ResourceError(f"there is no folder {path.parent}", "make it, or choose another file with -o")
    with disk_errors(path):
        write_text_atomically(path, config.to_json())
