"""What the remote service takes, as data: capabilities.json, an override of the caller, and what a 400 taught us.

A route maps fields to rules: "allowed", "refused", "clamp" (map, min, values) or "rename"; a model may differ from its
route. `Capabilities.fit` turns a local request body into one the service takes, or raises RequestError with the field.
It converts only what means the same there; everything it changes is reported (spec api F-2..F-4).
"""

from __future__ import annotations

import copy
import json
import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemmantle.api.fields import show
from gemmantle.errors import RequestError
from gemmantle.names import aliases_of, canonical, table

__all__ = ["ROUTES", "Capabilities", "Fitted"]

_log = logging.getLogger("gemmantle")

ROUTES = ("chat/completions", "responses")
_RULES = ("allowed", "refused", "clamp", "rename")
_OURS = ("fallback", "return_details", "timings_per_token")  # answered on this side
_REQUIRED = {"model", "messages", "input", "stream"}
_SWITCHES = ("enable_thinking", "think")
_REFUSING = re.compile(
    r"not (supported|permitted|allowed|recognized)|unsupported|unknown|unrecognized|unexpected", re.I
)


@dataclass
class Fitted:
    """A body for the service, and what was changed on the way."""

    model: str
    body: dict[str, Any]
    ignored: list[str] = field(default_factory=list)  # left out, because the caller said on_unsupported="drop"
    converted: list[str] = field(default_factory=list)


class Capabilities:
    """One table for all requests of a remote arm. Safe from any thread."""

    def __init__(self, override: Mapping[str, Any] | None = None) -> None:
        text = Path(__file__).with_name("capabilities.json").read_text(encoding="utf-8")
        self.data: dict[str, Any] = _merged(json.loads(text), override or {})
        _check(self.data)
        self._learned: dict[tuple[str, str], set[str]] = {}
        self._lock = threading.Lock()

    def remote_name(self, name: object) -> str | None:
        """The service's id of a model, by any of its names; None where the service does not have it."""
        if not isinstance(name, str):
            return None
        if name in self.data["models"]:
            return name
        full = canonical(name)
        candidates = [table().get(full, {}).get("bedrock"), *aliases_of(full)]
        return next((alias for alias in candidates if alias in self.data["models"]), None)

    def inputs(self, model: str) -> list[str]:
        kinds: list[str] = self.data["models"][model].get("inputs", ["text"])
        return kinds

    def rule(self, route: str, model: str, name: str) -> dict[str, Any] | None:
        """None: a field the table does not know, which is refused too."""
        if name in self._learned.get((route, model), ()):
            return {"rule": "refused", "why": "the service refused it before"}
        own = self.data["models"][model].get("fields", {}).get(route, {})
        rule = own.get(name, self.data["routes"][route].get(name))
        return {"rule": rule} if isinstance(rule, str) else rule

    def fit(self, route: str, body: Mapping[str, Any], *, drop: bool) -> Fitted:
        """RequestError names the field that the service would not take; with `drop` such fields are left out."""
        model = self.remote_name(body.get("model"))
        if model is None:
            name = body.get("model")
            there = ", ".join(self.data["models"])
            raise RequestError(
                f"model {show(name)} is not offered by the remote service; it has {there}",
                code="model_not_found",
                param="model",
            )
        fitted = Fitted(model, {})
        for name, value in _with_effort(route, body).items():
            if value is None or name in _OURS:
                continue
            self._add(fitted, route, name, copy.deepcopy(value), drop)
        for path in self._nested(route, model):
            self._fit_nested(fitted, route, path, drop)
        fitted.body["model"] = model
        return fitted

    def learn(self, route: str, model: str, error: object) -> str | None:
        """The optional field a 400 of the service refused: from now on it is refused here (spec api F-2)."""
        if not isinstance(error, Mapping):
            return None
        name, message, code = error.get("param"), str(error.get("message") or ""), error.get("code")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z_]{1,60}", name) or name in _REQUIRED:
            return None
        if code not in ("unsupported_parameter", "unknown_parameter") and not _REFUSING.search(message):
            return None  # a wrong value of a field that is otherwise taken
        with self._lock:
            known = self._learned.setdefault((route, model), set())
            if name in known:
                return name
            known.add(name)
        _log.warning("the remote model %s refuses `%s`; it is refused here from now on", model, name)
        return name

    def _add(self, fitted: Fitted, route: str, name: str, value: Any, drop: bool) -> None:
        rule = self.rule(route, fitted.model, name)
        kind = "refused" if rule is None else rule["rule"]
        if rule is not None and kind == "rename":
            target = rule["to"]
            if target in fitted.body and fitted.body[target] != value:
                raise RequestError(f"`{target}` and `{name}` mean the same and differ; send one of them", param=name)
            name = target
            rule = self.rule(route, fitted.model, name)
            kind = "refused" if rule is None else rule["rule"]
        if kind == "refused":
            if rule is not None and any(value == passing for passing in rule.get("neutral", ())):
                return
            self._unsupported(fitted, name, "", (rule or {}).get("why", ""), drop)
            return
        if rule is not None:
            known = fitted.body.get(name, value)
            if known != value:
                raise RequestError(f"`{name}` is given twice with different values; send one of them", param=name)
            try:
                value = self._clamped(fitted, name, value, rule)
            except ValueError as exc:
                self._unsupported(fitted, name, f" = {show(value)}", str(exc), drop)
                return
        fitted.body[name] = value

    def _clamped(self, fitted: Fitted, name: str, value: Any, rule: Mapping[str, Any]) -> Any:
        wanted = value
        if isinstance(value, str):
            value = rule.get("map", {}).get(value, value)
        low = rule.get("min")
        if low is not None and type(value) in (int, float) and value < low:
            value = low
        if value != wanted:
            fitted.converted.append(f"{name}: {show(wanted)} to {show(value)}")
        if "values" in rule and value not in rule["values"]:
            raise ValueError(f"it takes {', '.join(map(str, rule['values']))}")
        if "max_items" in rule and isinstance(value, list) and len(value) > rule["max_items"]:
            raise ValueError(f"it takes at most {rule['max_items']}")
        return value

    def _unsupported(self, fitted: Fitted, name: str, found: str, why: str, drop: bool) -> None:
        if drop and name not in _REQUIRED:
            fitted.ignored.append(name[:100])
            return
        reason = f": {why}" if why else ""
        raise RequestError(
            f"`{name[:100]}`{found} is not supported by the remote model {fitted.model}{reason}; leave it out, or use "
            "gemmantle.remote(on_unsupported='drop')",
            code="unsupported_value" if found else "unsupported_parameter",
            param=name[:100],
        )

    def _nested(self, route: str, model: str) -> list[str]:
        own = self.data["models"][model].get("fields", {}).get(route, {})
        return [name for name in {**self.data["routes"][route], **own} if "." in name]

    def _fit_nested(self, fitted: Fitted, route: str, path: str, drop: bool) -> None:
        outer, _, inner = path.partition(".")
        holder = fitted.body.get(outer)
        if not isinstance(holder, dict) or holder.get(inner) is None:
            return
        value = holder.pop(inner)
        part = Fitted(fitted.model, {}, fitted.ignored, fitted.converted)
        self._add(part, route, path, value, drop)
        if path in part.body:
            holder[inner] = part.body[path]


def _with_effort(route: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Template switches of other servers as the service's own field: they win over the level (spec api 5.7)."""
    found = dict(body)
    switches = [found.pop(name) for name in _SWITCHES if name in found]
    arguments = found.get("chat_template_kwargs")
    if isinstance(arguments, dict) and set(arguments) == {"enable_thinking"}:
        switches.append(arguments["enable_thinking"])
        del found["chat_template_kwargs"]
    for switch in switches:
        if switch is None:
            continue
        effort = {True: "high", False: "none"}[switch] if isinstance(switch, bool) else switch
        if route == "responses":
            holder = found.get("reasoning")
            found["reasoning"] = {**(holder if isinstance(holder, dict) else {}), "effort": effort}
        else:
            found["reasoning_effort"] = effort
    return found


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        known = base.get(key)
        # A rule replaces a rule; only the tables above the rules are merged.
        if isinstance(known, dict) and isinstance(value, Mapping) and "rule" not in known:
            _merged(known, value)
        else:
            base[key] = value
    return base


def _check(data: Mapping[str, Any]) -> None:
    """ValueError with the path of the first rule that is none."""
    tables = [(f"routes.{route}", data["routes"].get(route)) for route in ROUTES]
    for model, facts in data["models"].items():
        tables += [(f"models.{model}.fields.{route}", rules) for route, rules in facts.get("fields", {}).items()]
    for path, rules in tables:
        if not isinstance(rules, Mapping):
            raise ValueError(f"capabilities: {path} is {rules!r}; it must map fields to rules")
        for name, rule in rules.items():
            kind = rule.get("rule") if isinstance(rule, Mapping) else rule
            if kind not in _RULES:
                raise ValueError(f"capabilities: {path}.{name} is {rule!r}; a rule is one of {', '.join(_RULES)}")
            if kind == "rename" and (not isinstance(rule, Mapping) or not isinstance(rule.get("to"), str)):
                raise ValueError(f"capabilities: {path}.{name} is a rename without `to`")
