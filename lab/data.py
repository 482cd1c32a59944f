"""The datasets in `data/`, verified each time that they are read. No network is used."""

import functools
import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "data"
MNIST_SHA256 = {
    "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}
FASHION_MNIST_SHA256 = {
    "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}


def load_mnist(validation: int = 0) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Load MNIST from `data/mnist.npz` and verify it.

    Args:
        validation: how many of the last training samples to split off.

    Returns:
        (x_train, y_train), (x_test, y_test), and (x_validation, y_validation) as a third pair if
        `validation` isn't 0. Images: float32 in [0, 1], shape (n, 784). Labels: int64, shape
        (n,). 60,000 samples for training and 10,000 for testing.

    Raises:
        ValueError: if the file is missing or damaged, or `validation` isn't in [0, 60000).
    """
    return _load("mnist.npz", MNIST_SHA256, validation)


def load_fashion_mnist(validation: int = 0) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Load Fashion-MNIST from `data/fashion_mnist.npz`, as `load_mnist` does MNIST."""
    return _load("fashion_mnist.npz", FASHION_MNIST_SHA256, validation)


def _load(file, checksums, validation):
    # Checksums are a dict, which functools can't cache by.
    arrays = _read(FOLDER / file, tuple(checksums.items()))

    def pair(split):
        images = arrays[f"x_{split}"].reshape(-1, 784).astype("float32") / 255
        return images, arrays[f"y_{split}"].astype("int64")

    (x, y), test = pair("train"), pair("test")
    if validation not in range(len(x)):
        raise ValueError(f"validation must be an integer in [0, {len(x)}), not {validation!r}.")
    if validation == 0:
        return (x, y), test
    return (x[:-validation], y[:-validation]), test, (x[-validation:], y[-validation:])


@functools.cache
def _read(path, checksums):
    """The verified arrays as they are in the file; once in a process, as many runs load them."""
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name, _ in checksums}
        for name, expected in checksums:
            if hashlib.sha256(np.ascontiguousarray(arrays[name])).hexdigest() != expected:
                raise ValueError(f"{name} has the wrong checksum")
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        mend = f"restore it with `git checkout -- data/{path.name}`."
        raise ValueError(f"The dataset {path} is unusable ({error}); {mend}") from error
    return arrays
