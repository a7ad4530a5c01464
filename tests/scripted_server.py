"""An HTTP server that plays a list of answers and keeps what it was asked."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """One answer; `hang_up`: close the connection instead, `delay`: wait so many seconds first."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False
    delay: float = 0.0


@dataclass
class Asked:
    """One request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Script:
    """What is answered, in order (the last one again and again), and what was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.replies: list[Reply] = []
        self.asked: list[Asked] = []
        self.over = threading.Event()

    def wait_for(self, requests: int) -> None:
        """Until so many have been read: who does not wait for an answer may be ahead of that."""
        end = time.monotonic() + 60
        while len(self.asked) < requests:
            assert time.monotonic() < end, f"expected {requests} requests, found {len(self.asked)}"
            time.sleep(0.01)


@contextmanager
def scripted_server() -> Iterator[Script]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.asked.append(Asked(self.command, self.path, headers, json.loads(content) if content else None))
            reply = script.replies.pop(0) if len(script.replies) > 1 else script.replies[0]
            script.over.wait(reply.delay)
            if reply.hang_up:
                self.close_connection = True
                return
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script = Script(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        script.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def hit(passage_id: str, rank: int, score: float = -0.5, **metadata: Any) -> dict[str, Any]:
    return {
        "passage_id": passage_id,
        "doc_id": f"{passage_id}-whole",
        "rank": rank,
        "score": score,
        "title": f"Title of {passage_id}",
        "text": f"Text of {passage_id}.",
        "metadata": metadata,
        "identifier": "glacier lake",
        "tokens": [{"token": "glacier", "logprob": -0.25}, {"token": " lake", "logprob": 0.0}],
    }


def answer(*hits: dict[str, Any], query: str = "frozen lake", exact: bool = True) -> Reply:
    """What `/v1/retrieve` answers to one query."""
    return Reply(
        body={
            "request_id": "r1",
            "retriever": "rpo",
            "version": "v1",
            "results": [{"query": query, "exact": exact, "timed_out": False, "hits": list(hits)}],
            "timing_ms": {"queue": 0.1, "search": 3.0, "total": 3.5},
        }
    )


def refusal(status: int, message: str, field: str | None = None, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"error": {"message": message, "field": field, "request_id": "r2"}}, named)
