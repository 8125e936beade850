"""What a bench came to. Holds figures and computes none; knows neither how they were measured nor how they are shown."""

from __future__ import annotations

from dataclasses import dataclass

from aiasst.bench.figures import Speed
from aiasst.bench.operators import Breakdown
from aiasst.bench.readings import Readings


@dataclass(frozen=True)
class Decoding:
    """So many answers at once."""

    sequences: int
    speed: Speed
    """Tokens a second of all together, of each round by its median step."""
    overhead_share: float
    """Of a step's time, what passes outside of ONNX Runtime's run; the median of all steps."""


@dataclass(frozen=True)
class PeerDecoding:
    """The same by the peer."""

    sequences: int
    speed: Speed
    ratio: float
    """Ours over the peer's: the median of the ratios of each round."""


@dataclass(frozen=True)
class Against:
    """A peer on the same weights."""

    peer: str
    version: str
    model: str
    """What the peer calls its file."""
    model_bytes: int
    prefill: Speed
    prefill_ratio: float
    decode: tuple[PeerDecoding, ...]


@dataclass(frozen=True)
class Part:
    """One kind of work taken apart, with the profiler on."""

    name: str
    """decode or prefill."""
    sequences: int
    tokens: int
    """Of a step of decoding, or of the prompt."""
    breakdown: Breakdown
    slowdown: float
    """How many times as long it took as the median of the rounds, which had no profiler."""


@dataclass(frozen=True)
class Trace:
    """Where the work goes, and the file that shows it."""

    file: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Report:
    """All figures of one bench."""

    model: str
    model_bytes: int
    machine: str
    provider: str
    threads: int
    onnxruntime: str
    rounds: int
    seconds: float
    """Of the whole bench."""
    prompt_tokens: int
    decode_steps: int
    prefill: Speed
    ttft_ms: float
    """The median of the rounds: from submission of the prompt to the first token."""
    inter_token_ms: tuple[float, ...]
    """Every step of every round at one sequence."""
    inter_token_ms_p50: float
    inter_token_ms_p99: float
    decode: tuple[Decoding, ...]
    left_out: tuple[int, ...]
    """Numbers of sequences that do not fit under the memory ceiling."""
    load_seconds: float
    """The first time, in a new process, with the files dropped from the system's cache where that can be had."""
    load_seconds_warm: float
    peak_rss_bytes: int
    token_bytes: int
    """Weights that are read for a token."""
    bandwidth_bytes_per_second: float
    """The best that reading memory with as many threads reached in the same rounds."""
    bandwidth_share: float
    cache_bytes: int
    """Of the last level."""
    readings: Readings
    against: Against | None
    forms: str = ""
    """A line on which forms of the model ran, where the folder has two."""
    trace: Trace | None = None

    @property
    def noise(self) -> float:
        """The most that a median lies below its best, of all our speeds."""
        return max(speed.noise for speed in (self.prefill, *(one.speed for one in self.decode)))

    @property
    def fits_cache(self) -> bool:
        """Whether the weights of a token fit into the last-level cache, so that memory is not what limits them."""
        return self.token_bytes <= self.cache_bytes
