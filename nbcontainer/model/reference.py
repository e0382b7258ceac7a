"""Image names, parsed once and never text again.

Grammar (distribution/reference): ``[host[:port]/]path[:tag][@digest]``. The first component is a host when it holds
``.`` or ``:``, is ``localhost`` or has upper case; otherwise the host is docker.io and a one-component path gets
``library/`` in front, as everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from nbcontainer.errors import InvalidDigest, InvalidReference
from nbcontainer.model.digest import Digest

__all__ = ["DEFAULT_REGISTRY", "Reference"]

DEFAULT_REGISTRY = "docker.io"
_DEFAULT_NAMESPACE = "library/"
_DEFAULT_TAG = "latest"

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A complete image name: host, path, and a tag, a digest or both (the digest wins).

    >>> str(Reference.parse("ubuntu"))
    'docker.io/library/ubuntu:latest'
    >>> Reference.parse("localhost:5000/a/b:1").familiar
    'localhost:5000/a/b:1'
    """

    registry: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read what a person types; raise `InvalidReference` saying what is wrong with it."""
        if not text or text != text.strip():
            raise InvalidReference(f"image name {text!r} is empty or has spaces around it")
        if "://" in text:
            bare = text.split("://", 1)[1]
            raise InvalidReference(f"image name {text!r} must not start with a URL scheme; write {bare!r}")
        name, at, digest_text = text.partition("@")
        digest = _digest(text, digest_text) if at else None
        name, tag = _split_tag(text, name)
        if not name:
            raise InvalidReference(f"image name {text!r} has nothing before its tag or digest")
        if digest is None and not tag and _HEX64.fullmatch(name):
            raise InvalidReference(
                f"image name {text!r} is an image id; to pull by digest write NAME@sha256:{name[:12]}…"
            )
        registry, path = _split_registry(name)
        _check_path(text, path)
        if registry == DEFAULT_REGISTRY and "/" not in path:
            path = _DEFAULT_NAMESPACE + path
        if len(registry) + 1 + len(path) > _MAX_NAME:
            raise InvalidReference(f"image name {text[:40]!r}… is longer than {_MAX_NAME} characters")
        if not tag and digest is None:
            tag = _DEFAULT_TAG
        return cls(registry, path, tag, digest)

    @property
    def familiar(self) -> str:
        """The short form people type: docker.io and library/ left out where that is read as the same name again."""
        short = self.repository.removeprefix(_DEFAULT_NAMESPACE)
        if self.registry != DEFAULT_REGISTRY or _is_host(self.repository.partition("/")):
            return str(self)
        return f"{self.repository if '/' in short else short}{self._suffix}"

    @property
    def name(self) -> str:
        """``host/path`` without tag or digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest when there is one, else the tag."""
        return str(self.digest) if self.digest else self.tag

    def with_digest(self, digest: Digest) -> Reference:
        """The same image pinned to `digest`; the tag is kept for people to read."""
        return replace(self, digest=digest)

    @property
    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag

    def __str__(self) -> str:
        return f"{self.name}{self._suffix}"


def _digest(text: str, digest_text: str) -> Digest:
    try:
        return Digest.parse(digest_text)
    except InvalidDigest as problem:
        raise InvalidReference(f"image name {text!r}: {problem}") from problem


def _split_tag(text: str, name: str) -> tuple[str, str]:
    """Cut ``:tag`` off; a colon before the last slash belongs to a port or an IPv6 host."""
    head, slash, last = name.rpartition("/")
    path, colon, tag = last.partition(":")
    if not colon:
        return name, ""
    if not _TAG.fullmatch(tag):
        raise InvalidReference(
            f"tag {tag!r} of image name {text!r} must be 1 to 128 letters, digits, '_', '.' or '-'"
            " and not start with '.' or '-'"
        )
    return f"{head}{slash}{path}", tag


def _split_registry(name: str) -> tuple[str, str]:
    first, _, rest = parts = name.partition("/")
    if not _is_host(parts):
        return DEFAULT_REGISTRY, name
    if not _HOST.fullmatch(first):
        raise InvalidReference(
            f"registry host {first!r} of image name {name!r} is not a host name with an optional port"
        )
    registry = DEFAULT_REGISTRY if first.lower() in {"index.docker.io", "docker.io"} else first
    return registry, rest


def _is_host(parts: tuple[str, str, str]) -> bool:
    """Whether what stands before the first slash, if there is one, names a registry."""
    first, slash, _ = parts
    return bool(slash) and (any(mark in first for mark in ".:[") or first == "localhost" or first != first.lower())


def _check_path(text: str, path: str) -> None:
    if path != path.lower():
        raise InvalidReference(f"repository {path!r} of image name {text!r} must be lower case; try {text.lower()!r}")
    for component in path.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise InvalidReference(
                f"component {component!r} of image name {text!r} must be lower-case letters and digits,"
                " separated by single '.', '_', '__' or dashes"
            )
