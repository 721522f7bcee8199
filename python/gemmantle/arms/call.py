"""A request as it goes to the service: route, body fitted to what the service takes, parameters, who asked and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from gemmantle._http import library
from gemmantle.api.protocol import Request
from gemmantle.api.schemas import parse_body
from gemmantle.arms.capabilities import ROUTES, Capabilities, Fitted
from gemmantle.arms.inner_clients import sdk
from gemmantle.arms.wire import Rewriter, Service
from gemmantle.errors import RequestError
from gemmantle.names import canonical

__all__ = ["Call", "read_call"]

Fit = Callable[[str, Mapping[str, Any]], Fitted]

_STATE = re.compile(r"/responses/[^/]+(/cancel|/input_items)?")


@dataclass
class Call:
    """One request, ready to be sent to any region."""

    method: str
    path: str
    timeout: float | None
    service: Service
    params: dict[str, Any]
    route: str = ""  # of the table; empty for requests about state and models
    fitted: Fitted | None = None
    stream: bool = False
    bound: bool = False
    listing: bool = False

    @property
    def body(self) -> dict[str, Any] | None:
        return None if self.fitted is None else self.fitted.body

    def rewriter(self) -> Rewriter:
        return Rewriter(
            "responses" if self.path.startswith("/responses") else self.route, self.service, bound=self.bound
        )

    def arguments(self, stream_class: str) -> dict[str, Any]:
        """Keywords of the inner client's `get`, `post` and `delete`."""
        options: dict[str, Any] = {}
        if self.timeout is not None:
            options["timeout"] = self.timeout
        if self.params:
            options["params"] = self.params
        arguments: dict[str, Any] = {"cast_to": library().response, "options": options}
        if self.body is not None:
            arguments["body"] = self.body
        if self.stream:
            arguments["stream"] = True
            arguments["stream_cls"] = getattr(sdk(), stream_class)[object]
        return arguments


def read_call(request: Request, reason: str, capabilities: Capabilities, fit: Fit) -> Call:
    """What the service is asked for a request; RequestError for what it does not have or would not take."""
    path = request.route
    method = request.method.upper()
    params: dict[str, Any] = {}
    for name, value in parse_qsl(request.query):
        # The SDK writes a list as repeated names with brackets, and adds them itself.
        if name.endswith("[]"):
            params.setdefault(name[:-2], []).append(value)
        else:
            params[name] = value
    service = Service("", "", "", reason)
    if path.strip("/") in ROUTES and method == "POST":
        route = path.strip("/")
        fitted = fit(route, parse_body(request.body))
        service = Service(fitted.model, canonical(fitted.model), "", reason, fitted.ignored, fitted.converted)
        body = fitted.body
        return Call(
            "post", path, request.timeout, service, params, route, fitted, body.get("stream") is True, _bound(body)
        )
    if path == "/models" or path.startswith("/models/"):
        if method != "GET":
            raise RequestError(f"{path[:200]} answers GET, not {method}", code="method_not_allowed")
        name = path.removeprefix("/models").removeprefix("/")
        path = f"/models/{capabilities.remote_name(name) or name}" if name else "/models"
        return Call("get", path, request.timeout, service, params, listing=True)
    found = _STATE.fullmatch(path)
    if found is not None:
        wanted = {"/cancel": ("POST",), "/input_items": ("GET",)}.get(found[1] or "", ("GET", "DELETE"))
        if method not in wanted:
            raise RequestError(f"{path[:200]} answers {' and '.join(wanted)}", code="method_not_allowed")
        stream = method == "GET" and params.get("stream") == "true"
        return Call(method.lower(), path, request.timeout, service, params, stream=stream)
    raise RequestError(
        f"the remote service has no route {path[:200]}; it has chat/completions, responses and models",
        code="unknown_url",
    )


def _bound(body: Mapping[str, Any]) -> bool:
    """Whether the text of the answer is one JSON value."""
    form = body.get("response_format")
    text = body.get("text")
    if isinstance(text, dict):
        form = text.get("format")
    return isinstance(form, dict) and form.get("type") in ("json_schema", "json_object")
