"""NUMA nodes: which cores have memory of their own. Knows nothing of what is done with them."""

from __future__ import annotations

from aiasst.artifacts.device import NumaNode
from aiasst.profile.host import Host, cpu_list


def probe(host: Host) -> tuple[NumaNode, ...]:
    """The nodes that have cores, from sysfs; empty where the system does not tell."""
    nodes: list[NumaNode] = []
    for folder in host.glob("/sys/devices/system/node/node[0-9]*"):
        cpus = cpu_list(host.text(f"{folder}/cpulist"))
        if cpus:
            nodes.append(NumaNode(cpus=cpus, memory_bytes=_memory_bytes(host.text(f"{folder}/meminfo"))))
    return tuple(nodes)


def _memory_bytes(meminfo: str) -> int:
    """From the line "Node 0 MemTotal:  32768 kB"."""
    for line in meminfo.splitlines():
        words = line.split()
        if "MemTotal:" in words and words[-2].isdigit():
            return int(words[-2]) * 1024
    return 0
