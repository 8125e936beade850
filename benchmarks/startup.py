"""How long `aiasst --help` takes, and what it loads: median of eleven processes.

usage: startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from measure import aiasst, print_table

HEAVY = ("torch", "transformers", "onnxruntime", "numpy", "onnx")
CODE = """import sys
sys.argv = ["aiasst", "--help"]
from aiasst.cli.app import main
try:
    main()
finally:
    sys.stderr.write(" ".join(sys.modules))
"""


def main() -> None:
    seconds = [aiasst("--help").seconds for _ in range(11)]
    ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    loaded = sorted(set(ended.stderr.split()) & set(HEAVY)) or "none"
    figures = (f"{statistics.median(seconds):.3f}", f"{min(seconds):.3f}", f"{max(seconds):.3f}")
    print_table(("aiasst --help: median s", "best", "worst", f"loaded of {', '.join(HEAVY)}"), [(*figures, loaded)])


if __name__ == "__main__":
    main()
