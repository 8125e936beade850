"""The limits a user sets, in words and in numbers, and what is said when they cannot be kept. Knows no model and no solver."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from aiasst.errors import BudgetRefused, UsageError
from aiasst.sizes import human_bytes

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*")
_WORKLOAD = re.compile(r"\s*([0-9]+)\s*x\s*([0-9]+)\s*\+\s*([0-9]+)\s*")
# Of trained models: at a KL divergence of 0.01 nats one token in thirteen has another favourite.
_USUAL_SLOPE = 0.75
# Measured points with less divergence than this are decided by a handful of tokens.
_LEAST_KL = 1e-4


@dataclass(frozen=True)
class Workload:
    """What a time per token is for."""

    sequences: int = 1
    """Decoded at once."""
    prompt: int = 512
    """Tokens of a prompt."""
    answer: int = 128
    """Tokens of an answer."""
    beside_ms: float | None = None
    """Milliseconds a token that are the same in all formats: attention, norms, the engine; None: what reading the cache takes."""
    cached: bool = False
    """Whether the weights are few enough to stay in the processor's cache."""

    def __post_init__(self) -> None:
        """Raise UsageError where there is nothing to do."""
        if min(self.sequences, self.answer) < 1 or self.prompt < 0:
            raise UsageError("a workload needs a sequence and an answer of a token", "for example --workload 1x512+128")

    @classmethod
    def parse(cls, text: str) -> Workload:
        """`4x512+128`: sequences x tokens of the prompt + tokens of the answer. Raises UsageError."""
        found = _WORKLOAD.fullmatch(text)
        if found is None:
            raise UsageError(
                f"'{text}' is no workload", "write SEQUENCESxPROMPT+ANSWER in tokens, for example --workload 4x512+128"
            )
        sequences, prompt, answer = map(int, found.groups())
        return cls(sequences, prompt, answer)

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.sequences}x{self.prompt}+{self.answer}"


@dataclass(frozen=True)
class Budget:
    """Limits that a quantized model has to keep; None: no such limit."""

    max_bytes: int | None = None
    """Of graph and weights on disk."""
    target_bpw: float | None = None
    """Bits per weight, everything included."""
    max_kld: float | None = None
    """Mean KL divergence from the original, nats a token."""
    min_top1: float | None = None
    """Share of tokens with the same likeliest next token, 0 … 1."""
    min_similarity: float | None = None
    """Of an encoder: mean cosine of a text's vector with the original's."""
    token_ms: float | None = None
    """Milliseconds a token on the machine of the device config, for `workload`."""
    workload: Workload = field(default_factory=Workload)

    def __post_init__(self) -> None:
        """Raise UsageError for a limit that makes no sense."""
        limits = {"--max-size": self.max_bytes, "--target-bpw": self.target_bpw, "--token-ms": self.token_ms}
        for name, value in limits.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} {value:g} is no limit that could be kept", "give a number above 0")
        if self.max_kld is not None and not (math.isfinite(self.max_kld) and self.max_kld >= 0):
            raise UsageError(f"--max-kld {self.max_kld:g} is no divergence", "give a number of nats, for example 0.03")
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 1:
            raise UsageError(f"--min-top1 {self.min_top1:g} is no share", "give a share of tokens, for example 0.93")
        if self.min_similarity is not None and not 0 <= self.min_similarity <= 1:
            raise UsageError(f"--min-similarity {self.min_similarity:g} is no cosine", "give one, for example 0.99")

    def refuse_other_kind(self, *, encoder: bool) -> None:
        """Raise UsageError for a limit that says nothing about a model that embeds or classifies texts, or one that writes."""
        if encoder and not (self.max_kld is None and self.min_top1 is None):
            raise UsageError(
                "--max-kld and --min-top1 are about the next token, and this model predicts none",
                "limit how far its vectors move: --min-similarity 0.99",
            )
        if encoder and self.token_ms is not None:
            raise UsageError("--token-ms is about writing, and this model writes no text", "limit the size: --max-size")
        if not encoder and self.min_similarity is not None:
            raise UsageError(
                "--min-similarity is about vectors of texts, and this model gives none", "use --max-kld or --min-top1"
            )

    @property
    def is_empty(self) -> bool:
        """No limit at all."""
        return not self.needs_planning and not self.limits_loss

    @property
    def needs_planning(self) -> bool:
        """Whether something is limited that only the choice of formats can keep: size or time."""
        return not (self.max_bytes is None and self.target_bpw is None and self.token_ms is None)

    @property
    def limits_loss(self) -> bool:
        """Whether the loss is limited, which a measurement can tell of any model."""
        return not (self.max_kld is None and self.min_top1 is None and self.min_similarity is None)

    def most_loss(self, agreement: Agreement) -> float:
        """The KL divergence that both limits of accuracy allow; infinite where there is none."""
        bounds = [math.inf]
        if self.max_kld is not None:
            bounds.append(self.max_kld)
        if self.min_top1 is not None:
            bounds.append(agreement.kl_of(self.min_top1))
        if self.min_similarity is not None:
            bounds.append(error_of_similarity(self.min_similarity))
        return min(bounds)

    def check(
        self,
        *,
        kl_mean: float | None,
        top1_agreement: float | None,
        nbytes: int,
        bits_per_weight: float,
        similarity: float | None = None,
    ) -> None:
        """Hold the measured numbers of a finished model against the limits.

        Raises:
            BudgetRefused: one is not kept; the message says by how much, the hint what was reached.
        """
        broken = []
        if self.max_bytes is not None and nbytes > self.max_bytes:
            broken.append(f"{human_bytes(nbytes, exact=True)} is more than {human_bytes(self.max_bytes, exact=True)}")
        if self.target_bpw is not None and bits_per_weight > self.target_bpw + 5e-5:
            broken.append(f"{bits_per_weight:.4f} bits per weight are more than {self.target_bpw:g}")
        if self.max_kld is not None and kl_mean is not None and kl_mean > self.max_kld:
            broken.append(f"the measured KL divergence of {kl_mean:.4f} is more than {self.max_kld:g}")
        if self.min_top1 is not None and top1_agreement is not None and top1_agreement < self.min_top1:
            broken.append(f"the measured top-1 agreement of {top1_agreement:.2%} is less than {self.min_top1:.2%}")
        if self.min_similarity is not None and (similarity is None or similarity < self.min_similarity):
            measured = (
                "no similarity could be measured"
                if similarity is None
                else f"the measured similarity of {similarity:.4f}"
            )
            broken.append(f"{measured} is less than {self.min_similarity:g}" if similarity is not None else measured)
        if broken:
            possible = self._possible(kl_mean, None if similarity is not None else top1_agreement, similarity)
            raise BudgetRefused(f"the budget is not kept: {'; '.join(broken)}", possible)

    def _possible(self, kl_mean: float | None, top1_agreement: float | None, similarity: float | None) -> str:
        reached = []
        if similarity is not None:
            reached.append(f"--min-similarity {math.floor(similarity * 1000) / 1000:g}")
        if kl_mean is not None:
            reached.append(f"--max-kld {_rounded_up(kl_mean):g}")
        if top1_agreement is not None:
            reached.append(f"--min-top1 {math.floor(top1_agreement * 1000) / 1000:g}")
        words = " or ".join(reached)
        return f"possible here: {words}; or allow more bytes" if words else "allow more bytes"


@dataclass(frozen=True)
class Agreement:
    """How the top-1 agreement follows from the KL divergence: 1 - top1 = slope * sqrt(KL).

    Logits that move by a small random amount d swap the two likeliest tokens where these lie within d: a share in proportion to
    d, while the KL divergence grows with its square.
    """

    slope: float = _USUAL_SLOPE

    @classmethod
    def fitted(cls, kl: Sequence[float], top1: Sequence[float]) -> Agreement:
        """To measured points; on the careful side, so that three in four points agree more than it says."""
        slopes = [(1 - same) / math.sqrt(loss) for loss, same in zip(kl, top1, strict=True) if loss > _LEAST_KL]
        return cls(max(float(np.quantile(slopes, 0.75)), 1e-6)) if slopes else cls()

    def kl_of(self, top1: float) -> float:
        """The KL divergence that goes with a top-1 agreement (0 … 1)."""
        return ((1 - top1) / self.slope) ** 2

    def top1_of(self, kl: float) -> float:
        """The top-1 agreement that goes with a KL divergence."""
        return max(0.0, 1 - self.slope * math.sqrt(max(kl, 0.0)))


def parse_bytes(text: str) -> int:
    """`1.1GB`, `800 MB`, `6GiB` or a plain number → bytes (powers of ten without an i). Raises UsageError."""
    found = _SIZE.fullmatch(text)
    unit = "" if found is None else found.group(2).upper()
    unit = unit + "B" if unit in ("K", "M", "G", "T") else unit
    if found is None or unit not in _UNITS:
        raise UsageError(f"'{text}' is no size", "write it like 1.1GB, 800MB or 6GiB")
    return int(float(found.group(1)) * _UNITS[unit])


def refuse_size(wanted: str, smallest: int, bits: float) -> BudgetRefused:
    """No format is small enough. `wanted` is the limit in words, `smallest` the least bytes, `bits` the bits a weight there."""
    return BudgetRefused(
        f"no choice of formats keeps {wanted}",
        f"the smallest possible is {human_bytes(smallest, exact=True)} (--target-bpw {math.ceil(bits * 100) / 100:g}), "
        "at a great loss",
    )


def error_of_similarity(similarity: float) -> float:
    """The relative squared error of hidden states that goes with a mean cosine of vectors: 1 - error / 2, which pooling exceeds."""
    return 2 * (1 - similarity)


def similarity_of_error(error: float) -> float:
    """The inverse of `error_of_similarity`."""
    return 1 - error / 2


def refuse_similarity(limit: float, best: float, needed: int | None) -> BudgetRefused:
    """As `refuse_loss`, of an encoder: `limit` and `best` are errors of its hidden states."""
    enough = "" if needed is None else f"; for this accuracy allow {human_bytes(needed, exact=True)}"
    reached = similarity_of_error(best)
    return BudgetRefused(
        f"no plan within these limits keeps a similarity of {similarity_of_error(limit):.4g}: the best is about {reached:.4g}",
        f"allow --min-similarity {math.floor(max(reached, 0) * 1000) / 1000:g}{enough}",
    )


def refuse_loss(limit: float, best: float, agreement: Agreement, needed: int | None) -> BudgetRefused:
    """The other limits leave no plan of so little loss; `needed` is the size that would."""
    enough = "" if needed is None else f"; for this accuracy allow {human_bytes(needed, exact=True)}"
    return BudgetRefused(
        f"no plan within these limits keeps a KL divergence of {limit:.4g}: the best is about {best:.4g} "
        f"(top-1 agreement about {agreement.top1_of(best):.1%})",
        f"allow --max-kld {_rounded_up(best):g}{enough}",
    )


def refuse_time(limit: float, fastest: float, workload: Workload, *, alone: bool) -> BudgetRefused:
    """No choice of formats is fast enough, or none that keeps the other limits (not `alone`)."""
    within = "" if alone else " within the other limits"
    return BudgetRefused(
        f"no choice of formats{within} takes {limit:g} ms a token for the workload {workload}",
        f"the fastest is about {fastest:.3g} ms a token; allow --token-ms {math.ceil(fastest * 10) / 10:g}, "
        "or a smaller workload",
    )


def _rounded_up(value: float) -> float:
    """To two digits, never down."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step) * step:.3g}")
