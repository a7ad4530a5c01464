"""The lists of the passages' vectors, of which a search looks through the nearest, and what comes before.

`python jobs/submit.py lists --config my.yaml --run s3://bucket/run`.
"""

from genret.job import run_job

if __name__ == "__main__":
    run_job("lists")
