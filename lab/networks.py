"""Trained networks as files, for others to look at and to attack."""

import hashlib
import tempfile
from pathlib import Path

import keras

from lab.experiments import RESULTS


def to_bytes(network: keras.Model) -> bytes:
    """The contents of a `.keras` file of a network, which `keras.saving.load_model` reads.

    Args:
        network: built, `keras.Sequential` or functional.
    """
    without_optimizer = keras.models.clone_model(network)
    without_optimizer.set_weights(network.get_weights())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.keras")
        keras.saving.save_model(without_optimizer, path)
        return path.read_bytes()


def load(name: str) -> keras.Model:
    """The network in `results/networks/NAME.keras`, which returns logits.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = RESULTS / "networks" / f"{name}.keras"
    if not path.exists():
        raise FileNotFoundError(
            f"There is no network {path}; `make reproduce NB={name[:2]}` trains it."
        )
    return keras.saving.load_model(path)


def checksum(network: keras.Model) -> str:
    """A short SHA-256 of the weights of a network, in their order, such as "sha256-0f3a…"."""
    weights = b"".join(weight.tobytes() for weight in network.get_weights())
    return f"sha256-{hashlib.sha256(weights).hexdigest()[:16]}"
