"""Fixtures of the tests of decoding."""

from ways import way

__all__ = ["way"]
