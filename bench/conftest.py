"""Lets the benchmarks import the training program's parts, and keeps the memory profiler quiet."""

import os
import sys
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

sys.path.append(str(Path(__file__).parent.parent / "python"))
