"""What a record says of a container that runs on behind: how it was asked to be, for whoever starts it.

Written where a container is placed, read by its monitor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbcontainer.engine.health import Check, effective, health_of, saved_check
from nbcontainer.engine.logs import saved_limits
from nbcontainer.engine.restarting import read_restart_policy
from nbcontainer.errors import InvalidOption
from nbcontainer.model import RestartPolicy, ServiceOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbcontainer.model import ImageConfig, RunOptions

__all__ = ["Service", "plain_service", "service_fields"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A record's part about it: `remove` it when it has ended, `timeout` in seconds for each of its lives."""

    restart: RestartPolicy
    check: Check | None
    interactive: bool
    remove: bool
    timeout: float | None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Service:
        """What a record says; the plain one when it says nothing that can be read."""
        said = fields.get("service")
        said = said if isinstance(said, dict) else {}
        try:
            restart = read_restart_policy(str(said.get("restart", "no")))
        except InvalidOption:
            restart = RestartPolicy()
        timeout = said.get("timeout")
        return cls(
            restart=restart,
            check=health_of(said.get("check")),
            interactive=bool(said.get("interactive")),
            remove=bool(said.get("remove")),
            timeout=timeout if isinstance(timeout, (int, float)) else None,
        )


def service_fields(options: RunOptions, config: ImageConfig) -> dict[str, Any]:
    """What the record of a new container says; nothing for one that somebody waits for."""
    asked = options.service
    if asked is None:
        return {}
    if options.remove and asked.restart.name != "no":
        raise InvalidOption(
            f"--rm and --restart {asked.restart} exclude each other: what is removed cannot be restarted"
        )
    check = effective(config.health, asked.health, config.shell)
    return _fields(asked, check, remove=bool(options.remove), timeout=options.timeout)


def plain_service() -> dict[str, Any]:
    """The same for a container that was made to be waited for, and is started behind now."""
    return _fields(ServiceOptions(), None, remove=False, timeout=None)


def _fields(asked: ServiceOptions, check: Check | None, *, remove: bool, timeout: float | None) -> dict[str, Any]:
    """What `Service.of` reads."""
    service = {
        "restart": str(asked.restart),
        "check": saved_check(check),
        "interactive": asked.interactive,
        "remove": remove,
        "timeout": timeout,
    }
    return {"service": service, "log": saved_limits(asked.log)}
