"""The remote arm: Gemma 4 on the bedrock-mantle service, behind an inner SDK client. `remote` is `gemmantle.remote`.

The inner client is the SDK's own: its bedrock provider signs or adds the bearer key, its retries apply, it obeys proxy
variables. This file decides what is sent (`capabilities`, `content`), to which region (`fallback.Breaker`), and shows
on every answer who gave it (`wire`). Keys stay in `_Credentials`: never in a log, a repr, a pickle or a message. No
header of the caller is passed on.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
import math
import os
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from gemmantle._http import library
from gemmantle.api.common import new_id
from gemmantle.api.problems import Expired, problem_of
from gemmantle.api.protocol import Reply, Request
from gemmantle.api.schemas import parse_body
from gemmantle.api.stream import encode_json
from gemmantle.arms.capabilities import ROUTES, Capabilities, Fitted
from gemmantle.arms.content import Fetch, fit_content
from gemmantle.arms.fallback import TRIGGERS, Breaker, check_triggers, trigger_of
from gemmantle.arms.wire import Rewriter, Service
from gemmantle.errors import RequestError
from gemmantle.names import canonical

if TYPE_CHECKING:
    import openai

__all__ = ["Remote", "remote"]

_KEY_VARIABLE = "AWS_BEARER_TOKEN_BEDROCK"
_ADDRESS_VARIABLE = "AWS_BEDROCK_BASE_URL"
_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
_STATE = re.compile(r"/responses/[^/]+(/cancel|/input_items)?")
_KNOWN_IDS = 10_000
_RESENDS = 4  # fields one request may lose to 400s with on_unsupported="drop"

Provider = Callable[[], "str | Awaitable[str]"]


def remote(
    *,
    region: str | Sequence[str] | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    token_provider: Provider | None = None,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    profile: str | None = None,
    credential_provider: Any = None,
    project: str | None = None,
    max_retries: int = 2,
    timeout: float | None = None,
    on_unsupported: str = "error",
    capabilities: Mapping[str, Any] | None = None,
    fetch_image: Fetch | None = None,
    triggers: Iterable[str] = TRIGGERS,
    loading_s: float = 30.0,
    busy_s: float = 10.0,
) -> Remote:
    """The remote service as an arm. With it, requests (or, given as `fallback=`, some of them) leave this machine.

    region: one name, or several in the order they are tried; AWS_REGION where absent. base_url: another address of the
    service. api_key, token_provider (called for every attempt), access_key_id with secret_access_key, profile or
    credential_provider: at most one of them; without one the environment decides. project, max_retries, timeout: those
    of the inner SDK client. on_unsupported: "error" names a field the service does not take, "drop" leaves it out and
    reports it. capabilities: merged over the shipped table. fetch_image: reads an http(s) image address.
    triggers, loading_s, busy_s: when a client with `fallback=` hands a request over (see docs/decisions/0011).
    """
    return Remote(
        {
            "region": region,
            "base_url": base_url,
            "project": project,
            "max_retries": max_retries,
            "timeout": timeout,
            "on_unsupported": on_unsupported,
            "capabilities": capabilities,
            "fetch_image": fetch_image,
            "triggers": triggers,
            "loading_s": loading_s,
            "busy_s": busy_s,
        },
        _Credentials(
            api_key=api_key,
            token_provider=token_provider,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            session_token=session_token,
            profile=profile,
            credential_provider=credential_provider,
        ),
    )


class _Credentials:
    """Keys, and the tokens seen so far, so that they can be kept out of messages."""

    def __init__(self, **given: Any) -> None:
        self._given = {name: value for name, value in given.items() if value is not None}
        modes = [name for name in self._given if name not in ("secret_access_key", "session_token")]
        if len(modes) > 1:
            raise ValueError(f"{' and '.join(modes)} are given; give one kind of credentials")
        if ("access_key_id" in self._given) != ("secret_access_key" in self._given):
            raise ValueError("access_key_id and secret_access_key belong together; give both")
        if "session_token" in self._given and "access_key_id" not in self._given:
            raise ValueError("session_token needs access_key_id and secret_access_key")
        for name, value in self._given.items():
            if isinstance(value, str) and not value.strip():
                raise ValueError(f"{name} is empty; leave it out to use the environment")
        self._secrets: set[str] = {value for value in self._given.values() if isinstance(value, str)}
        self._secrets.discard(self._given.get("profile", ""))

    def __repr__(self) -> str:
        return f"<credentials: {', '.join(self._given) or 'from the environment'}>"

    def __reduce__(self) -> Any:
        raise TypeError("credentials do not pickle; in the other process the environment decides")

    def for_provider(self) -> dict[str, Any]:
        """Keywords of the SDK's bedrock provider."""
        found = dict(self._given)
        if "token_provider" in found:
            found["token_provider"] = self._token
        return found

    def for_bearer(self, asynchronous: bool) -> Any:
        """What an SDK without the provider takes as its api_key: a function it calls for each attempt."""
        if set(self._given) - {"api_key", "token_provider"}:
            raise ValueError(
                "this openai SDK sends bearer keys only; signing needs openai>=2.44: pip install -U openai"
            )
        if not self._given and not os.environ.get(_KEY_VARIABLE):
            raise ValueError(f"no key: give api_key or token_provider, or set {_KEY_VARIABLE}")

        async def aread() -> str:
            value = self._token()
            return value if isinstance(value, str) else await value

        return aread if asynchronous else self._token

    def scrub(self, text: str) -> str:
        """A message without keys, whoever wrote them into it."""
        for secret in (*self._secrets, os.environ.get(_KEY_VARIABLE, "")):
            if secret:
                text = text.replace(secret, "[key]")
        return text

    def _token(self) -> Any:
        provider = self._given.get("token_provider")
        if provider is None:
            return self._given.get("api_key") or os.environ.get(_KEY_VARIABLE, "")
        value = provider()
        if inspect.isawaitable(value):
            return self._seen_later(value)
        return self._seen(value)

    async def _seen_later(self, value: Awaitable[str]) -> str:
        return self._seen(await value)

    def _seen(self, value: str) -> str:
        if isinstance(value, str):
            if len(self._secrets) > 64:
                self._secrets.clear()
            self._secrets.add(value)
        return value


@dataclass
class _Call:
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


class Remote:
    """A way to the remote service, made by `gemmantle.remote`. Safe from any thread; bound to no loop."""

    def __init__(self, config: dict[str, Any], credentials: _Credentials) -> None:
        self._config = config
        self._credentials = credentials
        self.capabilities = Capabilities(config["capabilities"])
        self.triggers = check_triggers(config["triggers"])
        self._config["triggers"] = tuple(sorted(self.triggers))
        self.loading_s = _seconds("loading_s", config["loading_s"])
        self.busy_s = _seconds("busy_s", config["busy_s"])
        if config["on_unsupported"] not in ("error", "drop"):
            raise ValueError(f"on_unsupported is {config['on_unsupported']!r}; it must be 'error' or 'drop'")
        if type(config["max_retries"]) is not int or config["max_retries"] < 0:
            raise ValueError(f"max_retries is {config['max_retries']!r}; it must be 0 or more")
        self._drop = config["on_unsupported"] == "drop"
        self.regions = _regions(config["region"], config["base_url"])
        self.breakers = {name: Breaker() for name in self.regions}
        self._lock = threading.Lock()
        self._sync: dict[tuple[str, bool], Any] = {}
        self._async: weakref.WeakKeyDictionary[Any, dict[tuple[str, bool], Any]] = weakref.WeakKeyDictionary()
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<gemmantle.remote {', '.join(self.regions)} {self._credentials!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """As its configuration without keys: in the other process the environment gives them."""
        return _again, (self._config,)

    # -- for people

    def client(self, **options: Any) -> openai.OpenAI:
        """A genuine `openai.OpenAI` whose every request goes to the remote service. Options go to the SDK."""
        client: openai.OpenAI = importlib.import_module("gemmantle.client").client_over(self, options)
        return client

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        client: openai.AsyncOpenAI = importlib.import_module("gemmantle.client").async_client_over(self, options)
        return client

    def transport(self, family: str | None = None) -> Any:
        return importlib.import_module("gemmantle.transport").sync_transport(self, family)

    def async_transport(self, family: str | None = None) -> Any:
        return importlib.import_module("gemmantle.transport").async_transport(self, family)

    # -- for doors (gemmantle.api.protocol.RequestHandler) and the fallback

    def handle(self, request: Request) -> Reply:
        return self.answer(request, "asked")

    async def ahandle(self, request: Request) -> Reply:
        return await self.aanswer(request, "asked")

    def answer(self, request: Request, reason: str) -> Reply:
        """Send one request; `reason` is shown on the answer. Raises Expired only."""
        started = time.perf_counter()
        try:
            call = self._call(request, reason)
            steps = self._attempts(call, started)
            region = next(steps)
            while True:
                try:
                    outcome = self._send(region, call)
                except Exception as exc:
                    outcome = exc
                region = steps.send(outcome)
        except StopIteration as end:
            reply: Reply = end.value
            return reply
        except Expired:
            raise
        except Exception as exc:
            return self._refused(exc, started)

    async def aanswer(self, request: Request, reason: str) -> Reply:
        started = time.perf_counter()
        try:
            call = self._call(request, reason)
            steps = self._attempts(call, started)
            region = _first(steps)
            while not isinstance(region, Reply):
                try:
                    outcome = await self._asend(region, call)
                except Exception as exc:
                    outcome = exc
                region = _following(steps, outcome)
            return region
        except Expired:
            raise
        except Exception as exc:
            return self._refused(exc, started)

    def check(self, route: str, body: Mapping[str, Any]) -> None:
        """RequestError where the service could not answer this body, without sending anything."""
        self._fit(route, body)

    def stands_in_for(self, model: str, failure: BaseException) -> bool:
        """Whether a model whose load failed is to be answered here instead."""
        return trigger_of(failure) in self.triggers and self.capabilities.remote_name(model) is not None

    def reachable(self) -> bool:
        """Whether some region would be tried now."""
        return any(breaker.seconds_left() <= 0 for breaker in self.breakers.values())

    def owns(self, response_id: object) -> bool:
        """Whether the service gave this id to a request of this arm."""
        return response_id in self._ids

    # -- what is sent

    def _call(self, request: Request, reason: str) -> _Call:
        path = _path(request.path)
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
            fitted = self._fit(route, parse_body(request.body))
            service = Service(fitted.model, canonical(fitted.model), "", reason, fitted.ignored, fitted.converted)
            body = fitted.body
            return _Call(
                "post", path, request.timeout, service, params, route, fitted, body.get("stream") is True, _bound(body)
            )
        if path == "/models" or path.startswith("/models/"):
            if method != "GET":
                raise RequestError(f"{path[:200]} answers GET, not {method}", code="method_not_allowed")
            name = path.removeprefix("/models").removeprefix("/")
            path = f"/models/{self.capabilities.remote_name(name) or name}" if name else "/models"
            return _Call("get", path, request.timeout, service, params, listing=True)
        found = _STATE.fullmatch(path)
        if found is not None:
            wanted = {"/cancel": ("POST",), "/input_items": ("GET",)}.get(found[1] or "", ("GET", "DELETE"))
            if method not in wanted:
                raise RequestError(f"{path[:200]} answers {' and '.join(wanted)}", code="method_not_allowed")
            stream = method == "GET" and params.get("stream") == "true"
            return _Call(method.lower(), path, request.timeout, service, params, stream=stream)
        raise RequestError(
            f"the remote service has no route {path[:200]}; it has chat/completions, responses and models",
            code="unknown_url",
        )

    def _fit(self, route: str, body: Mapping[str, Any]) -> Fitted:
        fitted = self.capabilities.fit(route, body, drop=self._drop)
        data = self.capabilities.data
        limits = {"image_limit": data["image_limit"], "body_limit": data["body_limit"]}
        fit_content(route, fitted, self.capabilities.inputs(fitted.model), limits, self._config["fetch_image"])
        return fitted

    def _send(self, region: str, call: _Call) -> Any:
        client = self._sync_inner(region, call.listing)
        return getattr(client, call.method)(call.path, **self._arguments(call, "Stream")), False

    async def _asend(self, region: str, call: _Call) -> Any:
        client = self._async_inner(region, call.listing)
        return await getattr(client, call.method)(call.path, **self._arguments(call, "AsyncStream")), True

    def _arguments(self, call: _Call, stream_class: str) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if call.timeout is not None:
            options["timeout"] = call.timeout
        if call.params:
            options["params"] = call.params
        arguments: dict[str, Any] = {"cast_to": library().response, "options": options}
        if call.body is not None:
            arguments["body"] = call.body
        if call.stream:
            arguments["stream"] = True
            arguments["stream_cls"] = getattr(_sdk(), stream_class)[object]
        return arguments

    def _attempts(self, call: _Call, started: float) -> Generator[str, Any, Reply]:
        """Yields a region to send to, is sent the response or the exception, returns the reply.

        A region that is over its quota or capacity, or cannot be reached, leads to the next one; every other answer
        stands.
        """
        last: Reply | None = None
        for region in self.regions:
            breaker = self.breakers[region]
            if not breaker.allow():
                continue
            call.service.region = region
            for _ in range(_RESENDS + 1):
                outcome = yield region
                if not isinstance(outcome, Exception):
                    breaker.record(True)
                    response, asynchronous = outcome
                    return self._reply(call, response, asynchronous, started)
                last = self._failure(outcome, call, started)
                if not self._left_out(call, outcome):
                    break
            assert last is not None
            breaker.record(last.status < 500 and last.status != 429)
            if last.status not in (429, 502, 503):
                return last
        if last is not None:
            return last
        wait = min(breaker.seconds_left() for breaker in self.breakers.values())
        return self._error(
            503,
            "remote_error",
            f"the remote service failed {'; '.join(self.regions)}: nothing is sent for another {math.ceil(wait)} s",
            started,
        )

    def _left_out(self, call: _Call, outcome: Exception) -> bool:
        """Learn from a 400 that names a field; True where the request may go again without it."""
        if call.fitted is None or getattr(outcome, "status_code", None) != 400:
            return False
        name = self.capabilities.learn(call.route, call.fitted.model, getattr(outcome, "body", None))
        if name is None or not self._drop or name not in call.fitted.body:
            return False
        del call.fitted.body[name]
        call.service.ignored.append(name)
        return True

    # -- what comes back

    def _reply(self, call: _Call, response: Any, asynchronous: bool, started: float) -> Reply:
        rewriter = call.rewriter()
        if call.stream:
            stream = RemoteStream(response, asynchronous, rewriter, self._note_id)
            return Reply(response.status_code, self._headers(call, response, started, "text/event-stream"), stream)
        try:
            value = response.json()
        except ValueError:
            return self._error(502, "remote_error", "the remote service sent an answer that is no JSON", started)
        if isinstance(value, dict) and not call.listing:
            is_answer = call.route or value.get("object") == "response"
            value = rewriter.body(value) if is_answer else value
            if rewriter.response_id is not None:
                self._note_id(rewriter.response_id)
        headers = self._headers(call, response, started, "application/json")
        return Reply(response.status_code, headers, encode_json(value).encode("utf-8", "backslashreplace"))

    def _headers(self, call: _Call, response: Any, started: float, kind: str) -> list[tuple[str, str]]:
        service = call.service
        headers = [
            ("content-type", f"{kind}; charset=utf-8" if call.stream else kind),
            *_common(started, response.headers.get("x-request-id")),
            ("x-gemmantle-region", service.region),
            ("x-gemmantle-reason", service.reason),
        ]
        if service.name:
            headers.append(("x-gemmantle-model", service.name))
        if service.ignored:
            headers.append(("x-gemmantle-ignored", json.dumps(service.ignored)))
        if service.converted:
            headers.append(("x-gemmantle-converted", json.dumps(service.converted)))
        return headers

    def _failure(self, exc: Exception, call: _Call, started: float) -> Reply:
        sdk = _sdk()
        if isinstance(exc, sdk.APITimeoutError):
            raise Expired from None
        if isinstance(exc, sdk.APIStatusError):
            try:
                body = exc.response.json()
            except ValueError:
                body = None
            error = body.get("error") if isinstance(body, dict) else None
            error = error if isinstance(error, dict) else {}
            text = error.get("message") or (body.get("message") if isinstance(body, dict) else None)
            message = str(text or f"the remote service answered {exc.status_code}")[:2000]
            code = error.get("code") or {401: "invalid_api_key", 403: "permission_denied"}.get(exc.status_code)
            return self._error(
                exc.status_code,
                str(code or "remote_error"),
                message,
                started,
                param=error.get("param"),
                kind=error.get("type"),
                region=call.service.region,
                request_id=exc.response.headers.get("x-request-id"),
            )
        if isinstance(exc, sdk.APIConnectionError):
            cause = type(exc.__cause__ or exc).__name__
            return self._error(
                502, "remote_error", f"the remote service cannot be reached ({cause})", started,
                region=call.service.region,
            )  # fmt: skip
        if isinstance(exc, sdk.OpenAIError):
            return self._error(401, "invalid_api_key", str(exc), started, region=call.service.region)
        raise exc

    def _refused(self, exc: Exception, started: float) -> Reply:
        """A request that was not sent."""
        if isinstance(exc, _sdk().OpenAIError):
            return self._error(401, "invalid_api_key", str(exc), started)
        problem = problem_of(exc)
        error = problem.error()
        return self._error(
            problem.status, problem.code, problem.message, started, param=problem.param, kind=error["type"]
        )

    def _error(
        self,
        status: int,
        code: str,
        message: str,
        started: float,
        *,
        param: object = None,
        kind: object = None,
        region: str = "",
        request_id: str | None = None,
    ) -> Reply:
        """The inner client has tried again already, so the outer one must not (spec api F-1)."""
        if not isinstance(kind, str):
            kind = "server_error" if status >= 500 else "invalid_request_error"
            kind = {401: "authentication_error", 403: "authentication_error", 429: "rate_limit_error"}.get(status, kind)
        headers = [
            ("content-type", "application/json"),
            *_common(started, request_id),
            ("x-should-retry", "false"),
        ]
        if region:
            headers.append(("x-gemmantle-region", region))
        error = {
            "message": self._credentials.scrub(message),
            "type": kind,
            "param": param if isinstance(param, str) else None,
            "code": code,
        }
        return Reply(status, headers, json.dumps({"error": error}, separators=(",", ":")).encode("ascii"))

    def _note_id(self, response_id: str) -> None:
        with self._lock:
            self._ids[response_id] = None
            while len(self._ids) > _KNOWN_IDS:
                self._ids.popitem(last=False)

    # -- the inner clients

    def _sync_inner(self, region: str, listing: bool) -> Any:
        with self._lock:
            client = self._sync.get((region, listing))
            if client is None:
                client = self._sync[region, listing] = self._inner(region, listing, asynchronous=False)
            return client

    def _async_inner(self, region: str, listing: bool) -> Any:
        """One for each loop: the connections of a client belong to the loop they were opened on."""
        loop = _running_loop()
        with self._lock:
            clients = self._async.setdefault(loop, {})
            client = clients.get((region, listing))
            if client is None:
                client = clients[region, listing] = self._inner(region, listing, asynchronous=True)
            return client

    def _inner(self, region: str, listing: bool, *, asynchronous: bool) -> Any:
        sdk = _sdk()
        client_class = sdk.AsyncOpenAI if asynchronous else sdk.OpenAI
        options = {"max_retries": self._config["max_retries"], "project": self._config["project"]}
        if self._config["timeout"] is not None:
            options["timeout"] = self._config["timeout"]
        address = self._config["base_url"] or f"https://bedrock-mantle.{region}.api.aws/openai/v1"
        if not self._config["base_url"] and len(self.regions) == 1:
            address = os.environ.get(_ADDRESS_VARIABLE) or address
        if listing:
            # The list of models is under the bare prefix (spec api 9.1).
            address = re.sub(r"/openai/v1/?$", "/v1", address)
        bedrock = _bedrock()
        if bedrock is None:
            return client_class(base_url=address, api_key=self._credentials.for_bearer(asynchronous), **options)
        arguments = {"region": region, "base_url": address, **self._credentials.for_provider()}
        if "endpoint" in inspect.signature(bedrock).parameters:
            arguments["endpoint"] = "mantle"
        return client_class(provider=bedrock(**arguments), **options)


class RemoteStream:
    """The body of a streamed remote answer, for both kinds of doors; closing it closes the connection behind it."""

    def __init__(self, response: Any, asynchronous: bool, rewriter: Rewriter, note_id: Callable[[str], None]) -> None:
        self._response = response
        self._asynchronous = asynchronous
        self._rewriter = rewriter
        self._note_id = note_id
        self._bytes: Any = None
        self._done = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._bytes = self._bytes or self._response.iter_bytes()
        while not self._done:
            try:
                data = next(self._bytes, None)
            except Exception as exc:
                self.close()
                return self._broken(exc)
            except BaseException:
                self.close()
                raise
            chunk = self._rewritten(data)
            if chunk:
                return chunk
        self.close()
        raise StopIteration

    async def __anext__(self) -> bytes:
        self._bytes = self._bytes or self._response.aiter_bytes()
        while not self._done:
            try:
                data = await anext(self._bytes, None)
            except Exception as exc:
                await self.aclose()
                return self._broken(exc)
            except BaseException:
                self._done = True
                raise
            chunk = self._rewritten(data)
            if chunk:
                return chunk
        raise StopAsyncIteration

    def close(self) -> None:
        self._done = True
        if not self._asynchronous:  # the other kind of connection closes on its loop only: `aclose`
            self._response.close()

    async def aclose(self) -> None:
        self._done = True
        await self._response.aclose()

    def _rewritten(self, data: bytes | None) -> bytes:
        if data is None:
            self._done = True
            return self._rewriter.finish()
        chunk = self._rewriter.feed(data)
        if self._rewriter.response_id is not None:
            self._note_id(self._rewriter.response_id)
        return chunk

    def _broken(self, exc: Exception) -> bytes:
        if isinstance(exc, library().read_timeout):
            raise Expired from None
        return self._rewriter.failure(f"the remote stream broke off ({type(exc).__name__})", "remote_error")


def _again(config: dict[str, Any]) -> Remote:
    return Remote(dict(config), _Credentials())


def _first(steps: Generator[str, Any, Reply]) -> str | Reply:
    try:
        return next(steps)
    except StopIteration as end:
        reply: Reply = end.value
        return reply


def _following(steps: Generator[str, Any, Reply], outcome: Any) -> str | Reply:
    """StopIteration cannot leave a coroutine, so the last step comes as a value."""
    try:
        return steps.send(outcome)
    except StopIteration as end:
        reply: Reply = end.value
        return reply


def _common(started: float, request_id: str | None) -> list[tuple[str, str]]:
    return [
        ("x-request-id", request_id or new_id("req_")),
        ("openai-processing-ms", str(int((time.perf_counter() - started) * 1000))),
        ("x-gemmantle-arm", "remote"),
    ]


def _bound(body: Mapping[str, Any]) -> bool:
    """Whether the text of the answer is one JSON value."""
    form = body.get("response_format")
    text = body.get("text")
    if isinstance(text, dict):
        form = text.get("format")
    return isinstance(form, dict) and form.get("type") in ("json_schema", "json_object")


def _path(path: str) -> str:
    for prefix in ("/openai/v1", "/v1"):
        if path.startswith(prefix + "/"):
            path = path[len(prefix) :]
            break
    return path.rstrip("/") or "/"


def _regions(region: str | Sequence[str] | None, base_url: str | None) -> tuple[str, ...]:
    names = (region,) if isinstance(region, str) else tuple(region or ())
    if not names:
        found = next((os.environ[name] for name in _REGION_VARIABLES if os.environ.get(name)), None)
        if found is None:
            raise ValueError("region is missing: give gemmantle.remote(region=...), or set AWS_REGION")
        names = (found,)
    for name in names:
        if not isinstance(name, str) or re.fullmatch(r"[a-z]{2,8}(-[a-z0-9]+)+-\d+", name) is None:
            raise ValueError(f"region is {name!r}; it must be a name such as 'us-east-1'")
    if base_url is not None and len(names) > 1:
        raise ValueError("base_url is one address, so give one region")
    return tuple(dict.fromkeys(names))


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{name} is {value!r}; it must be a number of seconds from 0 on")
    return float(value)


def _running_loop() -> Any:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return importlib.import_module("trio").lowlevel.current_trio_token()


@functools.cache
def _sdk() -> Any:
    return importlib.import_module("openai")


def _bedrock() -> Any:
    """The SDK's provider; None where the SDK is older than it."""
    try:
        return importlib.import_module("openai.providers").bedrock
    except (ImportError, AttributeError):
        return None
