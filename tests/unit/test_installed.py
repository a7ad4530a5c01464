"""Versions of what is there."""

import platform
from importlib.metadata import version

from genret import __version__
from genret.installed import installed_versions


def test_what_is_not_installed_is_left_out() -> None:
    found = installed_versions(["torch", "no-such-package-here"])
    assert found == {"python": platform.python_version(), "genret": __version__, "torch": version("torch")}
