"""Figures, intervals and claims."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import utils


def test_half_width_is_that_of_the_table_of_students_t():
    # For 4 degrees of freedom the table says 2.776; the standard error is sqrt(2.5 / 5).
    np.testing.assert_allclose(utils.half_width([1, 2, 3, 4, 5]), 2.776 * 0.5**0.5, rtol=1e-3)


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
    assert utils.plus_minus(pd.Series(values), digits) == expected


@pytest.mark.parametrize(
    ("differences", "expected"),
    [([3, 4, 5], "ahead"), ([-3, -4, -5], "behind"), ([1, 4, 7], "–"), ([-1, -4, -7], "–")],
)
def test_verdict_takes_three_standard_errors(differences, expected):
    # Standard errors 0.58 and 1.73: three of them are 1.7, less than 4, and 5.2, more.
    assert utils.verdict(pd.Series(differences)) == expected


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.87, True), (0.89, False), (3.1, False), (-9, True)]
)
def test_exceeds_takes_three_standard_errors(threshold, expected):
    # Mean 3, standard error sqrt(0.5), so the bound is 0.879.
    assert utils.exceeds(pd.Series([1, 2, 3, 4, 5]), threshold) is expected


@pytest.mark.parametrize(("margin", "expected"), [(5.2, True), (5.0, False), (3.0, False)])
def test_within_is_two_sided(margin, expected):
    # Mean ±3, standard error sqrt(0.5), so the bound is 5.12.
    assert utils.within([1, 2, 3, 4, 5], margin) is expected
    assert utils.within([-1, -2, -3, -4, -5], margin) is expected


def test_exceeds_is_false_for_nan_and_needs_two_values():
    assert not utils.exceeds([1, np.nan], 0)
    with pytest.raises(ValueError, match="at least two values, not 1"):
        utils.exceeds([1], 0)


def test_claims_that_hold_are_printed(capsys):
    utils.check_claims({"water is wet (always)": np.bool_(True)})
    assert capsys.readouterr().out == "PASS water is wet (always)\n"


def test_claim_that_fails_raises_and_is_named(capsys):
    with pytest.raises(AssertionError, match="pigs fly"):
        utils.check_claims({"water is wet": True, "pigs fly": False})
    assert capsys.readouterr().out == "PASS water is wet\nNOT MET pigs fly\n"


def test_claims_are_not_enforced_with_other_parameters_but_said(capsys):
    utils.check_claims({"water is wet": True, "pigs fly": False}, enforce=False)
    assert "NOT MET pigs fly\n" in capsys.readouterr().out


def test_figure_is_saved_with_its_numbers_and_reproducibly(tmp_path, monkeypatch):
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    table = pd.DataFrame({"epoch": [1, 2], "loss": [0.1, 1 / 3]})
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        monkeypatch.setenv("FIGURES", str(folder))
        utils.save_figure(figure, "01_test", table)
        assert (folder / "01_test.csv").read_text() == "epoch,loss\n1,0.1\n2,0.333333\n"
        contents.append((folder / "01_test.png").read_bytes())
    assert contents[0] == contents[1]
