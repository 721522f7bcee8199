"""Conversions for people who come from another request dialect (spec api 10). No second client surface.

Each module turns that dialect's requests into fields of the OpenAI client and its answers back; none of them talks to
a service. What has no counterpart is refused with the name of its field.
"""
