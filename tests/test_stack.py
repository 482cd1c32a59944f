"""An `ObjectiveModel` on a `Stack` of batches against the same batches one by one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.losses import mean_squared_error

from lab.training import batches
from utils import GradientLossModel

RANDOM = np.random.default_rng(0)
X = RANDOM.random([210, 12]).astype("float32")
Y = np.eye(4, dtype="float32")[RANDOM.integers(4, size=210)]
SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.9)
OPTIMIZERS = {
    "schedule, clipping": lambda: keras.optimizers.Adam(SCHEDULE, global_clipnorm=1e-3),
    "average of weights": lambda: keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=3),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
}


class Batches(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.logs = []

    def on_train_batch_end(self, batch, logs):
        self.logs.append(logs)


def fit(stacked, optimizer, layer):
    keras.utils.set_random_seed(7)
    hidden = [keras.layers.Dense(16, "relu", kernel_regularizer="l2"), layer]
    layers = [keras.Input([12]), *filter(None, hidden), keras.layers.Dense(4, "softmax")]
    trainer = GradientLossModel(keras.Sequential(layers), mean_squared_error)
    trainer.compile(OPTIMIZERS[optimizer](), metrics=["accuracy"], jit_compile=True)
    order_seed = tf.Variable([3, 0])
    seen = Batches()
    history = trainer.fit(
        batches(X, Y, 50, order_seed, stacked=stacked),
        epochs=3,
        shuffle=False,
        verbose=0,
        validation_data=(X, Y),
        callbacks=[seen, keras.callbacks.LambdaCallback(lambda e, _: order_seed.assign([3, e]))],
    ).history
    values = trainer.optimizer.variables + [v for v in trainer.variables if v.dtype != "string"]
    return history, [np.array(value) for value in values], seen.logs


@pytest.mark.parametrize(
    ("optimizer", "layer"),
    [
        ("schedule, clipping", lambda: keras.layers.BatchNormalization(momentum=0.9)),
        ("average of weights", lambda: keras.layers.Dropout(0.5, seed=1)),
        ("loss scale", lambda: None),
    ],
)
def test_a_stack_equals_single_steps(optimizer, layer):
    stack, single = (fit(stacked, optimizer, layer()) for stacked in (True, False))
    assert stack[0].keys() == single[0].keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}
    for name, values in single[0].items():
        np.testing.assert_allclose(stack[0][name], values, rtol=1e-6, err_msg=name)
    for a, b in zip(stack[1], single[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    # Callbacks see a stack as one batch: what they see of it is what they see of its last step.
    assert len(stack[2]) == 3
    for logs, last in zip(stack[2], single[2][3::4], strict=True):
        for name, value in last.items():
            np.testing.assert_allclose(logs[name], value, rtol=1e-6)


def test_a_stack_is_the_batches_in_their_order():
    (stack,) = batches(X, Y, 50, [3, 0], stacked=True)
    for position, (x, y) in enumerate(batches(X, Y, 50, [3, 0])):
        np.testing.assert_array_equal(stack.x[position], x)
        np.testing.assert_array_equal(stack.y[position], y)


def test_stacks_of_other_lengths_follow_each_other():
    """TensorFlow then compiles once more, for stacks of any length."""

    def fit(trainer, length):
        trainer.fit(batches(X[:length], Y[:length], 10, stacked=True), verbose=0)

    def trainer():
        keras.utils.set_random_seed(7)
        network = keras.Sequential([keras.Input([12]), keras.layers.Dense(4, "softmax")])
        trainer = GradientLossModel(network, mean_squared_error)
        trainer.compile("sgd", jit_compile=True)
        return trainer

    one, single = trainer(), trainer()
    for length in (10, 100, 50):
        fit(one, length)
        single.fit(batches(X[:length], Y[:length], 10), verbose=0, shuffle=False)
    for a, b in zip(one.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
