"""The dataset and its batches, good and bad."""

import hashlib
import re

import numpy as np
import pytest
import tensorflow as tf

from lab import data
from lab.training import batches

LOADERS = {"mnist.npz": data.load_mnist, "fashion_mnist.npz": data.load_fashion_mnist}


@pytest.fixture(params=LOADERS)
def file(request):
    return request.param


@pytest.fixture
def load(file):
    return LOADERS[file]


@pytest.fixture
def raw(file):
    with np.load(data.FOLDER / file) as archive:
        return dict(archive)


def test_images_are_those_of_the_file_as_floats(load, raw):
    (x_train, y_train), (x_test, y_test) = load()
    for x, y, split in ((x_train, y_train, "train"), (x_test, y_test, "test")):
        assert x.dtype == np.float32
        assert np.issubdtype(y.dtype, np.integer)
        np.testing.assert_array_equal(np.rint(x * 255), raw[f"x_{split}"].reshape(len(x), 784))
        np.testing.assert_array_equal(y, raw[f"y_{split}"])
    assert (x_train.min(), x_train.max()) == (0, 1)
    assert (len(x_train), len(x_test)) == (60_000, 10_000)


def test_classes_are_balanced_as_published():
    """Fashion-MNIST has equally many images of each class, MNIST has not."""
    (_, y_train), (_, y_test) = data.load_fashion_mnist()
    assert np.bincount(y_train).tolist() == [6000] * 10
    assert np.bincount(y_test).tolist() == [1000] * 10
    assert len(set(np.bincount(data.load_mnist()[0][1]))) == 10


def test_validation_is_the_end_of_the_training_data(load):
    (x_all, y_all), test_all = load()
    (x, y), test, (x_validation, y_validation) = load(validation=5000)
    np.testing.assert_array_equal(x, x_all[:55_000])
    np.testing.assert_array_equal(y, y_all[:55_000])
    np.testing.assert_array_equal(x_validation, x_all[55_000:])
    np.testing.assert_array_equal(y_validation, y_all[55_000:])
    np.testing.assert_array_equal(test[0], test_all[0])


@pytest.mark.parametrize("validation", [-1, 60_000, 0.5, None])
def test_bad_validation_is_named(load, validation):
    with pytest.raises(ValueError, match=f"validation must be .*not {validation}"):
        load(validation)


def test_readme_of_the_data_lists_the_checksums(file, raw):
    text = (data.FOLDER / "README.md").read_text()
    for name, array in raw.items():
        assert hashlib.sha256(array.tobytes()).hexdigest() in text, name
    assert hashlib.sha256((data.FOLDER / file).read_bytes()).hexdigest() in text


def write_nothing(path, raw):
    pass


def write_truncated(path, raw):
    path.write_bytes((data.FOLDER / path.name).read_bytes()[:1_000_000])


def write_damaged(path, raw):
    damaged = bytearray((data.FOLDER / path.name).read_bytes())
    damaged[5_000_000:5_000_100] = bytes(100)
    path.write_bytes(damaged)


def write_other_file(path, raw):
    path.write_text("not an archive")


def write_without_labels(path, raw):
    del raw["y_test"]
    np.savez(path, **raw)


def write_one_pixel_changed(path, raw):
    raw["x_test"][5, 5, 5] += 1
    np.savez(path, **raw)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_nothing, "No such file"),
        (write_truncated, "is unusable"),
        (write_damaged, "is unusable"),
        (write_other_file, "is unusable"),
        (write_without_labels, "is unusable.*y_test"),
        (write_one_pixel_changed, "x_test has the wrong checksum"),
    ],
)
def test_bad_file_is_named_with_the_mend(write, message, file, load, raw, tmp_path, monkeypatch):
    path = tmp_path / file
    write(path, raw)
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=f"(?s){message}.*git checkout -- data/{file}") as error:
        load()
    assert re.search(re.escape(str(path)), str(error.value))


X = np.arange(60, dtype="float32").reshape(20, 3)
Y = np.arange(20)


def read(dataset):
    return [tuple(map(np.array, batch)) for batch in dataset]


def test_batches_keep_the_order():
    dataset = batches(X, Y, 5)
    assert len(dataset) == 4
    for number, (x, y) in enumerate(read(dataset)):
        np.testing.assert_array_equal(x, X[5 * number : 5 * number + 5])
        np.testing.assert_array_equal(y, Y[5 * number : 5 * number + 5])


def test_batches_reshuffle_everything_by_the_order_seed():
    order_seed = tf.Variable([3, 0])
    dataset = batches(X, Y, 5, order_seed)
    assert len(dataset) == 4
    orders = []
    for epoch in range(3):
        order_seed.assign([3, epoch])
        pairs = read(dataset)
        orders.append(np.concatenate([y for _, y in pairs]))
        np.testing.assert_array_equal(np.sort(orders[-1]), Y)
        np.testing.assert_array_equal(np.concatenate([x for x, _ in pairs]), X[orders[-1]])
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[1], orders[2])
    again = np.concatenate([y for _, y in read(batches(X, Y, 5, [3, 0]))])
    np.testing.assert_array_equal(again, orders[0])


def test_batches_in_random_order_leave_out_what_fills_no_batch():
    labels = np.concatenate([y for _, y in read(batches(X, Y, 7, [3, 0]))])
    assert len(labels) == len(set(labels)) == 14


@pytest.mark.parametrize("order_seed", [None, [0, 0]])
@pytest.mark.parametrize("size", [0, -5, 21])
def test_bad_batch_size_is_named(size, order_seed):
    with pytest.raises(ValueError, match=f"batch_size is {size}; make it 1 to 20"):
        batches(X, Y, size, order_seed)


def test_batch_size_must_divide_the_samples_that_keep_their_order():
    with pytest.raises(ValueError, match="batch_size 7 doesn't divide the 20 samples"):
        batches(X, Y, 7)


def test_batches_of_different_lengths_are_named():
    with pytest.raises(ValueError, match="x has 20 samples and y has 19"):
        batches(X, Y[:19], 5)
