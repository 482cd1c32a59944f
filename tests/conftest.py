"""What all tests share."""

import os
import tempfile


def pytest_configure():
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # The notebooks that nbval runs again must not touch the figures of the repository.
    os.environ["RUN_FOLDER"] = tempfile.mkdtemp(prefix="gradient-loss-run-")
