"""Machines that are not here, as trees of files and outputs of commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from aiasst.profile.host import Host, LibraryFacts

Tree = Mapping[str, str]
Plant = Callable[..., Host]

MOUNTS_V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"


def no_library() -> LibraryFacts:
    raise AssertionError("this machine tells all by its files")


@pytest.fixture
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Write a tree and give the Host that sees it."""

    def make(
        tree: Tree,
        *,
        system: str = "Linux",
        architecture: str = "x86_64",
        commands: Mapping[str, str] | None = None,
        affinity: frozenset[int] | None = None,
        library: Callable[[], LibraryFacts] = no_library,
        features: Sequence[int] = (),
    ) -> Host:
        root = tmp_path_factory.mktemp("machine")
        for path, text in tree.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return Host(
            root=root,
            system=system,
            architecture=architecture,
            affinity=affinity,
            run=lambda command: (commands or {}).get(command[0], ""),
            library=library,
            has_feature=lambda number: number in features,
        )

    return make


def cpus(siblings: Sequence[Sequence[int]]) -> dict[str, str]:
    """The topology files of cores with these hardware threads."""
    threads = sorted(cpu for core in siblings for cpu in core)
    tree = {"/sys/devices/system/cpu/online": f"{threads[0]}-{threads[-1]}\n"}
    for core in siblings:
        for cpu in core:
            tree[f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = ",".join(map(str, core)) + "\n"
    return tree


def cache(cpu: int, index: int, level: int, kind: str, size: str, shared: str) -> dict[str, str]:
    """One folder of a core's cache."""
    folder = f"/sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    return {
        f"{folder}/level": f"{level}\n",
        f"{folder}/type": f"{kind}\n",
        f"{folder}/size": f"{size}\n",
        f"{folder}/shared_cpu_list": f"{shared}\n",
    }


def x86(model: str, flags: str, count: int) -> str:
    return "".join(f"processor\t: {n}\nmodel name\t: {model}\nflags\t\t: {flags}\n\n" for n in range(count))


def meminfo(total_kb: int, free_kb: int) -> str:
    return f"MemTotal:       {total_kb} kB\nMemFree:        1000 kB\nMemAvailable:   {free_kb} kB\nCached: 5 kB\n"


@pytest.fixture
def raspberry(plant: Plant) -> Host:
    """A Raspberry Pi 5 with 8 GB: four Cortex-A76, a VideoCore GPU, no cgroup memory limit."""
    block = (
        "processor\t: {}\nBogoMIPS\t: 108.00\n"
        "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
    )
    tree = {
        "/proc/cpuinfo": "".join(block.format(n) for n in range(4)) + "Model\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
        "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "/proc/meminfo": meminfo(8255488, 7000000),
        "/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
        "/proc/self/mountinfo": MOUNTS_V2,
        **cpus([(0,), (1,), (2,), (3,)]),
        **{f"/sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq": "2400000\n" for n in range(4)},
        **cache(0, 0, 1, "Data", "64K", "0"),
        **cache(0, 1, 1, "Instruction", "64K", "0"),
        **cache(0, 2, 2, "Unified", "512K", "0"),
        **cache(0, 3, 3, "Unified", "2048K", "0-3"),
        "/sys/class/drm/card0/device/uevent": "DRIVER=v3d\nOF_NAME=v3d\n",
        "/sys/class/drm/card1/device/uevent": "DRIVER=vc4-drm\n",
        "/sys/class/drm/card1-HDMI-A-1/status": "connected\n",
    }
    return plant(tree, architecture="aarch64", affinity=frozenset(range(4)))


@pytest.fixture
def amx_server(plant: Plant) -> Host:
    """Two sockets of eight cores with SMT, AMX, 64 GiB a node, and one NVIDIA card."""
    flags = "fpu sse avx avx2 fma f16c avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 avx_vnni"
    tree = {
        "/proc/cpuinfo": x86("Intel(R) Xeon(R) Platinum 8480+", flags, 32),
        "/proc/meminfo": meminfo(128 * 2**20, 120 * 2**20),
        **cpus([(n, n + 16) for n in range(16)]),
        **cache(0, 0, 1, "Data", "48K", "0,16"),
        **cache(0, 2, 2, "Unified", "2048K", "0,16"),
        **cache(0, 3, 3, "Unified", "107520K", "0-7,16-23"),
        "/sys/devices/system/node/node0/cpulist": "0-7,16-23\n",
        "/sys/devices/system/node/node0/meminfo": f"Node 0 MemTotal:       {64 * 2**20} kB\n",
        "/sys/devices/system/node/node1/cpulist": "8-15,24-31\n",
        "/sys/devices/system/node/node1/meminfo": f"Node 1 MemTotal:       {64 * 2**20} kB\n",
        "/sys/class/drm/card0/device/uevent": "DRIVER=nvidia\n",
        "/sys/class/drm/card0/device/vendor": "0x10de\n",
    }
    smi = "NVIDIA L4, 23034, 550.54.15\n"
    return plant(tree, commands={"nvidia-smi": smi}, affinity=frozenset(range(32)))


@pytest.fixture
def hybrid_laptop(plant: Plant) -> Host:
    """Six performance cores with SMT (0-11), eight efficiency cores (12-19), an Intel GPU and an Intel NPU."""
    tree = {
        "/proc/cpuinfo": x86("Intel(R) Core(TM) Ultra 7 155H", "avx avx2 fma f16c avx_vnni", 20),
        "/proc/meminfo": meminfo(32 * 2**20, 20 * 2**20),
        **cpus([(n, n + 1) for n in range(0, 12, 2)] + [(n,) for n in range(12, 20)]),
        "/sys/devices/cpu_core/cpus": "0-11\n",
        "/sys/devices/cpu_atom/cpus": "12-19\n",
        **cache(0, 0, 1, "Data", "48K", "0-1"),
        **cache(0, 2, 2, "Unified", "2048K", "0-1"),
        **cache(0, 3, 3, "Unified", "24576K", "0-19"),
        **cache(12, 0, 1, "Data", "32K", "12"),
        **cache(12, 2, 2, "Unified", "2048K", "12-15"),
        **cache(12, 3, 3, "Unified", "24576K", "0-19"),
        "/sys/class/drm/card1/device/uevent": "DRIVER=i915\n",
        "/sys/class/drm/card1/device/vendor": "0x8086\n",
        "/sys/class/drm/card1/device/device": "0x7d55\n",
        "/sys/class/accel/accel0/device/uevent": "DRIVER=intel_vpu\n",
    }
    return plant(tree, affinity=frozenset(range(20)))


def sixteen_cores(total_kb: int = 64 * 2**20) -> dict[str, str]:
    """A plain host of sixteen cores for containers to run on."""
    return {
        "/proc/cpuinfo": x86("AMD EPYC 7543", "avx avx2 fma f16c", 16),
        "/proc/meminfo": meminfo(total_kb, total_kb - 2**20),
        **cpus([(n,) for n in range(16)]),
    }


@pytest.fixture
def container_v1(plant: Plant) -> Host:
    """Half a CPU and 512 MB by version 1, the host's path in /proc/self/cgroup, and a part of the hierarchy mounted."""
    path = "/docker/4f2a"
    tree = {
        **sixteen_cores(),
        "/proc/self/cgroup": f"12:cpu,cpuacct:{path}\n9:cpuset:{path}\n4:memory:{path}\n1:name=systemd:{path}\n0::/\n",
        "/proc/self/mountinfo": (
            f"40 35 0:30 {path} /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
            f"41 35 0:31 {path} /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
            f"42 35 0:32 {path} /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n"
        ),
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{512 * 2**20}\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": f"{200 * 2**20}\n",
        "/sys/fs/cgroup/memory/memory.stat": f"cache 99\ntotal_inactive_file {100 * 2**20}\n",
        "/sys/fs/cgroup/cpuset/cpuset.cpus": "0-15\n",
    }
    return plant(tree, affinity=frozenset(range(16)))


@pytest.fixture
def container_v2(plant: Plant) -> Host:
    """Nested groups of version 2: the pod has 1.5 CPUs, the group above 4, memory is tightest above."""
    pod, above = "/sys/fs/cgroup/kubepods/pod7", "/sys/fs/cgroup/kubepods"
    tree = {
        **sixteen_cores(),
        "/proc/self/cgroup": "0::/kubepods/pod7\n",
        "/proc/self/mountinfo": MOUNTS_V2,
        f"{pod}/cpu.max": "150000 100000\n",
        f"{pod}/memory.max": "max\n",
        f"{pod}/memory.current": "1000\n",
        f"{pod}/cpuset.cpus.effective": "2-9\n",
        f"{above}/cpu.max": "400000 100000\n",
        f"{above}/memory.max": f"{4 * 2**30}\n",
        f"{above}/memory.current": f"{2 * 2**30}\n",
        f"{above}/memory.stat": f"anon 5\ninactive_file {2**30}\n",
    }
    return plant(tree, affinity=frozenset(range(16)))


MAC_M2 = """hw.ncpu: 8
hw.memsize: 17179869184
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.perflevel0.physicalcpu: 4
hw.perflevel0.l1icachesize: 196608
hw.perflevel0.l1dcachesize: 131072
hw.perflevel0.l2cachesize: 16777216
hw.perflevel0.cpusperl2: 4
hw.perflevel1.physicalcpu: 4
hw.perflevel1.l1icachesize: 131072
hw.perflevel1.l1dcachesize: 65536
hw.perflevel1.l2cachesize: 4194304
hw.perflevel1.cpusperl2: 4
hw.optional.neon: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_SME: 0
machdep.cpu.brand_string: Apple M2
"""

MAC_INTEL = """hw.physicalcpu: 6
hw.logicalcpu: 12
hw.memsize: 17179869184
hw.l1dcachesize: 32768
hw.l2cachesize: 262144
hw.l3cachesize: 12582912
machdep.cpu.brand_string: Intel(R) Core(TM) i7-8750H CPU @ 2.20GHz
machdep.cpu.features: FPU SSE4.2 FMA F16C AVX1.0
machdep.cpu.leaf7_features: BMI1 AVX2 BMI2
"""


@pytest.fixture
def mac(plant: Plant) -> Host:
    displays = '{"SPDisplaysDataType": [{"_name": "Apple M2", "sppci_model": "Apple M2"}]}'
    library = LibraryFacts("arm", 8, 8, 17179869184, 9000000000)
    commands = {"sysctl": MAC_M2, "system_profiler": displays}
    return plant({}, system="Darwin", architecture="aarch64", commands=commands, library=lambda: library)


@pytest.fixture
def intel_mac(plant: Plant) -> Host:
    library = LibraryFacts("i386", 6, 12, 17179869184, 9000000000)
    return plant({}, system="Darwin", commands={"sysctl": MAC_INTEL}, library=lambda: library)


@pytest.fixture
def windows(plant: Plant) -> Host:
    library = LibraryFacts("AMD Ryzen 7 7840U", 8, 16, 32 * 2**30, 20 * 2**30)
    shown = '[{"Name": "AMD Radeon 780M", "DriverVersion": "31.0"}, {"Name": "Microsoft Basic Display Adapter"}]'
    return plant({}, system="Windows", commands={"powershell": shown}, library=lambda: library, features=(39, 40, 41))
