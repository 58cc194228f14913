"""Which cases of a test with many parameters every run takes."""

from itertools import combinations, product

import pairwise
import pytest

TESTS = """
import pytest

@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", [str, len, abs])
@pytest.mark.parametrize(("c", "d"), [(1, "x"), (2, "x"), (2, "y")])
def test_of_four(a, b, c, d):
    assert (a, b, d) != (3, len, "x") or c == 2

@pytest.mark.parametrize("a", range(3))
@pytest.mark.parametrize("b", range(3))
def test_of_two(a, b):
    pass
"""


def test_a_cover_has_every_pair_and_is_small():
    cases = list(product(range(5), range(4), range(3), range(3)))
    sets = [set(combinations(enumerate(case), 2)) for case in cases]
    chosen = pairwise.cover(sets)
    assert set().union(*(sets[place] for place in chosen)) == set().union(*sets)
    assert 20 <= len(chosen) <= 26
    assert pairwise.cover([]) == set()


def test_cases_that_repeat_pairs_are_marked(tmp_path):
    (tmp_path / "test_made.py").write_text(TESTS)
    found = []

    class Plugin:
        def pytest_collection_modifyitems(self, items):
            pairwise.mark_others_as_more(items)
            found.extend((item.originalname, item.get_closest_marker("more") is None) for item in items)

    options = ["-q", "-c", "/dev/null", "-p", "no:cacheprovider", "-p", "no:xdist", "--collect-only"]
    assert pytest.main([*options, str(tmp_path)], plugins=[Plugin()]) == 0
    assert found.count(("test_of_two", True)) == 9
    assert 12 <= found.count(("test_of_four", True)) < 20
    assert found.count(("test_of_four", True)) + found.count(("test_of_four", False)) == 36
