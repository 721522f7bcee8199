"""The remote arm: Gemma 4 on the bedrock-mantle service, behind an inner SDK client. `remote` is `gemmantle.remote`.

What is sent (`call`, `capabilities`, `content`), with which keys (`credentials`, `inner_clients`), and what is told of
the answer (`answers`, `wire`, `remote_stream`) are files of their own; this one leads a request from region to region
(`fallback.Breaker`). No header of the caller is passed on.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemmantle.api.problems import Expired
from gemmantle.api.protocol import Reply, Request
from gemmantle.api.stream import encode_json
from gemmantle.arms.answers import Failures, headers_of
from gemmantle.arms.call import Call, read_call
from gemmantle.arms.capabilities import Capabilities, Fitted
from gemmantle.arms.content import Fetch, fit_content
from gemmantle.arms.credentials import Credentials, Provider
from gemmantle.arms.fallback import TRIGGERS, Breaker, check_triggers, trigger_of
from gemmantle.arms.inner_clients import InnerClients
from gemmantle.arms.remote_stream import RemoteStream

if TYPE_CHECKING:
    import openai

__all__ = ["Remote", "remote"]

_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
_KNOWN_IDS = 10_000
_RESENDS = 4  # fields one request may lose to 400s with on_unsupported="drop"


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
        Credentials(
            api_key=api_key,
            token_provider=token_provider,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            session_token=session_token,
            profile=profile,
            credential_provider=credential_provider,
        ),
    )


class Remote:
    """A way to the remote service, made by `gemmantle.remote`. Safe from any thread; bound to no loop."""

    def __init__(self, config: dict[str, Any], credentials: Credentials) -> None:
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
        self._clients = InnerClients(config, credentials, len(self.regions))
        self._failures = Failures(credentials)
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
            call = read_call(request, reason, self.capabilities, self._fit)
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
            return self._failures.refused(exc, started)

    async def aanswer(self, request: Request, reason: str) -> Reply:
        started = time.perf_counter()
        try:
            call = read_call(request, reason, self.capabilities, self._fit)
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
            return self._failures.refused(exc, started)

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

    def _fit(self, route: str, body: Mapping[str, Any]) -> Fitted:
        fitted = self.capabilities.fit(route, body, drop=self._drop)
        data = self.capabilities.data
        limits = {"image_limit": data["image_limit"], "body_limit": data["body_limit"]}
        fit_content(route, fitted, self.capabilities.inputs(fitted.model), limits, self._config["fetch_image"])
        return fitted

    def _send(self, region: str, call: Call) -> Any:
        client = self._clients.sync(region, listing=call.listing)
        return getattr(client, call.method)(call.path, **call.arguments("Stream")), False

    async def _asend(self, region: str, call: Call) -> Any:
        client = self._clients.asynchronous(region, listing=call.listing)
        return await getattr(client, call.method)(call.path, **call.arguments("AsyncStream")), True

    def _attempts(self, call: Call, started: float) -> Generator[str, Any, Reply]:
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
                last = self._failures.failure(outcome, call, started)
                if not self._left_out(call, outcome):
                    break
            assert last is not None
            breaker.record(last.status < 500 and last.status != 429)
            if last.status not in (429, 502, 503):
                return last
        if last is not None:
            return last
        wait = min(breaker.seconds_left() for breaker in self.breakers.values())
        return self._failures.error(
            503,
            "remote_error",
            f"the remote service failed {'; '.join(self.regions)}: nothing is sent for another {math.ceil(wait)} s",
            started,
        )

    def _left_out(self, call: Call, outcome: Exception) -> bool:
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

    def _reply(self, call: Call, response: Any, asynchronous: bool, started: float) -> Reply:
        rewriter = call.rewriter()
        if call.stream:
            stream = RemoteStream(response, asynchronous, rewriter, self._note_id)
            return Reply(response.status_code, headers_of(call, response, started, "text/event-stream"), stream)
        try:
            value = response.json()
        except ValueError:
            return self._failures.error(
                502, "remote_error", "the remote service sent an answer that is no JSON", started
            )
        if isinstance(value, dict) and not call.listing:
            is_answer = call.route or value.get("object") == "response"
            value = rewriter.body(value) if is_answer else value
            if rewriter.response_id is not None:
                self._note_id(rewriter.response_id)
        headers = headers_of(call, response, started, "application/json")
        return Reply(response.status_code, headers, encode_json(value).encode("utf-8", "backslashreplace"))

    def _note_id(self, response_id: str) -> None:
        with self._lock:
            self._ids[response_id] = None
            while len(self._ids) > _KNOWN_IDS:
                self._ids.popitem(last=False)


def _again(config: dict[str, Any]) -> Remote:
    return Remote(dict(config), Credentials())


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
