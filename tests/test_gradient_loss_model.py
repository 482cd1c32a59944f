"""`GradientLossModel` against the published loop and against the model that it trains."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.losses import mean_squared_error

from utils import GradientLossModel, get_gradient_loss_fn

RANDOM = np.random.default_rng(0)
X = RANDOM.random([300, 12]).astype("float32")
LABELS = RANDOM.integers(4, size=300)
Y = np.eye(4, dtype="float32")[LABELS]


def make_network(*extra_layers, **options):
    keras.utils.set_random_seed(7)
    return keras.Sequential(
        [
            keras.Input([12]),
            keras.layers.Dense(16, activation="relu", **options),
            *extra_layers,
            keras.layers.Dense(4, activation="softmax"),
        ]
    )


def make_trainer(model=None, loss_fn=mean_squared_error, weights=None, norms=None, **options):
    trainer = GradientLossModel(model or make_network(), loss_fn, weights, norms)
    trainer.compile("adam", metrics=["accuracy"], **options)
    return trainer


def published_loop(model, steps):
    """The step of the published notebook, written out: its own tapes, no XLA, no Keras fit."""
    optimizer = keras.optimizers.Adam()
    losses = []
    for step in range(steps):
        x, y = tf.constant(X[step * 100 :][:100]), tf.constant(Y[step * 100 :][:100])
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch([x, y])
                loss = tf.reduce_mean((y - model(x)) ** 2, axis=1)
            gradient_x, gradient_y = inner.gradient(loss, [x, y])
            total = tf.reduce_mean(gradient_x**2) + tf.reduce_mean(gradient_y**2)
        gradients = outer.gradient(total, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        losses.append(total.numpy())
    return losses


@pytest.mark.parametrize("steps", [1, 3])
def test_fit_equals_the_published_loop(steps):
    expected = make_network()
    losses = published_loop(expected, steps)
    model = make_network()
    history = make_trainer(model, steps_per_execution=steps).fit(
        X[: 100 * steps], Y[: 100 * steps], batch_size=100, shuffle=False, verbose=0
    )
    for actual, weight in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(actual, weight, atol=1e-6)
    np.testing.assert_allclose(history.history["loss"], np.mean(losses), rtol=1e-5)


def test_loss_of_an_epoch_is_the_mean_over_samples_though_the_last_batch_is_smaller():
    model = make_network()
    trainer = GradientLossModel(model, mean_squared_error)
    trainer.compile(keras.optimizers.SGD(0.0))
    loss = trainer.fit(X, Y, batch_size=128, verbose=0).history["loss"]
    expected = get_gradient_loss_fn(lambda z: mean_squared_error(z[1], model(z[0])))((X, Y))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_weights_reach_the_gradient_loss():
    model = make_network()
    trainer = GradientLossModel(model, mean_squared_error, (5.0, 0.0))
    trainer.compile(keras.optimizers.SGD(0.0))
    loss = trainer.fit(X, Y, batch_size=300, verbose=0).history["loss"]
    x_term = get_gradient_loss_fn(lambda x: mean_squared_error(Y, model(x)))(X)
    np.testing.assert_allclose(loss, 5 * x_term, rtol=1e-5)


def test_predict_and_evaluate_equal_those_of_the_model():
    model = make_network()
    trainer = make_trainer(model)
    trainer.fit(X, Y, verbose=0)
    model.compile(loss=mean_squared_error, metrics=["accuracy"])
    np.testing.assert_array_equal(trainer.predict(X, verbose=0), model.predict(X, verbose=0))
    evaluated = trainer.evaluate(X, Y, verbose=0, return_dict=True)
    assert evaluated == model.evaluate(X, Y, verbose=0, return_dict=True)


def test_validation_metrics_and_callbacks_work(tmp_path):
    trainer = make_trainer()
    history = trainer.fit(
        X,
        Y,
        epochs=9,
        verbose=0,
        validation_split=0.2,
        callbacks=[
            keras.callbacks.EarlyStopping("val_loss", min_delta=1.0, patience=2),
            keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True),
        ],
    ).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert len(history["loss"]) == 3  # The first epoch counts as better than none.
    assert (tmp_path / "best.weights.h5").exists()
    validation = trainer.evaluate(X[240:], Y[240:], verbose=0, return_dict=True)
    np.testing.assert_allclose(validation["accuracy"], history["val_accuracy"][-1])
    np.testing.assert_allclose(validation["loss"], history["val_loss"][-1], rtol=1e-5)


def test_norms_reach_the_gradient_loss():
    model = make_network()
    trainer = GradientLossModel(model, mean_squared_error, (5.0, 1.0), (1, 2))
    trainer.compile(keras.optimizers.SGD(0.0))
    loss = trainer.fit(X, Y, batch_size=300, verbose=0).history["loss"]
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        p = model(x)
        losses = tf.reduce_mean((Y - p) ** 2, axis=1)
    x_term = np.mean(np.mean(np.abs(tape.gradient(losses, x)), axis=1) ** 2)
    y_term = np.mean((2 / 4 * (Y - p.numpy())) ** 2)
    np.testing.assert_allclose(loss, 5 * x_term + y_term, rtol=1e-5)


@pytest.mark.parametrize("kind", [tf.Variable, keras.Variable])
def test_a_callback_ramps_a_weight_which_is_not_trained(kind):
    weight = kind(0.0)
    ramp = keras.callbacks.LambdaCallback(lambda epoch, logs: weight.assign(3.0 * epoch))
    trainer = make_trainer(weights=(weight, 0.0), jit_compile=True)
    history = trainer.fit(X, Y, epochs=2, verbose=0, callbacks=[ramp]).history
    assert history["loss"][0] == 0
    assert history["loss"][1] > 0
    assert float(weight.numpy()) == 3
    assert len(trainer.trainable_variables) == 4


@pytest.mark.parametrize("weight", [2.0, keras.Variable(2.0)])
@pytest.mark.parametrize("norms", [None, (1, 2)])
def test_saved_model_predicts_and_trains_on_as_before(tmp_path, weight, norms):
    trainer = make_trainer(weights=(weight, 1.0), norms=norms)
    trainer.fit(X, Y, verbose=0, shuffle=False)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.models.load_model(tmp_path / "trainer.keras")
    assert isinstance(loaded, GradientLossModel)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), trainer.predict(X, verbose=0))
    for model in (trainer, loaded):
        model.fit(X, Y, verbose=0, shuffle=False)
    np.testing.assert_allclose(loaded.predict(X, verbose=0), trainer.predict(X, verbose=0))


def test_training_lowers_the_loss_and_learns():
    direction = RANDOM.normal(size=[12, 4])
    y = np.eye(4, dtype="float32")[np.argmax(X @ direction, axis=1)]
    trainer = make_trainer()
    trainer.optimizer.learning_rate = 0.01
    before = float(trainer.objective(trainer.model, tf.constant(X), tf.constant(y)))
    x, y = np.tile(X, [20, 1]), np.tile(y, [20, 1])  # Keras takes its time for each epoch.
    history = trainer.fit(x, y, epochs=6, verbose=0).history
    assert history["loss"][-1] < before / 2
    assert history["accuracy"][-1] > 0.8


def test_regularisation_losses_of_the_model_are_added():
    model = make_network(kernel_regularizer=keras.regularizers.L2(0.1))
    plain = make_network()
    losses = [
        make_trainer(network).fit(X, Y, batch_size=300, verbose=0).history["loss"][0]
        for network in (model, plain)
    ]
    penalty = 0.1 * np.sum(make_network().get_weights()[0] ** 2)
    np.testing.assert_allclose(losses[0] - losses[1], penalty, rtol=1e-5)


def test_dropout_is_active_in_training_only():
    trainer = GradientLossModel(make_network(keras.layers.Dropout(0.5)), mean_squared_error)
    trainer.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"])
    first, second = (trainer.fit(X, Y, batch_size=300, verbose=0).history for _ in range(2))
    assert first["loss"] != second["loss"]
    assert first["accuracy"] == second["accuracy"]


def test_batch_normalisation_is_updated_once_in_a_step():
    normalisation = keras.layers.BatchNormalization(momentum=0.9)
    model = make_network(normalisation)
    hidden = keras.Sequential(model.layers[:1])(X)
    make_trainer(model).fit(X, Y, batch_size=300, verbose=0)
    expected = 0.1 * np.mean(hidden, axis=0)
    np.testing.assert_allclose(normalisation.moving_mean, expected, rtol=1e-4, atol=1e-6)


def test_functional_model_with_two_inputs():
    keras.utils.set_random_seed(7)
    inputs = {"a": keras.Input([5], name="a"), "b": keras.Input([7], name="b")}
    joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(joined))
    x = {"a": X[:, :5], "b": X[:, 5:]}
    trainer = make_trainer(model, weights=({"a": 1.0, "b": 0.0}, 1.0))
    assert np.isfinite(trainer.fit(x, Y, verbose=0).history["loss"][0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("network", mean_squared_error), TypeError, "keras.Model, not str"),
        ((make_network(), "mse"), TypeError, "mean_squared_error, not 'mse'"),
        ((make_network(), mean_squared_error, (1.0, -1.0)), ValueError, r"inputs\[1\] is -1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        GradientLossModel(*arguments)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"x": X}, ValueError, "pass y"),
        ({"x": X, "y": LABELS}, TypeError, r"inputs\[1\] has dtype int64.*one-hot"),
        ({"x": X, "y": Y, "sample_weight": np.ones(300)}, ValueError, "sample_weight"),
        ({"x": X, "y": Y, "class_weight": {0: 1.0, 1: 2.0, 2: 1.0, 3: 1.0}}, ValueError, "class_w"),
    ],
)
def test_bad_data_is_named(data, error, message):
    with pytest.raises(error, match=message):
        make_trainer().fit(**data, verbose=0)
