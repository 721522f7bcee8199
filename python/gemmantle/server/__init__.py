"""The server door: an ASGI application over the same handler as the in-process client, and what runs it on uvicorn."""

from gemmantle.server.application import Application, Limits
from gemmantle.server.served import ServedModels

__all__ = ["Application", "Limits", "ServedModels"]
