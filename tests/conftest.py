"""What holds for every test: one thread a process, since the models are tiny and threads would only wait for each other.

Property tests have no deadline: a machine that stalls for a second says nothing about the law.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
