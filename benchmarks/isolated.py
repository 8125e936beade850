"""Run a command; its seconds and peak memory come as one JSON line at the end of stderr. Knows nothing and imports nothing large.

usage: isolated.py COMMAND ...

A child inherits the peak of the process that starts it (Linux carries it over exec), so a script that has read a model would
report its own memory as that of every small tool. This file stands between the two.
"""

import json
import os
import subprocess
import sys
import time


def main() -> int:
    began = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    figures = {"seconds": time.perf_counter() - began, "peak_bytes": usage.ru_maxrss * 1024}
    print("\n" + json.dumps(figures), file=sys.stderr)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
