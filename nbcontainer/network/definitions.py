"""The networks that a person has made: one small file each in the store, found by name or by id.

The default one, ``bridge``, has no file: it is always there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import time
from dataclasses import asdict, replace
from typing import Any

from nbcontainer.errors import Conflict, InvalidOption, NotFound, StorageError
from nbcontainer.model.network import DEFAULT_NETWORK, Network, NetworkChoice
from nbcontainer.network.places import FOLDER

__all__ = ["BRIDGE", "Definitions"]

BRIDGE = Network(name=DEFAULT_NETWORK, id=DEFAULT_NETWORK)
_RESERVED = frozenset({"none", "host", "default", DEFAULT_NETWORK, "container", "egress"})
_LARGEST = 1 << 20


class Definitions:
    """The networks of one store. Several engines may work on them: a file appears complete, and once."""

    def __init__(self, root: str) -> None:
        self._folder = os.path.join(root, FOLDER, "networks")

    def walk(self) -> tuple[Network, ...]:
        """All of them, the default one first, then by name."""
        found = [BRIDGE]
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._folder)):
                if not name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        found.append(self._read(name))
        return tuple(found)

    def find(self, name: str) -> Network:
        """The network of that name, or whose id begins so; raise `NotFound`."""
        networks = self.walk()
        exact = [each for each in networks if each.name == name] or [each for each in networks if each.id == name]
        close = exact or [each for each in networks if len(name) > 3 and each.id.startswith(name)]
        if len(close) != 1:
            if name in _RESERVED:
                raise NotFound(f"{name!r} is a word for run --network, and no network to inspect, connect or remove")
            raise NotFound(
                f"there is no network {name!r}; `%container network ls` lists those that are here, and"
                f" `%container network create {name}` makes one"
            )
        return close[0]

    def create(self, network: Network) -> Network:
        """Keep a network under its name, with an id of its own; raise `Conflict` when the name is taken."""
        if network.name in _RESERVED or NetworkChoice.parse(network.name).kind != "bridge":
            raise InvalidOption(f"{network.name!r} has a meaning of its own as a network; choose another name")
        made = replace(network, id=secrets.token_hex(32), created=time.time())
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        fd, path = tempfile.mkstemp(dir=self._folder, prefix=".")
        try:
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(asdict(made), file)
                file.flush()
                os.fsync(file.fileno())
            os.link(path, os.path.join(self._folder, network.name))  # unlike a rename it replaces nobody's
        except FileExistsError as problem:
            raise Conflict(
                f"network {network.name} exists already; use it, or `%container network rm {network.name}` first"
            ) from problem
        except OSError as problem:
            raise StorageError(f"network {network.name} cannot be kept: {problem.strerror}") from problem
        finally:
            os.unlink(path)
        return made

    def remove(self, network: Network) -> None:
        """Forget a network; nothing happens when it is forgotten already."""
        if network.name == DEFAULT_NETWORK:
            raise InvalidOption("bridge is the default network; it cannot be removed")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._folder, network.name))

    def _read(self, name: str) -> Network:
        try:
            with open(os.path.join(self._folder, name), encoding="utf-8") as file:
                fields = json.loads(file.read(_LARGEST))
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
            }
            return Network(**values)
        except (ValueError, TypeError, AttributeError) as problem:
            raise StorageError(
                f"the definition of network {name} is damaged ({problem}); remove {self._folder}/{name} and"
                " make it anew"
            ) from problem
