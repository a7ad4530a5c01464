"""Candidates for hard negatives, and what comes before.

`python jobs/submit.py candidates --config quickstart --run s3://bucket/run`.
"""

from genret.job import run_job

if __name__ == "__main__":
    run_job("candidates")
