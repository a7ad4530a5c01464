"""The whole pipeline as a Ray job: `ray job submit --working-dir . -- python jobs/full_pipeline.py quickstart`.

Takes what `genret run` takes. Submitting it again goes on where the last job stopped.
"""

import sys

from genret.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
