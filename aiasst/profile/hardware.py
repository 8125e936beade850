"""The probes' answers put together into Hardware. Measures nothing and decides nothing."""

from __future__ import annotations

import hashlib

from aiasst.artifacts.device import CoreGroup, Hardware
from aiasst.profile.host import Host
from aiasst.profile.probes import accelerators, caches, cores, cpu, limits, memory, numa, providers, sensors
from aiasst.profile.probes.cores import Core, Cores
from aiasst.profile.probes.limits import Limits
from aiasst.profile.probes.memory import Memory

_GIB = 2**30


def read_hardware(host: Host, *, thorough: bool = True) -> Hardware:
    """What `host` is. Not `thorough`: neither accelerators nor providers nor sensors are asked, which can take seconds."""
    processor, all_cores = cpu.probe(host), cores.probe(host)
    main_memory, container = memory.probe(host), limits.probe(host)
    usable = _usable(all_cores, host, container)
    limit = min(main_memory.total, container.memory_bytes or main_memory.total)
    free = main_memory.free if container.memory_free_bytes is None else container.memory_free_bytes
    return Hardware(
        machine_id=machine_id(host.architecture, processor.model, all_cores, main_memory),
        system=host.system,
        architecture=host.architecture,
        cpu_model=processor.model,
        physical_cores=all_cores.physical,
        logical_cores=all_cores.logical,
        usable_cores=_usable_cores(usable, all_cores, container),
        cpu_quota=container.cpu_quota,
        core_groups=_groups(usable),
        instruction_sets=processor.instruction_sets,
        caches=caches.probe(host, all_cores),
        numa=numa.probe(host),
        memory_total_bytes=main_memory.total,
        memory_limit_bytes=limit,
        memory_free_bytes=min(free, main_memory.free, limit),
        accelerators=accelerators(host) if thorough else (),
        providers=providers.probe() if thorough else (),
        sensors=sensors.probe(host) if thorough else (),
    )


def machine_id(architecture: str, cpu_model: str, all_cores: Cores, main_memory: Memory) -> str:
    """Sixteen hex digits. Memory counts in whole GiB, since a new kernel keeps a little more or less for itself."""
    gibibytes = -(-main_memory.total // _GIB)
    text = f"{architecture}|{cpu_model}|{all_cores.physical}|{all_cores.logical}|{gibibytes}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _usable(all_cores: Cores, host: Host, container: Limits) -> tuple[Core, ...]:
    """The cores with those of their threads that affinity and CPU set allow; all where the system numbers none."""
    if not any(core.cpus for core in all_cores.cores):
        return all_cores.cores
    allowed = {cpu for core in all_cores.cores for cpu in core.cpus}
    for only in (host.affinity, container.cpus):
        # A set of numbers that are none of ours (a fixture, an emulator) says nothing.
        allowed = (allowed & only) or allowed if only is not None else allowed
    kept = (Core(tuple(cpu for cpu in core.cpus if cpu in allowed), core.efficient) for core in all_cores.cores)
    return tuple(core for core in kept if core.cpus)


def _usable_cores(usable: tuple[Core, ...], all_cores: Cores, container: Limits) -> float:
    threads = float(sum(len(core.cpus) for core in usable) or all_cores.logical)
    return threads if container.cpu_quota is None else min(threads, container.cpu_quota)


def _groups(usable: tuple[Core, ...]) -> tuple[CoreGroup, ...]:
    groups: list[CoreGroup] = []
    for efficient in (False, True):
        alike = [core for core in usable if core.efficient == efficient]
        if alike:
            first_threads = tuple(sorted(core.cpus[0] for core in alike if core.cpus))
            kind = "efficiency" if efficient else "performance"
            groups.append(CoreGroup.model_validate({"kind": kind, "physical_cores": len(alike), "cpus": first_threads}))
    return tuple(groups)
