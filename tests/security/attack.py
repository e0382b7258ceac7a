"""What an attacker inside a container tries, one function each; run there by the image's Python.

Each says what it got: ``refused NAME_OF_ERRNO`` when the kernel said no, else something else. Imports nothing of this
package: it is the text of a cell.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import stat
import struct
import sys
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

# x86_64, aarch64
NUMBERS = {
    "mount": (165, 40), "umount2": (166, 39), "unshare": (272, 97), "setns": (308, 268), "clone": (56, 220), "clone3": (435, 435),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280), "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241), "open_by_handle_at": (304, 265), "pivot_root": (155, 41),
    "fsopen": (430, 430), "open_tree": (428, 428), "move_mount": (429, 429), "mount_setattr": (442, 442), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224),
    "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112), "sethostname": (170, 161), "quotactl": (179, 60),
    "acct": (163, 89), "fanotify_init": (300, 262), "lookup_dcookie": (212, 18), "kcmp": (312, 272), "move_pages": (279, 239),
    "migrate_pages": (256, 238), "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "vhangup": (153, 58), "iopl": (172, None),
}  # fmt: skip
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "mount": (b"tmpfs", b"/tmp", b"tmpfs", 0, 0),
    "umount2": (b"/proc", 2),
    "unshare": (0x10000000,),
    "setns": (0, 0),
    "clone": (0x10000000 | 17, 0, 0, 0, 0),
    "clone3": (0, 64),
    "keyctl": (0, -3, 0),
    "add_key": (b"user", b"x", b"y", 1, -3),
    "io_uring_setup": (4, b"\0" * 120),
    "fsopen": (b"tmpfs", 0),
    "open_tree": (-100, b"/", 1),
    "pivot_root": (b".", b"."),
    "sethostname": (b"owned", 5),
    "syslog": (3, b"\0" * 100, 100),
    "reboot": (0xFEE1DEAD, 672274793, 0),
}


def outcome(result: int) -> str:
    """What a raw call gave, in words."""
    if result >= 0:
        return f"allowed {result}"
    return f"refused {errno.errorcode[ctypes.get_errno()]}"


def call(name: str) -> str:
    """Make a system call that a container has no business to make."""
    number = NUMBERS[name][0 if os.uname().machine == "x86_64" else 1]
    if number is None:
        return "refused ENOSYS"
    arguments = [
        ctypes.c_long(each) if isinstance(each, int) else each for each in ARGUMENTS.get(name, (0, 0, 0, 0, 0))
    ]
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result == 0 and name == "clone":
        os._exit(0)
    return outcome(result)


def open_read(path: str) -> str:
    """Read a file, or the target of a link."""
    try:
        if os.path.islink(path):
            return f"link {os.readlink(path)}"
        with open(path, "rb") as file:
            return f"read {file.read(200)!r}"
    except OSError as problem:
        return f"refused {errno.errorcode[problem.errno or 0]}"


def open_write(path: str) -> str:
    """Open a file for writing and write to it."""
    try:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"1")
    except OSError as problem:
        return f"refused {errno.errorcode[problem.errno or 0]}"
    return "written"


def listdir(path: str) -> str:
    """List a folder."""
    try:
        return f"listed {sorted(os.listdir(path))}"
    except OSError as problem:
        return f"refused {errno.errorcode[problem.errno or 0]}"


def descriptors() -> str:
    """Name the descriptors that were inherited."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:  # the one of this listing
            continue
        found.append(name)
    return " ".join(sorted(found))


def make_socket(family: str) -> str:
    """Make a socket of a kind that has let containers out."""
    try:
        socket.socket(int(family), socket.SOCK_SEQPACKET if family == "38" else socket.SOCK_STREAM).close()
    except OSError as problem:
        return f"refused {errno.errorcode[problem.errno or 0]}"
    return "allowed"


def make_wide_socket(family: str) -> str:
    """Make one by a family that is another number to whoever compares 64 bits, and the same to the kernel."""
    number = 41 if os.uname().machine == "x86_64" else 198
    kind = socket.SOCK_SEQPACKET if family == "38" else socket.SOCK_STREAM
    return outcome(libc.syscall(ctypes.c_long(number), ctypes.c_long(1 << 32 | int(family)), ctypes.c_long(kind), 0))


def make_socket_by_interrupt(family: str) -> str:
    """Make one as an old 32-bit program does: ``socketcall`` with its arguments in memory."""
    if os.uname().machine != "x86_64":
        return "refused ENOSYS"
    # push rbx; eax, ebx, ecx = edi, esi, edx; int 0x80; pop rbx; cdqe; ret
    code = bytes.fromhex("53 89f8 89f3 89d1 cd80 5b 4898 c3")
    libc.mmap.restype = ctypes.c_void_p
    any_access, private_anonymous_low = 7, 0x62
    place = libc.mmap(None, ctypes.c_size_t(4096), any_access, private_anonymous_low, -1, ctypes.c_long(0))
    ctypes.memmove(place, code, len(code))
    kind = socket.SOCK_SEQPACKET if family == "38" else socket.SOCK_STREAM
    ctypes.memmove(place + 64, struct.pack("=3I", int(family), kind, 0), 12)
    made = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_int] * 3)(place)(102, 1, place + 64)
    return f"refused {errno.errorcode[-made]}" if -4096 < made < 0 else f"allowed {made}"


def connect(where: str) -> str:
    """Reach a server: ``port:N`` on loopback, ``abstract:NAME``, or ``address:A``."""
    kind, _, name = where.partition(":")
    family = socket.AF_UNIX if kind == "abstract" else socket.AF_INET
    target: Any = "\0" + name if kind == "abstract" else ("127.0.0.1", int(name)) if kind == "port" else (name, 80)
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(3)
        try:
            client.connect(target)
        except OSError as problem:
            return f"refused {errno.errorcode.get(problem.errno or 0, 'timeout')}"
        return f"reached {client.recv(100)!r}"


def make_device(path: str) -> str:
    """Make the node of a disk and open it."""
    try:
        os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(8, 0))
        with open(path, "rb"):
            return "allowed"
    except OSError as problem:
        return f"refused {errno.errorcode[problem.errno or 0]}"


def kill_first(number: str) -> str:
    """Send PID 1 a signal, then say that life goes on."""
    try:
        os.kill(1, int(number))
    except OSError as problem:
        return f"refused {errno.errorcode[problem.errno or 0]}"
    return "alive"


def trace_first(_: str = "") -> str:
    """Attach to PID 1 as a debugger."""
    number = 101 if os.uname().machine == "x86_64" else 117
    return outcome(libc.syscall(ctypes.c_long(number), ctypes.c_long(16), ctypes.c_long(1), 0, 0))


def push_terminal(_: str = "") -> str:
    """Type into a terminal that somebody else reads (TIOCSTI), on every descriptor we have."""
    import fcntl

    for fd in range(3):
        try:
            fcntl.ioctl(fd, 0x5412, b"x")
        except OSError:
            continue
        return "allowed"
    try:
        os.open("/dev/tty", os.O_RDWR)
    except OSError as problem:
        return f"refused {errno.errorcode[problem.errno or 0]}"
    return "has a terminal"


def fork_many(limit: str) -> str:
    """Fork until it is refused, or `limit` children live; then end them."""
    children = []
    said = "unbounded"
    for _ in range(int(limit)):
        try:
            child = os.fork()
        except OSError as problem:
            said = f"refused {errno.errorcode[problem.errno or 0]}"
            break
        if child == 0:
            import signal

            signal.pause()
        children.append(child)
    for child in children:
        os.kill(child, 9)
    return f"{said} {len(children)}"


def capabilities(_: str = "") -> str:
    """Show the capability sets and the two guards."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    return " ".join(f"{name}={fields[name].strip()}" for name in names)


def device_nodes(_: str = "") -> str:
    """Name every device node of the container."""
    found = []
    for folder, _folders, names in os.walk("/dev"):
        for name in names:
            mode = os.lstat(f"{folder}/{name}").st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                found.append(f"{folder}/{name}")
    return " ".join(sorted(found))


def find_handle(_: str = "") -> str:
    """Open a file of the disk by its handle (shocker)."""
    handle = struct.pack("IiQ", 8, 1, 2)
    number = NUMBERS["open_by_handle_at"][0 if os.uname().machine == "x86_64" else 1]
    return outcome(libc.syscall(ctypes.c_long(number or 0), ctypes.c_long(os.open("/", os.O_RDONLY)), handle, 0))


def chroot_out(path: str) -> str:
    """Leave the root the classic way: a root below the current directory, then up (chroot(2), "Notes")."""
    os.makedirs("/tmp/prison", exist_ok=True)
    try:
        os.chroot("/tmp/prison")
    except OSError as problem:
        return f"refused {errno.errorcode[problem.errno or 0]}"
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    return f"outside: {os.listdir('/')}" if os.path.exists(path) else "refused inside"


def join_first(flag: str) -> str:
    """Enter a namespace of PID 1 by its pidfd."""
    number = NUMBERS["setns"][0 if os.uname().machine == "x86_64" else 1]
    return outcome(libc.syscall(ctypes.c_long(number or 0), ctypes.c_long(os.pidfd_open(1)), ctypes.c_long(int(flag))))


def read_memory_of(pid: str) -> str:
    """Read another process's memory (process_vm_readv)."""
    number = 310 if os.uname().machine == "x86_64" else 270
    buffer = ctypes.create_string_buffer(64)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)
    remote = (ctypes.c_void_p * 2)(id(errno), 64)
    one, nothing = ctypes.c_long(1), ctypes.c_long(0)
    return outcome(libc.syscall(ctypes.c_long(number), ctypes.c_long(int(pid)), local, one, remote, one, nothing))


def writable_below(folder: str) -> str:
    """Open every file below a folder for writing; name those that let us."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not os.path.islink(f"{place}/{name}")]
        for name in names:
            path = f"{place}/{name}"
            if os.path.islink(path):
                continue
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                continue
            found.append(path)
    return " ".join(sorted(found))


def writable_in_proc(_: str = "") -> str:
    """The same for the files of proc that are no process's."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() and not os.path.islink(f"/proc/{name}"):
            found.append(writable_below(f"/proc/{name}"))
            if os.path.isfile(f"/proc/{name}") or stat.S_ISCHR(os.stat(f"/proc/{name}").st_mode):
                try:
                    os.close(os.open(f"/proc/{name}", os.O_WRONLY | os.O_NONBLOCK))
                    found.append(f"/proc/{name}")
                except OSError:
                    continue
    return " ".join(sorted(filter(None, found)))


def make_interface(_: str = "") -> str:
    """Make a network interface (RTM_NEWLINK of kind dummy)."""
    kind = struct.pack("=HH8s", 12, 1, b"dummy")
    information = struct.pack("=HH", 4 + len(kind), 18) + kind
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + information
    request = struct.pack("=IHHII", 16 + len(body), 16, 0x605, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.send(request)
        answer = link.recv(4096)
    (code,) = struct.unpack_from("=i", answer, 16)
    return f"refused {errno.errorcode[-code]}" if code else "made"


def interfaces(_: str = "") -> str:
    """Name the network interfaces there are."""
    return " ".join(sorted(name for _, name in socket.if_nameindex()))


def hear_everything(_: str = "") -> str:
    """Listen to raw packets of every interface for a moment."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as ear:
            ear.settimeout(0.3)
            return f"heard {ear.recv(100)!r}"
    except TimeoutError:
        return "refused silence"
    except OSError as problem:
        return f"refused {errno.errorcode[problem.errno or 0]}"


def move_away(path: str) -> str:
    """Rename, then remove, what the sandbox has mounted."""
    said = []
    for change in (lambda: os.rename(path, "/moved"), lambda: os.unlink(path), lambda: os.rmdir(path)):
        try:
            change()
        except OSError as problem:
            said.append(errno.errorcode[problem.errno or 0])
        else:
            said.append("done")
    return ("refused " if "done" not in said else "") + " ".join(said)


def console(path: str) -> str:
    """Find the machine's consoles and type into them (TIOCLINUX, TIOCCONS)."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        fcntl.ioctl(fd, 0x541C, b"\x03" + bytes(16))
    except OSError as problem:
        return f"refused {errno.errorcode[problem.errno or 0]}"
    return "typed"


def above(path: str) -> str:
    """See whether a way up or around leads to another root than ``/``."""
    here, there = os.stat("/"), os.stat(path)
    return "same" if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) else f"elsewhere: {os.listdir(path)}"


def exhaust_descriptors(_: str = "") -> str:
    """Open files until no more can be opened."""
    held: list[int] = []
    while len(held) < 3_000_000:
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as problem:
            return f"refused {errno.errorcode[problem.errno or 0]} {len(held)}"
    return f"unbounded {len(held)}"


def exhaust_watches(_: str = "") -> str:
    """Make inotify instances and watches until no more can be made."""
    count, said = 0, "unbounded"
    while count < 200_000:
        if libc.inotify_init1(0) < 0:
            said = errno.errorcode[ctypes.get_errno()]
            break
        count += 1
    return f"refused {said} {count}"


def attempt(name: str, *arguments: str) -> str:
    """Make one attack."""
    try:
        return str(globals()[name](*arguments))
    except Exception as problem:  # noqa: BLE001 - the test shows it
        return f"failed {type(problem).__name__}: {problem}"


if __name__ == "__main__":
    print(json.dumps([attempt(*each) for each in json.loads(sys.argv[1])]))
