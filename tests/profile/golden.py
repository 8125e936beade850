"""What is decided and predicted for each device of the library, rounded, so that a change is seen. Writes the file when it is run.

usage: python -m tests.profile.golden
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aiasst.profile import library
from aiasst.profile.advise import Advice, advise_on, described_machine, known_models
from aiasst.profile.decide import decide

GOLDEN = Path(__file__).with_name("golden.json")
MODELS = ("Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.1-8B-Instruct")


def golden_of(name: str) -> dict[str, Any]:
    """Decisions, and advice on three models."""
    hardware = library.hardware_of(library.describe(name))
    decisions = decide(hardware)
    machine = described_machine(name)
    shapes = {known.name: known.shape for known in known_models()}
    return {
        "decisions": {
            "provider": decisions.provider.value,
            "threads": decisions.threads.value,
            "affinity": None if decisions.affinity.value is None else list(decisions.affinity.value),
            "slots": decisions.slots.value,
            "memory_ceiling_bytes": decisions.memory_ceiling_bytes.value,
        },
        "advice": {model: _advice(advise_on(model, shapes[model], machine)) for model in MODELS},
    }


def _advice(advice: Advice) -> dict[str, Any]:
    best = advice.best
    if best is None:
        return {"format": None}
    return {
        "format": best.form.name,
        "resident_megabytes": round(best.resident.value / 1e6),
        "first_token_seconds": _rounded(best.first_token.value),
        "decode_1": [
            _rounded(v) for v in (best.decode_rate(1).low, best.decode_rate(1).value, best.decode_rate(1).high)
        ],
        "decode_8": _rounded(best.decode_rate(8).value),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({name: golden_of(name) for name in library.names()}, indent=1) + "\n", encoding="utf-8"
    )
