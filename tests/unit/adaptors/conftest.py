"""A server that plays a service, for all adaptors."""

import os
from collections.abc import Iterator

import pytest
from scripted_server import Script, scripted_server

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["LANGSMITH_TRACING"] = "false"


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted_server() as script:
        yield script
