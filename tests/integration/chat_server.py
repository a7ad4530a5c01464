"""A server with OpenAI's chat completions for tests, as a process of its own.

It answers with valid lists whose number of items depends on the prompt, after a while, and writes down every request:
the log outlives the process, so that a test can kill and restart it. Words in a prompt make it misbehave:

    always400, always500                    every time
    once429, once500, oncegarbage, oncehang the first time that the prompt is seen (by this process)
    filtered                                stopped by a content filter
    cutoff                                  stopped at the bound on tokens
"""

import argparse
import asyncio
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from aiohttp import web

NOUNS = ("river", "oven", "train", "garden", "piano", "moon", "glacier", "bridge", "flour", "ticket", "tomato", "chord")


def words(seed: str, count: int) -> str:
    digest = hashlib.sha256(seed.encode()).digest()
    return " ".join(NOUNS[byte % len(NOUNS)] for byte in digest[:count])


def amount(prompt: str, most: int) -> int:
    return 1 + hashlib.sha256(prompt.encode()).digest()[0] % most


def fill(schema: dict[str, Any], prompt: str, place: str) -> Any:
    """A value that fits a JSON schema."""
    if schema["type"] == "object":
        return {name: fill(part, prompt, f"{place}.{name}") for name, part in schema["properties"].items()}
    if schema["type"] == "array":
        count = amount(prompt, schema.get("maxItems", 3))
        return [fill(schema["items"], prompt, f"{place}.{number}") for number in range(count)]
    mark = hashlib.sha256((prompt + place).encode()).hexdigest()[:6]
    if place.endswith(".answer"):
        return f"the {words(prompt + place, 2)} {mark}"
    return f"What does the {words(prompt + place, 4)} {mark} do?"


def markdown(pattern: str, prompt: str) -> str:
    """An answer that matches one of the patterns of `genret.llm.prompts`."""
    bound = re.search(r"\)\{0,(\d+)\}$", pattern)  # none where the list is of one item
    count = amount(prompt, int(bound[1]) + 1 if bound else 1)
    string = {"type": "string"}
    items = [fill(string, prompt, str(number)) for number in range(count)]
    if "Query: " in pattern:
        items = [f"Query: {item}\n  Answer: {fill(string, prompt, f'{item}.answer')}" for item in items]
    text = "\n".join(f"- {item}" for item in items)
    if pattern.startswith("Attributes: "):
        text = f"Attributes: one\nPlan: two\nDrafts:\n- three\nCheck: four\nFinal:\n{text}"
    return text


class Server:
    def __init__(self, log: Path, latency: float, key: str, status: int) -> None:
        self.log = log.open("a", buffering=1)
        self.latency = latency
        self.key = key
        self.status = status
        self.seen: set[str] = set()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompt = "\n".join(message["content"] for message in body["messages"])
        name = hashlib.sha256(prompt.encode()).hexdigest()[:16]
        first = name not in self.seen
        self.seen.add(name)
        response = await self.respond(request, body, prompt, first)
        self.log.write(json.dumps({"prompt": name, "status": response.status, "time": time.time()}) + "\n")
        return response

    async def respond(self, request: web.Request, body: dict[str, Any], prompt: str, first: bool) -> web.Response:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key and key != self.key:
            return problem(401, f"Incorrect API key provided: {key}")
        if body["model"] != "tiny":
            return problem(404, f"The model `{body['model']}` does not exist.")
        if self.status:
            return problem(self.status, "as the test wants it")
        for status in (400, 500):
            if f"always{status}" in prompt or (first and f"once{status}" in prompt):
                return problem(status, "as the prompt wants it")
        if first and "once429" in prompt:
            return problem(429, "slower, please", {"Retry-After": "1"})
        if first and "oncehang" in prompt:
            await asyncio.sleep(3600)
        if first and "oncegarbage" in prompt:
            return web.Response(text='{"choices": [{"mess')
        await asyncio.sleep(self.latency)
        return web.json_response(self.completion(body, prompt))

    def completion(self, body: dict[str, Any], prompt: str) -> dict[str, Any]:
        if "response_format" in body:
            text = json.dumps(fill(body["response_format"]["json_schema"]["schema"], prompt, ""))
        elif "structured_outputs" in body:
            pattern = body["structured_outputs"]["regex"]
            text = markdown(pattern, prompt)
            assert re.fullmatch(pattern, text), f"{text!r} does not match {pattern}"
        else:
            text = "Sure!\n\n" + "\n".join(f"{n}. {fill({'type': 'string'}, prompt, str(n))}" for n in (1, 2))
        reason = "content_filter" if "filtered" in prompt else "length" if "cutoff" in prompt else "stop"
        return {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}],
            "usage": {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4},
        }


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("log", type=Path)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--key", default="", help="refuse requests without it")
    parser.add_argument("--status", type=int, default=0, help="answer everything with this status")
    options = parser.parse_args()
    server = Server(options.log, options.latency, options.key, options.status)
    app = web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/chat/completions", server.chat)
    web.run_app(app, host="127.0.0.1", port=options.port, print=None, reuse_address=True, access_log=None)


if __name__ == "__main__":
    main()
