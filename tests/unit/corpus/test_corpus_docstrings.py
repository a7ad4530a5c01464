import enum
import fractions
import types

import pytest

from genret.corpus.docstrings import Name, import_modules, names_in, public_members


class Base:
    """A base class with a docstring."""

    def stay(self) -> None:
        """Stay where you are, please."""

    def go(self, where: str, how: str = "by foot") -> None:
        """Go to another place, please."""

    @staticmethod
    def still() -> None:
        """A static method's docstring."""

    @classmethod
    def classy(cls) -> None:
        """A class method's docstring."""

    @property
    def measure(self) -> int:
        """Properties are attributes, not methods."""
        return 1

    def short(self) -> None:
        """Too short."""

    def _private(self) -> None:
        """Nobody should find this one."""


class Derived(Base):
    def go(self, where: str, how: str = "by train") -> None:
        raise NotImplementedError


class Failure(Exception):
    pass


@pytest.fixture
def module() -> types.ModuleType:
    made = types.ModuleType("made", "A module that was made by hand.")
    for cls in (Base, Derived, Failure):
        cls.__module__ = "made"
        setattr(made, cls.__name__, cls)
    made.Alias = Base
    made.Fraction = fractions.Fraction
    made.Colour = enum.Enum("Colour", "RED", module="made")
    made._hidden = Base
    made.number = 3
    return made


def found(module: types.ModuleType) -> dict[str, Name]:
    return {name.name: name for name in names_in("made", module)}


def test_names_of_a_module(module: types.ModuleType) -> None:
    names = found(module)
    assert names["made"].kind == "module"
    assert names["made.Base"].kind == "class"
    assert names["made.Base.go"].kind == "method"
    assert names["made.Base.go"].signature == "(self, where: str, how: str = 'by foot') -> None"
    assert names["made.Base.still"].docstring == "A static method's docstring."
    assert names["made.Base.classy"].docstring == "A class method's docstring."
    assert not {"made.Base.measure", "made.Base.short", "made.Base._private", "made.number"} & names.keys()
    assert not any(name.startswith(("made._hidden", "made.Fraction")) for name in names)


def test_an_override_without_docstring_is_documented_by_its_base(module: types.ModuleType) -> None:
    names = found(module)
    assert names["made.Derived.go"].docstring == "Go to another place, please."
    assert names["made.Derived"].docstring == "A base class with a docstring."
    assert names["made.Base.go"].rank < names["made.Derived.go"].rank
    assert names["made.Base.stay"].rank < names["made.Derived.stay"].rank


def test_a_base_from_elsewhere_does_not_describe_a_class(module: types.ModuleType) -> None:
    assert "made.Failure" not in found(module)


def test_a_name_of_its_own_comes_before_an_alias(module: types.ModuleType) -> None:
    names = found(module)
    assert names["made.Base"].rank < names["made.Alias"].rank
    assert names["made.Base.go"].rank < names["made.Alias.go"].rank


def test_declared_names_are_the_public_ones(module: types.ModuleType) -> None:
    module.__all__ = ["Fraction", "_hidden", "absent"]
    assert [name for name, _ in public_members(module)] == ["Fraction"]


def test_a_name_that_is_less_deep_comes_first() -> None:
    import json.decoder

    ranks = {
        name.name: name.rank
        for path, module in {"json": json, "json.decoder": json.decoder}.items()
        for name in names_in(path, module)
    }
    assert ranks["json.JSONDecoder"] < ranks["json.decoder.JSONDecoder"]


def test_modules_that_print_or_fail_are_left_out(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud_one.py").write_text("print('hello')")
    (tmp_path / "broken_one.py").write_text("raise SystemExit(3)")
    (tmp_path / "quiet_one.py").write_text("")
    (tmp_path / "pack_one").mkdir()
    for name in ("__init__", "inner", "_private", "test", "__main__"):
        (tmp_path / "pack_one" / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        "sys.stdlib_module_names",
        frozenset(["loud_one", "broken_one", "quiet_one", "pack_one", "_thread", "this"]),
    )
    assert list(import_modules()) == ["pack_one", "quiet_one", "os.path", "pack_one.inner"]
