"""Submit a script of this folder as a Ray job, follow its log, and end with its exit code.

    python jobs/submit.py SCRIPT --config PRESET|FILE --run s3://bucket/run [--set a.b=c ...]

`ray job submit --working-dir . -- python jobs/SCRIPT.py ...` does the same, without the metadata. The job server is
that of RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265, where `ray dashboard cluster.yaml` brings that of a cluster.
Its token comes from the environment: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (a file).
"""

import asyncio
import shlex
import sys
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from genret.job import job_metadata, parse_submission, runtime_environment

FOLDER = Path(__file__).resolve().parent
_TOKEN_HELP = """the job server expects its token, found {found}
For a cluster of cluster.yaml:
  ray rsync-down cluster.yaml '~/.ray/auth_token' ~/genret-cluster.token
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/genret-cluster.token"""


def main(arguments: list[str]) -> int:
    """Submit, follow, and return the exit code."""
    scripts = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "submit")
    options, rest = parse_submission(arguments, scripts)
    try:
        client = JobSubmissionClient(options.address)
    except AuthenticationError as error:
        print(_TOKEN_HELP.format(found=error.message.partition("\n")[0]), file=sys.stderr)
        return 2
    name = client.submit_job(
        entrypoint=shlex.join(["python", f"jobs/{options.script}.py", *rest]),
        runtime_env=runtime_environment(FOLDER.parent, options.extra, options.install),
        metadata=job_metadata(options.script, rest),
    )
    print(f"submitted {name}", flush=True)
    if options.no_wait:
        return 0
    asyncio.run(_follow(client, name))
    details = client.get_job_info(name)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    print(f"{name}: {details.status}: {details.message}", file=sys.stderr)
    return details.driver_exit_code or 1


async def _follow(client: JobSubmissionClient, name: str) -> None:
    async for lines in client.tail_job_logs(name):
        print(lines, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
