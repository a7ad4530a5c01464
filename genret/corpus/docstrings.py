"""The public names of the running Python's standard library with their docstrings, printed as JSON lines.

Run as a script in a process of its own (`python_docs.py` does so): importing every module of the library has
side effects that no other process should have. Uses the standard library only.
"""

import builtins
import contextlib
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

SKIPPED_MODULES = frozenset(
    [
        # Open a browser, print, or are programs.
        *("antigravity", "this", "idlelib", "turtledemo"),
        # Tests, tables of data, and tools that only serve the library itself.
        *("test", "encodings", "pydoc_data", "lib2to3", "distutils", "ensurepip"),
        # The platforms' own paths and calls: what this platform has of them is public in os and os.path.
        *("posixpath", "ntpath", "genericpath", "nturl2path", "posix", "nt"),
        # Old names of the regular expression engine's inside.
        *("sre_compile", "sre_constants", "sre_parse"),
    ]
)
"""Top-level modules that are not read."""

SKIPPED_PARTS = frozenset(["test", "tests", "macholib", "pyrepl"])
"""Names of submodules that are not read, in any package."""

MODULES_WITHIN = ("os.path",)
"""Public modules that are no file of a package."""

SHORTEST_DOCSTRING = 20
"""Shorter docstrings (characters) say nothing that the name does not say."""

LONGEST_SIGNATURE = 80
"""Longer signatures (characters) are cut to `(...)`."""

_BOILERPLATE = re.compile(r"Alias for field number \d+|.* at 0x[0-9a-f]{6,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Name:
    """One public dotted name of a documented object; an object may have several."""

    name: str
    module: str
    kind: str
    """`module`, `class`, `function`, `method`, or `data` (such as `typing.Union`)."""
    docstring: str
    signature: str
    rank: "Rank"
    """Names that share a docstring are names of one thing: the lowest rank is the one to list it under."""


class Rank(NamedTuple):
    """How public a name is, the most important first; lower is more public."""

    foreign: bool
    """Under another package than where it is defined: `shelve.Shelf.get` of `collections.abc.Mapping.get`."""
    alias: bool
    """Under another name than it was defined with: `IOError` of `OSError`."""
    dots: int
    """Depth: `json.JSONDecoder` before `json.decoder.JSONDecoder`."""
    distance: int
    """How many classes up the method is defined: 0 where the class itself defines it."""
    bases: int
    """How many bases the class has: `Executor.submit` before `ThreadPoolExecutor.submit`."""
    imported: bool
    """Not a builtin: `builtins.open` before `io.open`."""
    length: int
    name: str


def import_modules() -> dict[str, ModuleType]:
    """Import every public module of the standard library that this platform has.

    Returns:
        The modules by dotted name. Modules that fail to import, or that print, are left out.
    """
    modules: dict[str, ModuleType] = {}
    pending = sorted(name for name in sys.stdlib_module_names if name not in SKIPPED_MODULES)
    pending += MODULES_WITHIN
    while pending:
        name = pending.pop(0)
        if not _is_public(name) or (module := _import_quietly(name)) is None:
            continue
        modules[name] = module
        pending += (f"{name}.{found.name}" for found in pkgutil.iter_modules(getattr(module, "__path__", ())))
    return modules


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") or part in SKIPPED_PARTS for part in name.split("."))


def _import_quietly(name: str) -> ModuleType | None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            module = importlib.import_module(name)
        # A module may do anything when imported on a platform that it is not for, sys.exit() included.
        except BaseException:
            return None
    return None if printed.getvalue() else module


def public_members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The names that a module offers: those of `__all__`, else what is defined in it.

    What a module took from a private one (`bisect` from `_bisect`) counts as defined in it.
    """
    declared = getattr(module, "__all__", None)
    for name in sorted(set(vars(module) if declared is None else declared)):
        if name.startswith("_") or (value := getattr(module, name, None)) is None:
            continue
        home = _home(value)
        if declared is not None or home == module.__name__ or home.startswith("_") or module is builtins:
            yield name, value


def names_in(module_name: str, module: ModuleType) -> Iterator[Name]:
    """Every public, documented name of a module: its own, its classes', functions' and methods'."""
    if docstring := _docstring(module):
        yield Name(module_name, module_name, "module", docstring, "", _rank(module_name, home=module_name))
    for member_name, member in public_members(module):
        name = f"{module_name}.{member_name}"
        if inspect.isclass(member):
            yield from _class_name(name, module_name, member)
            yield from _method_names(name, module_name, member)
        elif docstring := _docstring(member):
            kind = "function" if inspect.isroutine(member) else "data"
            alias = getattr(member, "__name__", member_name) != member_name
            rank = _rank(name, home=_home(member), alias=alias)
            yield Name(name, module_name, kind, docstring, _signature(member), rank)


def _class_name(name: str, module_name: str, cls: type) -> Iterator[Name]:
    package = _package(cls.__module__)
    for distance, owner in enumerate(cls.__mro__):
        # Without a docstring of its own, a class is documented by its base, but not by one from elsewhere:
        # "Common base class for all non-exit exceptions." describes Exception alone.
        if _package(owner.__module__) == package and "__doc__" in vars(owner) and (doc := _docstring(owner)):
            rank = _rank(name, cls.__module__, _is_alias(name, cls), distance, len(cls.__mro__))
            yield Name(name, module_name, "class", doc, _signature(cls), rank)
            return


def _method_names(class_name: str, module_name: str, cls: type) -> Iterator[Name]:
    alias = _is_alias(class_name, cls)
    for attribute in sorted(name for name in dir(cls) if not name.startswith("_")):
        for distance, owner in enumerate(cls.__mro__):
            method = vars(owner).get(attribute)
            if isinstance(method, classmethod | staticmethod):
                method = method.__func__
            # An override without a docstring is documented by the method that it overrides.
            if inspect.isroutine(method) and (docstring := _docstring(method)):
                name = f"{class_name}.{attribute}"
                rank = _rank(name, owner.__module__, alias, distance, len(cls.__mro__))
                yield Name(name, module_name, "method", docstring, _signature(method), rank)
                break


def _docstring(value: Any) -> str:
    """The object's own docstring, cleaned; empty where it has none or one that says nothing."""
    docstring = value.__doc__
    # An instance without a docstring shows that of its type.
    if not isinstance(docstring, str) or (not inspect.isclass(value) and docstring == type(value).__doc__):
        return ""
    docstring = inspect.cleandoc(docstring).strip()
    return "" if len(docstring) < SHORTEST_DOCSTRING or _BOILERPLATE.fullmatch(docstring) else docstring


def _signature(value: Any) -> str:
    try:
        signature = str(inspect.signature(value))
    # Many functions written in C tell no signature, and some classes fail in their own ways.
    except Exception:
        return ""
    # Addresses and sets would differ from run to run, and the place of Python (a default of `platform.architecture`)
    # from folder to folder.
    varies = any(part in signature for part in (" at 0x", "{", sys.executable, sys.prefix) if part)
    return "(...)" if varies or len(signature) > LONGEST_SIGNATURE else signature


def _is_alias(name: str, cls: type) -> bool:
    return cls.__name__ != name.rpartition(".")[2]


def _home(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "")


def _package(module: str) -> str:
    # _socket is the part of socket that is written in C.
    return module.split(".")[0].lstrip("_")


def _rank(name: str, home: str, alias: bool = False, distance: int = 0, bases: int = 0) -> Rank:
    package = name.split(".")[0]
    return Rank(
        foreign=package not in ("builtins", _package(home)),
        alias=alias,
        dots=name.count("."),
        distance=distance,
        bases=bases,
        imported=package != "builtins",
        length=len(name),
        name=name,
    )


def main() -> None:
    """Print a JSON line a name, the most public names first."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    # Whatever C code of a module prints must not get between the lines.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    names = [name for path, module in import_modules().items() for name in names_in(path, module)]
    with output:
        for name in sorted(names, key=lambda name: name.rank):
            fields = {
                "name": name.name,
                "module": name.module,
                "kind": name.kind,
                "docstring": name.docstring,
                "signature": name.signature,
            }
            output.write(json.dumps(fields) + "\n")


if __name__ == "__main__":
    main()
