"""Download MNIST-C (N. Mu & J. Gilmer, arXiv:1906.02337) from Zenodo into data/mnist_c.

The archive is verified before anything is put in place: by the checksum that Zenodo publishes for
it, and by its clean digits, `identity`, which must be the test digits of data/mnist.npz.
"""

import argparse
import hashlib
import http.client
import io
import json
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import numpy as np

from lab.data import MNIST_SHA256, ROOT

RECORD = 3239543
ARCHIVE = "mnist_c.zip"
IDENTITY_SHA256 = {"test_images": MNIST_SHA256["x_test"], "test_labels": MNIST_SHA256["y_test"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="https://zenodo.org", help="URL of the server")
    parser.add_argument("--folder", type=Path, default=ROOT / "data" / "mnist_c")
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder.exists():
        print(f"{folder} exists already; remove it to download MNIST-C again.")
        return
    try:
        download(arguments.base, folder)
    except KeyboardInterrupt:
        sys.exit("Stopped; nothing was put in place.")
    print(f"MNIST-C is in {folder}")


def download(base, folder):
    """Put the verified archive's files in place, all at once; leave nothing behind otherwise."""
    # Beside the folder, as only a move within one file system is all at once.
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as temporary:
        path = Path(temporary) / ARCHIVE
        print(f"Downloading {ARCHIVE} of Zenodo's record {RECORD}", flush=True)
        try:
            expected = published_md5(base)
            with fetch(f"{base}/records/{RECORD}/files/{ARCHIVE}") as response:
                path.write_bytes(response.read())
        except (OSError, http.client.HTTPException) as error:
            sys.exit(f"MNIST-C can't be downloaded from {base} ({error}); check the network.")
        verify_md5(path, expected)
        try:
            with zipfile.ZipFile(path) as archive:
                verify_identity(archive)
                members = [name for name in archive.namelist() if name.startswith("mnist_c/")]
                archive.extractall(temporary, members)
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            sys.exit(f"{ARCHIVE} isn't the archive of MNIST-C ({error}); nothing was put in place.")
        (Path(temporary) / "mnist_c").rename(folder)


def fetch(url):
    return urllib.request.urlopen(url, timeout=60)


def published_md5(base):
    """The MD5 of the archive as Zenodo publishes it, in hexadecimal digits."""
    url = f"{base}/api/records/{RECORD}"
    with fetch(url) as response:
        answer = response.read()
    try:
        (checksum,) = [
            file["checksum"] for file in json.loads(answer)["files"] if file["key"] == ARCHIVE
        ]
        method, digits = checksum.split(":")
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"{url} doesn't tell the checksum of {ARCHIVE} ({error!r}); try again later.")
    if method != "md5":
        sys.exit(f"{url} tells a checksum by {method}, and not the MD5 of {ARCHIVE}.")
    return digits


def verify_md5(path, expected):
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        sys.exit(
            f"{ARCHIVE} has the MD5 {found}, and Zenodo publishes {expected}: "
            "the download is incomplete or damaged; try again."
        )


def verify_identity(archive):
    """Raise ValueError unless the clean digits are MNIST's test digits."""
    for name, expected in IDENTITY_SHA256.items():
        array = np.load(io.BytesIO(archive.read(f"mnist_c/identity/{name}.npy")))
        values = array.astype("uint8")
        if not np.array_equal(values, array):
            raise ValueError(f"identity/{name}.npy doesn't hold bytes")
        if hashlib.sha256(values.tobytes()).hexdigest() != expected:
            raise ValueError(f"identity/{name}.npy differs from that of data/mnist.npz")


if __name__ == "__main__":
    main()
