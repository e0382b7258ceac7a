"""The registry island: read images from an OCI distribution or Docker registry over HTTP.

`RegistryClient` is the whole of it for the layers above: `resolve` a name to a manifest and config, ask which digest
a tag has now (`head`), stream a verified blob (`open_blob`). Words: a *registry* is the host in an image name, an
*endpoint* one address that serves it (mirrors first, then the registry itself), a *realm* the server that hands out
its tokens. Source: OCI distribution-spec 1.1 and the token pages of the distribution project.
"""

from __future__ import annotations

from nbcontainer.registry.blobs import BlobStream, Hasher
from nbcontainer.registry.client import RegistryClient, ResolvedImage
from nbcontainer.registry.failures import ConnectionFailed, RegistryBusy, TransferCancelled
from nbcontainer.registry.interrupts import Interrupt
from nbcontainer.registry.settings import RegistrySettings
from nbcontainer.registry.transport import HttpRequest, HttpResponse, RegistryTransport, RequestsTransport

__all__ = [
    "BlobStream",
    "ConnectionFailed",
    "Hasher",
    "HttpRequest",
    "HttpResponse",
    "Interrupt",
    "RegistryBusy",
    "RegistryClient",
    "RegistrySettings",
    "RegistryTransport",
    "RequestsTransport",
    "ResolvedImage",
    "TransferCancelled",
]
