"""The passages as vectors, and what comes before.

`python jobs/submit.py embedding --config quickstart --run s3://bucket/run`.
"""

from genret.job import run_job

if __name__ == "__main__":
    run_job("embedding")
