"""Products, norms and attention of our own on a CPU: C++ that is compiled once on each machine, for its processor.

Torch's products wait for weights and multiply them one after the other; ours do both at a time (`python
benchmarks/decoding.py --part weights` compares them). They run in the threads that torch runs in. Where there is no
compiler, or it is not GCC, there are none. The environment variable `CXX` names another compiler; empty, it turns them
off.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("c++", "g++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-fopenmp", "-fPIC")
# What the compiler is given at most, in seconds; it takes about one.
COMPILER_SECONDS = 120

_LOGGER = logging.getLogger("genret")


@dataclass(frozen=True)
class Panels:
    """A matrix, or two of them, as `Kernels.product` reads them.

    Attributes:
        rows: float32 `[panels, width, columns]`: a panel holds as many rows as there are columns, feature by feature;
            what the last one lacks is zeros.
        bias: float32 `[panels * columns]`, in the same order, or None.
        outputs: How many outputs a state has.
        gated: Whether the first half of a panel's columns are a gate for the others.
    """

    rows: Tensor
    bias: Tensor | None
    outputs: int
    gated: bool


@dataclass(frozen=True)
class Turns:
    """Rotary position embedding of some states' first outputs (arXiv 2104.09864, equation 34).

    Attributes:
        table: float32 `[positions, head_dim]`, cosines and then sines, half as many as a head has features each.
        positions: int64 `[states]`.
        turned: How many outputs, whole heads in the order of `Kernels.head_order`.
    """

    table: Tensor
    positions: Tensor
    turned: int


@dataclass(frozen=True)
class Tree:
    """What the tokens of a pass see of a cache, row by row of it.

    Attributes:
        begin: int64 `[rows + 1]`, where the tokens of each row begin.
        used: int64 `[rows]`, how many columns of each hold something, with this pass.
        slots: int64 `[tokens]`, row * room + column of each token.
        first: int64 `[tokens]`, how many columns from the first on each sees: those of its prompt, in a prompt those up
            to its own.
        depth: int64 `[tokens]`, its place on the path that follows; -1 in a prompt.
        seen: int32 `[tokens, depth]`, the columns of the tokens on that path, its own among them; -1 for none.
    """

    begin: Tensor
    used: Tensor
    slots: Tensor
    first: Tensor
    depth: Tensor
    seen: Tensor


class Kernels:
    """The compiled functions, see kernels.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Take the library.

        Raises:
            AttributeError: It lacks a function.
        """
        library.genret_columns.restype = ctypes.c_int64
        self._columns: int = library.genret_columns()
        self._product = library.genret_product
        number, small, place = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p
        self._product.restype = small
        self._product.argtypes = [
            *(place, number, number, place, place, place, number, place),
            *(small, ctypes.c_float, place, place, place, number, number, small),
        ]
        self._attention = library.genret_attention
        self._attention.restype = small
        self._attention.argtypes = [
            *(place, place, place, number, number, number, number, number, place, place, number, number),
            *(place, place, place, place, place, place, number, number, ctypes.c_float, place, small),
        ]
        self._norm = library.genret_norm
        self._norm.restype = None
        self._norm.argtypes = [place, number, number, place, ctypes.c_float, place, small]

    def fits(self, size: int) -> bool:
        """Whether heads of this size can be turned by `product`, and be attended with."""
        return size % self._columns == 0

    def head_order(self, size: int) -> Tensor:
        """In which order `product` turns the features of a head: int64 `[size]`.

        Those that are turned with each other stand in the two halves of a panel.
        """
        return torch.arange(size).view(2, -1, self._columns // 2).transpose(0, 1).flatten()

    def laid_out(self, rows: Tensor, bias: Tensor | None = None, gated: bool = False) -> Panels:
        """Lay out a matrix.

        Args:
            rows: float32 `[out, width]`. Gated: those of the gate, and then as many others.
            bias: float32 `[out]`, added to every product.
            gated: Whether products with the first half of the rows become, by SiLU, the factors of the others.

        Raises:
            TypeError: Numbers of another type.
        """
        _check_types(*(part for part in (rows, bias) if part is not None))
        parts = 2 if gated else 1
        outputs = len(rows) // parts
        columns = self._columns // parts
        missing = -outputs % columns
        apart = nn.functional.pad(rows.detach().view(parts, outputs, -1), (0, 0, 0, missing))
        panels = apart.view(parts, -1, columns, rows.shape[1]).permute(1, 3, 0, 2)
        added = None if bias is None else nn.functional.pad(bias.detach().view(parts, outputs), (0, missing))
        return Panels(
            panels.reshape(-1, rows.shape[1], self._columns).contiguous(),
            None if added is None else added.view(parts, -1, columns).transpose(0, 1).flatten(),
            outputs,
            gated,
        )

    def product(
        self,
        states: Tensor,
        panels: Panels,
        added: Tensor | None = None,
        epsilon: float | None = None,
        sums: Tensor | None = None,
        turns: Turns | None = None,
    ) -> Tensor:
        """The products of all rows of a matrix with each of some states.

        Args:
            states: float32 `[states, width]` on the CPU.
            panels: The matrix.
            added: float32 `[states, outputs]`, added to the products.
            epsilon: If there is one, states are divided first by the root of it and of the mean of their squares
                (RMSNorm, arXiv 1910.07467, equation 4, but for its factors).
            sums: float32 `[states]`, contiguous, if there is no gate: becomes the sum of the exponentials of each
                state's outputs, infinite where one is beyond 88. Of hundreds of thousands of outputs it is good to some
                1e-5 of it.
            turns: Turns outputs, if they have no gate.

        Returns:
            float32 `[states, outputs]`.

        Raises:
            TypeError: Numbers of another type.
            MemoryError: There is none for a copy of some states.
        """
        table = None if turns is None else turns.table
        _check_types(*(part for part in (states, added, sums, table) if part is not None))
        # What is not contiguous must live as long as the call.
        states, added = states.contiguous(), None if added is None else added.contiguous()
        made = states.new_empty(states.shape[0], panels.outputs)
        failed = self._product(
            states.data_ptr(),
            states.shape[0],
            states.shape[1],
            panels.rows.data_ptr(),
            None if panels.bias is None else panels.bias.data_ptr(),
            None if added is None else added.data_ptr(),
            panels.outputs,
            made.data_ptr(),
            panels.gated,
            -1.0 if epsilon is None else epsilon,
            None if sums is None else sums.data_ptr(),
            *((None, None, 1, 0) if turns is None else _pointers(turns)),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a copy of {tuple(states.shape)} states")
        return made

    def normed(self, states: Tensor, factors: Tensor, epsilon: float) -> Tensor:
        """RMSNorm of float32 states `[states, width]` with factors `[width]` (arXiv 1910.07467, equation 4).

        Raises:
            TypeError: Numbers of another type.
        """
        _check_types(states, factors)
        states, factors = states.contiguous(), factors.contiguous()
        made = torch.empty_like(states)
        self._norm(
            states.data_ptr(), *states.shape, factors.data_ptr(), epsilon, made.data_ptr(), torch.get_num_threads()
        )
        return made

    def attention(
        self,
        states: tuple[Tensor, Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        tree: Tree,
        window: int | None,
        scaling: float,
    ) -> Tensor:
        """Put keys and values of a pass into the cache, and attend to it: softmax over what each token sees.

        Args:
            states: float32 queries `[tokens, heads, head_dim]`, keys and values `[tokens, key_heads, head_dim]`, row by
                row of the cache, heads side by side: queries and keys are parts of one product.
            cache: float32 keys and values `[rows, room, key_heads, head_dim]`, written to.
            tree: What the tokens see.
            window: How far back, in positions; None for all the way.
            scaling: Factor of the scores.

        Returns:
            float32 `[tokens, heads, head_dim]`.

        Raises:
            TypeError: Numbers of another type.
            ValueError: Numbers that stand in another order.
            MemoryError: There is none for a copy of some keys.
        """
        _check_types(*states, *cache)
        query, key, value = states
        keys, values = cache
        if query.shape[0] and (
            query.stride() != key.stride() or any(part.stride()[1:] != (query.shape[2], 1) for part in (query, value))
        ):
            raise ValueError("expected queries and keys of one product, and the features of heads side by side")
        made = query.new_empty(query.shape)
        failed = self._attention(
            *(part.data_ptr() for part in states),
            query.stride(0),
            value.stride(0),
            query.shape[1],
            query.shape[1] // key.shape[1],
            query.shape[2],
            keys.data_ptr(),
            values.data_ptr(),
            keys.shape[0],
            keys.shape[1],
            tree.begin.data_ptr(),
            tree.used.data_ptr(),
            tree.slots.data_ptr(),
            tree.first.data_ptr(),
            tree.depth.data_ptr(),
            tree.seen.data_ptr(),
            tree.seen.shape[1],
            sys.maxsize if window is None else window,
            scaling,
            made.data_ptr(),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a copy of some of {tuple(keys.shape)} keys")
        return made


def _check_types(*tensors: Tensor) -> None:
    """What the kernels read and write is of this type, whatever a model is made of."""
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            raise TypeError(f"expected numbers in single precision, found {tensor.dtype}")


def _pointers(turns: Turns) -> tuple[int, int, int, int]:
    return turns.table.data_ptr(), turns.positions.data_ptr(), turns.table.shape[1], turns.turned


@cache
def kernels() -> Kernels | None:
    """The products of this process, compiled now if this machine has not done so before; None without a compiler."""
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        found = Kernels(_library(compiler))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        _LOGGER.warning("%s could not compile %s, products are torch's: %s", compiler, SOURCE.name, _reason(error))
        return None
    if not _multiplies(found):
        _LOGGER.warning("%s compiles %s to something that multiplies wrongly, products are torch's", compiler, SOURCE)
        return None
    return found


def _compiler() -> str | None:
    chosen = os.environ.get("CXX")
    names = COMPILERS if chosen is None else (chosen,)
    return next(filter(None, map(shutil.which, names)), None)


def _library(compiler: str) -> ctypes.CDLL:
    """The compiled source, of a folder of the user's own where that can be kept."""
    folder = _kept()
    if folder is not None:
        library = _compiled(compiler, folder)
        try:
            if _is_own(library):
                return ctypes.CDLL(str(library))
        except OSError:
            # No library, or one that was made where others are: it will be made anew.
            library.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="genret-", ignore_cleanup_errors=True) as passing:
        return ctypes.CDLL(str(_compiled(compiler, Path(passing))))


def _kept() -> Path | None:
    """The folder for what is compiled; None where there is none that only this user can write to."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "genret-kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = _is_own(folder) and os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # the latter without a home
        return None
    return folder if usable else None


def _is_own(path: Path) -> bool:
    """Whether only this user can write there; of the folders above that is taken for granted."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compiled(compiler: str, folder: Path) -> Path:
    """The library in the folder, made if it is not there; it appears there as a whole."""
    library = folder / f"kernels-{_key(compiler)}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as passing:
        item, whole = Path(passing, "kernels.o"), Path(passing, "kernels.so")
        _call(compiler, *FLAGS, "-c", str(SOURCE), "-o", str(item))
        # Not linked with a library of threads: it finds torch's, which is loaded already. With one of its own there
        # would be twice the threads, waiting for each other.
        _call(compiler, "-shared", "-nostdlib", str(item), "-o", str(whole))
        # Whatever the process's mask is, only the user's own.
        whole.chmod(0o700)
        whole.replace(library)
    return library


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=COMPILER_SECONDS)


def _key(compiler: str) -> str:
    """What the library depends on: folders of users are shared by machines with other processors and compilers."""
    binary = Path(compiler).resolve()
    found = binary.stat()
    parts = [SOURCE.read_text(encoding="utf-8"), *FLAGS, str(binary), str(found.st_size), str(found.st_mtime_ns)]
    return hashlib.sha256("\n".join([*parts, _processor()]).encode()).hexdigest()[:24]


def _processor() -> str:
    """The kind of this processor, and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kinds = ("model name", "model\t", "flags", "CPU part", "Features")
    return "\n".join(sorted({platform.machine(), *(line for line in lines if line.startswith(kinds))}))


def _multiplies(found: Kernels) -> bool:
    """Whether a few products are right, of more states than fit in one block and rows that fill no panel."""
    # Whatever torch's defaults are.
    random = torch.Generator("cpu").manual_seed(0)
    states, rows = (torch.randn(count, 17, generator=random, dtype=torch.float32, device="cpu") for count in (15, 33))
    sums = states.new_empty(len(states))
    made = found.product(states, found.laid_out(rows), sums=sums)
    expected = states.double() @ rows.double().T
    return torch.allclose(made.double(), expected, atol=1e-4) and torch.allclose(
        sums.double().log(), expected.logsumexp(1), atol=1e-4
    )


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    return (said.strip().splitlines() or [str(error)])[-1] if isinstance(said, str) else str(error)
