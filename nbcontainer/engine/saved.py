"""How a container was started, kept in its record: for a command that joins it, and for starting it again.

A record is closed to other users, as the environment in it may be secret. What can be found anew (the layers below, the
filter) is not kept; what may have changed meanwhile (volumes, devices) is checked anew by whoever starts it again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import StorageError, UnsupportedHost
from nbcontainer.model import ContainerSpec, Device, Limits, Mount, Ulimit
from nbcontainer.model.network import NetworkOptions, PortMapping

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbcontainer.engine.records import Stored

__all__ = ["has_terminal", "saved_spec", "spec_of"]

_FOUND_ANEW = frozenset({"id", "root", "script", "scratch", "generation"})
_NESTED: dict[str, Any] = {"mounts": Mount, "ulimits": Ulimit, "devices": Device}
_TEXTS = frozenset({"argv", "environment", "capabilities", "extra_hosts"})
_PLAIN = ContainerSpec(id=None, argv=(), root=())  # type: ignore[arg-type]


def saved_spec(spec: ContainerSpec) -> dict[str, Any]:
    """What a record keeps of a spec: the fields that differ from the default ones."""
    return {
        field.name: _plain(getattr(spec, field.name))
        for field in dataclasses.fields(spec)
        if field.name not in _FOUND_ANEW and getattr(spec, field.name) != getattr(_PLAIN, field.name)
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def spec_of(stored: Stored) -> ContainerSpec:
    """The spec of a recorded container, without its root; raise when the record does not tell."""
    saved = stored.fields.get("spec")
    if not isinstance(saved, dict):
        raise UnsupportedHost(
            f"container {stored.id[:12]} was started by an older nbcontainer, which did not note how; run it again"
        )
    known = {field.name for field in dataclasses.fields(ContainerSpec)} - _FOUND_ANEW
    try:
        values = {name: _value(name, value) for name, value in saved.items() if name in known}
        return ContainerSpec(id=stored.id, root=(), **{"argv": (), **values})
    except (TypeError, ValueError, AttributeError) as problem:
        raise StorageError(f"the record of container {stored.id[:12]} is damaged: {problem}") from problem


def has_terminal(fields: Mapping[str, Any]) -> bool:
    """Whether a record tells that its container has a terminal in each of its lives."""
    saved = fields.get("spec")
    return isinstance(saved, dict) and saved.get("terminal") is True


def _value(name: str, value: Any) -> Any:
    if name == "limits":
        return Limits(**value)
    if name == "networking":
        ports = tuple(PortMapping(**each) for each in value.pop("ports", ()))
        return NetworkOptions(**{key: _tuple(each) for key, each in value.items()}, ports=ports)
    if name in _NESTED:
        return tuple(_NESTED[name](**_tuples(each)) for each in value)
    read = _tuple(value)
    expected = type(getattr(_PLAIN, name))
    if type(read) is not expected or (name in _TEXTS and not all(isinstance(each, str) for each in read)):
        raise TypeError(f"{name} is not {expected.__name__}")
    return read


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _tuple(value) for name, value in fields.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(each) for each in value) if isinstance(value, list) else value
