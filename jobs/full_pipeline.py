"""The whole pipeline: `python jobs/submit.py full_pipeline --config quickstart --run s3://bucket/run`.

Submitting the same job again goes on where the last one stopped.
"""

from genret.job import run_job

if __name__ == "__main__":
    run_job(None)
