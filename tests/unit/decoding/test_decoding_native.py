"""Our own products: the numbers of double precision, and what happens with compilers and folders of all kinds."""

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genret.decoding import native
from genret.decoding.native import Kernels, Tree, Turns, kernels

ANY = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def own() -> Kernels:
    """The products of this machine."""
    found = kernels()
    if found is None:
        reason = "no GCC on this machine"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return found


@pytest.fixture
def anew() -> Iterator[None]:
    """Nothing is compiled in this process yet."""
    kernels.cache_clear()
    yield
    kernels.cache_clear()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Kernels, anew: None) -> Callable[..., Path]:
    """Makes a compiler that runs shell commands before the real one, and a folder for what is kept.

    It writes a line to the file that it gives at each call.
    """

    def make(before: str = "") -> Path:
        real, calls, script = native._compiler(), tmp_path / "calls", tmp_path / "compiler"
        script.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{before}\nexec {real} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
        return calls

    return make


def expected(states: Tensor, rows: Tensor, bias: Tensor | None, gated: bool, epsilon: float | None) -> Tensor:
    """The products in double precision."""
    states = states.double()
    if epsilon is not None:
        states = states / (states.square().mean(1, keepdim=True) + epsilon).sqrt()
    products = states @ rows.double().T + (0 if bias is None else bias.double())
    if not gated:
        return products
    gate, up = products.chunk(2, 1)
    return gate * gate.sigmoid() * up


@given(
    count=st.integers(0, 60),
    width=st.integers(1, 70),
    outputs=st.integers(1, 80),
    has_bias=st.booleans(),
    gated=st.booleans(),
    epsilon=st.sampled_from([None, 1e-6, 0.3]),
    threads=st.sampled_from([1, 2, 3]),
    seed=ANY,
)
def test_products_are_those_of_double_precision(
    own: Kernels,
    count: int,
    width: int,
    outputs: int,
    has_bias: bool,
    gated: bool,
    epsilon: float | None,
    threads: int,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    n_rows = outputs * (2 if gated else 1)
    states, rows = torch.randn(count, width, generator=random), torch.randn(n_rows, width, generator=random)
    bias = torch.randn(n_rows, generator=random) if has_bias else None
    added, sums = torch.randn(count, outputs, generator=random), torch.empty(count)
    panels = own.laid_out(rows, bias, gated)
    right = expected(states, rows, bias, gated, epsilon)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plain = own.product(states, panels, epsilon=epsilon)
        more = own.product(states, panels, added=added, epsilon=epsilon)
        if not gated:
            own.product(states, panels, epsilon=epsilon, sums=sums)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(plain.double(), right, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(more.double(), right + added, atol=2e-4, rtol=1e-5)
    if not gated:
        torch.testing.assert_close(sums.double().log(), right.logsumexp(1), atol=2e-4, rtol=1e-5)


def test_many_states_are_multiplied_group_by_group(own: Kernels) -> None:
    torch.manual_seed(0)
    states, rows, sums = torch.randn(1000, 33), torch.randn(50, 33), torch.empty(1000)
    panels = own.laid_out(rows)
    for epsilon in (None, 0.0, 0.1):
        right = expected(states, rows, None, False, epsilon)
        found = own.product(states, panels, epsilon=epsilon, sums=sums)
        torch.testing.assert_close(found.double(), right, atol=1e-4, rtol=0)
        torch.testing.assert_close(sums.double().log(), right.logsumexp(1), atol=1e-4, rtol=0)


def test_threads_do_not_change_products(own: Kernels) -> None:
    states, panels = torch.randn(31, 64), own.laid_out(torch.randn(300, 64))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(own.product(states, panels, epsilon=0.1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_states_and_rows_need_not_be_contiguous(own: Kernels) -> None:
    states, rows = torch.randn(24, 10).T, torch.randn(24, 40).T[::2]
    added = torch.randn(20, 10).T
    found = own.product(states, own.laid_out(rows), added)
    torch.testing.assert_close(found, states @ rows.T + added, atol=1e-4, rtol=0)


def test_sums_tell_of_numbers_that_are_too_large_or_none(own: Kernels) -> None:
    # One feature, so that logits are what stands here.
    logits = torch.tensor([[0.0, 88.0], [0.0, 89.0], [-1e30, -1e30], [0.0, -torch.inf], [torch.inf, 0], [torch.nan, 0]])
    for columns in (2, 40):
        padded = torch.cat((logits, torch.full((6, columns - 2), -1000.0)), 1)
        sums, one = torch.empty(6), torch.ones(1, 1)
        for number, row in enumerate(padded):
            own.product(one, own.laid_out(row[:, None]), sums=sums[number : number + 1])
        assert sums[0].log() == pytest.approx(88) and sums[1] == torch.inf
        assert 0 <= sums[2] < 1e-30 and sums[3] == pytest.approx(1)
        assert not sums[4].isfinite() and sums[5].isnan()


def test_sums_of_many_outputs_are_good_to_some_hundred_thousandths(own: Kernels) -> None:
    torch.manual_seed(0)
    states, rows, sums = torch.randn(2, 8), torch.randn(300_000, 8), torch.empty(2)
    own.product(states, own.laid_out(rows), sums=sums)
    expected = (states.double() @ rows.double().T).exp().sum(1)
    torch.testing.assert_close(sums.double(), expected, atol=0, rtol=3e-5)


def test_gates_of_any_size_are_numbers(own: Kernels) -> None:
    gate = torch.tensor([-1e30, -200.0, -88.0, -1.0, 0.0, 1.0, 88.0, 200.0, 1e30])
    panels = own.laid_out(torch.cat((gate, torch.ones(9)))[:, None], gated=True)
    found = own.product(torch.ones(1, 1), panels)[0]
    torch.testing.assert_close(found, torch.nn.functional.silu(gate), atol=1e-30, rtol=1e-6)


def test_norms_are_those_of_double_precision(own: Kernels) -> None:
    torch.manual_seed(0)
    for count, width in ((1, 1), (3, 33), (200, 300)):
        states, factors = 3 * torch.randn(width, count).T, torch.randn(width)
        right = torch.nn.functional.rms_norm(states.double(), (width,), factors.double(), 0.1)
        torch.testing.assert_close(own.normed(states, factors, 0.1).double(), right, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_products_are_turned(own: Kernels, size: int) -> None:
    torch.manual_seed(0)
    # Two heads that are turned, and one that is not.
    count, states, rows = 20, torch.randn(20, 12), torch.randn(3 * size, 12)
    positions, angles = torch.randint(0, 50, (count,)), torch.rand(50, size // 2) * 6
    table = torch.cat((angles.cos(), angles.sin()), 1)
    heads = (states.double() @ rows.double().T).unflatten(1, (3, size))
    left, right = heads[:, :2].chunk(2, -1)
    cosine, sine = angles[positions].double().cos()[:, None], angles[positions].double().sin()[:, None]
    turned = torch.cat((left * cosine - right * sine, right * cosine + left * sine), -1)
    order = own.head_order(size)
    assert own.fits(size) and not own.fits(size + 8) and sorted(order.tolist()) == list(range(size))
    ordered = rows.unflatten(0, (3, size))
    ordered = torch.cat((ordered[:2, order].flatten(0, 1), ordered[2]))
    found = own.product(states, own.laid_out(ordered), turns=Turns(table, positions, 2 * size)).unflatten(1, (3, size))
    torch.testing.assert_close(found[:, :2].double(), turned[..., order], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 2].double(), heads[:, 2], atol=1e-4, rtol=0)


@dataclass
class Situation:
    """A cache, and the tokens of a pass."""

    states: tuple[Tensor, Tensor, Tensor]
    cache: tuple[Tensor, Tensor]
    tree: Tree
    row: Tensor


def a_situation(
    seed: int, rows: int, heads: int, shared: int, size: int, prompts: bool, most: int = 12, empty: bool = True
) -> Situation:
    """Rows of different lengths, tokens with paths through what was appended before and in this pass."""
    random = np.random.default_rng(seed)
    prompt = random.integers(1, most, rows)
    before = np.zeros(rows, int) if prompts else random.integers(0, most, rows)
    count = prompt if prompts else random.integers(0 if empty else 1, most, rows)
    used = count if prompts else prompt + before + count
    row, place = np.repeat(np.arange(rows), count), np.concatenate([np.arange(some) for some in count])
    column = place if prompts else (prompt + before)[row] + place
    depth = np.full(len(row), -1) if prompts else random.integers(0, 6, len(row))
    seen = np.full((len(row), max(depth.max(initial=-1) + 1, 0)), -1, np.int32)
    for token, last in enumerate(depth):
        if last >= 0:
            # Some places of the path are part of the prompt, as those that all identifiers share.
            earlier = np.arange(prompt[row[token]], column[token])
            known = min(last, len(earlier), random.integers(0, 6))
            seen[token, last - known : last] = np.sort(random.permutation(earlier)[:known])
            seen[token, last] = column[token]
    room, keyed = int(used.max()) + 3, heads // shared
    product = torch.from_numpy(random.standard_normal((len(row), heads + 2 * keyed, size), np.float32))
    cache = torch.from_numpy(random.standard_normal((2, rows, room, keyed, size), np.float32))
    first = place + 1 if prompts else prompt[row]
    arrays = [np.concatenate(([0], np.cumsum(count))), used, row * room + column, first, depth]
    tree = Tree(*(torch.from_numpy(array.astype(np.int64)) for array in arrays), torch.from_numpy(seen))
    parts = product[:, :heads], product[:, heads : heads + keyed], product[:, heads + keyed :]
    return Situation(parts, (cache[0], cache[1]), tree, torch.from_numpy(row))


def attended(case: Situation, window: int | None, scaling: float) -> Tensor:
    """Attention in double precision, token by token, after keys and values were written."""
    query, key, value = (part.double() for part in case.states)
    keys, values = (part.double().clone() for part in case.cache)
    for buffer, part in ((keys, key), (values, value)):
        buffer.flatten(0, 1)[case.tree.slots] = part
    made = torch.empty_like(query)
    for token, row in enumerate(case.row.tolist()):
        first, depth = int(case.tree.first[token]), int(case.tree.depth[token])
        # Columns by their positions; the last of them is the token's own.
        columns = [*range(first), *case.tree.seen[token, : depth + 1].tolist()]
        near = columns if window is None else columns[max(0, len(columns) - window) :]
        near = [column for column in near if column >= 0]
        for head in range(query.shape[1]):
            shared = head * keys.shape[2] // query.shape[1]
            scores = keys[row, near, shared] @ query[token, head] * scaling
            made[token, head] = scores.softmax(0) @ values[row, near, shared]
    return made


@given(
    seed=ANY,
    rows=st.integers(1, 4),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3)]),
    size=st.sampled_from([32, 64]),
    prompts=st.booleans(),
    window=st.sampled_from([None, 1, 4]),
    threads=st.sampled_from([1, 2, 3]),
)
def test_attention_is_that_of_double_precision(
    own: Kernels,
    seed: int,
    rows: int,
    heads: tuple[int, int],
    size: int,
    prompts: bool,
    window: int | None,
    threads: int,
) -> None:
    case = a_situation(seed, rows, *heads, size, prompts)
    expected = attended(case, window, 0.3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = own.attention(case.states, case.cache, case.tree, window, 0.3)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
    for buffer, part in zip(case.cache, case.states[1:], strict=True):
        assert torch.equal(buffer.flatten(0, 1)[case.tree.slots], part)


@pytest.mark.parametrize("prompts", [True, False])
def test_keys_of_many_rows_are_laid_out_some_at_a_time(own: Kernels, prompts: bool) -> None:
    # More rows and heads with more columns than are laid out at once, and heads with more queries than a block.
    case = a_situation(0, 40, 4, 2, 64, prompts, most=250, empty=False)
    used = case.tree.used.max().item()
    assert 40 * 2 * -(-used // 32) * 32 * 64 > 1 << 20
    some = torch.arange(0, len(case.row), 37)
    expected = attended(case, None, 0.2)[some]
    found = own.attention(case.states, case.cache, case.tree, None, 0.2)[some]
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


def test_what_is_not_seen_weighs_nothing(own: Kernels) -> None:
    case = a_situation(3, 2, 2, 1, 32, False, empty=False)
    keys, values = case.cache
    plain = own.attention(case.states, (keys.clone(), values.clone()), case.tree, None, 1.0)
    # Columns that nobody has used, and those of scores that are next to nothing beside others.
    for row, used in enumerate(case.tree.used.tolist()):
        keys[row, used:], values[row, used:] = torch.nan, torch.nan
    assert torch.equal(own.attention(case.states, case.cache, case.tree, None, 1.0), plain)
    huge = own.attention(case.states, case.cache, case.tree, None, 1e4)
    torch.testing.assert_close(huge.double(), attended(case, None, 1e4), atol=1e-3, rtol=0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are names of x86 processors")
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3"])
def test_processors_with_shorter_vectors_multiply_as_well(
    compiler: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, processor: str
) -> None:
    flags = tuple(flag.replace("native", processor) for flag in native.FLAGS)
    compiler()
    monkeypatch.setattr(native, "FLAGS", flags)
    own = kernels()
    assert own is not None and own._columns == (8 if processor == "x86-64" else 16)
    torch.manual_seed(0)
    for count in (1, 6, 7, 100):
        states, rows, bias = torch.randn(count, 33), torch.randn(70, 33), torch.randn(70)
        for gated in (False, True):
            found = own.product(states, own.laid_out(rows, bias, gated), epsilon=0.1)
            torch.testing.assert_close(found.double(), expected(states, rows, bias, gated, 0.1), atol=1e-4, rtol=0)
    for prompts in (True, False):
        case = a_situation(1, 3, 4, 2, 32, prompts, most=40)
        right = attended(case, None, 0.2)
        found = own.attention(case.states, case.cache, case.tree, None, 0.2)
        torch.testing.assert_close(found.double(), right, atol=1e-4, rtol=0)


def in_another_process() -> None:
    """Take the products, as a process that has none yet."""
    command = "from genret.decoding.native import kernels; assert kernels() is not None"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_what_was_compiled_is_kept_and_used_by_other_processes(compiler: Callable[..., Path], tmp_path: Path) -> None:
    calls = compiler()
    assert kernels() is not None
    (kept,) = (tmp_path / "kept" / "genret-kernels").iterdir()
    made, count = kept.stat(), len(calls.read_text().splitlines())
    assert kept.suffix == ".so" and count == 2
    in_another_process()
    assert len(calls.read_text().splitlines()) == count and kept.stat().st_mtime_ns == made.st_mtime_ns


def test_another_source_or_processor_is_compiled_anew(
    compiler: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler()
    assert kernels() is not None
    other = tmp_path / "other.cpp"
    other.write_text(native.SOURCE.read_text() + "// changed\n")
    for name, value in (("SOURCE", other), ("_processor", lambda: "another one")):
        kernels.cache_clear()
        monkeypatch.setattr(native, name, value)
        assert kernels() is not None
    assert len(list((tmp_path / "kept" / "genret-kernels").iterdir())) == 3


def test_what_is_no_library_is_compiled_anew(compiler: Callable[..., Path], tmp_path: Path) -> None:
    calls = compiler()
    assert kernels() is not None
    (kept,) = (tmp_path / "kept" / "genret-kernels").iterdir()
    kept.unlink()
    kept.write_text("not a library")
    in_another_process()
    assert len(calls.read_text().splitlines()) == 4 and not kept.exists()
    in_another_process()
    assert len(calls.read_text().splitlines()) == 6 and kept.read_bytes().startswith(b"\x7fELF")


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_to_is_not_used(
    compiler: Callable[..., Path], tmp_path: Path, mode: int
) -> None:
    compiler()
    folder = tmp_path / "kept" / "genret-kernels"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert kernels() is not None and not list(folder.iterdir())


def test_the_mask_of_the_process_does_not_matter(compiler: Callable[..., Path], tmp_path: Path) -> None:
    calls = compiler()
    before = os.umask(0o002)
    try:
        in_another_process()
        in_another_process()
    finally:
        os.umask(before)
    folder = tmp_path / "kept" / "genret-kernels"
    assert len(calls.read_text().splitlines()) == 2 and folder.stat().st_mode & 0o777 == 0o700


def test_a_library_that_others_can_write_to_is_not_used(compiler: Callable[..., Path], tmp_path: Path) -> None:
    calls = compiler()
    in_another_process()
    (kept,) = (tmp_path / "kept" / "genret-kernels").iterdir()
    kept.chmod(0o777)
    in_another_process()
    assert len(calls.read_text().splitlines()) == 4


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_defaults_of_torch_do_not_matter(anew: None, own: Kernels, default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            assert kernels() is not None
    finally:
        torch.set_default_dtype(torch.float32)


def test_other_types_are_refused(own: Kernels) -> None:
    states, panels = torch.randn(3, 4), own.laid_out(torch.randn(5, 4))
    case = a_situation(0, 2, 2, 1, 32, False, empty=False)
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(TypeError, match=str(dtype)):
            own.product(states.to(dtype), panels)
        with pytest.raises(TypeError, match=str(dtype)):
            own.product(states, panels, added=torch.zeros(3, 5, dtype=dtype))
        with pytest.raises(TypeError, match=str(dtype)):
            own.laid_out(torch.ones(2, 2), torch.ones(2, dtype=dtype))
        turns = Turns(torch.ones(9, 32, dtype=dtype), torch.zeros(3, dtype=torch.int64), 32)
        with pytest.raises(TypeError, match=str(dtype)):
            own.product(states, own.laid_out(torch.randn(32, 4)), turns=turns)
        with pytest.raises(TypeError, match=str(dtype)):
            own.normed(states, torch.ones(4, dtype=dtype), 0.1)
        query, key, value = case.states
        with pytest.raises(TypeError, match=str(dtype)):
            own.attention((query, key, value.to(dtype)), case.cache, case.tree, None, 1.0)


def test_parts_of_several_products_are_refused(own: Kernels) -> None:
    case = a_situation(0, 2, 2, 1, 32, False, empty=False)
    query, key, value = case.states
    for wrong in ((query.contiguous(), key, value), (query, key, value.transpose(1, 2).contiguous().transpose(1, 2))):
        with pytest.raises(ValueError, match="one product"):
            own.attention(wrong, case.cache, case.tree, None, 1.0)


def test_where_nothing_can_be_kept_it_is_compiled_for_the_process(
    compiler: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler()
    (tmp_path / "kept").write_text("a file")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert kernels() is not None
    assert not list(tmp_path.glob("genret-*"))


def test_an_empty_name_turns_compiling_off(
    anew: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("", "/no/such/compiler"):
        monkeypatch.setenv("CXX", name)
        kernels.cache_clear()
        assert kernels() is None and not caplog.records


def test_a_compiler_that_fails_leaves_torchs_products(
    compiler: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    compiler("echo 'no such flag' >&2; exit 1")
    with caplog.at_level(logging.WARNING):
        assert kernels() is None
    assert "kernels.cpp" in caplog.text and "no such flag" in caplog.text


def test_products_that_are_wrong_are_not_used(
    compiler: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler()
    wrong, plain = tmp_path / "kernels.cpp", "sum[row][v] += weights[v]"
    source = native.SOURCE.read_text()
    assert source.count(plain) == 1
    wrong.write_text(source.replace(plain, "sum[row][v] -= weights[v]"))
    monkeypatch.setattr(native, "SOURCE", wrong)
    with caplog.at_level(logging.WARNING):
        assert kernels() is None
    assert "multiplies wrongly" in caplog.text
