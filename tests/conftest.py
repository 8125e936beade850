"""What holds for every test: one thread a process, since the models are tiny and threads would only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
