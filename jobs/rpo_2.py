"""The second round of preference optimisation, and what comes before.

`python jobs/submit.py rpo_2 --config quickstart --run s3://bucket/run`.
"""

from genret.job import run_job

if __name__ == "__main__":
    run_job("rpo_2")
