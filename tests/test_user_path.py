"""What users of Keras expect of a model, tried with `GradientLossModel` as the README shows it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.losses import mean_squared_error

from utils import GradientLossModel

RANDOM = np.random.default_rng(0)
X = {
    "image": RANDOM.random([300, 8]).astype("float32"),
    "camera": RANDOM.integers(3, size=[300, 1]),
}
LABELS = (X["image"][:, 0] + X["camera"][:, 0] > 1.5).astype(int)
Y = np.eye(2, dtype="float32")[LABELS]
WITHOUT_CAMERA = ({"image": 1.0, "camera": 0.0}, 1.0)


def make_model():
    """A functional model of an image and the number of the camera that took it."""
    keras.utils.set_random_seed(7)
    image, camera = keras.Input([8], name="image"), keras.Input([1], dtype="int32", name="camera")
    setting = keras.layers.Flatten()(keras.layers.Embedding(3, 4)(camera))
    joined = keras.layers.Concatenate()([image, setting])
    hidden = keras.layers.Dense(16, activation="relu")(joined)
    outputs = keras.layers.Dense(2, activation="softmax", dtype="float32")(hidden)
    return keras.Model({"image": image, "camera": camera}, outputs)


def make_trainer(optimizer="adam", loss_fn=mean_squared_error, weights=WITHOUT_CAMERA):
    trainer = GradientLossModel(make_model(), loss_fn, weights)
    trainer.compile(optimizer, metrics=["accuracy"])
    return trainer


@keras.saving.register_keras_serializable(package="tests")
def absolute_error_but_smooth(y_true, y_pred):
    return tf.reduce_mean(tf.sqrt((y_true - y_pred) ** 2 + 1.0), axis=1)


def by_hand(model, loss_fn):
    """The gradient loss without the camera's term, by tapes of its own."""
    image, camera, y = map(tf.constant, (X["image"], X["camera"], Y))
    with tf.GradientTape() as tape:
        tape.watch([image, y])
        loss = loss_fn(y, model({"image": image, "camera": camera}))
    return sum(np.mean(gradient**2) for gradient in tape.gradient(loss, [image, y]))


def test_an_integer_input_without_a_weight_is_an_error_that_names_it_and_the_mend():
    message = r"inputs\[0\]\['camera'\] has dtype int.*give it weight 0"
    with pytest.raises(TypeError, match=message):
        make_trainer(weights=None).fit(X, Y, verbose=0)


@pytest.mark.parametrize("loss_fn", [mean_squared_error, absolute_error_but_smooth])
def test_an_integer_input_of_weight_0_is_used_and_left_out_of_the_gradient(loss_fn):
    trainer = make_trainer(keras.optimizers.SGD(0.0), loss_fn)
    loss = trainer.fit(X, Y, batch_size=300, verbose=0).history["loss"][0]
    np.testing.assert_allclose(loss, by_hand(trainer.model, loss_fn), rtol=1e-5)


def test_early_stopping_checkpoints_and_tensorboard(tmp_path):
    trainer = make_trainer()
    best = tmp_path / "best.keras"
    callbacks = [
        keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(best, "val_loss", save_best_only=True),
        keras.callbacks.TensorBoard(tmp_path / "logs"),
    ]
    trainer.optimizer.learning_rate = 0.3  # So that it soon gets worse.
    history = trainer.fit(X, Y, epochs=50, validation_split=0.3, verbose=0, callbacks=callbacks)
    validation_losses = history.history["val_loss"]
    assert len(validation_losses) == np.argmin(validation_losses) + 3 < 50
    held_out = {name: array[210:] for name, array in X.items()}
    for model in (trainer, keras.models.load_model(best)):
        loss = model.evaluate(held_out, Y[210:], verbose=0, return_dict=True)["loss"]
        np.testing.assert_allclose(loss, min(validation_losses), rtol=1e-5)
    assert {path.parent.name for path in tmp_path.glob("logs/*/events*")} == {"train", "validation"}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_as_single_precision_does(policy):
    single = make_trainer().fit(X, Y, epochs=5, shuffle=False, verbose=0).history
    keras.mixed_precision.set_global_policy(policy)
    try:
        trainer = make_trainer()
        mixed = trainer.fit(X, Y, epochs=5, shuffle=False, verbose=0).history
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert trainer.model.layers[-2].compute_dtype == policy.removeprefix("mixed_")
    np.testing.assert_allclose(mixed["loss"], single["loss"], rtol=0.03)


def test_a_saved_model_comes_back_with_its_custom_loss_and_weights(tmp_path):
    trainer = make_trainer(loss_fn=absolute_error_but_smooth)
    trainer.fit(X, Y, verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.models.load_model(tmp_path / "trainer.keras")
    for model in (trainer, loaded):
        model.fit(X, Y, verbose=0, shuffle=False)
    np.testing.assert_allclose(loaded.predict(X, verbose=0), trainer.predict(X, verbose=0))


@pytest.mark.parametrize(
    "weights", [{"sample_weight": np.ones(300)}, {"class_weight": {0: 1.0, 1: 2.0}}]
)
def test_sample_and_class_weights_are_refused(weights):
    with pytest.raises(ValueError, match="takes no sample_weight or class_weight: drop it"):
        make_trainer().fit(X, Y, verbose=0, **weights)


def test_gradient_clipping_limits_the_step():
    trainer = make_trainer(keras.optimizers.SGD(1.0, global_clipnorm=1e-3))
    before = trainer.model.get_weights()
    trainer.fit(X, Y, batch_size=300, verbose=0)
    steps = [new - old for new, old in zip(trainer.model.get_weights(), before, strict=True)]
    norm = np.sqrt(sum(np.sum(step**2) for step in steps))
    np.testing.assert_allclose(norm, 1e-3, rtol=1e-2)
