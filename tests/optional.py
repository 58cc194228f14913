"""Packages that not every machine has: the tests that need them are left out by name, those beside them run.

    from optional import given, settings, strategies as st

hypothesis itself where it is installed; elsewhere @given is a skip, and what else a test file asks of it is nothing.
"""

import importlib.util

import pytest

PACKAGES = ("expecttest", "hypothesis", "fontTools", "matplotlib", "PIL", "rich")


class Nothing:
    """Whatever is called, added or looked up in it is itself."""

    def __call__(self, *_, **__):
        return self

    def __getattr__(self, _):
        return self

    def __or__(self, _):
        return self


try:
    from hypothesis import HealthCheck, assume, given, settings, strategies
except ImportError:
    HealthCheck = assume = strategies = Nothing()

    def given(*_, **__):
        return pytest.mark.skip(reason="needs hypothesis")

    def settings(*_, **__):
        return lambda test: test


TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="needs triton")


def skip_without(*names):
    """In a module that test files import: skips these unless all of PACKAGES' `names` are installed."""
    for name in names:
        pytest.importorskip(name, reason=f"needs {name}")


def skip_if_missing(error: ModuleNotFoundError):
    """Skips the test that an import has failed in, by the package's name, if it is one of PACKAGES."""
    if error.name in PACKAGES:
        pytest.skip(f"needs {error.name}")


__all__ = ["HealthCheck", "assume", "given", "settings", "skip_if_missing", "skip_without", "strategies"]
