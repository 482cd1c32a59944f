"""Trained networks as files, for others to look at and to attack."""

import tempfile
from pathlib import Path

import keras


def to_bytes(network: keras.Model) -> bytes:
    """The contents of a `.keras` file of a network, which `keras.saving.load_model` reads.

    Args:
        network: built; if it is compiled, that isn't saved.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.keras")
        keras.saving.save_model(network, path, include_optimizer=False)
        return path.read_bytes()
