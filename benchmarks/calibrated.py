"""What calibration and planning earn back: the story model and its hostile twin, rounded to nearest, calibrated and planned.

usage: calibrated.py CHECKPOINT WORK --heldout heldout.txt[.xz] --calibration train.txt [--sequences 64] [--only TEXT ...]
Measured as in accuracy.py: 80 windows of 512 tokens of the held-out books, the second half of each scored. The twin is the same
function in float32 with the outlier channels of a large model (hostile.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from accuracy import read_text
from hostile import write_twin

from measure import aiasst, machine, print_table

TOKENS = 80 * 512
# What is measured of each checkpoint: a label, and the options of `aiasst quantize`.
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("int4 b128 to nearest", ("--recipe", "int4", "--algorithm", "mse")),
    ("int4 b128 awq", ("--recipe", "int4", "--algorithm", "awq")),
    ("int4 b128 calibrated", ("--recipe", "int4")),
    ("int4 b256 calibrated", ("--recipe", "int4-fast")),
    ("w8a8 plain", ("--recipe", "w8a8", "--algorithm", "rtn")),
    ("w8a8 scaled", ("--recipe", "w8a8")),
    ("int2 b64 calibrated", ("--recipe", "int2-experimental")),
    ("planned 5.07", ("--target-bpw", "5.07")),
    ("planned 4.84", ("--target-bpw", "4.8375")),
    ("planned 4.5", ("--target-bpw", "4.5")),
    ("planned 4.25", ("--target-bpw", "4.25")),
    # Every weight in 4 bits, and a plan of as many bytes.
    ("int4 b128 everywhere", ("--recipe", str(Path(__file__).with_name("uniform.yaml")))),
    ("planned 4.266", ("--target-bpw", "4.2664")),
    ("planned 3.0", ("--target-bpw", "3.0")),
)


def measured(folder: Path, original: Path, text: Path) -> dict[str, float]:
    """The card of `folder` on `text`."""
    command = ("eval", str(folder), "--against", str(original), "--text", str(text), "--tokens", str(TOKENS), "--json")
    shown = subprocess.run(
        [sys.executable, "-m", "aiasst", *command, "--quiet"], check=True, capture_output=True, text=True
    )
    card: dict[str, float] = json.loads(shown.stdout)
    return card


def rows_of(name: str, original: Path, work: Path, text: Path, options: list[str], only: list[str]) -> None:
    """Print one row for each way of quantizing `original`."""
    for label, how in ROWS:
        if only and not any(word in f"{name} {label}" for word in only):
            continue
        folder = work / f"{name}-{label.replace(' ', '-')}"
        took = aiasst("quantize", str(original), *how, *options, "-o", str(folder), "--force", "--quiet")
        card = measured(folder, original, text)
        print_table_row(name, label, card, took.seconds)


def print_table_row(name: str, label: str, card: dict[str, float], seconds: float) -> None:
    """One row, as soon as it is known."""
    change = card["perplexity_after"] / card["perplexity_before"] - 1
    cells = (
        name, label, f"{card['bits_per_weight']:.3f}", f"{card['perplexity_after']:.2f} ({change:+.2%})",
        f"{card['kl_mean']:.5f}", f"{card['kl_p999']:.3f}", f"{card['top1_agreement']:.2%}",
        f"{card['retained_percent']:.2f}%", f"{seconds:.0f}",
    )  # fmt: skip
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--only", nargs="+", default=[], help="rows whose name holds one of these")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print(machine(), "\n")
    columns = ("model", "how", "bits", "perplexity", "mean KL", "p99.9", "top-1", "retained", "seconds")
    print_table(columns, [])
    text = arguments.work / "heldout.txt"
    text.write_text(read_text(arguments.heldout), encoding="utf-8")
    options = ["--calibration", str(arguments.calibration), "--sequences", str(arguments.sequences)]
    with tempfile.TemporaryDirectory() as temporary:
        twin = Path(temporary) / "twin"
        write_twin(arguments.checkpoint, twin)
        for name, checkpoint in (("plain", arguments.checkpoint), ("twin", twin)):
            original = arguments.work / f"{name}-fp32"
            if not original.is_dir():
                aiasst("convert", str(checkpoint), "-o", str(original), "--quiet")
            rows_of(name, original, arguments.work, text, options, arguments.only)


if __name__ == "__main__":
    main()
