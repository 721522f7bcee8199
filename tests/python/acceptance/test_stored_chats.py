"""Stored chats through the SDK's own methods, on every way in, in memory and in a file."""

from __future__ import annotations

import openai
import pytest

from gemmantle.api.chat_store import MemoryChats, SqliteChats, StoredChat
from gemmantle.server import Application, ServedModels

MODEL = "gemma-4-nano-e"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}],
    },
]


@pytest.fixture
def client(ways, engine, tmp_path):
    """Over a file of its own: what is stored is this test's."""
    return ways.client_of(Application(ServedModels([engine]), state_path=tmp_path / "state.db"))


def stored(client, **metadata):
    return client.chat.completions.create(
        model=MODEL, messages=MESSAGES, store=True, metadata=metadata, max_completion_tokens=4, seed=1
    )


def test_a_chat_is_kept_only_when_asked(client):
    kept = stored(client, a="1")
    left = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=2)
    found = client.chat.completions.retrieve(kept.id)
    assert found.choices[0].message.content == kept.choices[0].message.content
    assert found.usage == kept.usage
    assert found.metadata == {"a": "1"}
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.retrieve(left.id)
    assert caught.value.code == "completion_not_found"


def test_a_streamed_chat_is_kept_as_a_whole(client):
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            store=True,
            stream=True,
            max_completion_tokens=6,
            seed=1,
            reasoning_effort="low",
        )
    )
    found = client.chat.completions.retrieve(chunks[0].id)
    assert found.object == "chat.completion"
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert found.choices[0].message.content == told
    assert found.choices[0].finish_reason == chunks[-1].choices[0].finish_reason


def test_chats_are_listed_by_page_model_and_metadata(client):
    names = [stored(client, group=group).id for group in "aab"]
    listing = client.chat.completions.list
    assert [chat.id for chat in listing(limit=2)] == names  # the SDK asks for the second page
    assert [chat.id for chat in listing(order="desc", limit=1).data] == names[-1:]
    assert [chat.id for chat in listing(metadata={"group": "a"})] == names[:2]
    assert [chat.id for chat in listing(model=MODEL)] == names
    assert list(listing(model="another")) == []
    with pytest.raises(openai.BadRequestError):
        listing(limit=0)


def test_messages_are_listed_as_they_were_sent(client):
    kept = stored(client)
    system, user = client.chat.completions.messages.list(kept.id)
    assert (system.role, system.content, system.content_parts) == ("system", "Be brief.", None)
    assert user.content == "What is the capital of France?"
    assert [part.text for part in user.content_parts] == ["What is the capital", " of France?"]
    assert client.chat.completions.messages.list(kept.id, limit=1, order="desc").data[0].id == user.id


def test_metadata_is_changed_and_nothing_else(client):
    kept = stored(client, a="1")
    assert client.chat.completions.update(kept.id, metadata={"b": "2"}).metadata == {"b": "2"}
    assert client.chat.completions.retrieve(kept.id).metadata == {"b": "2"}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.update(kept.id, metadata={}, extra_body={"model": "x"})
    assert caught.value.param == "model"


def test_a_deleted_chat_is_gone(client):
    kept = stored(client)
    gone = client.chat.completions.delete(kept.id)
    assert (gone.id, gone.deleted, gone.object) == (kept.id, True, "chat.completion.deleted")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.delete(kept.id)
    assert list(client.chat.completions.list()) == []


def test_a_file_keeps_chats_for_the_next_client(ways, engine, tmp_path):
    path = tmp_path / "state.db"
    kept = stored(ways.client_of(Application(ServedModels([engine]), state_path=path)))
    again = ways.client_of(Application(ServedModels([engine]), state_path=path))
    assert again.chat.completions.retrieve(kept.id).id == kept.id
    assert [chat.completion["id"] for chat in SqliteChats(str(path))] == [kept.id]


def test_the_memory_forgets_the_oldest():
    chats = MemoryChats(max_chats=2)
    for name in "abc":
        chats.put(StoredChat({"id": name, "metadata": {}}, []))
    chats.put(StoredChat({"id": "b", "metadata": {"new": "1"}}, []))
    assert [(chat.completion["id"], chat.completion["metadata"]) for chat in chats] == [("b", {"new": "1"}), ("c", {})]
    assert MemoryChats(max_bytes=1).get("a") is None


@pytest.mark.parametrize("metadata", [{"k" * 65: "v"}, {"k": "v" * 513}, {str(k): "v" for k in range(17)}])
def test_metadata_has_limits(client, metadata):
    with pytest.raises(openai.BadRequestError) as caught:
        stored(client, **metadata)
    assert caught.value.param == "metadata"
