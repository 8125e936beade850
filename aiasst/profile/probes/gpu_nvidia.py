"""NVIDIA GPUs, by nvidia-smi where it is, else by what the kernel driver shows. Knows no other maker."""

from __future__ import annotations

from aiasst.artifacts.device import Accelerator
from aiasst.profile.host import Host, key_values, whole_number

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")


def probe(host: Host) -> list[Accelerator]:
    """The GPUs; [] without NVIDIA's driver (a card on nouveau is in gpu_drm's list)."""
    return _from_smi(host.run(_QUERY)) or _from_proc(host)


def _from_smi(csv: str) -> list[Accelerator]:
    """Lines "name, MiB, driver"; memory is "[N/A]" where it is shared."""
    found: list[Accelerator] = []
    for line in csv.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3:
            mebibytes = whole_number(fields[1])
            memory = None if mebibytes is None else mebibytes * 2**20
            found.append(Accelerator(kind="gpu", name=fields[0], memory_bytes=memory, driver=f"nvidia {fields[2]}"))
    return found


def _from_proc(host: Host) -> list[Accelerator]:
    names = (key_values(host.text(path)).get("Model") for path in host.glob("/proc/driver/nvidia/gpus/*/information"))
    return [Accelerator(kind="gpu", name=name, driver="nvidia") for name in names if name]
