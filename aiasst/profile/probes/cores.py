"""Cores: physical and logical, performance and efficiency. Of the whole machine; knows no limits."""

from __future__ import annotations

from dataclasses import dataclass

from aiasst.profile.host import Host, cpu_list, sysctl, whole_number

# Below this share of the strongest core's capacity (or clock) a core counts as an efficiency core. The middle cores of
# three-tier phones lie above it (0.8 and more), favoured cores of desktops far above; E-cores and dense cores lie below.
_EFFICIENCY_BELOW = 0.75


@dataclass(frozen=True)
class Core:
    """A physical core."""

    cpus: tuple[int, ...]
    """Its hardware threads, as the system numbers them; empty where it does not."""
    efficient: bool


@dataclass(frozen=True)
class Cores:
    """The cores of the machine."""

    cores: tuple[Core, ...]
    logical: int

    @property
    def physical(self) -> int:
        """Cores, whatever their threads."""
        return len(self.cores)


def probe(host: Host) -> Cores:
    """The cores, from sysfs, sysctl or the system's library; at least one."""
    if host.system == "Linux" and (cores := _from_sysfs(host)):
        return Cores(cores, sum(len(core.cpus) for core in cores))
    if facts := sysctl(host):
        return _from_sysctl(facts)
    facts_of_library = host.library()
    physical = max(1, facts_of_library.physical_cores)
    return Cores((Core((), False),) * physical, max(physical, facts_of_library.logical_cores))


def _from_sysfs(host: Host) -> tuple[Core, ...]:
    online = set(cpu_list(host.text("/sys/devices/system/cpu/online")))
    siblings: dict[tuple[int, ...], None] = {}
    for folder in host.glob("/sys/devices/system/cpu/cpu[0-9]*"):
        number = int(folder.rsplit("cpu", 1)[1])
        if online and number not in online:
            continue
        threads = cpu_list(host.text(f"{folder}/topology/thread_siblings_list")) or (number,)
        siblings[tuple(cpu for cpu in threads if not online or cpu in online)] = None
    if not siblings:
        return ()
    efficient = _efficient_cpus(host, [threads[0] for threads in siblings])
    return tuple(Core(threads, threads[0] in efficient) for threads in siblings)


def _efficient_cpus(host: Host, cpus: list[int]) -> set[int]:
    """Which of `cpus` are efficiency cores: by what the kernel names so, else by capacity, else by clock."""
    if atoms := cpu_list(host.text("/sys/devices/cpu_atom/cpus")):
        return set(atoms) if cpu_list(host.text("/sys/devices/cpu_core/cpus")) else set()
    for place in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        strengths = {cpu: host.number(f"/sys/devices/system/cpu/cpu{cpu}/{place}") for cpu in cpus}
        known = {cpu: strength for cpu, strength in strengths.items() if strength}
        if len(known) == len(cpus):
            strongest = max(known.values())
            return {cpu for cpu, strength in known.items() if strength < _EFFICIENCY_BELOW * strongest}
    return set()


def _from_sysctl(facts: dict[str, str]) -> Cores:
    performance = whole_number(facts.get("hw.perflevel0.physicalcpu", ""))
    efficiency = whole_number(facts.get("hw.perflevel1.physicalcpu", "")) or 0
    if performance is None:
        performance, efficiency = whole_number(facts.get("hw.physicalcpu", "")) or 1, 0
    physical = performance + efficiency
    logical = whole_number(facts.get("hw.logicalcpu", "")) or physical
    return Cores((Core((), False),) * performance + (Core((), True),) * efficiency, logical)
