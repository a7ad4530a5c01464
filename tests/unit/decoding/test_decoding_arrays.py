import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genret.decoding.arrays import Rows


@given(first=st.integers(0, 3), added=st.lists(st.integers(0, 9), max_size=12))
def test_rows_are_all_that_was_added(first: int, added: list[int]) -> None:
    expected = np.arange(2 * first, dtype=np.int32).reshape(first, 2)
    rows = Rows(expected.copy())
    for count in added:
        more = np.arange(2 * len(expected), 2 * (len(expected) + count), dtype=np.int32).reshape(count, 2)
        assert rows.add(more) == len(expected)
        expected = np.concatenate((expected, more))
        assert len(rows) == len(expected)
        found = rows[np.arange(len(expected))]
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)
