"""Settings of every notebook kernel of .venv; scripts/install.sh puts this file in its place."""

import os

# TensorFlow's start-up lines name the machine's processor and drivers, and bypass Python. They
# would stand in red in the notebooks. Warnings and errors of Python are shown as ever.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
c = get_config()  # noqa: F821
c.IPKernelApp.capture_fd_output = False
