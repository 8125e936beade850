"""What a container leaves of the machine: CPU time, CPU set and memory, by control groups version 1 and 2.

A process is bound by its own group and by every group above it, so that the tightest of them counts. Sources: the kernel's
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/, and proc(5) for /proc/self/cgroup and mountinfo.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from aiasst.profile.host import Host, cpu_list, key_values, whole_number


@dataclass(frozen=True)
class Limits:
    """None: no limit of that kind."""

    cpu_quota: float | None = None
    """CPUs' worth of time: 0.5 is half a core."""
    cpus: frozenset[int] | None = None
    """The CPU set."""
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    """What is left under the tightest limit; page cache that can be dropped does not count as used."""


@dataclass(frozen=True)
class _Group:
    """A control group's folder and the version of its interface."""

    folder: str
    version: int


@dataclass(frozen=True)
class _Mount:
    """Where a hierarchy is mounted, which of its groups is the mount's root, and its controllers (version 1)."""

    root: str
    point: str
    version: int
    controllers: frozenset[str]


def probe(host: Host) -> Limits:
    """The limits that hold for this process; all None where there are no control groups."""
    if host.system != "Linux":
        return Limits()
    quotas = [_quota(host, group) for group in _groups(host, "cpu")]
    sets = [_cpu_set(host, group) for group in _groups(host, "cpuset")]
    memory = [found for group in _groups(host, "memory") if (found := _memory(host, group))]
    # The group of the process itself comes first, and its set lies within those above.
    return Limits(
        cpu_quota=min((quota for quota in quotas if quota is not None), default=None),
        cpus=next((frozenset(cpus) for cpus in sets if cpus), None),
        memory_bytes=min((limit for limit, _ in memory), default=None),
        memory_free_bytes=min((free for _, free in memory), default=None),
    )


def _groups(host: Host, controller: str) -> list[_Group]:
    """The groups that bind this process for `controller`, its own first, in the hierarchies of both versions."""
    groups: list[_Group] = []
    paths = _memberships(host)
    for mount in _mounts(host):
        if mount.version == 1 and controller not in mount.controllers:
            continue
        path = paths.get("" if mount.version == 2 else controller)
        if path is not None:
            groups += [_Group(folder, mount.version) for folder in _up_from(mount, path)]
    return groups


def _memberships(host: Host) -> dict[str, str]:
    """Controller → path of this process's group; "" is version 2."""
    paths: dict[str, str] = {}
    for line in host.text("/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        for controller in controllers.split(",") if colon else ():
            paths.setdefault(controller, path)
    return paths


def _mounts(host: Host) -> list[_Mount]:
    """Lines of mountinfo: id parent device ROOT POINT options [fields] - TYPE source SUPER-OPTIONS."""
    mounts: list[_Mount] = []
    for line in host.text("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        place, kind = before.split(), after.split()
        if len(place) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        mounts.append(_Mount(place[3], place[4], version, frozenset(kind[2].split(","))))
    return mounts


def _up_from(mount: _Mount, path: str) -> Iterable[str]:
    """Folders from the group `path` up to the mount's root."""
    group = PurePosixPath(path)
    # In a container the mount may show a part of the hierarchy only, or the path may lie outside of what is shown.
    relative = group.relative_to(mount.root) if group.is_relative_to(mount.root) else PurePosixPath()
    if ".." in relative.parts:
        relative = PurePosixPath()
    leaf = PurePosixPath(mount.point) / relative
    yield str(leaf)
    yield from (str(leaf.parents[depth]) for depth in range(len(relative.parts)))


def _quota(host: Host, group: _Group) -> float | None:
    if group.version == 2:
        quota, _, period = host.line(f"{group.folder}/cpu.max").partition(" ")
    else:
        quota = host.line(f"{group.folder}/cpu.cfs_quota_us")
        period = host.line(f"{group.folder}/cpu.cfs_period_us")
    time, of = whole_number(quota), whole_number(period or "100000")
    # "max" and -1 are no limit.
    return time / of if time and of and time > 0 else None


def _cpu_set(host: Host, group: _Group) -> tuple[int, ...]:
    names = ("cpuset.cpus.effective",) if group.version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
    return next((cpus for name in names if (cpus := cpu_list(host.text(f"{group.folder}/{name}")))), ())


def _memory(host: Host, group: _Group) -> tuple[int, int] | None:
    """(limit, free under it) in bytes."""
    folder = group.folder
    if group.version == 2:
        # Above memory.high a group is slowed down until it is useless, so it is a limit to us.
        limits = [host.number(f"{folder}/memory.max"), host.number(f"{folder}/memory.high")]
        used, droppable = host.number(f"{folder}/memory.current"), "inactive_file"
    else:
        limits = [host.number(f"{folder}/memory.limit_in_bytes")]
        used, droppable = host.number(f"{folder}/memory.usage_in_bytes"), "total_inactive_file"
    limit = min((number for number in limits if number is not None), default=None)
    if limit is None:
        return None
    stat = key_values(host.text(f"{folder}/memory.stat").replace(" ", ":"))
    in_use = max(0, (used or 0) - (whole_number(stat.get(droppable, "")) or 0))
    return limit, max(0, limit - in_use)
