"""The OpenAI surface: `handler` answers requests, the rest of this folder is what it is made of. Imports nothing."""
