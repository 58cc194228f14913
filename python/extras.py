"""The packages that train.py and study.py need besides torch. Imported before they are, this ends the program with the
command that installs them: at its start, and not where its pictures are drawn, after hours."""

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("toast_kernels", "PIL", "fontTools", "matplotlib", "numpy", "rich", "scipy")

if missing := [name for name in PACKAGES if find_spec(name) is None]:
    root = Path(__file__).resolve().parent.parent
    sys.exit(
        f"{Path(sys.argv[0]).name}: error: cannot import {', '.join(missing)}, of {sys.executable}: "
        f"pip install '{root}[train]' installs all that is needed (make train and make study do it themselves)"
    )
