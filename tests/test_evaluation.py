"""`lab.evaluation` against networks whose robustness is known in closed form."""

import keras
import numpy as np
import pytest

from lab.evaluation import under_attack

RANDOM = np.random.default_rng(0)


def linear_network(weights, bias):
    network = keras.Sequential([keras.Input([len(weights)]), keras.layers.Dense(len(bias))])
    network.set_weights([weights, bias])
    return network


def test_a_linear_network_withstands_what_its_slopes_say():
    # Far enough from 0 and 1 that the ball is whole.
    x = np.float32(RANDOM.uniform(0.3, 0.7, [1500, 16]))
    weights, bias = np.float32(RANDOM.normal(size=[16, 3])), np.zeros(3, "float32")
    logits = x.astype("float64") @ weights
    labels = (logits + RANDOM.normal(0, 0.3, logits.shape)).argmax(axis=1)
    own = logits[np.arange(1500), labels]
    right = logits.argmax(axis=1) == labels

    def margins(epsilon):
        slopes = np.abs(weights[:, labels].T[:, :, None] - weights[None]).sum(axis=1)
        others = np.where(np.arange(3) == labels[:, None], -np.inf, logits + epsilon * slopes)
        return own - others.max(axis=1)

    found = under_attack(linear_network(weights, bias), x, labels, 0.05, queries=200)
    expected = margins(0.05) > 0
    clear = np.abs(margins(0.05)) > 1e-4
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(found["right"], right)
    np.testing.assert_array_equal(found["withstands"][clear], expected[clear])
    for name in ("robust", "FGSM", "on cross-entropy", "on margins"):
        # Nothing bends here, but cross-entropy may climb to another class than the nearest.
        allowed = {"FGSM": 2.0, "on cross-entropy": 1.0}.get(name, 0.1)
        assert found[name] == pytest.approx(100 * expected.mean(), abs=allowed)
    assert found["clean"] == pytest.approx(100 * right.mean())
    assert found["squares, 1,000 digits"] >= 100 * expected[:1000].mean()
    assert found["found by squares only"] == 0
    assert found["any change"] == 0


def test_squares_count_where_gradients_are_hidden():
    """Rounded logits have no slope, so only the attack without gradients finds anything."""
    x = np.float32(RANDOM.uniform(0.3, 0.7, [1200, 16]))
    inputs = keras.Input([16])
    first = keras.ops.sum(inputs - 0.5, axis=1, keepdims=True)
    hidden = keras.ops.round(20 * keras.ops.concatenate([first, -first], axis=1))
    network = keras.Model(inputs, hidden + 0 * first)
    labels = network(x).numpy().argmax(axis=1)
    found = under_attack(network, x, labels, 0.1, queries=200)
    few = found["squares, 1,000 digits"]
    assert few < found["on margins"] - 5
    assert found["found by squares only"] > 50
    assert found["withstands"][:1000].mean() <= few / 100
    assert found["robust"] == pytest.approx(100 * found["withstands"].mean())
