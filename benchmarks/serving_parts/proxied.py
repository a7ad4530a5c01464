"""The service behind Ray Serve's proxy, as `serve deploy` and RayService have it; `python proxied.py RUN --set ...`."""

import os
import signal
import sys
from threading import Event

import ray
from ray import serve

from genret.config import ServingConfig
from genret.serving import app


def main() -> None:
    run, port = sys.argv[1], int(sys.argv[-1].removeprefix("serving.port="))  # the service as its run has it otherwise
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    for name, value in app._TUNING.items():
        os.environ.setdefault(name, value)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": ServingConfig().host, "port": port}, logging_config=app._LOGGING)
    serve.run(app.build(app.Arguments(run=run)), name=app.APPLICATION, logging_config=app._LOGGING)
    print(f"ready: {port}", file=sys.stderr, flush=True)
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
