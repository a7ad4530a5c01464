"""How sure a mean over queries is."""

import numpy as np

_CELLS_A_CHUNK = 4_000_000


def bootstrap_intervals(
    values: np.ndarray, samples: int, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap intervals of means over queries (Efron, "Bootstrap Methods", 1979).

    The queries are drawn with replacement, as many as there are; the interval runs between the percentiles of
    the resampled means. It says how much the figure depends on which queries were asked. It does not cover
    what else may vary (seeds of the training, the corpus), and with fewer than some twenty queries it is too
    narrow.

    All columns see the same draws, and so do all calls with the same number of queries and the same seed.

    Args:
        values: One row a query, one column a measure, shape (n_queries, n_measures), float64; at least one
            row.
        samples: Number of resamplings.
        confidence: Coverage, between 0 and 1.
        seed: Seed of the draws.

    Returns:
        Lower and upper ends, each of shape (n_measures,), float64.
    """
    n_queries, n_measures = values.shape
    generator = np.random.default_rng(seed)
    means = np.empty((samples, n_measures))
    rows_a_chunk = max(1, _CELLS_A_CHUNK // n_queries)
    for start in range(0, samples, rows_a_chunk):
        stop = min(samples, start + rows_a_chunk)
        drawn = generator.integers(0, n_queries, size=(stop - start, n_queries))
        for column in range(n_measures):
            means[start:stop, column] = values[drawn, column].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high
