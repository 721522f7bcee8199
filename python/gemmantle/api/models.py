"""GET /models and /models/{id:path} (spec api 7.2): what answers here, loaded or on disk."""

from __future__ import annotations

from typing import Any

from gemmantle.api.protocol import ModelSource, Profile
from gemmantle.errors import RequestError
from gemmantle.names import aliases_of

__all__ = ["absent_card", "card", "list_models", "retrieve"]


def card(profile: Profile) -> dict[str, Any]:
    """The wire form of a loaded model."""
    return {
        "id": profile.name,
        "object": "model",
        "created": profile.created,
        "owned_by": "local",
        "aliases": list(profile.aliases),
        "max_context": profile.max_context,
        "modalities": ["text"],
        "quantization": profile.quantization,
        "fingerprint": profile.fingerprint,
        "loaded": True,
    }


def absent_card(name: str) -> dict[str, Any]:
    """The wire form of a model that is on disk and not loaded."""
    aliases = list(aliases_of(name))
    return {"id": name, "object": "model", "created": 0, "owned_by": "local", "aliases": aliases, "loaded": False}


def list_models(models: ModelSource) -> dict[str, Any]:
    return {"object": "list", "data": models.cards()}


def retrieve(models: ModelSource, name: str) -> dict[str, Any]:
    """One card, by canonical name or alias."""
    found = models.find(name)
    wanted = name if found is None else found.profile.name
    for known in models.cards():
        if wanted == known["id"] or wanted in known["aliases"]:
            return known
    names = ", ".join(known["id"] for known in models.cards()) or "none"
    raise RequestError(f"model '{name[:200]}' is not here; known: {names}", code="model_not_found", param="model")
