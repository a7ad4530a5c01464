"""The whole pipeline as a Ray job: `ray job submit --working-dir . -- python jobs/full_pipeline.py quickstart`.

Takes what `genret run` takes. Without --run the run lies in ~/genret-runs of the node that drives the job: the
job's own working folder goes away with it. Submitting the same job again goes on where the last one stopped.
"""

import sys
from pathlib import Path

from genret.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not any(argument == "--run" or argument.startswith("--run=") for argument in arguments):
        arguments += ["--runs-folder", str(Path.home() / "genret-runs")]
    main(["run", *arguments])
