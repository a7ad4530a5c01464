"""Keys that are known by their digests alone."""

import pickle

import pytest

from genret.config import ServingConfig
from genret.serving.gates import Keys
from genret.serving.keys import own_keys, sealed

PATHS = ("/v1/retrieve", "/metrics", "/v1/admin/reload", "/healthz")


@pytest.mark.parametrize("api", ["", "of all"])
@pytest.mark.parametrize("admin", ["", "of the master"])
def test_they_let_through_who_the_keys_let_through(api: str, admin: str) -> None:
    keys = Keys(api, admin)
    found = sealed(keys)
    for path in PATHS:
        for shown in ("", "of all", "of the master", "of nobody", found.api, found.admin):
            assert found.problem(path, shown) == keys.problem(path, shown), (path, shown)


def test_a_key_that_is_missing_is_another_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for keys, whole in ((Keys("", ""), ("there", "admin there")), (Keys("here", ""), ("here", "admin there"))):
        found = sealed(keys).completed(Keys("there", "admin there"))
        for path in PATHS:
            for shown in ("", "here", "there", "admin there"):
                assert found.problem(path, shown) == Keys(*whole).problem(path, shown), (path, shown)
    keys = sealed(Keys("here", ""))
    assert keys.completed(Keys("", "")) == keys


def test_they_do_not_hold_the_keys_and_differ_with_every_start() -> None:
    keys = Keys("of all", "of all")
    one, other = sealed(keys), sealed(keys)
    for found in (one, other):
        assert b"of all" not in pickle.dumps(found) and "of all" not in repr(found)
    assert one.api != other.api and one.salt != other.salt


def test_they_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServingConfig(api_key_variable="ONE", admin_key_variable="OTHER")
    monkeypatch.setenv("ONE", "of all")
    monkeypatch.delenv("OTHER", raising=False)
    assert own_keys(config) == Keys("of all", "")
