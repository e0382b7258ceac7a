"""The options that bound a container, as data for the verb table: resources, devices, capabilities, the filter.

Docker's names and forms. What docker has and a sandbox cannot keep is listed too, with the reason, so that it is
refused in one sentence and nobody believes it was done.
"""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Any

from nbcontainer.engine.command_line import Option, read_duration
from nbcontainer.errors import InvalidOption
from nbcontainer.model import Limits, TmpfsMount
from nbcontainer.runtime.capabilities import capability_numbers
from nbcontainer.runtime.devices import parse_device
from nbcontainer.runtime.limits import parse_cpu_list
from nbcontainer.runtime.ulimits import parse_ulimit

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

__all__ = [
    "LIMIT_OPTIONS",
    "SANDBOX_OPTIONS",
    "limits_of",
    "read_size",
    "read_tmpfs",
    "sandbox_options",
]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def read_size(text: str) -> int:
    """Bytes from ``256m``, ``1.5g``, ``1024`` or ``64kb``; units are powers of 1024 (docker/go-units)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidOption(f"size {text!r} is not a number with b, k, m or g; write for example 256m")
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if not 0 < size < 1 << 62:
        raise InvalidOption(f"size {text!r} is outside what a machine can have; write for example 256m")
    return size


def _read_swap(text: str) -> int:
    return -1 if text.strip() == "-1" else read_size(text)


def _number(option: str, kind: Callable[[str], Any], example: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        form = r"-?\d{1,18}" if kind is int else r"-?(\d{1,9}(\.\d{0,9})?|\.\d{1,9})"
        if not re.fullmatch(form, text, re.ASCII):
            raise InvalidOption(f"{option} {text!r} is not a number; write for example {example}")
        return kind(text)

    return read


def _read_pids(text: str) -> int:
    number: int = _number("--pids-limit", int, "100")(text)
    if number < -1:
        raise InvalidOption(f"--pids-limit {text} cannot be; write a number, or -1 for any number")
    return number or -1  # docker's 0 is no limit


def _read_cpu_list(text: str) -> str:
    parse_cpu_list(text)
    return text


def read_tmpfs(text: str) -> TmpfsMount:
    """``PATH[:size=64m,mode=1777,ro,exec]``; without options not executable, and up to half of the memory."""
    path, _, words = text.partition(":")
    if not path.startswith("/") or os.path.normpath(path) == "/":
        raise InvalidOption(f"tmpfs {text!r} is not PATH[:OPTIONS] with an absolute path; write /scratch:size=64m")
    values: dict[str, Any] = {}
    for word in filter(None, words.split(",")):
        name, equals, value = word.partition("=")
        if name == "size" and equals:
            values["size"] = read_size(value)
        elif name == "mode" and re.fullmatch(r"[0-7]{3,4}", value, re.ASCII):
            values["mode"] = int(value, 8)
        elif word in {"ro", "rw"}:
            values["read_only"] = word == "ro"
        elif word in {"exec", "noexec"}:
            values["executable"] = word == "exec"
        elif word not in {"nosuid", "nodev"}:  # always so
            known = "size=SIZE, mode=MODE, ro, rw, exec, noexec, nosuid, nodev"
            raise InvalidOption(f"tmpfs {text!r} has the option {word!r}; there are {known}")
    return TmpfsMount(target=os.path.normpath(path), **values)


def _read_capability(text: str) -> str:
    name = text.upper().removeprefix("CAP_")
    if name != "ALL":
        capability_numbers((name,))
    return name


_NO_MODULES = "no security module is set up for containers here; their boundary is the user namespace and the filter"


def _read_security(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=") if "=" in text else text.partition(":")
    if name == "no-new-privileges" and (not separator or value in {"true", "false"}):
        return (name, value or "true")
    if name == "seccomp" and value:
        if value != "unconfined":
            value = os.path.abspath(os.path.expanduser(value))
            if not os.path.isfile(value):
                raise InvalidOption(f"seccomp profile {value} is not a file of this machine; give a file or unconfined")
        return (name, value)
    if name in {"apparmor", "label"}:
        raise InvalidOption(f"--security-opt {text}: {_NO_MODULES}")
    if name in {"systempaths", "unmask", "mask"}:
        raise InvalidOption(f"--security-opt {text}: what /proc and /sys hide stays hidden")
    raise InvalidOption(
        f"--security-opt {text!r} is not known; there are seccomp=FILE, seccomp=unconfined and"
        " no-new-privileges[:true|false]"
    )


def _read_signal(text: str) -> str:
    name = text.upper().removeprefix("SIG")
    if text.isascii() and text.isdigit() and 1 <= int(text) <= signal.NSIG - 1:
        return text
    if f"SIG{name}" not in signal.Signals.__members__ and not re.fullmatch(r"RTMIN(\+\d{1,2})?", name, re.ASCII):
        raise InvalidOption(f"signal {text!r} does not exist; write a name such as TERM or a number")
    return f"SIG{name}"


LIMIT_OPTIONS: tuple[Option, ...] = (
    Option(
        flags=("-m", "--memory"),
        metavar="SIZE",
        help="the most memory, such as 512m or 2g; what takes more is killed, and the cell says so",
        read=read_size,
    ),
    Option(
        flags=("--memory-swap",),
        metavar="SIZE",
        help="memory and swap together, -1 for any swap; twice --memory is the default",
        read=_read_swap,
    ),
    Option(
        flags=("--memory-reservation",),
        metavar="SIZE",
        help="memory to leave the container when the machine is short of it",
        read=read_size,
    ),
    Option(
        flags=("--cpus",),
        metavar="NUMBER",
        help="processors' worth of time, such as 1.5",
        read=_number("--cpus", float, "1.5"),
    ),
    Option(
        flags=("-c", "--cpu-shares"),
        metavar="NUMBER",
        help="weight against other containers when all want the processor; 1024 is usual",
        read=_number("--cpu-shares", int, "512"),
    ),
    Option(
        flags=("--cpuset-cpus",),
        metavar="LIST",
        help="only these processors, such as 0-2,4",
        read=_read_cpu_list,
    ),
    Option(
        flags=("--pids-limit",),
        metavar="NUMBER",
        help="the most processes and threads, -1 for any number; 4096 where a limit can be kept",
        read=_read_pids,
    ),
)
"""What `run` sets and `update` changes."""


def _refused(flag: str, reason: str, metavar: str = "") -> Option:
    return Option(flags=(flag,), metavar=metavar, refusal=reason)


_ONE_NAMESPACE = "every container has namespaces of its own; sharing the machine's would be no sandbox"

SANDBOX_OPTIONS: tuple[Option, ...] = (
    Option(
        flags=("--ulimit",),
        metavar="NAME=SOFT[:HARD]",
        many=True,
        help="a limit of setrlimit(2), such as nofile=1024:4096; -1 is none",
        read=parse_ulimit,
    ),
    Option(flags=("--shm-size",), metavar="SIZE", help="size of /dev/shm; 64m is the default", read=read_size),
    Option(
        flags=("--tmpfs",),
        metavar="PATH[:OPTIONS]",
        many=True,
        help="an empty folder in memory: size=SIZE, mode=MODE, ro, exec",
        read=read_tmpfs,
    ),
    Option(
        flags=("--device",),
        metavar="HOST[:CONTAINER[:rw]]",
        many=True,
        help="show a device you may open yourself, such as /dev/fuse or /dev/kvm",
        read=parse_device,
    ),
    Option(
        flags=("--cap-add",),
        metavar="NAME",
        many=True,
        help="give a capability inside the container's own user namespace, or ALL of them",
        read=_read_capability,
    ),
    Option(
        flags=("--cap-drop",),
        metavar="NAME",
        many=True,
        help="take one of the fourteen default capabilities away, or ALL",
        read=_read_capability,
    ),
    Option(
        flags=("--security-opt",),
        metavar="OPTION",
        many=True,
        help="seccomp=FILE, seccomp=unconfined, or no-new-privileges:false (for sudo in the image)",
        read=_read_security,
    ),
    Option(flags=("--init",), help="PID 1 is a small init that reaps and passes signals on: always so"),
    Option(
        flags=("--stop-signal",),
        metavar="SIGNAL",
        help="what asks the command to end; the image's or TERM is the default",
        read=_read_signal,
    ),
    Option(
        flags=("--stop-timeout",),
        metavar="TIME",
        help="how long it may take before it is killed; 10 seconds is the default",
        read=read_duration,
    ),
    _refused("--privileged", "a sandbox that lets go of everything is not offered; ask for what you need by --cap-add"),
    _refused("--pid", _ONE_NAMESPACE, "MODE"),
    _refused("--ipc", _ONE_NAMESPACE, "MODE"),
    _refused("--uts", _ONE_NAMESPACE, "MODE"),
    _refused("--userns", "container root is never the machine's root; that is what the sandbox stands on", "MODE"),
    _refused("--cgroupns", _ONE_NAMESPACE, "MODE"),
    _refused("--cgroup-parent", "containers stay below the cgroup of their notebook, whose limits hold too", "PATH"),
    _refused("--oom-kill-disable", "a container that waits for memory for ever takes its notebook along"),
    _refused("--device-cgroup-rule", "in a user namespace no device node can be made; use --device", "RULE"),
    _refused("--gpus", "GPUs are not there yet; try --device for the nodes of yours", "GPUS"),
    _refused("--sysctl", "kernel settings are not there yet", "NAME=VALUE"),
    _refused("--runtime", "containers run in this package's own runtime", "NAME"),
)


def limits_of(arguments: Namespace) -> Limits:
    """The limits among parsed arguments."""
    return Limits(
        memory=arguments.memory,
        memory_swap=arguments.memory_swap,
        memory_reservation=arguments.memory_reservation,
        cpus=arguments.cpus,
        cpu_shares=arguments.cpu_shares or None,  # docker's 0 is the default
        cpuset_cpus=arguments.cpuset_cpus or "",
        pids=arguments.pids_limit,
    )


def sandbox_options(arguments: Namespace) -> dict[str, Any]:
    """The fields of `RunOptions` that the options of this module fill."""
    security = dict(arguments.security_opt)
    return {
        "limits": limits_of(arguments),
        "ulimits": arguments.ulimit,
        "shm_size": arguments.shm_size or 0,
        "tmpfs": arguments.tmpfs,
        "devices": arguments.device,
        "cap_add": arguments.cap_add,
        "cap_drop": arguments.cap_drop,
        "seccomp": security.get("seccomp", ""),
        "no_new_privileges": security.get("no-new-privileges", "true") == "true",
        "stop_signal": arguments.stop_signal or "",
        "stop_timeout": arguments.stop_timeout,
    }
