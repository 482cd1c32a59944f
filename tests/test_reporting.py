"""Figures, intervals and claims."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lab import reporting
from lab.reporting import LOOKS, Claims, draw_mean


def test_half_width_is_that_of_the_table_of_students_t():
    # For 4 degrees of freedom the table says 2.776; the standard error is sqrt(2.5 / 5).
    np.testing.assert_allclose(reporting.half_width([1, 2, 3, 4, 5]), 2.776 * 0.5**0.5, rtol=1e-3)


def test_prediction_interval_is_that_of_the_table_of_students_t():
    # Half of it is 2.776 * s * sqrt(1 + 1/5), with s = sqrt(2.5).
    half = 2.776 * (2.5 * 1.2) ** 0.5
    interval = reporting.prediction_interval([1, 2, 3, 4, 5])
    np.testing.assert_allclose(interval, [3 - half, 3 + half], rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "digits", "expected"),
    [
        ([1, 2, 3, 4, 5], 2, "3.00 ± 1.96"),  # 2.776 * sqrt(0.5) = 1.963
        ([-1, -2, -3, -4, -5], 1, "−3.0 ± 2.0"),
        ([-0.001, 0.0, 0.0], 1, "0.0 ± 0.0"),
        ([1, np.nan], 1, "–"),
    ],
)
def test_plus_minus_writes_the_interval(values, digits, expected):
    assert reporting.plus_minus(pd.Series(values), digits) == expected


def three_standard_errors(n):
    """The t-quantile with the p of three standard errors of a normal distribution, by bisection."""
    p = math.erfc(3 / math.sqrt(2)) / 2
    low, high = 3.0, 300.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if stats.t.sf(middle, n - 1) > p else (low, middle)
    return low


def test_the_level_is_that_of_three_standard_errors():
    # From a table: 6.62 with 5 values, 4.09 with 10, 3 with very many.
    np.testing.assert_allclose(three_standard_errors(5), 6.62, atol=0.01)
    np.testing.assert_allclose(three_standard_errors(10), 4.09, atol=0.01)
    for n in (2, 5, 10, 1000):
        values = np.random.default_rng(n).normal(size=n)
        edge = values.mean() - three_standard_errors(n) * values.std(ddof=1) / n**0.5
        assert reporting._is_above(values, edge - 1e-6)
        assert not reporting._is_above(values, edge + 1e-6)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [([9, 10, 11], "–"), ([99, 100, 101], "ahead"), ([-99, -100, -101], "behind")],
)
def test_verdict_takes_three_standard_errors(differences, expected):
    # With three values the quantile is 19.2 and the standard error 0.577, so 11.1 is the limit.
    assert reporting.verdict(pd.Series(differences)) == expected


def test_bootstrap_interval_is_that_of_drawing_one_by_one():
    generator = np.random.default_rng(1)
    hard = generator.random(200) < 0.3  # Digits that the seeds share as difficult.
    correct, other = (
        generator.random((6, 200)) < np.where(hard, p, 0.97) for p in ([0.6] * 200, [0.4] * 200)
    )
    drawn = []
    for _ in range(4000):
        seeds, digits = generator.integers(6, size=6), generator.integers(200, size=200)
        right, rival = (each[seeds][:, digits].mean() for each in (correct, other))
        drawn.append(100 * (right - rival))
    ends = reporting.bootstrap_interval(correct, other)
    assert ends[0] < 100 * (correct.mean() - other.mean()) < ends[1]
    np.testing.assert_allclose(ends, np.percentile(drawn, [2.5, 97.5]), atol=0.4)
    assert ends == reporting.bootstrap_interval(correct, other)
    swapped = reporting.bootstrap_interval(other, correct)
    np.testing.assert_allclose(swapped, [-ends[1], -ends[0]], atol=1e-6)


def test_bootstrap_interval_covers_the_draw_of_the_digits():
    # All seeds agree, so what is left is the error of a mean over digits, by the formula.
    one = np.random.default_rng(0).random((2, 1000)) < [[0.9], [0.8]]
    correct, other = (np.tile(each, [5, 1]) for each in one)
    differences = 100 * (one[0].astype(int) - one[1])
    half = 1.96 * differences.std() / 1000**0.5
    expected = differences.mean() - half, differences.mean() + half
    np.testing.assert_allclose(reporting.bootstrap_interval(correct, other), expected, atol=0.2)
    assert reporting.bootstrap_interval(correct, correct) == (0, 0)


@pytest.mark.parametrize("shapes", [((5, 9), (5, 8)), ((5,), (5,))])
def test_bootstrap_interval_takes_seeds_by_digits(shapes):
    with pytest.raises(ValueError, match=r"make both \(seeds, digits\)"):
        reporting.bootstrap_interval(*map(np.ones, shapes))


@pytest.fixture
def attacked():
    """Three seeds of two methods, in an order that isn't that of the seeds, and four images."""
    rows = [
        ("ours", 0, 98.0, 50.0, [1, 1, 0, 0]),
        ("other", 2, 99.0, 25.0, [1, 0, 0, 0]),
        ("other", 0, 98.5, 25.0, [1, 0, 0, 0]),
        ("ours", 2, 97.0, 50.0, [1, 1, 0, 0]),
        ("ours", 1, 97.5, 50.0, [1, 1, 0, 0]),
        ("other", 1, 99.0, 25.0, [1, 0, 0, 0]),
    ]
    runs = pd.DataFrame(rows, columns=["method", "seed", "clean", "robust", "withstands"])
    return runs.assign(withstands=[np.array(each, bool) for each in runs["withstands"]])


def test_differences_are_paired_by_seeds(attacked):
    assert list(reporting.minus(attacked, "other", "ours", "clean")) == [0.5, 1.5, 2.0]
    robust = attacked.rename(columns={"method": "family"})
    assert list(reporting.minus(robust, "ours", "other", "robust", "family")) == [25.0] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs.drop(4), r"other has the seeds \[0, 1, 2\] and ours \[0, 2\]"),
        (lambda runs: runs.drop([1, 2, 5]), r"other has the seeds \[\] and ours"),
        (lambda runs: pd.concat([runs, runs]), r"\[0, 0, 1, 1, 2, 2\]; give both .* each once"),
    ],
)
def test_what_makes_no_pairs_is_refused(attacked, change, message):
    with pytest.raises(ValueError, match=message):
        reporting.minus(change(attacked), "other", "ours", "clean")


def test_comparison_under_attack(attacked):
    table = reporting.compare_under_attack(attacked, "ours")
    # The standard error of 0.5, 1.5, 2.0 is 0.441, and the quantile with three values 4.30.
    expected = ["1.33 ± 1.90", "–", "−25.00 ± 0.00", "behind"]
    assert list(table.index) == ["other"]
    assert list(table.iloc[0, :4]) == expected
    # One image of four differs, which of four drawn is up to three in all but 1 of 256 cases.
    assert table.iloc[0, 4] == "−75.00 to 0.00"


def test_equivalence_takes_both_sides():
    # Mean 0.1 and standard error 0.05: 4 standard errors above -0.1, and 2 below 0.2.
    spread = np.array([-2, -1, 0, 1, 2]) * 0.05 / 0.5**0.5
    np.testing.assert_allclose(
        reporting.equivalence_p(spread + 0.1, 0.2), stats.t.sf(2, 4), rtol=1e-6
    )
    np.testing.assert_allclose(
        reporting.equivalence_p(spread - 0.1, 0.2), stats.t.sf(2, 4), rtol=1e-6
    )
    assert reporting.equivalence_p(spread + 0.3, 0.2) > 0.5


def test_holm_is_that_of_the_textbook():
    # Sorted: 4 × 0.005, 3 × 0.01, 2 × 0.03, and 1 × 0.04, which may not be below the one before.
    adjusted = reporting.holm([[0.01, 0.04], [0.03, 0.005]])
    np.testing.assert_allclose(adjusted, [[0.03, 0.06], [0.06, 0.02]])
    np.testing.assert_allclose(reporting.holm([0.6, 0.7]), [1, 1])


def failed(*claims):
    """The texts of the claims that fail, each a method of Claims with its arguments."""
    checked = Claims()
    for method, *arguments in claims:
        getattr(checked, method)(*arguments)
    try:
        checked.check()
    except AssertionError as error:
        return str(error).removeprefix("These claims do not hold: ").split("; ")
    return []


# The mean is 3, the standard error sqrt(0.5) and the quantile 6.62: 3 ± 4.68.
VALUES = pd.Series([1, 2, 3, 4, 5])


def test_above_below_and_within_leave_room_for_the_interval():
    assert failed(
        ("above", VALUES, -1.69, "a {}"),
        ("above", VALUES, -1.67, "b {}"),
        ("below", VALUES, 7.69, "c {}"),
        ("below", VALUES, 7.67, "d {}"),
        ("within", VALUES, 7.69, "e {}"),
        ("within", VALUES, 7.67, "f {}"),
        ("within", -VALUES, 7.69, "g {}"),
        ("within", -VALUES, 7.67, "h {}"),
        ("above", [1, np.nan], 0, "i"),
    ) == ["b -1.67", "d 7.67", "f 7.67", "h 7.67", "i"]


def test_a_single_number_is_compared_as_it_is():
    assert failed(
        ("above", 3, 2.9, "a"),
        ("above", 3, 3, "b {}"),
        ("below", 3, 3.1, "c"),
        ("below", 3, 3, "d"),
    ) == ["b 3", "d"]


def test_one_seed_has_no_standard_error():
    with pytest.raises(ValueError, match="at least two values, not 1"):
        Claims().above([1], 0, "a")


def test_claims_that_hold_are_printed_with_their_threshold(capsys):
    claims = Claims()
    claims.above(VALUES, -10, "water is above {} degrees")
    claims.holds(np.bool_(True), "and wet")
    claims.check()
    assert capsys.readouterr().out == "PASS water is above -10 degrees\nPASS and wet\n"


def test_a_claim_that_fails_raises_and_is_named(capsys):
    assert failed(("holds", True, "water is wet"), ("holds", False, "pigs fly")) == ["pigs fly"]
    assert capsys.readouterr().out == "PASS water is wet\nNOT MET pigs fly\n"


def test_claims_are_only_reported_if_the_runner_says_so(capsys, monkeypatch):
    monkeypatch.setenv("CLAIMS", "report")
    assert failed(("holds", True, "water is wet"), ("holds", False, "pigs fly")) == []
    assert "NOT MET pigs fly\n" in capsys.readouterr().out


def test_a_mean_is_drawn_with_its_interval_either_way():
    table = pd.DataFrame({"epoch": [1] * 5 + [2] * 5, "accuracy": [1, 2, 3, 4, 5, 2, 3, 4, 5, 6]})
    groups, half = table.groupby("epoch")["accuracy"], 2.776 * 0.5**0.5
    figure, (upright, lying, band) = plt.subplots(1, 3)
    draw_mean(upright, groups, **LOOKS["gradient loss"])
    draw_mean(lying, groups, [10, 20], horizontal=True)
    draw_mean(band, groups, band=True, color="red")
    (points,) = upright.containers
    np.testing.assert_allclose(points[0].get_xydata(), [[1, 3], [2, 4]])
    np.testing.assert_allclose(points[2][0].get_segments()[0], [[1, 3 - half], [1, 3 + half]], 1e-3)
    (points,) = lying.containers
    np.testing.assert_allclose(points[0].get_xydata(), [[3, 10], [4, 20]])
    np.testing.assert_allclose(
        points[2][0].get_segments()[1], [[4 - half, 20], [4 + half, 20]], 1e-3
    )
    np.testing.assert_allclose(band.lines[0].get_xydata(), [[1, 3], [2, 4]])
    edges = band.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([edges[:, 1].min(), edges[:, 1].max()], [3 - half, 4 + half], 1e-3)
    plt.close(figure)


def test_figure_is_saved_with_its_numbers_and_reproducibly(tmp_path, monkeypatch):
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    table = pd.DataFrame({"epoch": [1, 2], "loss": [0.1, 1 / 3]})
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        monkeypatch.setenv("RUN_FOLDER", str(folder))
        reporting.save_figure(figure, "01_test", table)
        assert (folder / "01_test.csv").read_text() == "epoch,loss\n1,0.1\n2,0.333333\n"
        contents.append((folder / "01_test.png").read_bytes())
    assert contents[0] == contents[1]
