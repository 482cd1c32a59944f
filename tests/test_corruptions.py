"""The corruptions of MNIST-C, against independent computations; its loader and its download."""

import functools
import hashlib
import importlib.util
import itertools
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from skimage import feature, transform
from skimage.filters import gaussian

from lab import corruptions
from lab.corruptions import CORRUPTIONS, corrupt, corrupted_test_digits, load_mnist_c
from lab.data import MNIST_SHA256, load_mnist

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "download_mnist_c.py"
WITHOUT_CHANCE = {"scale", "brightness", "stripe", "canny_edges"}
# Of the first 2,000 test digits, as the benchmark's own code corrupts them.
MEAN_PIXEL = {
    "shot_noise": 0.100,
    "impulse_noise": 0.186,
    "glass_blur": 0.120,
    "motion_blur": 0.120,
    "shear": 0.130,
    "scale": 0.059,
    "rotate": 0.120,
    "brightness": 0.572,
    "translate": 0.120,
    "stripe": 0.604,
    "fog": 0.400,
    "spatter": 0.137,
    "dotted_line": 0.145,
    "zigzag": 0.168,
    "canny_edges": 0.107,
}


@pytest.fixture(scope="module")
def digits():
    return load_mnist()[1][0][:60]


def generator_of(name, seed=0):
    return np.random.default_rng([seed, CORRUPTIONS.index(name)])


def squares(images):
    return images.reshape(-1, 28, 28)


def white_pixel(n, row=14, column=14):
    image = np.zeros([n, 28, 28], "float32")
    image[:, row, column] = 1
    return image.reshape(n, -1)


def signs_of(name, shape, seed=0):
    return generator_of(name, seed).choice([-1, 1], shape)


def assert_cut_to_bytes(found, expected):
    """Each number is the expected one, cut off to a multiple of 1/255."""
    cut_off = 255 * (np.asarray(expected) - found)
    assert -0.01 < cut_off.min() <= cut_off.max() < 1.01


def centres_of_mass(images):
    """The row and the column, each of shape (n,)."""
    images = squares(images)
    mass = images.sum(axis=(1, 2))
    rows = (images.sum(axis=2) * np.arange(28)).sum(axis=1) / mass
    return rows, (images.sum(axis=1) * np.arange(28)).sum(axis=1) / mass


def test_the_corruptions_are_those_of_mnist_c():
    assert (
        " ".join(CORRUPTIONS)
        == "shot_noise impulse_noise glass_blur motion_blur shear scale rotate brightness "
        "translate stripe fog spatter dotted_line zigzag canny_edges"
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_result_is_of_bytes_and_repeats_by_the_seed(name, digits):
    before = digits.copy()
    corrupted = corrupt(name, digits, seed=1)
    assert corrupted.dtype == np.float32
    assert corrupted.shape == digits.shape
    levels = np.arange(256, dtype="float32") / 255
    assert np.isin(corrupted, levels).all()
    np.testing.assert_array_equal(digits, before)
    np.testing.assert_array_equal(corrupt(name, digits, seed=1), corrupted)
    np.testing.assert_array_equal(corrupt(name, digits.astype("float64"), seed=1), corrupted)
    changed = (corrupted != digits).any(axis=1)
    assert changed.mean() > 0.9
    other = (corrupt(name, digits, seed=2) != corrupted).any(axis=1)
    # Where signs are drawn, half of the digits have the same again.
    assert not other.any() if name in WITHOUT_CHANCE else other.mean() > 0.3


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_mean_pixel_is_the_benchmarks(name):
    images = corrupt(name, load_mnist()[1][0][:2000])
    # The clouds over each digit have a brightness of their own.
    assert images.mean() == pytest.approx(MEAN_PIXEL[name], abs=0.008 if name == "fog" else 0.001)


def test_shot_noise_has_mean_and_variance_of_a_poisson_number():
    noisy = corrupt("shot_noise", np.full([500, 784], 0.1))
    assert set(np.unique(np.rint(noisy * 3))) == {0, 1, 2, 3}
    assert noisy.mean() == pytest.approx(0.1, abs=0.002)
    assert noisy.var() == pytest.approx(0.1 / 3, abs=0.002)


def test_impulse_noise_is_white_and_black_in_equal_shares():
    noisy = corrupt("impulse_noise", np.full([500, 784], 0.4))
    assert (noisy == 0).mean() == pytest.approx(0.085, abs=0.002)
    assert (noisy == 1).mean() == pytest.approx(0.085, abs=0.002)
    assert (noisy == np.float32(0.4)).mean() == pytest.approx(0.83, abs=0.003)


def test_glass_blur_moves_mass_about_and_keeps_it():
    blurred = corruptions._glass_blur(squares(white_pixel(400)), generator_of("glass_blur"))
    # Each of three pixels of the first blur loses less than 1/255.
    np.testing.assert_allclose(blurred.sum(axis=(1, 2)), 1 - 1.5 / 255, atol=1.51 / 255)
    for centre in centres_of_mass(blurred):
        assert 0.3 < np.std(centre) < 2
        assert abs(np.mean(centre) - 14) < 1


def test_glass_blur_swaps_pixel_by_pixel_between_vertical_blurs(digits):
    generator = generator_of("glass_blur")
    blur = functools.partial(gaussian, sigma=0.7, channel_axis=-1)
    images = [np.uint8(blur(image.astype("float64")) * 255 + 1e-3) for image in squares(digits)]
    moves = {5: (0, 1), 6: (1, 0), 7: (1, 1)}
    for place in 2 * list(itertools.product(range(27, 1, -1), repeat=2)):
        draws = generator.integers(8, size=len(images), dtype="uint8")
        for image, draw in zip(images, draws, strict=True):
            if draw in moves:
                other = tuple(np.subtract(place, moves[draw]))
                image[place], image[other] = image[other], image[place]
    expected = [blur(image / 255) for image in images]
    assert_cut_to_bytes(squares(corrupt("glass_blur", digits)), expected)


def test_motion_blur_is_a_ray_of_total_mass_1():
    blurred = corruptions._motion_blur(squares(white_pixel(20)), generator_of("motion_blur"))
    np.testing.assert_allclose(blurred.sum(axis=(1, 2)), 1, atol=1e-3)
    weights = [np.exp(-(i**2) / 18) for i in range(21)]
    angles = generator_of("motion_blur").uniform(-np.pi / 4, np.pi / 4, 20)
    for image, angle in zip(blurred, angles, strict=True):
        expected = np.zeros([28, 28])
        for i, weight in enumerate(weights):
            row, column = round(14 - i * np.sin(angle)), round(14 - i * np.cos(angle))
            if column >= 0:
                expected[row, column] += weight / sum(weights)
        np.testing.assert_allclose(image, expected, atol=1e-6)
        assert not image[:, 15:].any()


def test_motion_blur_extends_the_edge():
    white = np.ones([5, 784])
    np.testing.assert_array_equal(corrupt("motion_blur", white), white)


def maps(name, n):
    """From the (x, y) of each output to that of its input, seen from the centre."""
    sign = signs_of(name, n) if name != "scale" else np.ones(n)
    sine, cosine, zero, one = np.sin(0.4 * sign), np.cos(0.4 * sign), 0 * sign, sign**2
    entries = {
        # What AffineTransform(shear=0.4) of scikit-image was when the benchmark was made.
        "shear": [[one, -sine], [zero, cosine]],
        "scale": [[one / 0.7, zero], [zero, one / 0.7]],
        "rotate": [[cosine, -sine], [sine, cosine]],
    }
    return np.moveaxis(entries[name], 2, 0)


@pytest.mark.parametrize("name", ["shear", "scale", "rotate"])
def test_affine_corruptions_agree_with_skimage(name, digits):
    corrupted = squares(corrupt(name, digits))
    to_centre = transform.AffineTransform(translation=(-13.5, -13.5))
    for image, entries, found in zip(
        squares(digits), maps(name, len(digits)), corrupted, strict=True
    ):
        matrix = np.eye(3)
        matrix[:2, :2] = entries
        about_centre = to_centre + transform.AffineTransform(matrix) + to_centre.inverse
        expected = transform.warp(image.astype("float64"), about_centre, order=1)
        assert_cut_to_bytes(found, expected)


def test_scale_shrinks_to_70_percent_about_the_centre():
    square = np.zeros([1, 28, 28])
    square[:, 4:24, 4:24] = 1
    shrunk = squares(corrupt("scale", square.reshape(1, -1)))[0]
    assert shrunk.sum() == pytest.approx(14**2, rel=0.02)
    np.testing.assert_allclose(shrunk, shrunk[::-1, ::-1], atol=1.01 / 255)


def test_translation_is_by_3_pixels_along_both_axes():
    rows, columns = centres_of_mass(corrupt("translate", white_pixel(400), seed=1))
    shifts, counts = np.unique(np.stack([rows, columns]) - 14, axis=1, return_counts=True)
    assert shifts.T.tolist() == [[-3, -3], [-3, 3], [3, -3], [3, 3]]
    assert counts.min() > 70


def test_translation_takes_in_black():
    moved = squares(corrupt("translate", np.ones([20, 784])))
    for image, (rows, columns) in zip(moved, signs_of("translate", (20, 2)), strict=True):
        expected = np.ones([28, 28])
        expected[-3:] = 0
        expected[:, -3:] = 0
        np.testing.assert_array_equal(image[::rows, ::columns], expected)


@pytest.mark.parametrize("name", ["shear", "rotate"])
def test_shear_and_rotation_are_by_either_sign_of_one_strength(name):
    corrupted = corrupt(name, white_pixel(400, row=20, column=14), seed=1)
    kinds, counts = np.unique(corrupted, axis=0, return_counts=True)
    assert len(kinds) == 2
    assert counts.min() > 160
    rows, columns = centres_of_mass(kinds)
    if name == "rotate":
        angles = np.arctan2(columns - 13.5, rows - 13.5) - np.arctan2(0.5, 6.5)
        np.testing.assert_allclose(np.sort(angles), [-0.4, 0.4], atol=0.03)
    else:
        np.testing.assert_allclose(rows, 13.5 + 6.5 / np.cos(0.4), atol=0.1)
        shifts = 6.5 * np.tan(0.4)
        np.testing.assert_allclose(np.sort(columns) - 14, [-shifts, shifts], atol=0.1)


def test_brightness_adds_a_half(digits):
    expected = np.minimum(digits + 0.5, 1)
    assert_cut_to_bytes(corrupt("brightness", digits), expected)


def test_stripe_inverts_a_quarter_on_either_side(digits):
    striped, images = squares(corrupt("stripe", digits)), squares(digits)
    np.testing.assert_array_equal(striped[:, :, 7:21], images[:, :, 7:21])
    for side in (slice(7), slice(21, 28)):
        np.testing.assert_allclose(striped[:, :, side], 1 - images[:, :, side], atol=1e-6)


def test_fog_lies_within_its_formula(digits):
    foggy = corrupt("fog", digits)
    brightest = digits.max(axis=1, keepdims=True)
    share = brightest / (brightest + 3)
    plasma = (foggy / share - digits) / 3
    assert -0.02 < plasma.min() < 0.2
    assert 0.8 < plasma.max() < 1.02
    np.testing.assert_array_equal(corrupt("fog", np.zeros([2, 784])), 0)


class ConstantRandoms:
    def random(self, shape, dtype):
        return np.full(shape, 0.9, dtype)


def test_plasma_is_the_corner_of_a_map_of_256_points():
    maps = np.zeros([1, 1, 1], "float32")
    for level in range(8):
        maps = corruptions._refine(maps, level, ConstantRandoms())
    assert maps.shape == (1, 256, 256)
    corner = maps[:, :28, :28]
    plasma = corruptions._plasma(1, ConstantRandoms())
    np.testing.assert_allclose(
        (plasma - plasma.min()) / np.ptp(plasma),
        (corner - corner.min()) / np.ptp(corner),
        atol=1e-3,
    )


def test_a_plasma_point_is_the_mean_of_its_periodic_neighbours_plus_noise():
    coarse = np.array([[[0.0, 4.0], [8.0, 12.0]]])
    fine = corruptions._refine(coarse, 2, ConstantRandoms())[0]
    noise = 0.8 * (100 / 1.4**2) ** 2
    np.testing.assert_array_equal(fine[::2, ::2], coarse[0])
    np.testing.assert_allclose(fine[1::2, 1::2], 6 + noise)
    between_0_and_4, between_0_and_8 = fine[0, 1], fine[1, 0]
    assert between_0_and_4 == pytest.approx((0 + 4 + 2 * (6 + noise)) / 4 + noise)
    assert between_0_and_8 == pytest.approx((0 + 8 + 2 * (6 + noise)) / 4 + noise)


def test_spatter_is_opaque_grey_drops():
    on_black = corrupt("spatter", np.zeros([200, 784]))
    drops = on_black > 0
    assert 0.03 < drops.mean() < 0.4
    grey = 63 / 255
    assert on_black.max() <= grey + 1e-6
    assert on_black[drops].min() >= 0.8 * grey - 1 / 255
    on_white = corrupt("spatter", np.ones([200, 784]))
    opacity = on_black / grey
    np.testing.assert_allclose(on_white, 1 - opacity * (1 - grey), atol=0.02)


def test_dotted_line_is_straight_and_dotted():
    lines = squares(corrupt("dotted_line", np.zeros([300, 784])))
    lit = np.flatnonzero(lines.any(axis=(0, 1)))
    assert lit.tolist() == [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26]
    # The nearest pixel is half a pixel away at most: 1 + ln(1 - 0.5 / 2.3) = 0.755.
    assert (lines[:, :, lit].max(axis=1) > 0.75).all()
    first, last = generator_of("dotted_line").integers(27, size=(2, 300))
    assert (first.min(), first.max(), last.min(), last.max()) == (0, 26, 0, 26)
    for column in lit:
        height = first + (last - first) * column / 27
        brightest = lines[:, :, column].argmax(axis=1)
        assert np.abs(brightest - height).max() <= 0.51


def ink_of(start, end):
    """A white line in the columns from one point, (column, row), to before another."""
    ink = np.zeros([28, 28])
    slope = (end[1] - start[1]) / (end[0] - start[0])
    for row, column in itertools.product(range(28), repeat=2):
        distance = abs(row - start[1] - slope * (column - start[0]))
        if int(np.floor(start[0])) <= column < np.ceil(end[0]) and distance < 2.2:
            ink[row, column] = max(0, 1 + np.log(1 - distance / 2.3))
    return ink


def test_zigzag_is_the_benchmarks():
    images = squares(corrupt("zigzag", np.zeros([20, 784])))
    generator = generator_of("zigzag")
    first, climb = generator.integers(27, size=20), generator.integers(-5, 5, size=20)
    assert len(set(climb)) > 4
    for image, row, rise in zip(images, first, climb, strict=True):
        angle = np.arctan(rise / 23)
        length = 23 / np.cos(angle)
        corners = [(0, 0), *((4 * i + 2, 2 * (-1) ** i) for i in range(6))]
        corners.append((length, -2 / (2 * (length - 20))))
        corners = [
            (2 + a * np.cos(angle) - b * np.sin(angle), row + a * np.sin(angle) + b * np.cos(angle))
            for a, b in corners
        ]
        expected = sum(itertools.starmap(ink_of, itertools.pairwise(corners)))
        np.testing.assert_allclose(image, np.minimum(expected, 1), atol=1.01 / 255)


def test_level_zigzag_peaks_2_pixels_from_its_straight_line():
    images = squares(corrupt("zigzag", np.zeros([600, 784])))
    generator = generator_of("zigzag")
    first, climb = generator.integers(27, size=600), generator.integers(-5, 5, size=600)
    level = (climb == 0) & (first >= 3) & (first <= 24)
    assert level.sum() > 20
    for image, row in zip(images[level], first[level], strict=True):
        assert np.flatnonzero(image.any(axis=0)).tolist() == list(range(2, 25))
        for column, height in {2: 0, 4: 2, 6: 0, 8: -2, 12: 2, 16: -2, 20: 2, 24: -2}.items():
            assert image[:, column].argmax() - row == height
        # Nothing but the faint edge of the line beyond the peaks.
        assert image[np.abs(np.arange(28) - row) > 4].max(initial=0) == 0


def test_canny_edges_are_those_of_skimage(digits):
    edges = squares(corrupt("canny_edges", digits))
    expected = [feature.canny(image) for image in squares(digits)]
    np.testing.assert_array_equal(edges, expected)
    assert 0.05 < edges.mean() < 0.2


def test_unknown_name_is_named_with_the_known():
    with pytest.raises(ValueError, match=r"'snow'; choose of shot_noise.*canny_edges"):
        corrupt("snow", np.zeros([1, 784]))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros([784]), r"shape \(784,\); make it \(n, 784\)"),
        (np.zeros([2, 28, 28]), r"shape \(2, 28, 28\)"),
        (np.zeros([0, 784]), r"shape \(0, 784\).*at least 1"),
        (np.full([1, 784], 255.0), r"to 255.0; make it floats in \[0, 1\]"),
        (np.full([1, 784], -0.1), "from -0.1"),
        (np.full([1, 784], np.nan), "from nan"),
        (np.zeros([1, 784], "uint8"), "holds uint8.*make it floats"),
    ],
)
def test_bad_images_are_named(images, message):
    with pytest.raises(ValueError, match=message):
        corrupt("fog", images)


LABELS = np.array([3, 1, 4])


def write_set(folder, number):
    folder.mkdir(parents=True)
    images = np.full([3, 28, 28, 1], number, "uint8")
    images[0, 2, 5] = 255
    np.save(folder / "test_images.npy", images)
    np.save(folder / "test_labels.npy", LABELS)


@pytest.fixture
def published(tmp_path):
    """A small MNIST-C in the published layout."""
    for number, name in enumerate(("identity", *CORRUPTIONS)):
        write_set(tmp_path / "mnist_c" / name, number)
    return tmp_path / "mnist_c"


def check_loaded(folder):
    sets = load_mnist_c(folder)
    assert tuple(sets) == CORRUPTIONS
    for number, (images, labels) in enumerate(sets.values(), start=1):
        assert (images.dtype, labels.dtype) == (np.float32, np.int64)
        assert images.shape == (3, 784)
        np.testing.assert_array_equal(labels, LABELS)
        np.testing.assert_allclose(images[1:], number / 255)
        assert images[0, 2 * 28 + 5] == 1


def test_loader_reads_the_published_layout(published):
    check_loaded(published)


@pytest.fixture
def small_test_set(monkeypatch):
    corrupted_test_digits.cache_clear()
    images = np.full([3, 784], 0.5, "float32")
    monkeypatch.setattr(corruptions, "load_mnist", lambda: (None, (images, LABELS)))
    yield images
    corrupted_test_digits.cache_clear()


def test_corrupted_test_digits_are_made_once(small_test_set):
    made = corrupted_test_digits(3)
    assert tuple(made) == CORRUPTIONS
    for name, (images, labels) in made.items():
        np.testing.assert_array_equal(images, corrupt(name, small_test_set, 3))
        np.testing.assert_array_equal(labels, LABELS)
        with pytest.raises(ValueError, match="read-only"):
            images[0, 0] = 1
    assert corrupted_test_digits(3) is made


def test_corrupted_test_digits_are_read_from_the_published_files(published, monkeypatch):
    corrupted_test_digits.cache_clear()
    monkeypatch.setattr(corruptions, "load_mnist_c", lambda: load_mnist_c(published))
    images, labels = corrupted_test_digits("files")["fog"]
    np.testing.assert_array_equal(images, load_mnist_c(published)["fog"][0])
    np.testing.assert_array_equal(labels, LABELS)
    corrupted_test_digits.cache_clear()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("test_images.npy", None, "No such file"),
        ("test_labels.npy", None, "No such file"),
        ("test_images.npy", b"", "EOF"),
        ("test_images.npy", b"not an array", "magic string"),
        ("test_images.npy", np.zeros([3, 28, 28], "uint8"), r"uint8 of shape \(3, 28, 28\), not"),
        ("test_images.npy", np.zeros([3, 28, 28, 1]), "it holds float64"),
        ("test_labels.npy", np.zeros(4, int), r"shape \(4,\), not 3 integers"),
        ("test_labels.npy", np.zeros(3), "it holds float64"),
    ],
)
def test_bad_file_is_named_with_the_mend(file, content, reason, published):
    path = published / "fog" / file
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(ValueError, match=f"fog/{file} .*{reason}.*make mnist-c"):
        load_mnist_c(published)


@pytest.fixture
def download(tmp_path, monkeypatch):
    """Run the script in this process against files that lie where the server's would."""
    spec = importlib.util.spec_from_file_location("download_mnist_c", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    place = tmp_path / "place"
    place.mkdir()

    server = (tmp_path / "server").as_uri()

    def download(base=server):
        argv = ["download_mnist_c.py", "--base", base, "--folder", str(place / "mnist_c")]
        monkeypatch.setattr("sys.argv", argv)
        script.main()
        return place / "mnist_c"

    download.script, download.place = script, place
    return download


@pytest.fixture
def server(published, download, monkeypatch):
    """The small MNIST-C as Zenodo would offer it, whose identity is what the script expects."""
    files = published.parent / "server" / "records" / "3239543" / "files"
    files.mkdir(parents=True)
    with zipfile.ZipFile(files / "mnist_c.zip", "w") as archive:
        for path in published.rglob("*.npy"):
            archive.write(path, path.relative_to(published.parent))
        archive.writestr("elsewhere/note.txt", "not of the data set")
    write_record(published.parent / "server")
    expected = {
        "test_images": np.load(published / "identity" / "test_images.npy"),
        "test_labels": LABELS.astype("uint8"),
    }
    sums = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in expected.items()}
    monkeypatch.setattr(download.script, "IDENTITY_SHA256", sums)
    return published.parent / "server"


def write_record(server, checksum=None):
    archive = server / "records" / "3239543" / "files" / "mnist_c.zip"
    checksum = checksum or "md5:" + hashlib.md5(archive.read_bytes()).hexdigest()
    record = server / "api" / "records" / "3239543"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"files": [{"key": "mnist_c.zip", "checksum": checksum}]}))


def check_refused(download, message, **arguments):
    with pytest.raises(SystemExit, match=message) as error:
        download(**arguments)
    assert "\n" not in str(error.value)
    assert not list(download.place.iterdir())


def test_download_expects_the_test_digits(download):
    expected = download.script.IDENTITY_SHA256
    assert expected["test_images"] == MNIST_SHA256["x_test"]
    assert expected["test_labels"] == MNIST_SHA256["y_test"]


def test_download_puts_a_verified_archive_in_place(server, download, capsys):
    folder = download()
    check_loaded(folder)
    assert list(download.place.iterdir()) == [folder]
    assert len(list(folder.iterdir())) == 16
    download()
    assert "exists already; remove it" in capsys.readouterr().out


def test_download_refuses_another_archive_than_published(server, download):
    write_record(server, "md5:" + 32 * "0")
    check_refused(download, "has the MD5 .*publishes 0000.*try again")


def test_download_refuses_other_digits_than_mnists(server, download, monkeypatch):
    for name in ("test_images", "test_labels"):
        sums = {**download.script.IDENTITY_SHA256, name: 64 * "0"}
        with monkeypatch.context() as patch:
            patch.setattr(download.script, "IDENTITY_SHA256", sums)
            check_refused(download, f"identity/{name}.npy differs from that of data/mnist.npz")


def test_download_refuses_what_is_no_archive(server, download):
    (server / "records" / "3239543" / "files" / "mnist_c.zip").write_text("Gone")
    write_record(server)
    check_refused(download, "isn't the archive of MNIST-C")


@pytest.mark.parametrize("answer", ["<html>", "{}", '{"files": []}'])
def test_download_refuses_an_unknown_answer(answer, server, download):
    (server / "api" / "records" / "3239543").write_text(answer)
    check_refused(download, "doesn't tell the checksum of mnist_c.zip")


def test_download_without_network(download):
    check_refused(download, "can't be downloaded.*check the network", base="http://127.0.0.1:9")


def test_download_stopped_leaves_nothing_behind(server, download, monkeypatch):
    def stop(archive):
        raise KeyboardInterrupt

    monkeypatch.setattr(download.script, "verify_identity", stop)
    check_refused(download, "Stopped; nothing was put in place")
