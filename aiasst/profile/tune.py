"""Settings of a session and its engine, searched by how fast they really are; never worse than the runtime's own defaults.

    search    settings are asked of a library, each is timed beside the runtime's defaults (A B A B), and the ratio is told
    final     the best few, the decided ones and the defaults in turn, until the time is up
    winner    has to beat the defaults by more than they differ from themselves; else what was decided stays, and where that is
              slower than the defaults, they do

Pure: what is measured, the library and the clock are given. Opens nothing and knows no model.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from aiasst.artifacts.device import CoresDecision, CountDecision, Decisions, Hardware, SwitchDecision
from aiasst.engine.engine import CHUNK
from aiasst.profile.measure import thread_counts
from aiasst.profile.sampling import Clock
from aiasst.progress import Progress, ProgressFn, silent

STAGE = "tune"
CHUNKS = (64, 128, CHUNK, 512)
_SEARCH_SHARE = 0.7
"""Of the time; the rest is for the final."""
_FINALISTS = 2
_LEAST_ROUNDS = 3
_LEAST_GAIN = 0.02
"""What a winner must gain, however quiet the machine is."""


@dataclass(frozen=True)
class Setting:
    """One way to run a model."""

    threads: int
    pinned: bool = False
    """To the first cores of the fastest kind, one a thread."""
    spinning: bool = True
    chunk: int = CHUNK

    @property
    def effective(self) -> Setting:
        """The same without what a thread alone does not have: others to wait for, and a place of its own."""
        return self if self.threads > 1 else replace(self, pinned=False, spinning=True)


@dataclass(frozen=True)
class Space:
    """The values that are tried."""

    threads: tuple[int, ...]
    pinned: tuple[bool, ...]
    spinning: tuple[bool, ...] = (True, False)
    chunk: tuple[int, ...] = CHUNKS

    def settings(self) -> list[Setting]:
        """All combinations."""
        return [Setting(*values) for values in itertools.product(self.threads, self.pinned, self.spinning, self.chunk)]


class Search(Protocol):
    """What proposes settings; `tune_search.OptunaSearch` is the real one."""

    def ask(self) -> Setting:
        """The next setting to try."""

    def tell(self, setting: Setting, ratio: float) -> None:
        """It took `ratio` times as long as the defaults."""

    def best(self, count: int) -> list[Setting]:
        """The settings with the lowest ratios so far, from earlier sessions too."""


@dataclass(frozen=True)
class Tuned:
    """What came of it."""

    setting: Setting
    gain: float
    """How many times as fast as the runtime's defaults: 1.1 is a tenth faster."""
    noise: float
    """How far the defaults' own repeats lie apart."""
    tried: int
    won: bool
    """Whether a setting of the search beat the defaults; else what was decided stays, or the defaults."""


@dataclass
class _Finalist:
    setting: Setting
    seconds: list[float] = field(default_factory=list)


def space_of(hardware: Hardware) -> Space:
    """What can be tried on `hardware`; more threads than may run at once are the defaults' own mistake and not tried again."""
    cores = hardware.core_groups[0].cpus if hardware.core_groups else ()
    return Space(thread_counts(hardware), (False, True) if len(cores) > 1 else (False,))


def runtime_defaults(hardware: Hardware) -> Setting:
    """ONNX Runtime's own: a thread for each physical core that it sees, whatever the quota; awake, and not pinned."""
    seen = sum(group.physical_cores for group in hardware.core_groups) or hardware.physical_cores
    return Setting(max(1, seen))


def setting_of(decisions: Decisions) -> Setting:
    """What was decided."""
    pinned = decisions.affinity.value is not None
    return Setting(decisions.threads.value, pinned, decisions.spinning.value, decisions.chunk.value).effective


def tune(
    search: Search,
    measure: Callable[[Setting], float],
    *,
    defaults: Setting,
    decided: Setting,
    seconds: float,
    clock: Clock = time.perf_counter,
    progress: ProgressFn = silent,
) -> Tuned:
    """Search for `seconds`, and give the setting to run with.

    Args:
        search: proposes settings and remembers them.
        measure: seconds of a fixed piece of work; its first call for a setting may open something, which it does not count.
        defaults: ONNX Runtime's own.
        decided: what the profile has decided.
        seconds: all together; one setting is tried and a final of three rounds is run whatever they take.
        clock: in seconds.
        progress: told of every setting.
    """
    begun, tried = clock(), 0
    while not tried or clock() - begun < _SEARCH_SHARE * seconds:
        asked = search.ask()
        setting = asked.effective
        progress(Progress(STAGE, min(clock() - begun, seconds), seconds, in_words(setting)))
        pairs = [(measure(defaults), measure(setting)) for _ in range(2)]
        search.tell(asked, min(mine / theirs for theirs, mine in pairs))
        tried += 1
    entrants = dict.fromkeys((defaults, decided, *(setting.effective for setting in search.best(_FINALISTS))))
    finalists = [_Finalist(setting) for setting in entrants]
    rounds = 0
    while rounds < _LEAST_ROUNDS or clock() - begun < seconds:
        for one in finalists:
            one.seconds.append(measure(one.setting))
        rounds += 1
        progress(Progress(STAGE, min(clock() - begun, seconds), seconds, f"final, round {rounds}"))
    return _judged(finalists, decided, tried)


def _judged(finalists: Sequence[_Finalist], decided: Setting, tried: int) -> Tuned:
    """The first finalist is the defaults."""
    base = finalists[0].seconds
    noise = statistics.median(base) / min(base) - 1
    needed = max(noise, _LEAST_GAIN)
    gains = {one.setting: _gain(base, one.seconds) for one in finalists}
    fastest = max(gains, key=lambda setting: gains[setting])
    if gains[fastest] > 1 + needed and fastest != decided and gains[fastest] > gains[decided] * (1 + needed):
        return Tuned(fastest, gains[fastest], noise, tried, won=True)
    kept = decided if gains[decided] >= 1 / (1 + needed) else finalists[0].setting
    return Tuned(kept, gains[kept], noise, tried, won=False)


def _gain(base: Sequence[float], seconds: Sequence[float]) -> float:
    """The median of the rounds' ratios, or the ratio of the best where that is less: both must say that it is faster."""
    paired = statistics.median(theirs / mine for theirs, mine in zip(base, seconds, strict=True))
    return min(paired, min(base) / min(seconds))


def with_tuned(decisions: Decisions, tuned: Tuned, hardware: Hardware) -> Decisions:
    """`decisions` with the setting that came out, and why."""
    why = reason(tuned)
    setting = tuned.setting
    if setting == setting_of(decisions):
        return decisions.model_copy(
            update={"threads": decisions.threads.model_copy(update={"reason": f"{decisions.threads.reason}; {why}"})}
        )
    return applied(decisions, setting, hardware, why)


def applied(decisions: Decisions, setting: Setting, hardware: Hardware, why: str) -> Decisions:
    """`decisions` with the values of a setting."""
    cores = hardware.core_groups[0].cpus if hardware.core_groups else ()
    pinned = cores[: setting.threads] if setting.pinned else ()
    return decisions.model_copy(
        update={
            "threads": CountDecision(value=setting.threads, reason=why),
            "affinity": CoresDecision(value=pinned or None, reason=why),
            "spinning": SwitchDecision(value=setting.spinning, reason=why),
            "chunk": CountDecision(value=setting.chunk, reason=why),
        }
    )


def reason(tuned: Tuned) -> str:
    """What tuning found, in words."""
    beside = f"{tuned.gain:.2f} times as fast as ONNX Runtime's defaults (noise {tuned.noise:.0%})"
    if tuned.won:
        return f"tuned on this model: of {tuned.tried} settings the fastest, {beside}"
    return f"tuned on this model: none of {tuned.tried} settings was faster beyond the noise; this one is {beside}"


def in_words(setting: Setting) -> str:
    """A setting for a reader."""
    return (
        f"{setting.threads} thread{'s' if setting.threads > 1 else ''}{', pinned' if setting.pinned else ''}"
        f"{'' if setting.spinning else ', sleeping between products'}, chunks of {setting.chunk}"
    )


def middle(seconds: Sequence[float]) -> float:
    """The geometric mean: a tenth of each kind of work counts the same, however long it takes."""
    return math.exp(statistics.fmean(math.log(second) for second in seconds))
