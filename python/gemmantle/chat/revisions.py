"""Which chat template a checkpoint carries, against the one that is rendered here (spec api C-23, prompting 3.5).

Prompts are rendered natively, by the released template of July 2026. A checkpoint with another one was trained or
repaired for other prompts: the log says so once, with what differs. Without a template there is nothing to say.
"""

from __future__ import annotations

import hashlib
import logging
import re

__all__ = ["KNOWN", "differences", "warn_of_template"]

_log = logging.getLogger("gemmantle")

# Digests of the files that the built-in renderer equals.
KNOWN = {
    "ae53464bf3be25802b3a5b37def7fd89667067d7577049b3b2d74c4d8de4c6d4": "July 2026, 12B, 26B-A4B and 31B",
    "0a2c8073c878ab1da004bee933a998606537bbb62016310352c7285c3f01c5b5": "July 2026, E2B and E4B",
}
# What older revisions write differently, as it stands in their text.
_MARKS = (
    (re.compile(r"<\|think\|>(?!\\n|\n)"), "no line break after <|think|> (April 2026)"),
    (re.compile(r"\\n\\n<\|(image|video)\|>\\n\\n"), "images and videos between empty lines (April 2026)"),
)
_warned: set[str] = set()


def differences(template: str) -> list[str]:
    """What is seen to differ from the released template; empty for a known one."""
    if _digest(template) in KNOWN:
        return []
    if "<|turn>" not in template:
        return ["it is no template of Gemma 4"]
    return [what for mark, what in _MARKS if mark.search(template)] or ["its revision is not known"]


def warn_of_template(name: str, template: str | None) -> None:
    """Log once for a template that is not the one rendered here."""
    if template is None:
        return
    found = differences(template)
    digest = _digest(template)
    if not found or digest in _warned:
        return
    _warned.add(digest)
    _log.warning(
        "the chat template of '%s' (sha256 %s) is not the released one of July 2026, which prompts follow here: %s. "
        "Update the checkpoint's files, or check its answers",
        name,
        digest[:12],
        "; ".join(found),
    )


def _digest(template: str) -> str:
    return hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
