"""Vectors of the untrained encoder, and what comes before.

`python jobs/submit.py base_embedding --config quickstart --run s3://bucket/run`.
"""

from genret.job import run_job

if __name__ == "__main__":
    run_job("base_embedding")
