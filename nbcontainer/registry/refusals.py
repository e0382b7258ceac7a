"""HTTP statuses as errors: one sentence from a status, a subject and the registry's own words.

Source: distribution-spec, "Error Codes": ``{"errors": [{"code": …, "message": …, "detail": …}]}``.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.errors import BlobNotFound, Denied, ImageNotFound, NbcontainerError, RateLimited, RegistryRefused
from nbcontainer.registry.addresses import Origin, redact_text
from nbcontainer.registry.failures import ConnectionFailed, RegistryBusy
from nbcontainer.registry.transport import HttpResponse, read_capped

if TYPE_CHECKING:
    from nbcontainer.model.reference import Reference
    from nbcontainer.registry.settings import Endpoint

__all__ = ["BODY_LIMIT", "BUSY", "Complaint", "Subject", "denial", "login_command", "refusal", "retry_after"]

BODY_LIMIT = 1024 * 1024
"""Longest token or error answer in bytes."""
BUSY = frozenset({408, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Subject:
    """What was asked for, of whom, for whom: the object of every sentence."""

    reference: Reference
    endpoint: Endpoint
    blob: str = ""
    login: str = ""

    @property
    def thing(self) -> str:
        """The image, or the blob of it."""
        return f"blob {self.blob} of {self.reference}" if self.blob else str(self.reference)


@dataclass(frozen=True, slots=True)
class Complaint:
    """What the registry said in the body of its refusal."""

    codes: tuple[str, ...] = ()
    text: str = ""

    @classmethod
    def read(cls, response: HttpResponse) -> Complaint:
        """Read at most `BODY_LIMIT` bytes of an error answer and close it; a body that fails says nothing."""
        try:
            body = read_capped(response, BODY_LIMIT)
        except ConnectionFailed:
            body = None
        return cls.decode(body or b"")

    @classmethod
    def decode(cls, body: bytes) -> Complaint:
        """Decode an error body; anything unexpected in it is left out."""
        try:
            entries = json.loads(body)["errors"]
            errors = [entry for entry in entries[:10] if isinstance(entry, dict)]
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls()
        codes = tuple(redact_text(entry["code"], 60) for entry in errors if isinstance(entry.get("code"), str))
        texts = (str(entry.get("message") or entry.get("code") or "") for entry in errors)
        return cls(codes, redact_text("; ".join(dict.fromkeys(text for text in texts if text))))

    @property
    def clause(self) -> str:
        """The registry's words as the end of a sentence."""
        return f" (it said: {self.text})" if self.text else ""


def refusal(response: HttpResponse, subject: Subject) -> NbcontainerError:
    """The error for a status that is not success; reads the body and closes the response."""
    complaint = Complaint.read(response)
    status = response.status
    origin = Origin.of(response.url)
    answered = origin.authority
    redirected = origin != Origin.of(f"{origin.scheme}://{subject.endpoint.host}")
    if status in BUSY or status == 429:
        return _busy(response, subject, complaint)
    if status in (404, 410):
        return _missing(subject, complaint)
    if status in (401, 403) and not redirected:
        return denial(subject, complaint)
    who = f"{subject.endpoint} (at {answered})" if redirected else str(subject.endpoint)
    return RegistryRefused(
        f"{who} answered status {status} when asked for {subject.thing}{complaint.clause}",
        status=status,
        codes=complaint.codes,
    )


def _busy(response: HttpResponse, subject: Subject, complaint: Complaint) -> NbcontainerError:
    wait = retry_after(response.headers.get("Retry-After", ""))
    if response.status == 429:
        later = f"in {wait:g} s" if wait else "later"
        return RateLimited(
            f"{subject.endpoint} limits how much may be pulled and refused {subject.thing}{complaint.clause}; try again"
            f" {later}, log in for a higher limit (docker login), or set a mirror (anonymous pulls from Docker Hub are"
            " counted per address, so a class room shares one limit)",
            retry_after=wait,
        )
    return RegistryBusy(
        f"{subject.endpoint} answered status {response.status} when asked for {subject.thing}{complaint.clause};"
        " try again later",
        status=response.status,
        codes=complaint.codes,
        retry_after=wait,
    )


def _missing(subject: Subject, complaint: Complaint) -> NbcontainerError:
    if subject.blob:
        return BlobNotFound(f"{subject.endpoint} does not hold {subject.thing}{complaint.clause}")
    return ImageNotFound(
        f"{subject.reference} was not found in {subject.endpoint}: check its name and tag{complaint.clause}; a private"
        f" image looks the same until you log in ({login_command(subject.endpoint)})"
    )


def denial(subject: Subject, complaint: Complaint) -> Denied:
    """The error for 401 and 403; registries do not say whether a name they deny exists."""
    return Denied(
        f"{subject.endpoint} did not give access to {subject.thing}: it does not exist, or it is private"
        f"{complaint.clause}; {subject.login or f'log in with: {login_command(subject.endpoint)}'}"
    )


def login_command(endpoint: Endpoint) -> str:
    """How a person logs in: with the tools whose credential files are read."""
    host = "" if str(endpoint) == "docker.io" else f" {endpoint.host}"
    return f"docker login{host} or podman login{host or ' docker.io'}"


def retry_after(text: str, now: dt.datetime | None = None) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as a date (RFC 9110, 10.2.3); None when unreadable."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=dt.timezone.utc)
    now = now or dt.datetime.now(dt.timezone.utc)
    return max(0.0, (when - now).total_seconds())
