from hashlib import sha256
from pathlib import Path

import pytest

from genret.errors import InputError
from genret.stages import folders
from genret.stages.folders import folder_content


def test_files_are_told_by_their_names_and_what_is_in_them(tmp_path: Path) -> None:
    for name in ("a.json", "sub/b.bin", ".git/config", "sub/.notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    expected = {name: sha256(name.encode()).hexdigest() for name in ("a.json", "sub/b.bin")}
    assert folder_content(str(tmp_path)) == expected


def test_a_name_on_the_hub_is_no_folder(tmp_path: Path) -> None:
    assert folder_content("acme/no-such-model") is None
    (tmp_path / "file").touch()
    assert folder_content(str(tmp_path / "file")) is None


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("one", encoding="utf-8")
    before = folder_content(str(tmp_path))
    read = folders._digest.cache_info().misses
    assert folder_content(str(tmp_path)) == before
    assert folders._digest.cache_info().misses == read
    path.write_text("other", encoding="utf-8")
    assert folder_content(str(tmp_path)) != before


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: cannot be read"):
        folders._digest(tmp_path / "gone", 1, 1)
