"""What the retrievers need beside genret's own dependencies; asked before anything heavy is imported."""

from importlib.util import find_spec

from genret.errors import InputError


def check_faiss() -> None:
    """Refuse what needs faiss where it is not installed.

    Raises:
        InputError: Says how to install it.
    """
    if find_spec("faiss") is None:
        raise InputError("dense.index: lists needs the package faiss, found none; pip install 'genret[faiss]'")
