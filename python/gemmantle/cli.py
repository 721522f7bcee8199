"""The command `gemmantle`: chat, complete, serve, info, devices, bench.

Answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gemmantle
from gemmantle import hub
from gemmantle.bench import command as measuring
from gemmantle.errors import GemmantleError

__all__ = ["main"]

_MODEL_HELP = "a folder, a .gguf file, or a name that is on this machine"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status: 0, 1 for an error told in words, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (GemmantleError, ValueError) as exc:
        print(f"gemmantle: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has enough
        sys.stderr.close()
        return 1
    except Exception as exc:
        told = _told_by_client(exc)
        if told is None:
            raise
        print(f"gemmantle: {told}", file=sys.stderr)
        return 1


def _told_by_client(exc: Exception) -> str | None:
    """The words of an answer that the SDK raised as an error; None for any other exception."""
    body = getattr(exc, "body", None)
    if type(exc).__module__.partition(".")[0] != "openai":
        return None
    return str(body["message"]) if isinstance(body, dict) and "message" in body else str(exc)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gemmantle", description="Gemma 4 in this process, behind the OpenAI client.")
    parser.add_argument("--version", action="version", version=gemmantle.__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")

    chat = commands.add_parser("chat", help="talk to a model, or answer one message")
    _add_model(chat)
    chat.add_argument("message", nargs="?", help="one message; without it a conversation starts")
    chat.add_argument("--system", help="system message")
    chat.add_argument("--think", action="store_true", help="let the model think; thoughts go to standard error")
    _add_sampling(chat, max_tokens=1024, temperature=None)
    chat.set_defaults(run=_chat)

    complete = commands.add_parser("complete", help="continue a text")
    _add_model(complete)
    complete.add_argument("prompt", help="the text to continue; - reads standard input")
    _add_sampling(complete, max_tokens=64, temperature=0.0)
    complete.set_defaults(run=_complete)

    serve = commands.add_parser("serve", help="answer the OpenAI API, and a chat page, on a port of this machine")
    _add_model(serve, several=True)
    _add_serving(serve)
    serve.set_defaults(run=_serve)

    info = commands.add_parser("info", help="what a model is, as JSON")
    _add_model(info)
    info.set_defaults(run=_info)

    devices = commands.add_parser("devices", help="what this machine can compute on")
    devices.set_defaults(run=_devices)

    bench = commands.add_parser("bench", help="speed, memory and fidelity of a model, beside what the machine can do")
    bench.add_argument("model", help=_MODEL_HELP)
    measuring.add_arguments(bench)
    bench.set_defaults(run=measuring.run)
    return parser


def _add_model(parser: argparse.ArgumentParser, several: bool = False) -> None:
    if several:
        parser.add_argument("models", metavar="model", nargs="+", help=_MODEL_HELP)
    else:
        parser.add_argument("model", help=_MODEL_HELP)
    parser.add_argument("--device", default="auto", help="auto, cpu, reference, cuda or cuda:0,1 (default %(default)s)")
    parser.add_argument("--threads", type=int, help="threads (default: one per core)")
    parser.add_argument("--mode", default="auto", help="auto, exact or fast (default %(default)s)")
    parser.add_argument("--max-context", type=int, help="tokens of prompt plus answer (default: the model's)")


def _add_sampling(parser: argparse.ArgumentParser, max_tokens: int, temperature: float | None) -> None:
    parser.add_argument("--max-tokens", type=int, default=max_tokens, help="length limit (default %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=temperature, help="0 takes the likeliest token (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, help="seed of the draw")


def _add_serving(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default %(default)s)")
    parser.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="ask callers for this key; may be repeated (default: GEMMANTLE_API_KEY, which other users cannot list)",
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="answer to this Host name too"
    )
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="pages of this origin may call (CORS)"
    )
    parser.add_argument(
        "--state", metavar="FILE", help="keep stored responses, chats, files and batches in this file (default: memory)"
    )
    parser.add_argument(
        "--fallback",
        action="append",
        metavar="REGION",
        help="hand what cannot be answered here to the remote service in this region; data then leaves the machine",
    )
    parser.add_argument("--max-concurrency", type=int, help="sequences that run at once, of each model")
    parser.add_argument(
        "--max-requests", type=int, default=1024, help="requests answered at once (default %(default)s)"
    )
    parser.add_argument("--max-body-mib", type=int, default=64, help="largest request in MiB (default %(default)s)")
    parser.add_argument("--timeout", type=float, help="seconds for an answer, or between chunks (default: no limit)")
    parser.add_argument(
        "--drain", type=float, default=30.0, help="seconds that running requests get at the end (default %(default)s)"
    )


def _serve(options: argparse.Namespace) -> int:
    try:
        run = importlib.import_module("gemmantle.server.run")
    except ImportError as exc:
        raise ValueError(f"`serve` needs uvicorn ({exc}): pip install 'gemmantle[server]'") from exc
    server = importlib.import_module("gemmantle.server")
    keys = options.api_key or [key for key in [os.environ.get("GEMMANTLE_API_KEY", "")] if key]
    if not all(keys):
        raise ValueError("--api-key is empty; leave it out to ask for no key")
    if options.max_requests < 1 or not 1 <= options.max_body_mib <= 64:
        raise ValueError("--max-requests must be at least 1, --max-body-mib from 1 to 64")
    body_bytes = options.max_body_mib << 20
    fallback = None if options.fallback is None else gemmantle.remote(region=options.fallback)
    run.serve(
        options.models,
        lambda model: _load(options, model),
        host=options.host,
        port=options.port,
        drain_s=options.drain,
        hosts=options.allow_host,
        keys=keys,
        origins=options.allow_origin,
        state_path=options.state,
        fallback=fallback,
        limits=server.Limits(
            body_bytes=body_bytes,
            bodies_bytes=max(8 * body_bytes, 64 << 20),
            requests=options.max_requests,
            answer_s=options.timeout,
        ),
    )
    return 0


def _load(options: argparse.Namespace, model: str | None = None) -> gemmantle.Engine:
    model = model or options.model
    if model == hub.DEMO_NAME:
        print(hub.DEMO_TERMS, file=sys.stderr)
    more = {"max_concurrency": options.max_concurrency} if "max_concurrency" in options else {}
    return gemmantle.load(
        model,
        device=options.device,
        threads=options.threads,
        mode=options.mode,
        max_context=options.max_context,
        **more,
    )


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    fields = {"temperature": options.temperature, "seed": options.seed}
    return {name: value for name, value in fields.items() if value is not None}


def _complete(options: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    with _load(options) as engine, engine.client(timeout=None) as client:
        _print(prompt)
        stream = client.completions.create(
            model=engine.name, prompt=prompt, max_tokens=options.max_tokens, stream=True, **_sampling(options)
        )
        with stream:
            for chunk in stream:
                for choice in chunk.choices:
                    _print(choice.text)
    _print("\n")
    return 0


def _chat(options: argparse.Namespace) -> int:
    messages: list[dict[str, Any]] = []
    if options.system:
        messages.append({"role": "system", "content": options.system})
    with _load(options) as engine, engine.client(timeout=None) as client:
        while True:
            text = options.message
            if text is None:
                try:
                    text = input("> ")
                except EOFError:
                    return 0
                if not text.strip():
                    continue
            messages.append({"role": "user", "content": text})
            answer = _answer(client, engine.name, messages, options)
            messages.append({"role": "assistant", "content": answer})
            if options.message is not None:
                return 0


def _answer(client: Any, model: str, messages: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """One streamed answer; Ctrl-C ends the answer, not the conversation."""
    parts: list[str] = []
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_completion_tokens=options.max_tokens,
        reasoning_effort="high" if options.think else "none",
        stream=True,
        **_sampling(options),
    )
    try:
        with stream:
            for chunk in stream:
                for choice in chunk.choices:
                    if options.think and (thought := getattr(choice.delta, "reasoning", None)):
                        print(thought, end="", file=sys.stderr, flush=True)
                    if choice.delta.content:
                        parts.append(choice.delta.content)
                        _print(choice.delta.content)
    except KeyboardInterrupt:
        if options.message is not None:
            raise
    _print("\n")
    return "".join(parts)


def _info(options: argparse.Namespace) -> int:
    with _load(options) as engine:
        _print(json.dumps(engine.info(), indent=2, default=str) + "\n")
    return 0


def _devices(_: argparse.Namespace) -> int:
    for device in gemmantle.devices():
        state = "yes" if device["available"] else f"no ({device['reason']})"
        _print(f"{device['name']:<10} {state:<4} {device['description']}\n")
    return 0


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
