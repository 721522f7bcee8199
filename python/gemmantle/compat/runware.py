"""Text tasks in Runware's shape (spec api 10.1): `run` answers them with any OpenAI client, `to_request` only converts.

One task with numberResults n is n requests with seeds seed, seed + 1, ...; each result names the seed it used.
"""

from __future__ import annotations

import re
import secrets
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gemmantle.errors import RequestError
from gemmantle.names import canonical

__all__ = ["run", "to_request"]

_INT63 = (1 << 63) - 1
_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.I)
_FIELDS = {
    "taskType", "taskUUID", "outputFormat", "deliveryMethod", "webhookURL", "includeCost", "includeUsage",
    "numberResults", "inputs", "model", "seed", "messages", "settings",
}  # fmt: skip
# Setting -> (field of the client, lowest, highest).
_SETTINGS: dict[str, tuple[str, float, float]] = {
    "temperature": ("temperature", 0, 2),
    "topP": ("top_p", 0, 1),
    "topK": ("top_k", 1, 100),
    "minP": ("min_p", 0, 1),
    "maxTokens": ("max_completion_tokens", 1, _INT63),
    "frequencyPenalty": ("frequency_penalty", 0, 2),
    "presencePenalty": ("presence_penalty", -2, 2),
    "repetitionPenalty": ("repetition_penalty", 0, 2),
}
_WHOLE = {"topK", "maxTokens"}
_EXTENSIONS = ("top_k", "min_p", "repetition_penalty")
_THINKING = {"high": "high", "minimal": "none", "off": "none", "none": "none"}

_lock = threading.Lock()
_tasks: dict[str, Future[list[dict[str, Any]]] | None] = {}  # None: running in the foreground
_pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="gemmantle-task")


def run(
    tasks: Mapping[str, Any] | list[Mapping[str, Any]],
    client: Any = None,
    *,
    uploads: Mapping[str, str] | None = None,
    prices: Mapping[str, Mapping[str, float]] | None = None,
) -> Any:
    """Answer one task or several: a list of results, or, for a task with deliveryMethod "stream", an iterator of them.

    client: an `openai.OpenAI`, by default `gemmantle.OpenAI()`. uploads: UUID -> data URL, for inputs that name an
    earlier upload. prices: model -> {"input", "output"} for a million tokens of a remote answer. A task with
    deliveryMethod "async" runs behind; {"taskType": "getResponse", "taskUUID": ...} asks for it.
    """
    if isinstance(tasks, Mapping):
        return _run_one(tasks, client, uploads, prices)
    results: list[dict[str, Any]] = []
    for task in tasks:
        if task.get("deliveryMethod") == "stream":
            raise RequestError("a streamed task must be run alone", param="deliveryMethod")
        results.extend(_run_one(task, client, uploads, prices))
    return results


def to_request(task: Mapping[str, Any], *, uploads: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The keyword arguments of `client.chat.completions.create` for the first result of a task."""
    _check_task(task)
    settings = task.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise RequestError(f"`settings` is {settings!r}; it must be an object", param="settings")
    request: dict[str, Any] = {
        "model": canonical(_text(task, "model")),
        "messages": _messages(task, settings, uploads or {}),
        "seed": _integer(task, "seed", 0, _INT63, secrets.randbits(32)),
    }
    extra: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"settings.{name}"
        if name == "systemPrompt":
            continue
        if name == "stopSequences":
            if not isinstance(value, list) or not value or not all(isinstance(stop, str) and stop for stop in value):
                raise RequestError(f"`{path}` is {value!r}; it must be a list of at least one text", param=path)
            request["stop"] = list(value)
        elif name == "thinkingLevel":
            if value not in _THINKING:
                raise RequestError(f"`{path}` is {value!r}; it must be one of {', '.join(_THINKING)}", param=path)
            request["reasoning_effort"] = _THINKING[value]
        elif name in _SETTINGS:
            field, low, high = _SETTINGS[name]
            _number(value, path, low, high, whole=name in _WHOLE)
            if name == "topP" and value == 0:
                extra["top_k"] = 1  # a nucleus of nothing is the likeliest token
            elif name == "repetitionPenalty" and value == 0:
                raise RequestError(f"`{path}` is 0; logits are divided by it, so it must be above 0", param=path)
            else:
                (extra if field in _EXTENSIONS else request)[field] = value
        else:
            raise RequestError(f"unknown field `{path[:100]}`", code="unknown_parameter", param=path[:100])
    # Thinking is on unless it is switched off, unlike in the OpenAI shape.
    request.setdefault("reasoning_effort", "high")
    if extra:
        request["extra_body"] = extra
    return request


def _run_one(task: Mapping[str, Any], client: Any, uploads: Any, prices: Any) -> Any:
    if task.get("taskType") == "getResponse":
        return _poll(_text(task, "taskUUID"))
    request = to_request(task, uploads=uploads)
    task_id = str(task["taskUUID"])
    if client is None:
        from gemmantle.client import OpenAI

        client = OpenAI()
    delivery = task.get("deliveryMethod", "sync")
    if delivery == "stream":
        return _streamed(task, request, client)
    _claim(task_id)
    if delivery == "async":
        _tasks[task_id] = _pool.submit(_results, task, request, client, prices)
        return [{"taskType": "textInference", "taskUUID": task_id, "status": "processing"}]
    try:
        return _results(task, request, client, prices)
    finally:
        _forget(task_id)


def _poll(task_id: str) -> list[dict[str, Any]]:
    future = _tasks.get(task_id)
    if future is None:
        raise RequestError(f"no task {task_id[:100]} runs behind", code="response_not_found", param="taskUUID")
    if not future.done():
        return [{"taskType": "textInference", "taskUUID": task_id, "status": "processing"}]
    _forget(task_id)
    return [{**result, "status": "success"} for result in future.result()]


def _claim(task_id: str) -> None:
    with _lock:
        known = _tasks.get(task_id, False)
        if known is None or (isinstance(known, Future) and not known.done()):
            raise RequestError(f"task {task_id} is running; give every task its own UUID", param="taskUUID")
        _tasks[task_id] = None


def _forget(task_id: str) -> None:
    with _lock:
        _tasks.pop(task_id, None)


def _seeds(task: Mapping[str, Any], request: Mapping[str, Any]) -> list[int]:
    count = _integer(task, "numberResults", 1, 4, 1)
    return [(request["seed"] + position) & _INT63 for position in range(count)]


def _results(task: Mapping[str, Any], request: dict[str, Any], client: Any, prices: Any) -> list[dict[str, Any]]:
    seeds = _seeds(task, request)
    with ThreadPoolExecutor(max_workers=len(seeds)) as pool:
        return list(pool.map(lambda seed: _result(task, {**request, "seed": seed}, client, prices), seeds))


def _result(task: Mapping[str, Any], request: dict[str, Any], client: Any, prices: Any) -> dict[str, Any]:
    raw = client.chat.completions.with_raw_response.create(**request)
    answer = raw.parse()
    choice = answer.choices[0]
    result: dict[str, Any] = {
        "taskType": "textInference",
        "taskUUID": task["taskUUID"],
        "text": choice.message.content or "",
        "finishReason": choice.finish_reason,
        "seed": request["seed"],
    }
    thoughts = getattr(choice.message, "reasoning", None)
    if thoughts:
        result["reasoning"] = thoughts
    usage = answer.usage
    if task.get("includeUsage") and usage is not None:
        result["usage"] = {
            "promptTokens": usage.prompt_tokens,
            "completionTokens": usage.completion_tokens,
            "totalTokens": usage.total_tokens,
        }
    if task.get("includeCost"):
        result.update(_cost(raw.headers.get("x-gemmantle-arm"), answer.model, usage, prices or {}))
    return result


def _cost(arm: str | None, model: str, usage: Any, prices: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    if arm == "local":
        return {"cost": 0}
    price = next((price for name, price in prices.items() if canonical(name) == canonical(model)), None)
    if price is None or usage is None:
        return {"cost": None, "costNote": f"no price is known for the remote model {model}; give run(prices=...)"}
    cost = usage.prompt_tokens * price["input"] + usage.completion_tokens * price["output"]
    return {"cost": cost / 1_000_000}


def _streamed(task: Mapping[str, Any], request: dict[str, Any], client: Any) -> Iterator[dict[str, Any]]:
    """Claims its UUID when it is read: an iterator that is dropped unread never ran."""
    head = {"taskType": "textInference", "taskUUID": task["taskUUID"]}
    _claim(str(task["taskUUID"]))
    try:
        for position, seed in enumerate(_seeds(task, request)):
            options = {"include_usage": True} if task.get("includeUsage") else {}
            fields = {**request, "seed": seed, "stream": True, **({"stream_options": options} if options else {})}
            with client.chat.completions.create(**fields) as stream:
                for chunk in stream:
                    for choice in chunk.choices:
                        if choice.delta.content:
                            yield {**head, "resultIndex": position, "delta": {"text": choice.delta.content}}
                        if choice.finish_reason:
                            yield {**head, "resultIndex": position, "finishReason": choice.finish_reason, "seed": seed}
                    if chunk.usage is not None and options:
                        tokens = {"promptTokens": chunk.usage.prompt_tokens}
                        tokens["completionTokens"] = chunk.usage.completion_tokens
                        yield {**head, "resultIndex": position, "usage": tokens}
    finally:
        _forget(str(task["taskUUID"]))


def _check_task(task: Mapping[str, Any]) -> None:
    for name in task:
        if name not in _FIELDS:
            raise RequestError(f"unknown field `{name[:100]}`", code="unknown_parameter", param=name[:100])
    if task.get("taskType") != "textInference":
        raise RequestError(f"`taskType` is {task.get('taskType')!r}; it must be 'textInference'", param="taskType")
    task_id = task.get("taskUUID")
    if not isinstance(task_id, str) or not _UUID4.fullmatch(task_id):
        hint = f"for example {uuid.uuid4()}"
        raise RequestError(f"`taskUUID` is {task_id!r}; it must be a UUID of version 4, {hint}", param="taskUUID")
    for name, allowed in (("outputFormat", ("TEXT",)), ("deliveryMethod", ("sync", "async", "stream"))):
        if task.get(name, allowed[0]) not in allowed:
            raise RequestError(f"`{name}` is {task[name]!r}; it must be one of {', '.join(allowed)}", param=name)
    if task.get("webhookURL") is not None:
        raise RequestError(
            "`webhookURL` is not called from this process; use deliveryMethod 'async' and getResponse",
            code="unsupported_parameter",
            param="webhookURL",
        )
    for name in ("includeCost", "includeUsage"):
        if not isinstance(task.get(name, False), bool):
            raise RequestError(f"`{name}` is {task[name]!r}; it must be true or false", param=name)
    _integer(task, "numberResults", 1, 4, 1)


def _messages(task: Mapping[str, Any], settings: Mapping[str, Any], uploads: Mapping[str, str]) -> list[dict[str, Any]]:
    given = task.get("messages")
    if not isinstance(given, list) or not given or not all(isinstance(message, Mapping) for message in given):
        raise RequestError("`messages` must be a list of at least one message", param="messages")
    messages = [dict(message) for message in given]
    if messages[-1].get("role") != "user":
        raise RequestError("the last of `messages` must be of the user", param=f"messages[{len(messages) - 1}].role")
    images = _images(task, uploads)
    if images:
        content = messages[-1].get("content")
        text = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])
        messages[-1]["content"] = [*images, *text]
    prompt = settings.get("systemPrompt")
    if prompt is not None:
        if not isinstance(prompt, str) or not 1 <= len(prompt) <= 50_000:
            raise RequestError("`settings.systemPrompt` must have 1 to 50000 characters", param="settings.systemPrompt")
        if messages[0].get("role") == "system" and isinstance(messages[0].get("content"), str):
            messages[0]["content"] = f"{prompt}\n\n{messages[0]['content']}"
        else:
            messages.insert(0, {"role": "system", "content": prompt})
    return messages


def _images(task: Mapping[str, Any], uploads: Mapping[str, str]) -> list[dict[str, Any]]:
    inputs = task.get("inputs") or {}
    if not isinstance(inputs, Mapping) or set(inputs) - {"images", "videos"}:
        raise RequestError(f"`inputs` is {inputs!r:.100}; it holds `images` and `videos`", param="inputs")
    if inputs.get("videos"):
        raise RequestError(
            "`inputs.videos`: the client's messages have no part for videos; send frames as images",
            code="unsupported_content_type",
            param="inputs.videos",
        )
    parts = []
    for position, image in enumerate(inputs.get("images") or ()):
        path = f"inputs.images[{position}]"
        if not isinstance(image, str):
            raise RequestError(f"`{path}` must be a UUID, an address or base64", param=path)
        if _UUID4.fullmatch(image):
            if image not in uploads:
                raise RequestError(f"`{path}`: no upload {image} is known", code="file_not_found", param=path)
            image = uploads[image]
        elif not image.startswith(("data:", "http://", "https://")):
            image = f"data:image/{_kind(image)};base64,{image}"
        parts.append({"type": "image_url", "image_url": {"url": image}})
    return parts


def _kind(base64_text: str) -> str:
    """The image format by the first characters of its base64."""
    known = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp"}
    return next((kind for start, kind in known.items() if base64_text.startswith(start)), "png")


def _text(task: Mapping[str, Any], name: str) -> str:
    value = task.get(name)
    if not isinstance(value, str) or not value:
        raise RequestError(f"`{name}` is {value!r}; it must be a text", param=name)
    return value


def _integer(task: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    value = task.get(name)
    if value is None:
        return default
    _number(value, name, low, high, whole=True)
    return int(value)


def _number(value: Any, path: str, low: float, high: float, *, whole: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not low <= value <= high:
        limits = f"from {low} to {high}" if high < _INT63 else f"from {low} on"
        raise RequestError(f"`{path}` is {value!r}; it must be a{' whole' * whole} number {limits}", param=path)
