"""Networks as files: they come back as they were, and a changed weight is noticed."""

import hashlib

import keras
import numpy as np
import pytest

from lab import networks


@pytest.fixture
def network():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3, "relu"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input([3]), *layers])


def test_a_network_comes_back_from_its_file(network, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "RESULTS", tmp_path)
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "01_test_0.keras").write_bytes(networks.to_bytes(network))
    loaded = networks.load("01_test_0")
    x = np.random.default_rng(0).random((5, 3), "float32")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), network.predict(x, verbose=0))
    with pytest.raises(
        FileNotFoundError, match=r"no network .*01_test_1.keras; `make reproduce NB=01`"
    ):
        networks.load("01_test_1")


def test_a_checksum_is_of_all_weights_in_their_order(network):
    weights = network.get_weights()
    expected = hashlib.sha256(b"".join(np.ascontiguousarray(w).data for w in weights)).hexdigest()
    before = networks.checksum(network)
    assert before == f"sha256-{expected[:16]}"
    swapped = [weights[2], weights[3], weights[0], weights[1]]
    nudged = [*weights[:3], np.nextafter(weights[3], np.float32(1))]
    for changed in (swapped, nudged):
        network.set_weights(changed)
        assert networks.checksum(network) != before
