"""The 15 corruptions of MNIST-C, made from clean digits or read from the published files."""

import functools
import itertools
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage import feature, util

from lab.data import ROOT, load_mnist

MNIST_C = ROOT / "data" / "mnist_c"
SIDE = 28
CENTRE = (SIDE - 1) / 2


def corrupt(name: str, images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Corrupt MNIST digits in one of the ways of MNIST-C, at the strength of that benchmark.

    What each does, and how strongly, is from N. Mu & J. Gilmer, "MNIST-C: A robustness benchmark
    for computer vision" (arXiv:1906.02337, 2019), and its repository google-research/mnist-c. The
    random numbers are our own, so the images are like the published ones, not the same. Of shears,
    rotations and shifts only the sign is drawn, as in that repository's code.

    Args:
        name: one of CORRUPTIONS.
        images: float array in [0, 1], shape (n, 784), n >= 1.
        seed: integer, at least 0. Each corruption draws its own random numbers from it.

    Returns:
        float32 array, shape (n, 784), of multiples of 1/255 in [0, 1].

    Raises:
        ValueError: for a name that isn't in CORRUPTIONS, and for images of another shape or range.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"There is no corruption {name!r}; choose of {', '.join(CORRUPTIONS)}.")
    images = np.asarray(images)
    _check(images)
    generator = np.random.default_rng([seed, CORRUPTIONS.index(name)])
    stack = images.reshape(-1, SIDE, SIDE).astype("float32")
    corrupted = np.clip(_FUNCTIONS[name](stack, generator), 0, 1)
    return _to_bytes(corrupted).astype("float32").reshape(images.shape) / 255


@functools.cache
def corrupted_test_digits(source: int | str = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The test digits under each corruption; once in a process, as many runs measure on them.

    Args:
        source: the seed of `corrupt`, or "files" for what `load_mnist_c` reads.

    Returns:
        What `load_mnist_c` returns, of arrays that can't be written to.

    Raises:
        ValueError: as `load_mnist_c`.
    """
    if source == "files":
        pairs = load_mnist_c()
    else:
        images, labels = load_mnist()[1]
        pairs = {name: (corrupt(name, images, source), labels) for name in CORRUPTIONS}
    for pair in pairs.values():
        for array in pair:
            array.flags.writeable = False
    return pairs


def load_mnist_c(folder: str | Path = MNIST_C) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Load the published MNIST-C. No network is used: `make mnist-c` downloads it beforehand.

    Args:
        folder: holds `test_images.npy`, uint8, shape (n, 28, 28, 1), and `test_labels.npy`,
            integers, shape (n,), in a folder for each corruption.

    Returns:
        dict from each name in CORRUPTIONS to a pair: images, float32 in [0, 1], shape (n, 784);
        labels, int64, shape (n,).

    Raises:
        ValueError: that names the file that is missing or isn't as described above.
    """
    return {name: _load_pair(Path(folder) / name) for name in CORRUPTIONS}


def _load_pair(folder):
    images = _load_array(folder / "test_images.npy")
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 1):
        raise _unusable(
            folder / "test_images.npy",
            f"it holds {images.dtype} of shape {images.shape}, not uint8 of (n, 28, 28, 1)",
        )
    labels = _load_array(folder / "test_labels.npy")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise _unusable(
            folder / "test_labels.npy",
            f"it holds {labels.dtype} of shape {labels.shape}, not {len(images)} integers",
        )
    return images.reshape(-1, SIDE * SIDE).astype("float32") / 255, labels.astype("int64")


def _load_array(path):
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unusable(path, error) from error


def _unusable(path, reason):
    mend = f"remove {path.parent.parent} if it exists, and download it with `make mnist-c`."
    return ValueError(f"{path} of MNIST-C is unusable ({reason}); {mend}")


def _check(images):
    if images.ndim != 2 or images.shape[1] != SIDE * SIDE or not len(images):
        raise ValueError(f"images has shape {images.shape}; make it (n, 784), n at least 1.")
    if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images holds {images.dtype} from {images.min()} to {images.max()}; make it floats "
            "in [0, 1], for instance by .astype('float32') / 255."
        )


def _to_bytes(images):
    """Whole numbers of 255ths, as the benchmark stores them: cut off, not rounded."""
    # What should be a whole number may be a bit less in single precision.
    return np.floor(images * 255 + 1e-3)


# Each takes images, float32, shape (n, 28, 28), and a numpy.random.Generator. It returns the
# corrupted images in the same shape, which `corrupt` clips to [0, 1].


def _shot_noise(images, generator):
    return generator.poisson(3 * images) / 3


def _impulse_noise(images, generator):
    return util.random_noise(images, mode="s&p", rng=generator, amount=0.17)


def _glass_blur(images, generator):
    """The neighbour is the one above, to the left, or both; the last pixel is the first to swap.

    The blur is vertical only, as the benchmark's code takes the columns for colours.
    """

    def blur(images):
        return ndimage.gaussian_filter1d(images, 0.7, axis=1, mode="nearest")

    everyone = np.arange(len(images))
    blurred = _to_bytes(blur(images)) / 255
    pixels = np.ascontiguousarray(blurred.reshape(len(images), -1).T)
    # Half of the time nothing moves; else row and column each go back by 0 or 1.
    steps = np.array([0, 0, 0, 0, 0, 1, SIDE, SIDE + 1])
    inner = [(row, column) for row in range(27, 1, -1) for column in range(27, 1, -1)]
    for row, column in 2 * inner:
        here = row * SIDE + column
        there = here - steps[generator.integers(8, size=len(images), dtype=np.uint8)]
        ours, theirs = pixels[here].copy(), pixels[there, everyone]
        pixels[here], pixels[there, everyone] = theirs, ours
    return blur(pixels.T.reshape(images.shape))


def _motion_blur(images, generator):
    """One-sided, as ImageMagick's: the nearest pixels along a ray, weighted by half a bell.

    With the same angles, ImageMagick 6.9.11 differs in fewer than one pixel of 2,000, by a level.
    """
    angle = generator.uniform(-np.pi / 4, np.pi / 4, (len(images), 1, 1))
    distances = np.arange(21)
    weights = np.exp(-(distances**2) / (2 * 3**2))
    each = np.arange(len(images))[:, None, None]
    rows, columns = np.arange(SIDE)[:, None], np.arange(SIDE)
    blurred = np.zeros_like(images)
    for distance, weight in zip(distances, weights / weights.sum(), strict=True):
        row = np.clip(rows + np.rint(distance * np.sin(angle)).astype(int), 0, SIDE - 1)
        column = np.clip(columns + np.rint(distance * np.cos(angle)).astype(int), 0, SIDE - 1)
        blurred += np.float32(weight) * images[each, row, column]
    return blurred


def _shear(images, generator):
    """By an angle of 0.4, as scikit-image's AffineTransform had it in 2019: heights grow, too."""
    angles = 0.4 * _signs(len(images), generator)
    zero, one = np.zeros_like(angles), np.ones_like(angles)
    return _warp(images, [[np.cos(angles), zero], [-np.sin(angles), one]])


def _scale(images, generator):
    zero, factor = np.zeros(len(images)), np.full(len(images), 1 / 0.7)
    return _warp(images, [[factor, zero], [zero, factor]])


def _rotate(images, generator):
    angles = 0.4 * _signs(len(images), generator)
    cosine, sine = np.cos(angles), np.sin(angles)
    return _warp(images, [[cosine, sine], [-sine, cosine]])


def _brightness(images, generator):
    return images + 0.5


def _translate(images, generator):
    shifts = 3 * _signs((len(images), 2), generator)
    padded = np.pad(images, [(0, 0), (3, 3), (3, 3)])
    rows, columns = (3 + shifts[:, i, None] + np.arange(SIDE) for i in (0, 1))
    return padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None]]


def _stripe(images, generator):
    inverted = np.zeros(SIDE, bool)
    inverted[:7] = inverted[21:] = True
    return np.where(inverted, 1 - images, images)


def _fog(images, generator):
    strength = 3
    brightest = images.max(axis=(1, 2), keepdims=True)
    fog = strength * _plasma(len(images), generator)
    return (images + fog) * brightest / (brightest + strength)


def _spatter(images, generator):
    """The drops are opaque mud of grey 63/255, which is what the benchmark does at this strength.

    Its strength of 1.5 is how far the drops are blurred; where less than 0.8 is left, none is seen.
    """
    noise = np.float32(0.65) + np.float32(0.3) * generator.standard_normal(images.shape, "float32")
    drops = (_gaussian_blur(noise, 1) > 0.65).astype("float32")
    drops = _gaussian_blur(drops, 1.5)
    drops[drops < 0.8] = 0
    return images * (1 - drops) + drops * np.float32(63 / 255)


def _dotted_line(images, generator):
    """The dots are 2 pixels long and 2 apart, from the third column on."""
    first, last = generator.integers(SIDE - 1, size=(2, len(images)))
    line = _line(np.zeros(len(images)), first, np.full(len(images), SIDE - 1), last)
    return images + line * (np.arange(SIDE) // 2 % 2)


def _zigzag(images, generator):
    """Along a straight line from column 2 to 25 that climbs by 5 pixels at most.

    It is 2 pixels to the first peak, 4 from each to the next, and 1 or a bit more from the last.
    """
    first = generator.integers(SIDE - 1, size=len(images))
    climb = generator.integers(-5, 5, size=len(images))
    length = np.hypot(23, climb)
    cosine, sine = 23 / length, climb / length
    # The corners, as seen along the straight line and aside of it. The end isn't quite on it.
    along = [0, 2, 6, 10, 14, 18, 22, length]
    aside = [0, 2, -2, 2, -2, 2, -2, -1 / (length - 20)]
    corners = [
        (2 + a * cosine - b * sine, first + a * sine + b * cosine)
        for a, b in zip(along, aside, strict=True)
    ]
    for start, end in itertools.pairwise(corners):
        images = np.minimum(images + _line(*start, *end), 1)
    return images


def _canny_edges(images, generator):
    return np.stack([feature.canny(image) for image in images])


def _gaussian_blur(images, sigma):
    return ndimage.gaussian_filter(images, (0, sigma, sigma), mode="nearest")


def _signs(shape, generator):
    return generator.choice([-1, 1], shape)


def _warp(images, matrices):
    """Take each pixel from where a matrix sends it, seen from the centre; what lies outside is 0.

    The matrices, shape (2, 2, n), are for (row, column). Bilinear interpolation.
    """
    matrices = np.moveaxis(np.array(matrices), 2, 0)
    offsets = CENTRE - matrices.sum(axis=2) * CENTRE
    warped = np.empty_like(images)
    for image, matrix, offset, output in zip(images, matrices, offsets, warped, strict=True):
        ndimage.affine_transform(
            image, matrix, offset, output=output, order=1, mode="grid-constant"
        )
    return warped


def _line(first_column, first_row, last_column, last_row):
    """White lines, each from a point to another, on black images, float32, shape (n, 28, 28).

    A line fades with the vertical distance d from it, as 1 + ln(1 - d/2.3). All arguments are of
    shape (n,); the columns before the first point and from the last on stay black.
    """
    points = first_column, first_row, last_column, last_row
    first_column, first_row, last_column, last_row = (
        np.asarray(each, "float32")[:, None, None] for each in points
    )
    rows, columns = np.arange(SIDE, dtype="float32")[:, None], np.arange(SIDE, dtype="float32")
    slope = (last_row - first_row) / (last_column - first_column)
    distance = np.abs(rows - first_row - slope * (columns - first_column))
    ink = 1 + np.log(1 - np.minimum(distance, 2.2) / 2.3)
    drawn = (columns >= np.floor(first_column)) & (columns < np.ceil(last_column))
    return np.maximum(ink, 0) * drawn


def _plasma(n, generator):
    """Clouds by the diamond-square algorithm: n maps, float32, shape (n, 28, 28), in about [0, 1].

    Each is a corner of a periodic map of 256 × 256 points, which starts as a single 0 and is then
    rescaled to [0, 1]. The last two of the eight levels are computed for that corner only.
    """
    maps = np.zeros((n, 1, 1), "float32")
    for level in range(6):
        maps = _refine(maps, level, generator)
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    # What is wrong where the corner is cut off spreads by less than the one point that is added.
    corners = np.roll(maps, 1, axis=(1, 2))[:, :10, :10]
    for level in (6, 7):
        corners = _refine(corners, level, generator)
    return (corners[:, 4 : 4 + SIDE, 4 : 4 + SIDE] - low) / (high - low)


def _refine(maps, level, generator):
    """Double the points of each map: new ones are the mean of their four neighbours, plus noise.

    The noise is uniform in ± wibble², where wibble is 100 at first, and divided by 1.4 at each
    level. (The benchmark multiplies wibble by a random number in ± wibble.)
    """
    n, side, _ = maps.shape
    wibble = 100 / 1.4**level

    def noise():
        return wibble**2 * (2 * generator.random(maps.shape, "float32") - 1)

    above, left = np.roll(maps, -1, axis=1), np.roll(maps, -1, axis=2)
    centres = (maps + above + left + np.roll(above, -1, axis=2)) / 4 + noise()
    fine = np.empty((n, 2 * side, 2 * side), "float32")
    fine[:, ::2, ::2] = maps
    fine[:, 1::2, 1::2] = centres
    fine[:, ::2, 1::2] = (maps + left + centres + np.roll(centres, 1, axis=1)) / 4 + noise()
    fine[:, 1::2, ::2] = (maps + above + centres + np.roll(centres, 1, axis=2)) / 4 + noise()
    return fine


_FUNCTIONS = {
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "shear": _shear,
    "scale": _scale,
    "rotate": _rotate,
    "brightness": _brightness,
    "translate": _translate,
    "stripe": _stripe,
    "fog": _fog,
    "spatter": _spatter,
    "dotted_line": _dotted_line,
    "zigzag": _zigzag,
    "canny_edges": _canny_edges,
}
CORRUPTIONS = tuple(_FUNCTIONS)
