"""Which versions of what are installed."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from genret import __version__


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, of genret, and of those of the packages that are installed, by name."""
    found = {"python": platform.python_version(), "genret": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
