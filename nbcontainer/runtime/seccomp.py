"""Seccomp filters: the profile compiled to BPF by libseccomp, once, and kept on disk by its hash.

Compiling takes some 30 ms and needs libseccomp; loading the bytes takes a fraction of a millisecond and needs
neither, so the child only loads. On machines with a single id the filter also answers 0 to calls that change owners:
nothing happens, but ``apt`` and ``dpkg``, which insist, go on (the way Charliecloud's ``--force=seccomp`` does).

libseccomp's program is preceded by a head of ours (`newcalls`), so that what a container may call does not depend on
the age of the library.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import hmac
import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import UnsupportedHost
from nbcontainer.runtime import newcalls, profile
from nbcontainer.runtime.profile_file import read_profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Action", "Rule", "compiled_profile", "filter_for", "profile_rules"]

_CLONE_NAMESPACE_FLAGS = 0x7E020000
_EPERM = 1
_ENOSYS = 38
_FORMAT = 4
_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000
_AF_ALG, _AF_VSOCK = 38, 40
_UNKNOWN_CALL = -1
_X32_BIT = 0x40000000
_MOST_BYTES = 4096 * 8
"""BPF_MAXINSNS: the kernel takes no longer program."""
_ARCHITECTURES = {name: name.upper() for name in ("x86_64", "aarch64", "riscv64", "ppc64le", "s390x")}
"""libseccomp's names of machines."""
_SECONDARY = {"x86_64": ("X86", "X32"), "aarch64": ("ARM",)}
"""The other calls that a 64-bit kernel answers; they are filtered too, and an architecture not named is killed."""

_OWNER_CALLS = [
    "chown",
    "chown32",
    "fchown",
    "fchown32",
    "fchownat",
    "lchown",
    "lchown32",
    "setgroups",
    "setgroups32",
    "setuid",
    "setuid32",
    "setgid",
    "setgid32",
    "setreuid",
    "setreuid32",
    "setregid",
    "setregid32",
    "setresuid",
    "setresuid32",
    "setresgid",
    "setresgid32",
    "setfsuid",
    "setfsuid32",
    "setfsgid",
    "setfsgid32",
    "capset",
]

Action = int | str | None
"""What a call meets: an errno, nothing (None: it is allowed), or one of libseccomp's actions by name."""
Rule = tuple[str, Action, tuple[tuple[int, str, int, int], ...]]
"""A call, its action, and conditions (argument, operator, value, masked value)."""


def profile_rules(capabilities: frozenset[str], machine: str, *, pretend_owners: bool = False) -> tuple[Rule, ...]:
    """The default profile for a container with these capabilities, as rules; everything else answers EPERM.

    `pretend_owners` makes owner-changing calls succeed without effect.
    """
    names = set(profile.ALWAYS) | set(profile.SINCE_LINUX_4_8) | set(profile.BY_ARCHITECTURE.get(machine, ()))
    for capability in capabilities:
        names.update(profile.BY_CAPABILITY.get(capability, ()))
    rules: list[Rule] = []
    if pretend_owners:
        names.difference_update(_OWNER_CALLS, ("mknod", "mknodat"))
        rules += _pretend_owners()
    rules += [(name, None, ()) for name in sorted(names)]
    if "SYS_ADMIN" not in capabilities:
        flags_at = 1 if machine in {"s390", "s390x"} else 0
        rules.append(("clone", None, ((flags_at, "MASKED_EQ", _CLONE_NAMESPACE_FLAGS, 0),)))
        rules.append(("clone3", _ENOSYS, ()))
    rules += [("personality", None, ((0, "EQ", value, 0),)) for value in profile.PERSONALITIES]
    rules.append(("socket", None, ((0, "LT", _AF_ALG, 0),)))
    rules.append(("socket", None, ((0, "EQ", _AF_ALG + 1, 0),)))
    rules.append(("socket", None, ((0, "GT", _AF_VSOCK, 0),)))
    return tuple(rules)


def _pretend_owners() -> list[Rule]:
    return [*((name, 0, ()) for name in _OWNER_CALLS), *_pretend_devices()]


def _pretend_devices() -> list[Rule]:
    """Answer 0 to making devices; fifos, sockets and files are really made."""
    rules: list[Rule] = []
    for name, mode_at in (("mknod", 1), ("mknodat", 2)):
        made = (0, 0o010000, 0o100000, 0o140000)
        rules += [(name, None, ((mode_at, "MASKED_EQ", _S_IFMT, kind),)) for kind in made]
        rules += [(name, 0, ((mode_at, "MASKED_EQ", _S_IFMT, kind),)) for kind in (_S_IFCHR, _S_IFBLK)]
    return rules


def compiled_profile(cache: str, capabilities: frozenset[str], *, pretend_owners: bool = False) -> bytes:
    """The default profile as BPF, from `cache` (a directory) or freshly compiled.

    Raises `UnsupportedHost` where libseccomp is missing: running without a filter would be a silent loss of
    isolation.
    """
    rules = profile_rules(capabilities, os.uname().machine, pretend_owners=pretend_owners)
    return _kept_or_compiled(cache, rules, _EPERM, newer_calls=True)


def filter_for(cache: str, wanted: str, capabilities: Iterable[str], *, pretend_owners: bool) -> bytes:
    """The filter of a container with these capabilities: ``default``, ``unconfined`` or a profile's path.

    b"" is none at all. Where owners are pretended that stays so whatever else is asked, for without it neither apt
    nor dpkg works. Raises `InvalidOption` for a profile that cannot be used.
    """
    names = frozenset(capabilities)
    if wanted == "default":
        return compiled_profile(cache, names, pretend_owners=pretend_owners)
    default: Action = None
    rules: tuple[Rule, ...] = ()
    if wanted != "unconfined":
        default, rules = read_profile(wanted, names)
    if pretend_owners:
        pretended = {*_OWNER_CALLS, "mknod", "mknodat"}
        ours = [rule for rule in _pretend_owners() if rule[1] != default]
        rules = (*ours, *(rule for rule in rules if rule[0] not in pretended))
    if default is None and not rules:
        return b""
    return _kept_or_compiled(cache, rules, default, newer_calls=False)


def _kept_or_compiled(cache: str, rules: tuple[Rule, ...], default: Action, *, newer_calls: bool) -> bytes:
    """With `newer_calls`, those that libseccomp does not know yet are answered by their rules too."""
    parts = [_FORMAT, os.uname().machine, os.uname().release, newer_calls, default, rules]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    path = os.path.join(cache, f"{key[:32]}.bpf")
    program = _kept(path, key)
    if program:
        return program
    program = _compile(rules, default, newer_calls=newer_calls)
    with contextlib.suppress(OSError):  # only a cache: a full disk must not keep containers from starting
        _keep(program, path, key)
    return program


def _kept(path: str, key: str) -> bytes:
    """What was kept for these rules, or nothing: a machine that lost power leaves zeros, a full disk half a file."""
    try:
        with open(path, "rb") as file:
            kept = file.read(hashlib.sha256().digest_size + _MOST_BYTES + 1)
    except OSError:
        return b""
    seal, program = kept[:32], kept[32:]
    if not program or len(program) % 8 or not hmac.compare_digest(seal, _seal(program, key)):
        return b""
    return program


def _seal(program: bytes, key: str) -> bytes:
    """A checksum that holds for these rules alone: another's program under this name does not pass."""
    return hashlib.sha256(key.encode() + program).digest()


def _keep(program: bytes, path: str, key: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as aside:
        try:
            aside.write(_seal(program, key) + program)
            aside.flush()
            os.fsync(aside.fileno())
            os.replace(aside.name, path)
        except BaseException:
            os.unlink(aside.name)
            raise


def _compile(rules: Sequence[Rule], default: Action, *, newer_calls: bool) -> bytes:
    try:
        import pyseccomp as libseccomp
    except (ImportError, OSError, RuntimeError) as problem:
        raise UnsupportedHost(
            f"the system-call filter cannot be compiled because libseccomp is missing ({problem}); install it: "
            "`apt-get install libseccomp2`, `dnf install libseccomp` or `conda install -c conda-forge libseccomp`"
        ) from problem
    program = libseccomp.SyscallFilter(_named(libseccomp, default))
    for name in _SECONDARY.get(os.uname().machine, ()):
        program.add_arch(getattr(libseccomp.Arch, name))
    _sort_as_tree(program, libseccomp)
    for name, action, conditions in rules:
        number = libseccomp.resolve_syscall(libseccomp.Arch.NATIVE, name)
        if number == _UNKNOWN_CALL:
            continue  # newer than this libseccomp, and said by the head; or of another architecture
        arguments = [libseccomp.Arg(at, getattr(libseccomp, operator), a, b) for at, operator, a, b in conditions]
        program.add_rule(_named(libseccomp, action), number, *arguments)
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        tables = _tables(rules, libseccomp) if newer_calls else []
        return (newcalls.head(tables, (_AF_ALG, _AF_VSOCK)) if tables else b"") + file.read()


def _named(libseccomp: Any, action: Action) -> Any:
    """Libseccomp's own value for an action."""
    if action is None:
        return libseccomp.ALLOW
    return getattr(libseccomp, action) if isinstance(action, str) else libseccomp.ERRNO(action)


def _tables(rules: Sequence[Rule], libseccomp: Any) -> list[newcalls.Table]:
    """For each way to call this kernel: which rules libseccomp does not know there, and where the profile ends."""
    machine = os.uname().machine
    native = getattr(libseccomp.Arch, _ARCHITECTURES.get(machine, ""), None)
    if native is None:
        return []  # libseccomp's program alone: newer calls stay refused
    unconditional = {
        name: action for name, action, conditions in rules if not conditions and not isinstance(action, str)
    }
    tables = []
    for name in (_ARCHITECTURES[machine], *_SECONDARY.get(machine, ())):
        architecture, x32 = getattr(libseccomp.Arch, name), name == "X32"
        own = profile.NUMBERS_BY_ARCHITECTURE.get(machine, {}) if architecture == native else {}
        by_number = profile.NUMBERS | own
        numbers = {call: libseccomp.resolve_syscall(architecture, call) for call, _, _ in rules}
        answers = {
            by_number[call] | (_X32_BIT if x32 else 0): errno
            for call, errno in unconditional.items()
            if numbers[call] == _UNKNOWN_CALL and call in by_number
        }
        tables.append(
            newcalls.Table(
                architecture=native if x32 else architecture,
                answers=answers,
                newest=max((*answers, *numbers.values())),
                x32=x32,
                socket=max(-1, numbers.get("socket", -1)),
                socketcall=max(-1, numbers.get("socketcall", -1)),
            )
        )
    return tables


def _sort_as_tree(program: Any, libseccomp: Any) -> None:
    """Ask for a binary tree rather than a list of comparisons (libseccomp 2.5)."""
    try:
        program.set_attr(libseccomp.Attr.CTL_OPTIMIZE, 2)
    except (OSError, ctypes.ArgumentError):
        return
