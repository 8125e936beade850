"""A model opened in a process of its own: how long that takes and what memory it comes to. Knows no engine's speed.

`measure_fresh` starts this very file as a program. The figures of a process that has done other things before would be others:
libraries are loaded, memory is held, and a peak never falls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.bench.work import Bench
from aiasst.errors import ResourceError

ANSWER_STEPS = 16


@dataclass(frozen=True)
class Fresh:
    """What a new process needed."""

    load_seconds: float
    """From the open folder to an engine that can answer; Python and its packages are loaded before."""
    peak_rss_bytes: int
    """Resident at most: with a prompt read and an answer of one sequence written; mapped files count."""


def measure_fresh(folder: ModelFolder, config: DeviceConfig, prompt_tokens: int) -> Fresh:
    """Open the model in a new process, as cold as this system allows, and answer one prompt there.

    Raises:
        ResourceError: that process failed; the message has its last words.
    """
    _forget_pages(folder)
    command = [sys.executable, "-m", "aiasst.bench.fresh", str(folder.path.resolve()), str(prompt_tokens)]
    ended = subprocess.run(
        command, input=config.model_dump_json(), capture_output=True, text=True, encoding="utf-8", check=False
    )
    if ended.returncode != 0:
        words = ended.stderr.strip().splitlines()[-1:] or [f"it ended with {ended.returncode}, as when memory is short"]
        raise ResourceError(
            f"{folder.path} could not be opened in a new process: {words[0]}", "see whether the model runs: aiasst chat"
        )
    return Fresh(**json.loads(ended.stdout))


def _forget_pages(folder: ModelFolder) -> None:
    """Ask the system to drop its copy of the model's files, where it can be asked; what others have mapped stays."""
    if not hasattr(os, "posix_fadvise"):
        return
    for name in folder.manifest.files:
        with (folder.path / name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_resident_bytes() -> int:
    """The most memory that this process has had resident."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not `getrusage`: on Linux a process inherits that peak from the one that started it.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Folder and tokens of the prompt as arguments, the device config on stdin; one JSON line on stdout."""
    path, tokens = sys.argv[1:]
    config = DeviceConfig.parse(json.load(sys.stdin), "stdin")
    began = time.perf_counter()
    bench = Bench(ModelFolder.open(path), config, slots=1)
    seconds = time.perf_counter() - began
    bench.prefill(int(tokens), seed=0)
    bench.decode(1, ANSWER_STEPS, seed=0)
    sys.stdout.write(json.dumps(asdict(Fresh(seconds, peak_resident_bytes()))))


if __name__ == "__main__":
    main()
