"""A-20: one test for every row of the Runware table, and the habits of Gemini and Ollama users (spec api 10)."""

from __future__ import annotations

import json
import threading
import time

import pytest
from fake_engine import CALL, HELLO, HOLD, FakeEngine, content

from gemmantle import hub, names
from gemmantle.api import models as model_cards
from gemmantle.client import client_for
from gemmantle.compat import gemini, ollama, runware
from gemmantle.errors import RequestError

NAME = "google/gemma-4-31B-it"
UUIDS = [f"00000000-0000-4000-8000-00000000000{digit}" for digit in range(10)]
TASK = {
    "taskType": "textInference",
    "taskUUID": UUIDS[0],
    "model": "google-gemma-4-31b",
    "messages": [{"role": "user", "content": "Hi"}],
}


def fake(script=HELLO, **profile):
    return FakeEngine(script, name=NAME, aliases=names.aliases_of(NAME), **profile)


def convert(**fields):
    return runware.to_request({**TASK, **fields})


def settings(**values):
    return convert(settings=values)


def refused(param, call):
    with pytest.raises(RequestError) as caught:
        call()
    assert caught.value.param == param
    return str(caught.value)


# -- Runware, row by row


def test_a20_task_type():
    refused("taskType", lambda: convert(taskType="imageInference"))
    refused("taskTyp", lambda: convert(taskTyp="textInference"))


def test_a20_task_uuid():
    refused("taskUUID", lambda: convert(taskUUID="42"))
    refused("taskUUID", lambda: convert(taskUUID="00000000-0000-1000-8000-000000000000"))
    engine = fake([HOLD, *HELLO])
    client = client_for(engine)
    runware.run({**TASK, "taskUUID": UUIDS[1], "deliveryMethod": "async"}, client)
    assert "running" in refused("taskUUID", lambda: runware.run({**TASK, "taskUUID": UUIDS[1]}, client))
    _release(engine)
    _finished(UUIDS[1])
    (result,) = runware.run({**TASK, "taskUUID": UUIDS[1]}, client_for(fake()))
    assert result["taskUUID"] == UUIDS[1]


def _release(engine):
    until = time.monotonic() + 20
    while not engine.generations and time.monotonic() < until:
        threading.Event().wait(0.005)
    engine.release()


def _finished(task_id):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        answer = runware.run({"taskType": "getResponse", "taskUUID": task_id})
        if answer[0]["status"] == "success":
            return answer
        threading.Event().wait(0.005)
    raise AssertionError("the task does not end")


def test_a20_output_format():
    assert convert(outputFormat="TEXT")
    refused("outputFormat", lambda: convert(outputFormat="JSON"))


def test_a20_delivery_method():
    (result,) = runware.run(TASK, client_for(fake()))
    assert result["text"] == "Hello, world!"
    assert result["finishReason"] == "stop"
    engine = fake([HOLD, *HELLO])
    waiting = runware.run({**TASK, "taskUUID": UUIDS[2], "deliveryMethod": "async"}, client_for(engine))
    assert waiting == [{"taskType": "textInference", "taskUUID": UUIDS[2], "status": "processing"}]
    _release(engine)
    assert _finished(UUIDS[2])[0]["text"] == "Hello, world!"
    refused("taskUUID", lambda: runware.run({"taskType": "getResponse", "taskUUID": UUIDS[2]}))
    pieces = list(runware.run({**TASK, "deliveryMethod": "stream", "includeUsage": True}, client_for(fake())))
    assert "".join(piece.get("delta", {}).get("text", "") for piece in pieces) == "Hello, world!"
    assert pieces[-1]["usage"]["completionTokens"] == 7
    refused("deliveryMethod", lambda: convert(deliveryMethod="pigeon"))
    refused("deliveryMethod", lambda: runware.run([{**TASK, "deliveryMethod": "stream"}], client_for(fake())))


def test_a20_webhook_url():
    assert "getResponse" in refused("webhookURL", lambda: convert(webhookURL="https://example.com/hook"))


def test_a20_include_cost():
    (local,) = runware.run({**TASK, "includeCost": True}, client_for(fake()))
    assert local["cost"] == 0
    usage = type("Usage", (), {"prompt_tokens": 1_000_000, "completion_tokens": 500_000})
    unknown = runware._cost("remote", NAME, usage, {})
    assert unknown["cost"] is None
    assert "no price" in unknown["costNote"]
    assert runware._cost("remote", NAME, usage, {"gemma4:31b": {"input": 0.2, "output": 0.4}}) == {"cost": 0.4}
    refused("includeCost", lambda: convert(includeCost="yes"))


def test_a20_include_usage():
    (plain,) = runware.run(TASK, client_for(fake()))
    assert "usage" not in plain
    (result,) = runware.run({**TASK, "includeUsage": True}, client_for(fake()))
    assert result["usage"]["completionTokens"] == 7
    assert result["usage"]["totalTokens"] == result["usage"]["promptTokens"] + 7


def test_a20_number_results():
    engine = fake()
    results = runware.run({**TASK, "numberResults": 3, "seed": 40}, client_for(engine))
    assert [result["seed"] for result in results] == [40, 41, 42]
    assert sorted(sampling.seed for _, sampling in engine.submitted) == [40, 41, 42]
    for wrong in (0, 5, True, 1.5):
        refused("numberResults", lambda wrong=wrong: convert(numberResults=wrong))


def test_a20_inputs():
    images = ["https://example.com/a.png", "data:image/png;base64,AA==", "/9j/4AAQ", UUIDS[5]]
    task = {**TASK, "inputs": {"images": images}}
    request = runware.to_request(task, uploads={UUIDS[5]: "data:image/webp;base64,BB=="})
    urls = [part["image_url"]["url"] for part in request["messages"][-1]["content"][:-1]]
    assert urls == [*images[:2], "data:image/jpeg;base64,/9j/4AAQ", "data:image/webp;base64,BB=="]
    assert request["messages"][-1]["content"][-1] == {"type": "text", "text": "Hi"}
    refused("inputs.images[3]", lambda: runware.to_request(task))
    refused("inputs.videos", lambda: convert(inputs={"videos": ["x"]}))


def test_a20_model():
    assert convert()["model"] == NAME
    assert convert(model="gemma4:e2b")["model"] == "google/gemma-4-E2B-it"
    refused("model", lambda: convert(model=None))


def test_a20_seed():
    assert convert(seed=2**63 - 1)["seed"] == 2**63 - 1
    drawn = {convert()["seed"] for _ in range(4)}
    assert all(0 <= seed < 2**32 for seed in drawn)
    assert len(drawn) > 1
    (result,) = runware.run(TASK, client_for(fake()))
    assert 0 <= result["seed"] < 2**32
    for wrong in (-1, 2**63, "1"):
        refused("seed", lambda wrong=wrong: convert(seed=wrong))


def test_a20_messages():
    refused("messages", lambda: convert(messages=[]))
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    refused("messages[1].role", lambda: convert(messages=talk))
    assert convert(messages=[*talk, talk[0]])["messages"] == [*talk, talk[0]]


def test_a20_system_prompt():
    assert settings(systemPrompt="Be brief.")["messages"][0] == {"role": "system", "content": "Be brief."}
    talk = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}]
    joined = convert(messages=talk, settings={"systemPrompt": "Be brief."})
    assert joined["messages"][0]["content"] == "Be brief.\n\nRhyme."
    assert talk[0]["content"] == "Rhyme."
    for wrong in ("", "x" * 50_001, 3):
        refused("settings.systemPrompt", lambda wrong=wrong: settings(systemPrompt=wrong))


def test_a20_temperature_and_top_p():
    request = settings(temperature=0.5, topP=0.9)
    assert (request["temperature"], request["top_p"]) == (0.5, 0.9)
    greedy = settings(topP=0)
    assert greedy["extra_body"] == {"top_k": 1}
    assert "top_p" not in greedy
    refused("settings.temperature", lambda: settings(temperature=2.1))
    refused("settings.topP", lambda: settings(topP=1.1))


def test_a20_top_k():
    assert settings(topK=100)["extra_body"] == {"top_k": 100}
    for wrong in (0, 101, 1.5):
        refused("settings.topK", lambda wrong=wrong: settings(topK=wrong))


def test_a20_min_p():
    assert settings(minP=0.1)["extra_body"] == {"min_p": 0.1}
    refused("settings.minP", lambda: settings(minP=1.5))


def test_a20_max_tokens():
    assert settings(maxTokens=1)["max_completion_tokens"] == 1
    refused("settings.maxTokens", lambda: settings(maxTokens=0))


def test_a20_frequency_penalty():
    assert settings(frequencyPenalty=2)["frequency_penalty"] == 2
    refused("settings.frequencyPenalty", lambda: settings(frequencyPenalty=-0.1))


def test_a20_presence_penalty():
    assert settings(presencePenalty=-2)["presence_penalty"] == -2
    refused("settings.presencePenalty", lambda: settings(presencePenalty=2.5))


def test_a20_repetition_penalty():
    assert settings(repetitionPenalty=1.2)["extra_body"] == {"repetition_penalty": 1.2}
    assert "divided" in refused("settings.repetitionPenalty", lambda: settings(repetitionPenalty=0))
    refused("settings.repetitionPenalty", lambda: settings(repetitionPenalty=2.5))


def test_a20_stop_sequences():
    assert settings(stopSequences=["END"])["stop"] == ["END"]
    refused("settings.stopSequences", lambda: settings(stopSequences=[]))


def test_a20_thinking_level():
    assert convert()["reasoning_effort"] == "high"  # on by default there
    assert settings(thinkingLevel="high")["reasoning_effort"] == "high"
    for off in ("minimal", "off", "none"):
        assert settings(thinkingLevel=off)["reasoning_effort"] == "none"
    refused("settings.thinkingLevel", lambda: settings(thinkingLevel="medium"))
    (result,) = runware.run(TASK, client_for(fake([("thought", "hm"), *content("Yes")])))
    assert (result["reasoning"], result["text"]) == ("hm", "Yes")
    refused("settings.topA", lambda: settings(topA=1))


def test_every_setting_together_is_taken_by_the_local_arm():
    values = {
        "systemPrompt": "Be brief.", "temperature": 1, "topP": 0.9, "topK": 50, "minP": 0.05, "maxTokens": 5,
        "frequencyPenalty": 0.1, "presencePenalty": 0.1, "repetitionPenalty": 1.1, "stopSequences": ["END"],
        "thinkingLevel": "none",
    }  # fmt: skip
    engine = fake()
    results = runware.run([{**TASK, "settings": values}, {**TASK, "taskUUID": UUIDS[3]}], client_for(engine))
    assert [result["finishReason"] for result in results] == ["length", "stop"]
    sampling = engine.submitted[0][1]
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (50, 0.05, 1.1)


# -- Gemini

DIALECT = {
    "type": "OBJECT",
    "properties": {
        "b": {"type": "STRING", "nullable": True},
        "a": {"type": "ARRAY", "items": {"type": "INTEGER"}, "minItems": "1"},
        "kind": {"type": "STRING", "enum": ["x", "y"], "nullable": True},
    },
    "propertyOrdering": ["a", "b"],
    "required": ["a"],
}


def test_gemini_schema():
    found = gemini.schema(DIALECT)
    assert found == {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            "b": {"type": ["string", "null"]},
            "kind": {"type": ["string", "null"], "enum": ["x", "y", None]},
        },
        "required": ["a"],
    }
    assert list(found["properties"]) == ["a", "b", "kind"]
    assert gemini.schema({"any_of": [{"type": "STRING"}], "nullable": True}) == {
        "anyOf": [{"anyOf": [{"type": "string"}]}, {"type": "null"}]
    }


def test_gemini_configuration():
    config = {
        "max_output_tokens": 9, "candidate_count": 2, "stop_sequences": ["END"], "top_k": 7, "temperature": 0.5,
        "response_mime_type": "application/json", "thinking_config": {"thinking_level": "minimal"},
    }  # fmt: skip
    request = gemini.to_request({"model": "models/gemma-4-31b-it", "contents": "Hi", "generation_config": config,
                                 "system_instruction": {"parts": [{"text": "Be brief."}]}})  # fmt: skip
    assert request == {
        "model": NAME,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_completion_tokens": 9,
        "n": 2,
        "stop": ["END"],
        "temperature": 0.5,
        "response_format": {"type": "json_object"},
        "reasoning_effort": "none",
        "extra_body": {"top_k": 7},
    }
    camel = {"model": "gemma4:31b", "contents": "Hi", "generationConfig": {"responseSchema": DIALECT}}
    form = gemini.to_request(camel)["response_format"]
    assert form["json_schema"]["schema"] == gemini.schema(DIALECT)
    quiet = {"thinkingConfig": {"thinkingLevel": "HIGH", "includeThoughts": False}}
    found = gemini.to_request({"model": NAME, "contents": "Hi", "generationConfig": quiet})
    assert (found["reasoning_effort"], found["extra_body"]) == ("high", {"include_reasoning": False})
    refused("generation_config.speech", lambda: gemini.to_request(
        {"model": NAME, "contents": "Hi", "generation_config": {"speech": 1}}))  # fmt: skip
    low = {"thinking_config": {"thinking_level": "low"}}
    refused("thinking_config", lambda: gemini.to_request({"model": NAME, "contents": "Hi", "generation_config": low}))
    refused("safety", lambda: gemini.to_request({"model": NAME, "contents": "Hi", "safety": []}))


def test_gemini_calls_go_round():
    declaration = {"name": "get_weather", "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}}
    tools = [{"functionDeclarations": [declaration]}]
    contents = [
        {"role": "user", "parts": [{"text": "Weather?"}]},
        {"role": "model", "parts": [{"text": "hm", "thought": True},
                                    {"functionCall": {"name": "get_weather", "args": {"city": "Paris"}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "get_weather", "response": {"sky": "blue"}}}]},
    ]  # fmt: skip
    request = gemini.to_request({"model": NAME, "contents": contents, "tools": tools})
    assert request["tools"][0]["function"]["parameters"]["properties"] == {"city": {"type": "string"}}
    _, called, result = request["messages"]
    assert called["reasoning"] == "hm"
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
    assert result["tool_call_id"] == called["tool_calls"][0]["id"]
    engine = fake([("thought", "look"), *content("Let me see. "), *CALL])
    completion = client_for(engine).chat.completions.create(**request)
    answer = gemini.from_completion(completion)
    parts = answer["candidates"][0]["content"]["parts"]
    assert parts[0] == {"text": "look", "thought": True}
    assert parts[-1]["functionCall"]["args"] == {"city": "Paris", "days": 2}
    assert gemini.call_arguments(completion.choices[0].message.tool_calls[0]) == {"city": "Paris", "days": 2}
    usage = answer["usageMetadata"]
    assert usage["candidatesTokenCount"] + usage["thoughtsTokenCount"] == completion.usage.completion_tokens
    refused("contents[0].parts[0]", lambda: gemini.to_request({"model": NAME, "contents": contents[2:]}))
    refused("tools[0]", lambda: gemini.to_request({"model": NAME, "contents": "Hi", "tools": [{"googleSearch": {}}]}))


@pytest.mark.parametrize(
    ("mode", "names_", "choice"),
    [
        ("AUTO", [], "auto"),
        ("NONE", [], "none"),
        ("ANY", [], "required"),
        ("ANY", ["f"], {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_gemini_tool_choice(mode, names_, choice):
    config = {"functionCallingConfig": {"mode": mode, "allowedFunctionNames": names_}}
    assert gemini.to_request({"model": NAME, "contents": "Hi", "toolConfig": config})["tool_choice"] == choice


# -- Ollama


def test_ollama_request():
    body = {
        "model": "gemma4:31b",
        "messages": [{"role": "user", "content": "What is it?", "images": ["iVBORw0KGgoAAA"]}],
        "format": "json",
        "think": True,
        "keep_alive": "5m",
        "stream": False,
        "options": {"num_ctx": 4096, "num_predict": 12, "temperature": 0.2, "top_k": 5, "repeat_penalty": 1.1},
    }
    request = ollama.to_request(body)
    assert request["model"] == NAME
    assert request["max_completion_tokens"] == 12
    assert request["reasoning_effort"] == "high"
    assert request["response_format"] == {"type": "json_object"}
    assert request["extra_body"] == {"top_k": 5, "repetition_penalty": 1.1}
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    assert url == "data:image/png;base64,iVBORw0KGgoAAA"
    assert ollama.load_options(body) == {"max_context": 4096}
    schema = {"type": "object"}
    assert ollama.to_request({**body, "format": schema})["response_format"]["json_schema"]["schema"] == schema
    assert "max_completion_tokens" not in ollama.to_request({**body, "options": {"num_predict": -1}})
    refused("options.mirostat", lambda: ollama.to_request({**body, "options": {"mirostat": 2}}))
    refused("raw", lambda: ollama.to_request({**body, "raw": True}))
    refused("think", lambda: ollama.to_request({**body, "think": "very"}))


def test_ollama_history_and_answer():
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "thinking": "hm",
         "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]},
        {"role": "tool", "tool_name": "get_weather", "content": "blue"},
    ]  # fmt: skip
    request = ollama.to_request({"model": "gemma4:31b", "messages": messages})
    assert request["messages"][1]["reasoning"] == "hm"
    assert request["messages"][2]["tool_call_id"] == request["messages"][1]["tool_calls"][0]["id"]
    engine = fake([("thought", "look"), *content("Here. "), *CALL])
    answer = ollama.from_completion(client_for(engine).chat.completions.create(**request))
    assert answer["message"]["thinking"] == "look"
    assert answer["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris", "days": 2}
    assert (answer["done"], answer["done_reason"]) == (True, "stop")
    assert answer["eval_count"] > 0
    refused("messages[0]", lambda: ollama.to_request({"model": "gemma4:31b", "messages": messages[2:]}))


# -- names of models


def test_aliases_are_one_table():
    for name in names.table():
        assert names.canonical(name.lower()) == name
        for alias in names.aliases_of(name):
            assert names.canonical(alias) == name
            assert model_cards.absent_card(name)["aliases"] == list(names.aliases_of(name))
    every = [alias for name in names.table() for alias in names.aliases_of(name)]
    assert len(every) == len(set(every))
    assert names.canonical("my/own") == "my/own"


def test_a_model_in_the_cache_answers_to_its_aliases(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--google--gemma-4-E2B-it" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for alias in ("google.gemma-4-e2b", "gemma4:e2b", "google/gemma-4-e2b-it"):
        found = hub.resolve(alias)
        assert found.name == "google/gemma-4-E2B-it"
        assert "gemma4:e2b" in found.aliases
