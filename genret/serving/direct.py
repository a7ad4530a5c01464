"""The short way to an endpoint, for requests that are plainly right."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from genret.serving.gates import replayed


class Direct:
    """ASGI middleware that calls one route's endpoint itself, where a request's body is JSON that fits its model.

    FastAPI's routing, dependencies and exit stacks take longer than all that the ingress has to do for a query. They
    stay for what they are good at: any request that is not plainly right goes on to them, and they say what is wrong.
    So what is accepted here must be what they accept, and they answer it in the same way.
    """

    def __init__(
        self,
        app: ASGIApp,
        route: APIRoute,
        model: type[BaseModel],
        handlers: Mapping[Any, Callable[..., Any]],
    ) -> None:
        """Stand before the routes.

        Args:
            app: Answers all other requests.
            route: One whose path has no parameters, and whose endpoint takes `model` and gives a response.
            model: What its body is.
            handlers: The application's, which make responses of errors.
        """
        self._app, self._route, self._model, self._handlers = app, route, model, handlers
        self._endpoint: Callable[[BaseModel], Awaitable[Response]] = route.endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it go on."""
        if scope["type"] != "http" or scope["path"] != self._route.path or scope["method"] not in self._route.methods:
            await self._app(scope, receive, send)
            return
        message = await receive()  # all of the body: the gate has put it together
        request = None if message.get("more_body") else self._read(scope, message.get("body", b""))
        if request is None:
            await self._app(scope, replayed(message, receive), send)
            return
        scope["route"] = self._route
        response = await self._answer(request, scope)
        await response(scope, receive, send)

    def _read(self, scope: Scope, body: bytes) -> BaseModel | None:
        """What is asked; None where it is for FastAPI to say what is wrong."""
        if next((value for name, value in scope["headers"] if name == b"content-type"), b"") != b"application/json":
            return None
        try:
            # In two steps, as FastAPI has it: Pydantic's own reader of JSON takes other things for JSON.
            return self._model.model_validate(json.loads(body))
        except (ValueError, RecursionError):
            return None

    async def _answer(self, request: BaseModel, scope: Scope) -> Response:
        try:
            return await self._endpoint(request)
        except Exception as error:
            # Not by the one for any error: Starlette's, which has it, raises the error once more so that it is logged.
            kinds = (kind for kind in type(error).__mro__ if kind is not Exception)
            handler = next((self._handlers[kind] for kind in kinds if kind in self._handlers), None)
            if handler is None:
                raise
            response: Response = await handler(Request(scope), error)
            return response
