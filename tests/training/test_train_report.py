"""The verdict on a method beside cross-entropy, from test scores that are known."""

import math

import pytest
import torch
from programs import record, train_report


def verdict(gains, hits=((), ())):
    """The sentence, where TOAST's top-1 is so many points above cross-entropy's with each seed."""
    runs = []
    for method, points, of_images in (("ce", [0] * len(gains), hits[0]), ("toast", gains, hits[1])):
        runs += [
            record.Record(method, seed, wall_seconds=1, test={"top1": 0.5 + gain / 100, "nll": 1.0},
                          test_hits=torch.tensor(of_images, dtype=torch.bool))
            for seed, gain in enumerate(points)
        ]  # fmt: skip
    (sentence,) = train_report.verdict(runs)
    return sentence


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ((2, 3, 4), "TOAST beat cross-entropy: top-1 +3.00"),
        ((-2, -3, -4), "TOAST lost to cross-entropy: top-1 -3.00"),
        ((1, 2, 3), "TOAST and cross-entropy cannot be told apart: top-1 +2.00"),  # by two standard errors it had won
    ],
)
def test_over_three_seeds_the_interval_is_students(gains, outcome):
    half = 4.302653 / math.sqrt(3)  # t(0.975; 2), printed tables
    assert verdict(gains).startswith(f"{outcome} points ± {half:.2f} (the 95% t interval over 3 seeds), NLL")


def test_two_seeds_are_too_few():
    expected = "TOAST beside cross-entropy, too few seeds for a verdict: top-1 +2.01 points ± 0.13 "
    assert verdict((2, 2.02)).startswith(expected)


@pytest.mark.parametrize(
    ("won", "outcome"), [(20, "TOAST beat cross-entropy"), (3, "TOAST and cross-entropy cannot be told apart")]
)
def test_of_one_seed_the_images_are_the_sample(won, outcome):
    """TOAST is right on `won` of 100 images more, and nowhere else do the two differ."""
    sentence = verdict((won,), ([False] * 100, [True] * won + [False] * (100 - won)))
    share = won / 100
    error = 100 * math.sqrt(share * (1 - share) / 99)
    assert sentence.startswith(f"{outcome}: top-1 +{won}.00 points ± {2 * error:.2f} (two standard errors over the")
