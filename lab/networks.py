"""Trained networks as files, for others to look at and to attack."""

import tempfile
from pathlib import Path

import keras


def to_bytes(network: keras.Model) -> bytes:
    """The contents of a `.keras` file of a network, which `keras.saving.load_model` reads.

    Args:
        network: built, `keras.Sequential` or functional. An optimizer, if it has one, isn't saved.
    """
    without_optimizer = keras.models.clone_model(network)
    without_optimizer.set_weights(network.get_weights())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.keras")
        keras.saving.save_model(without_optimizer, path)
        return path.read_bytes()
