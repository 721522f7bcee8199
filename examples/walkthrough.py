"""A walk through the API, from the first call to JSON by schema: on this machine, or on the remote service.

    python examples/walkthrough.py

One line decides where the answers come from. As it stands nothing leaves this machine and nothing is downloaded.
"""

from __future__ import annotations

import json

import openai

import gemmantle

client, MODEL = gemmantle.OpenAI(), "gemma-4-nano-e"
# The same walk on Amazon Bedrock, with AWS_BEARER_TOKEN_BEDROCK set:
# client, MODEL = gemmantle.remote(region="us-east-1").client(), "google.gemma-4-e2b"

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


def first_call() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=FRANCE)
    print("answer:", answer.choices[0].message.content)


def streaming() -> None:
    print("stream: ", end="")
    with client.chat.completions.create(model=MODEL, messages=FRANCE, stream=True) as stream:
        for chunk in stream:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def tool_loop() -> None:
    """The model asks for a function, gets its result, and answers."""
    weather = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    while True:
        answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[weather])
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            print("call:", call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    print("after the call:", message.content)


def image() -> None:
    """A model without eyes says so by a code that a program can act upon."""
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "text", "text": "What is in this image?"},
    ]
    try:
        answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
        print("image:", answer.choices[0].message.content)
    except openai.BadRequestError as error:
        print("image refused:", error.code)


def responses() -> None:
    first = client.responses.create(model=MODEL, input=FRANCE[0]["content"])
    follow = client.responses.create(model=MODEL, input="Thank you.", previous_response_id=first.id)
    print("responses:", first.output_text, "/", follow.status)
    with client.responses.stream(model=MODEL, input=FRANCE[0]["content"]) as stream:
        kinds = [event.type for event in stream]
    print("events:", kinds[0], "to", kinds[-1])


def reasoning() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is 23 + 45?"}], reasoning_effort="high"
    )
    print("thoughts:", getattr(answer.choices[0].message, "reasoning", None))
    print("sum:", answer.choices[0].message.content)


def sampling() -> None:
    """Google's own settings, and a seed."""
    answers = [
        client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=1.0, top_p=0.95, seed=7)
        for _ in range(2)
    ]
    same = answers[0].choices[0].message.content == answers[1].choices[0].message.content
    print("same seed, same answer:", same)


def retries() -> None:
    """A full queue or a busy region answers 429 or 503 and says when to come again; the client does."""
    patient = client.with_options(max_retries=5, timeout=120)
    answer = patient.chat.completions.create(model=MODEL, messages=FRANCE)
    print("patient answer:", answer.choices[0].message.content)


def tiers() -> None:
    applied = [
        client.chat.completions.create(model=MODEL, messages=FRANCE, service_tier=tier).service_tier
        for tier in ("flex", "default", "priority")
    ]
    print("tiers:", ", ".join(map(str, applied)))


def cached_prefix() -> None:
    """What two prompts begin with alike is computed once, and the second answer says how much that was."""
    rules = {"role": "system", "content": "Answer in one short sentence. " * 8}
    for question in ("What is the capital of France?", "What is the capital of Italy?"):
        answer = client.chat.completions.create(model=MODEL, messages=[rules, {"role": "user", "content": question}])
    assert answer.usage is not None
    details = answer.usage.prompt_tokens_details
    print("cached prefix:", details is not None and (details.cached_tokens or 0) > 0)


def json_by_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]{1,19}$"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Extract city as JSON: Anna lives in Rome."}],
        response_format={"type": "json_schema", "json_schema": {"name": "capital", "schema": schema, "strict": True}},
    )
    print("JSON:", json.loads(answer.choices[0].message.content or ""))


if __name__ == "__main__":
    for step in (
        first_call, streaming, tool_loop, image, responses, reasoning, sampling, retries, tiers, cached_prefix,
        json_by_schema,
    ):  # fmt: skip
        step()
