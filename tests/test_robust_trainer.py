"""The recipe: the gradient loss for inputs that may change by up to ε."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from lab.attacks import pgd
from utils import GradientLossModel, robust_trainer, root_of_cross_entropy

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(3, size=200)
Y = np.eye(3, dtype="float32")[LABELS]
X = np.float32(np.tile(Y, 2) + RANDOM.normal(0, 0.3, [200, 6]))


def make_network(inputs=6, outputs=3, activation=None):
    keras.utils.set_random_seed(7)
    hidden = keras.layers.Dense(16, activation="gelu")
    output = keras.layers.Dense(outputs, activation=activation)
    return keras.Sequential([keras.Input([inputs]), hidden, output])


def test_root_of_cross_entropy_by_hand():
    logits, y = RANDOM.normal(size=[5, 3]), RANDOM.random([5, 3])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = [
        sum(y_k**2 * (0.01 - np.log(p_k)) ** 0.5 / 2 for y_k, p_k in zip(*row, strict=True))
        for row in zip(y, p, strict=True)
    ]
    assert root_of_cross_entropy(y, logits).numpy() == pytest.approx(expected)


@pytest.mark.parametrize(("norm", "order"), [("inf", 1), ("2", 2)])
def test_objective_is_that_of_the_docstring(norm, order):
    model, epsilon = make_network(), 0.3
    trainer = robust_trainer(model, epsilon, norm)
    # Central differences of log H' in float64, by NumPy alone.
    weights = [w.astype("float64") for w in model.get_weights()]

    def shifted_entropy(x):
        hidden = x @ weights[0] + weights[1]
        hidden = hidden * (1 + tf.math.erf(hidden / 2**0.5).numpy()) / 2
        logits = hidden @ weights[2] + weights[3]
        return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), LABELS] + 0.01

    steps = 1e-5 * np.eye(6)
    ahead, behind = (
        np.stack([np.log(shifted_entropy(X + sign * step)) for step in steps], axis=1)
        for sign in (1, -1)
    )
    slope = np.linalg.norm((ahead - behind) / 2e-5, ord=order, axis=1)
    expected = np.mean(shifted_entropy(X) / 3 * (1 + epsilon**2 * slope**2))
    loss = trainer.objective(model, tf.constant(X), tf.constant(Y))
    assert loss.numpy() == pytest.approx(expected, rel=1e-4)


def test_it_learns_what_changes_of_epsilon_cannot_undo():
    """One element is right nine times in ten by a wide margin, 100 always, by less than ε."""
    random = np.random.default_rng(1)
    labels = random.integers(2, size=500)
    wide = np.where(random.random(500) < 0.9, labels, 1 - labels)
    narrow = 0.5 + 0.02 * (2 * labels - 1)[:, None] + random.normal(0, 0.01, [500, 100])
    x = np.float32(np.column_stack([0.2 + 0.6 * wide, narrow]))
    robust = {}
    for epsilon in (1e-4, 0.1):
        model = make_network(101, 2)
        trainer = robust_trainer(model, epsilon)
        trainer.compile(keras.optimizers.Adam(0.01))
        trainer.fit(x, np.eye(2, dtype="float32")[labels], batch_size=50, epochs=20, verbose=0)
        robust[epsilon] = pgd(model, x, labels, 0.1).mean()
    assert robust[1e-4] < 0.1
    assert robust[0.1] > 0.95 * np.mean(wide == labels)


def test_images_and_saving(tmp_path):
    layers = [keras.Input([4, 4, 1]), keras.layers.Flatten(), keras.layers.Dense(3)]
    trainer = robust_trainer(keras.Sequential(layers), 0.1)
    trainer.compile("adam")
    x = RANDOM.random([20, 4, 4, 1]).astype("float32")
    trainer.fit(x, Y[:20], verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.models.load_model(tmp_path / "trainer.keras")
    assert isinstance(loaded, GradientLossModel)
    batch = tf.constant(x), tf.constant(Y[:20])
    losses = [t.objective(t.model, *batch).numpy() for t in (trainer, loaded)]
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize(
    ("model", "epsilon", "norm", "message"),
    [
        (make_network(), 0, "inf", "epsilon"),
        (make_network(), np.nan, "inf", "epsilon"),
        (make_network(), 0.1, "1", "norm"),
        (make_network(outputs=1), 0.1, "inf", "two classes"),
        (make_network(activation="softmax"), 0.1, "inf", "softmax"),
        (
            keras.Sequential([keras.Input([None, 2]), keras.layers.GlobalMaxPooling1D()]),
            0.1,
            "inf",
            "known shape",
        ),
        (
            keras.Model(inputs := [keras.Input([2]), keras.Input([2])], keras.layers.Add()(inputs)),
            0.1,
            "inf",
            "one input",
        ),
    ],
)
def test_what_the_recipe_is_not_for_is_named(model, epsilon, norm, message):
    with pytest.raises(ValueError, match=message):
        robust_trainer(model, epsilon, norm)
