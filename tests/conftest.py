"""Settings of every test run."""

import os

# Before torch loads its OpenMP runtime: threads that wait give the processor up. Otherwise small operations take up to
# 50 times as long on a machine that is busy with something else too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
