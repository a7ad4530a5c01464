"""What is asked for where a package is missing."""

import pytest

from genret.errors import InputError
from genret.retrieval import packages
from genret.retrieval.packages import check_faiss


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"dense\.index: lists needs the package faiss.*genret\[faiss\]"):
        check_faiss()
    monkeypatch.setattr(packages, "find_spec", lambda name: object())
    check_faiss()
