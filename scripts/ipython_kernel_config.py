"""Settings of every notebook kernel of .venv; scripts/install.sh puts this file in its place."""

import faulthandler
import os
import sys
from pathlib import Path

# TensorFlow's start-up lines name the machine's processor and drivers, and bypass Python. They
# would stand in red in the notebooks. A crash's last words go there, too, so they are kept.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
log = Path(os.environ.get("KERNEL_LOG") or Path(sys.prefix).parent / "runs" / "kernel.log")
try:
    log.parent.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)
except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
faulthandler.enable(all_threads=False)  # A crash logs the lines of Python that led to it.
c = get_config()  # noqa: F821
c.IPKernelApp.capture_fd_output = False
