"""Machines one does not have: descriptions by public specification, as files, and the Hardware that each stands for.

A description (devices/NAME.json) holds what its manufacturer publishes and nothing that was measured or guessed; what follows
from it is computed (described.py). docs/advise.md explains every key. Knows no model and predicts nothing.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aiasst.artifacts.device import Accelerator, Cache, CoreGroup, Hardware
from aiasst.artifacts.document import Document, read_json
from aiasst.errors import ArtifactError

DESCRIPTION_VERSION: Literal[1] = 1
_SHARE_FREE, _SYSTEM_BYTES = 0.9, 512 * 2**20
"""Of the memory that is free on a machine where little else runs: nine tenths, less what a system of its own takes."""
_GIB = 2**30

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class PublicSource(Document):
    """Where the figures stand."""

    title: str
    url: Annotated[str, Field(pattern=r"^https://")]


class CoreKind(Document):
    """Cores of one kind."""

    kind: Literal["performance", "efficiency"]
    name: str
    """The core's own name: Cortex-A76, Zen 4, Golden Cove."""
    count: Count
    threads: Literal[1, 2] = 1
    """Hardware threads of each."""
    gigahertz: Positive
    """The highest clock."""
    vector_bits: Literal[128, 256, 512]
    """Width of one vector multiplication as the hardware does it, which may be half of what its instructions say."""
    vector_units: Count
    """Of these multiplications in a cycle."""


class Memory(Document):
    """Main memory as it is sold with the machine, or as most are fitted."""

    type: str
    """LPDDR4X-4267, DDR5-5600 in two channels."""
    gibibytes: Positive
    gigabytes_per_second: Positive
    """All channels together, by the specification: 10⁹ bytes."""


class GraphicsCard(Document):
    """A GPU with memory of its own."""

    name: str
    gibibytes: Positive
    gigabytes_per_second: Positive
    half_teraflops: Positive
    """Dense products in half precision, accumulated in float32: 10¹² operations a second."""


class DeviceDescription(Document):
    """`devices/NAME.json`."""

    schema_version: Literal[1] = DESCRIPTION_VERSION
    title: str
    kind: Literal["board", "mini PC", "laptop", "desktop", "server", "handheld"]
    sources: Annotated[tuple[PublicSource, ...], Field(min_length=1)]
    system: Literal["Linux", "Darwin", "Windows"]
    architecture: Literal["x86_64", "aarch64"]
    cpu: str
    cores: Annotated[tuple[CoreKind, ...], Field(min_length=1, max_length=2)]
    """Performance cores first."""
    instruction_sets: tuple[str, ...]
    """As in device.json: those that the kernels care about."""
    last_level_cache_bytes: Count
    memory: Memory
    graphics: GraphicsCard | None = None

    @property
    def working(self) -> CoreKind:
        """The cores that products run on."""
        return self.cores[0]


def names() -> tuple[str, ...]:
    """Every device there is, in the order of its name."""
    return tuple(sorted(_files()))


def describe(name: str) -> DeviceDescription:
    """The description called `name`.

    Raises:
        ArtifactError: there is none; the hint names those that are meant, perhaps.
    """
    files = _files()
    if name not in files:
        wanted = name.lower().replace(" ", "-").replace("_", "-")
        parts = [known for known in files if wanted and wanted in known]
        close = (parts or difflib.get_close_matches(wanted, files, n=4, cutoff=0.4))[:6]
        meant = f"perhaps {', '.join(close)}; " if close else ""
        raise ArtifactError(
            f"there is no device '{name}' in the library", f"{meant}all of them: aiasst advise --devices"
        )
    return _read(files[name])


@cache
def _files() -> dict[str, Path]:
    folder = Path(str(resources.files("aiasst.profile"))) / "devices"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


@cache
def _read(path: Path) -> DeviceDescription:
    hint = "install aiasst again"
    return DeviceDescription.parse(read_json(path, "device description", hint), str(path))


def hardware_of(description: DeviceDescription) -> Hardware:
    """The machine as the probes would find it, idle and without a container."""
    first, groups = 0, []
    for cores in description.cores:
        # Only Linux numbers its cores for us.
        numbers = range(first, first + cores.count * cores.threads, cores.threads)
        cpus = tuple(numbers) if description.system == "Linux" else ()
        groups.append(CoreGroup(kind=cores.kind, physical_cores=cores.count, cpus=cpus))
        first += cores.count * cores.threads
    total = int(description.memory.gibibytes * _GIB)
    free = max(0, int(total * _SHARE_FREE) - _SYSTEM_BYTES)
    card = description.graphics
    return Hardware(
        machine_id=f"described: {description.title}",
        system=description.system,
        architecture=description.architecture,
        cpu_model=description.cpu,
        physical_cores=sum(cores.count for cores in description.cores),
        logical_cores=first,
        usable_cores=float(first),
        core_groups=tuple(groups),
        instruction_sets=description.instruction_sets,
        caches=(Cache(level=3, kind="unified", bytes=description.last_level_cache_bytes, instances=1),),
        memory_total_bytes=total,
        memory_limit_bytes=total,
        memory_free_bytes=free,
        accelerators=(
            () if card is None else (Accelerator(kind="gpu", name=card.name, memory_bytes=int(card.gibibytes * _GIB)),)
        ),
    )
