"""Whether the difference between two retrievers is more than chance: paired tests over the queries."""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import scipy.special

from genret.config import EvaluationConfig
from genret.errors import InputError
from genret.tables import check_table, table_from_rows

LEVEL = 0.05
"""A difference counts as significant where its corrected p is below this."""

_CELLS_A_CHUNK = 4_000_000
# Sums of the same numbers in another order differ in their last bits; such sums are equal.
_TOLERANCE = 1e-12


class _Values(NamedTuple):
    """The values of a measure: retrievers, and an array (n_queries, n_retrievers), float64."""

    retrievers: list[str]
    values: np.ndarray


def compare_retrievers(config: EvaluationConfig, query_measures: pa.Table, seed: int = 0) -> pa.Table:
    """Test all pairs of retrievers on each measure, and correct the p-values of a measure with Holm's method.

    Args:
        config: `significance_test` and `permutations` count here.
        query_measures: Table `query_measures`; all retrievers of a measure are on the same queries.
        seed: Seed of the sign flips.

    Returns:
        Table `significance`: measures and, within them, pairs in the order of the input. Empty where there are
        fewer than two retrievers.

    Raises:
        InputError: The table does not fit its schema, or two retrievers are on other queries.
    """
    rows = []
    for measure, (retrievers, values) in _by_measure(query_measures).items():
        pairs = list(combinations(range(len(retrievers)), 2))
        if not pairs:
            continue
        first, second = np.array(pairs).T
        differences = values[:, first] - values[:, second]
        if config.significance_test == "randomisation":
            p = randomisation_test(differences, config.permutations, seed)
        else:
            p = t_test(differences)
        for (a, b), difference, plain, corrected in zip(
            pairs, differences.mean(axis=0).tolist(), p.tolist(), holm(p).tolist(), strict=True
        ):
            rows.append(
                {
                    "measure": measure,
                    "retriever_a": retrievers[a],
                    "retriever_b": retrievers[b],
                    "difference": difference,
                    "p": plain,
                    "p_holm": corrected,
                    "n_queries": len(values),
                }
            )
    return table_from_rows("significance", rows)


def randomisation_test(differences: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """Two-sided paired randomisation test of means that are zero (Fisher's; for retrieval: Smucker, Allan and
    Carterette, "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation", CIKM 2007).

    Were there no difference between two retrievers, each query's difference could as well have the other sign. p
    is the share of all choices of signs whose mean is at least as far from zero as the one that was found. Where
    there are at most `permutations` choices for the differences that are not zero, all are counted; else so many
    are drawn, and the one that was found is counted with them: p = (b + 1) / (permutations + 1) (Phipson and
    Smyth, 2010), which is never 0. All columns see the same draws.

    Args:
        differences: A column a pair of retrievers, shape (n_queries, n_pairs), float64.
        permutations: Number of draws.
        seed: Seed of the draws.

    Returns:
        The p of each column, shape (n_pairs,), float64.
    """
    counts = np.count_nonzero(differences, axis=0)
    few = 2.0**counts <= permutations
    p = np.ones(differences.shape[1])
    for column in np.flatnonzero(few):
        p[column] = _exact_p(differences[differences[:, column] != 0, column])
    if not few.all():
        p[~few] = _sampled_p(differences[:, ~few], permutations, seed)
    return p


def _exact_p(differences: np.ndarray) -> float:
    """p over all choices of signs of differences of shape (n,), none of them zero."""
    # By symmetry the first sign need not be flipped.
    sums = differences[:1].copy()
    for difference in differences[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    if not len(sums):
        return 1.0
    return float(np.mean(np.abs(sums) >= _least(differences[:, None])))


def _sampled_p(differences: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    n_queries, n_pairs = differences.shape
    generator = np.random.default_rng(seed)
    least = _least(differences)
    as_far = np.zeros(n_pairs)
    rows_a_chunk = max(1, _CELLS_A_CHUNK // n_queries)
    for start in range(0, permutations, rows_a_chunk):
        rows = min(rows_a_chunk, permutations - start)
        signs = generator.integers(0, 2, size=(rows, n_queries), dtype=np.int8).astype(np.float64) * 2 - 1
        as_far += (np.abs(signs @ differences) >= least).sum(axis=0)
    return (as_far + 1) / (permutations + 1)


def _least(differences: np.ndarray) -> np.ndarray:
    """How far from zero a sum must be to count as far as that of each column, shape (n_pairs,)."""
    return np.abs(differences.sum(axis=0)) - _TOLERANCE * np.abs(differences).sum(axis=0)


def t_test(differences: np.ndarray) -> np.ndarray:
    """Two-sided paired t-test of means that are zero (Student, 1908).

    Args:
        differences: A column a pair of retrievers, shape (n_queries, n_pairs), float64.

    Returns:
        The p of each column, shape (n_pairs,), float64. 1 for a single query, and where all differences are zero;
        0 where all are the same and not zero.
    """
    n_queries = len(differences)
    if n_queries < 2:
        return np.ones(differences.shape[1])
    mean = differences.mean(axis=0)
    error = differences.std(axis=0, ddof=1) / np.sqrt(n_queries)
    # A column that does not vary has no t: infinite, or 0 where there is no difference at all.
    t = np.divide(np.abs(mean), error, out=np.where(mean == 0, 0.0, np.inf), where=np.ptp(differences, axis=0) > 0)
    return 2 * scipy.special.stdtr(n_queries - 1, -t)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction for several tests ("A Simple Sequentially Rejective Multiple Test Procedure", 1979).

    The smallest of m values is multiplied by m, the next by m - 1 and so on; each is at least the one before it and
    at most 1. Below a level are then those that the procedure rejects at that level, and the chance that one of
    these is no difference is at most the level, however the tests depend on each other.

    Args:
        p: One value a test, shape (m,), float64.

    Returns:
        The corrected values in the same order, shape (m,), float64.
    """
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def _by_measure(query_measures: pa.Table) -> dict[str, _Values]:
    """The values of each measure side by side, in the order of the table."""
    columns: dict[str, dict[str, dict[str, float]]] = {}
    for row in check_table("query_measures", query_measures).to_pylist():
        by_retriever = columns.setdefault(row["measure"], {})
        by_retriever.setdefault(row["retriever"], {})[row["query_id"]] = row["value"]
    found = {}
    for measure, by_retriever in columns.items():
        (first, queries), *others = by_retriever.items()
        for retriever, values in others:
            if values.keys() != queries.keys():
                odd = min(values.keys() ^ queries.keys())
                raise InputError(
                    f"table query_measures: {measure}: expected {first} and {retriever} on the same queries, "
                    f"found {odd!r} for one of them only"
                )
        matrix = np.array([[values[query] for query in queries] for values in by_retriever.values()])
        found[measure] = _Values(list(by_retriever), matrix.T.astype(np.float64))
    return found
