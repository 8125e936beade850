"""Predictions as JSON, with names that stay. Computes nothing that it was not given.

predicted   prefill_tokens_per_second · decode_tokens_per_second {"1": …, "8": …} · resident_bytes · fits
            low, high: the same four, as small and as large as they may be
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiasst.profile.advise import Advice, Machine, least_bandwidth
from aiasst.profile.predict import Prediction
from aiasst.profile.ranges import Range
from aiasst.profile.shapes import ModelShape


def predicted(prediction: Prediction) -> dict[str, Any]:
    """The stable part."""
    return _figures(prediction, lambda r: r.value, fits=prediction.fits) | {
        "low": _figures(prediction, lambda r: r.low, fits=prediction.surely_fits),
        "high": _figures(prediction, lambda r: r.high, fits=prediction.may_fit),
    }


def of_machine(machine: Machine) -> dict[str, Any]:
    """What was advised for."""
    read = machine.speeds.read
    return {
        "title": machine.title,
        "measured": machine.speeds.measured,
        "provider": "cpu",
        "threads": machine.threads,
        "memory_ceiling_bytes": machine.ceiling_bytes,
        "bandwidth_gigabytes_per_second": {
            "value": round(read.value / 1e9, 1), "low": round(read.low / 1e9, 1), "high": round(read.high / 1e9, 1)
        },
        "note": machine.speeds.note,
    }  # fmt: skip


def of_advice(advice: Advice, machine: Machine, speed: float) -> dict[str, Any]:
    """One model on one machine: every form, and which to take."""
    best = advice.best
    first = advice.predictions[0] if advice.predictions else None
    return {
        "model": advice.name,
        "parameters": advice.shape.parameters,
        "context": first.workload.context if first else None,
        "prompt": first.workload.prompt if first else None,
        "formats": [_form(prediction, advice.shape, speed) for prediction in advice.predictions],
        "recommended": best.form.name if best else None,
        "reason": advice.reason,
        "predicted": predicted(best) if best else None,
        "with_graphics_card": _with_card(advice, machine),
    }


def _form(prediction: Prediction, shape: ModelShape, speed: float) -> dict[str, Any]:
    least = least_bandwidth(shape, prediction.form, speed)
    return {
        "format": prediction.form.name,
        "disk_bytes": round(prediction.form.disk_bytes),
        "cache_bytes_per_sequence": prediction.cache_bytes,
        "first_token_seconds": _three(prediction.first_token, 4),
        "least_bandwidth_gigabytes_per_second": round(least / 1e9, 2),
        "decode_tokens_per_second_at_full_context": {
            str(count): _three(prediction.full_rate(count), 2) for count, _ in prediction.full_steps
        },
        "predicted": predicted(prediction),
    }


def _with_card(advice: Advice, machine: Machine) -> dict[str, Any] | None:
    if machine.graphics is None:
        return None
    found = advice.on_card
    return {
        "card": machine.graphics.name,
        "note": "of a runtime that uses the card; this program runs on the CPU",
        "format": found.form.name if found else None,
        "predicted": predicted(found) if found else None,
    }


def _figures(prediction: Prediction, pick: Callable[[Range], float], *, fits: bool) -> dict[str, Any]:
    return {
        "prefill_tokens_per_second": round(pick(prediction.prefill_rate), 2),
        "decode_tokens_per_second": {
            str(count): round(pick(prediction.decode_rate(count)), 2) for count, _ in prediction.steps
        },
        "resident_bytes": round(pick(prediction.resident)),
        "fits": fits,
    }


def _three(found: Range, digits: int) -> dict[str, float]:
    return {
        "value": round(found.value, digits), "low": round(found.low, digits), "high": round(found.high, digits)
    }  # fmt: skip
