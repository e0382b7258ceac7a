"""``RUN --mount``: from what was asked to mounts, files in memory and variables, for the length of one command.

Files of the context, of a stage or an image become a layer of their own and are shown from there, so no link in them
can lead anywhere (CVE-2024-1753 and its kin), and the next build finds it made. What is written to them goes into a
folder that is thrown away. Secrets are never on a disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbcontainer.build.keys import step_key
from nbcontainer.build.parts import TreePart
from nbcontainer.build.sources import Selection
from nbcontainer.dockerfile.mounts import BindRunMount, CacheRunMount, SecretRunMount, SshRunMount, TmpfsRunMount
from nbcontainer.errors import InvalidInput, InvalidOption, NotFound, StorageError
from nbcontainer.model import Mount, MountedFile

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping, Sequence

    from nbcontainer.build.cache import BuildCache, MadeLayer
    from nbcontainer.build.making import Maker
    from nbcontainer.build.sources import FileTree
    from nbcontainer.build.workshop import Workshop
    from nbcontainer.dockerfile.mounts import RunMount
    from nbcontainer.model import Digest

__all__ = ["MountMaker", "Mounted", "mount_texts"]

_SECRET_LIMIT = 500 * 1024
_MOST_PRIVATE = 64
_PAUSE = 0.05
_AGENT = "/run/buildkit/ssh_agent"


@dataclass(slots=True)
class Mounted:
    """What a command gets; `key` is what of it counts for the cache."""

    mounts: list[Mount] = field(default_factory=list)
    files: list[MountedFile] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    key: list[Any] = field(default_factory=list)
    makers: list[Callable[[], None]] = field(default_factory=list)
    """What is only done when the command is really run, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountMaker:
    """Makes the mounts of one RUN.

    `source` finds the files of a stage or image by its name, `check` raises when nothing is to be begun any more.
    """

    workshop: Workshop
    maker: Maker
    cache: BuildCache
    context: FileTree
    secrets: Mapping[str, bytes]
    agents: Mapping[str, str]
    source: Callable[[str], Digest | None]
    resolved: Callable[[str], str]
    check: Callable[[], None]
    undo: contextlib.ExitStack

    def mount(self, asked: Sequence[RunMount]) -> Mounted:
        """Everything asked for, in order; raise for what cannot be had."""
        mounted = Mounted()
        for number, each in enumerate(asked):
            if isinstance(each, BindRunMount):
                self._bind(mounted, each)
            elif isinstance(each, CacheRunMount):
                self._cache(mounted, each)
            elif isinstance(each, TmpfsRunMount):
                self._tmpfs(mounted, each)
            elif isinstance(each, SecretRunMount):
                self._secret(mounted, each)
            else:
                self._ssh(mounted, each, number)
        return mounted

    # --- bind -------------------------------------------------------------------------------------------------------

    def _bind(self, mounted: Mounted, asked: BindRunMount) -> None:
        target = self._target(asked.target)
        chain = self.source(asked.from_) if asked.from_ else None
        if asked.from_ and chain is None:
            raise InvalidInput(f"--mount=from={asked.from_} has no files; name a stage or image that has some")
        whole = chain is not None and _is_root(asked.source)
        if whole:
            mounted.key.append(["bind", target, str(chain), asked.readonly])
            mounted.makers.append(lambda: mounted.mounts.append(self._whole(chain, target, readonly=asked.readonly)))
            return
        found, name, is_dir = self._picked(chain, asked)
        mounted.key.append(["bind", target, found, asked.readonly])

        def make() -> None:
            layer = self._layer_of(chain, asked, found)
            (folder,) = self.workshop.snapshots.lowers(layer.chain)[:1]
            path = folder if is_dir else os.path.join(folder, name)
            if asked.readonly:
                mounted.mounts.append(Mount(kind="bind", source=path, target=target, read_only=True))
            elif is_dir:
                mounted.mounts.append(self._writable((folder,), target))
            else:
                raise InvalidInput(
                    f"--mount target {target} is a single file, which can only be mounted read-only; mount its folder"
                )

        mounted.makers.append(make)

    def _whole(self, chain: Digest | None, target: str, *, readonly: bool) -> Mount:
        assert chain is not None
        lowers = self.workshop.snapshots.lowers(chain)
        if not readonly:
            return self._writable(lowers, target)
        if len(lowers) == 1:
            return Mount(kind="bind", source=lowers[0], target=target, read_only=True)
        return Mount(kind="overlay", target=target, lower=lowers, read_only=True)

    def _writable(self, lowers: tuple[str, ...], target: str) -> Mount:
        """What is written goes into a folder that goes away with the command."""
        name = f"written-{secrets.token_hex(8)}"
        self._make_folder(name, mode=0o755, uid=0, gid=0)
        folder = os.path.join(self._folder, name)
        self.undo.callback(self.workshop.discard, folder)
        return Mount(
            kind="overlay", target=target, lower=lowers, upper=f"{folder}/upper", work=f"{folder}/work", volatile=True
        )

    def _picked(self, chain: Digest | None, asked: BindRunMount) -> tuple[str, str, bool]:
        """What the source is: its digest, name, and whether it is a folder."""
        selection = Selection(sources=(asked.source,))
        if chain is None:
            part = TreePart.of(self.context, selection)
            return part.digest, part.tops[0].name, part.tops[0].is_dir
        scanned = self.maker.scanned(chain, selection, asked.from_, self.cache)
        _, name, is_dir = scanned["tops"][0]
        return scanned["digest"], name, is_dir

    def _layer_of(self, chain: Digest | None, asked: BindRunMount, found: str) -> MadeLayer:
        key = step_key("mount", None, digest=found, owners=self.workshop.owners)
        made = self.cache.find(key)
        if made is not None:
            return made
        selection = Selection(sources=(asked.source,))
        if chain is None:
            part = TreePart.of(self.context, selection)
            places = ["" if top.is_dir else top.name for top in part.tops]
            made, faithful = self.maker.of_parts(None, [part], {"places": places, "folders": [], "owner": None})
            if not faithful or part.digest != found:
                return made
        else:
            scanned = self.maker.scanned(chain, selection, asked.from_, self.cache)
            places = ["" if is_dir else name for _, name, is_dir in scanned["tops"]]
            arguments = {
                "view": self.maker.view(chain),
                "name": asked.from_,
                "selection": selection.fields(),
                "tops": scanned["tops"],
            }
            made = self.maker.of_stage(None, arguments, {"places": places, "folders": []})
        self.cache.keep(key, made)
        return made

    # --- cache ------------------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> str:
        return os.path.join(self.workshop.folder, "mounts")

    def _make_folder(self, name: str, *, mode: int, uid: int, gid: int) -> bool:
        parent = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            arguments = {"name": name, "mode": mode, "uid": uid, "gid": gid, "owners": self.workshop.owners}
            return bool(self.maker.call("make_folder", arguments, (parent,))["made"])
        finally:
            os.close(parent)

    def _cache(self, mounted: Mounted, asked: CacheRunMount) -> None:
        target = self._target(asked.target)
        mounted.key.append(["cache", target, asked.id, asked.readonly, asked.from_, asked.source])
        identity = asked.id or target
        name = f"cache-{hashlib.sha256(identity.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"

        def make() -> None:
            chosen = self._locked(name, asked.sharing)
            made = self._make_folder(chosen, mode=asked.mode, uid=asked.uid, gid=asked.gid)
            path = os.path.join(self._folder, chosen)
            if made and asked.from_:
                self._fill(path, asked)
            mounted.mounts.append(Mount(kind="bind", source=path, target=target, read_only=asked.readonly))

        mounted.makers.append(make)

    def _fill(self, path: str, asked: CacheRunMount) -> None:
        """Put the files of a stage or image into a cache that is new."""
        chain = self.source(asked.from_)
        if chain is None:
            return
        selection = Selection(sources=(asked.source,))
        scanned = self.maker.scanned(chain, selection, asked.from_, self.cache)
        arguments = {
            "view": self.maker.view(chain),
            "name": asked.from_,
            "selection": selection.fields(),
            "tops": scanned["tops"],
            "places": ["" if is_dir else name for _, name, is_dir in scanned["tops"]],
            "folders": [],
            "latest": None,
        }
        self.maker.filled(path, arguments)

    def _locked(self, name: str, sharing: str) -> str:
        """The folder to use: locked for us alone, shared, or the first of several that nobody uses."""
        if sharing == "private":
            for number in range(_MOST_PRIVATE):
                chosen = name if not number else f"{name}-{number}"
                if self._lock(chosen, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    return chosen
            raise StorageError(f"{_MOST_PRIVATE} builds use the same private cache; wait for one of them")
        how = fcntl.LOCK_EX if sharing == "locked" else fcntl.LOCK_SH
        while not self._lock(name, how | fcntl.LOCK_NB):  # never in the kernel, where no interrupt arrives
            self.check()
            time.sleep(_PAUSE)
        return name

    def _lock(self, name: str, how: int) -> bool:
        folder = os.path.join(self.workshop.folder, "locks")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
        except BlockingIOError:
            os.close(fd)
            return False
        self.undo.callback(os.close, fd)
        return True

    # --- the others -------------------------------------------------------------------------------------------------

    def _tmpfs(self, mounted: Mounted, asked: TmpfsRunMount) -> None:
        target = self._target(asked.target)
        mounted.key.append(["tmpfs", target, asked.size])
        mounted.mounts.append(
            Mount(kind="tmpfs", target=target, size=asked.size or 0, mode=0o1777, read_only=asked.readonly)
        )

    def _secret(self, mounted: Mounted, asked: SecretRunMount) -> None:
        mounted.key.append(["secret", asked.id, asked.target, asked.env, asked.mode, asked.uid, asked.gid])
        data = self.secrets.get(asked.id)
        if data is None:
            if asked.required:
                raise NotFound(f"the secret {asked.id!r} is required; give it with --secret id={asked.id},src=FILE")
            return
        if len(data) > _SECRET_LIMIT:
            raise InvalidInput(f"the secret {asked.id!r} has {len(data)} bytes; {_SECRET_LIMIT} are the most")
        if asked.env:
            if b"\0" in data:
                raise InvalidInput(f"the secret {asked.id!r} has a NUL byte, which no variable can hold")
            mounted.variables[asked.env] = os.fsdecode(data)
        if asked.target:
            target = self._target(asked.target)
            mounted.files.append(MountedFile(target=target, data=data, mode=asked.mode, uid=asked.uid, gid=asked.gid))

    def _ssh(self, mounted: Mounted, asked: SshRunMount, number: int) -> None:
        target = self._target(asked.target or f"{_AGENT}.{number}")
        mounted.key.append(["ssh", asked.id, target])
        agent = self.agents.get(asked.id)
        if agent is None:
            if asked.required:
                raise NotFound(f"the ssh agent {asked.id!r} is required; give it with --ssh {asked.id}")
            return
        try:
            if not stat.S_ISSOCK(os.stat(agent).st_mode):
                raise InvalidOption(f"--ssh {asked.id}: {agent} is no socket; start ssh-agent and give its socket")
        except OSError as problem:
            raise NotFound(f"--ssh {asked.id}: there is no socket {agent}: {problem.strerror}") from problem
        mounted.variables.setdefault("SSH_AUTH_SOCK", target)

        def make() -> None:
            path = self.undo.enter_context(
                self.workshop.open_socket_to(agent, mode=asked.mode, uid=asked.uid, gid=asked.gid)
            )
            mounted.mounts.append(Mount(kind="bind", source=path, target=target))

        mounted.makers.append(make)

    def _target(self, path: str) -> str:
        target = self.resolved(path)
        taken = next(
            (each for each in ("/proc", "/sys", "/dev") if target == each or target.startswith(f"{each}/")), ""
        )
        if target == "/" or (taken and target != "/dev/shm"):  # noqa: S108 - the container's own
            raise InvalidInput(f"--mount target {target} is where the sandbox has its own file systems; choose another")
        return target


def _is_root(source: str) -> bool:
    return not [part for part in source.split("/") if part not in {"", ".", ".."}]


def mount_texts(asked: Sequence[RunMount]) -> tuple[str, ...]:
    """The mounts of a RUN for people to read."""
    kinds = {
        BindRunMount: "bind",
        CacheRunMount: "cache",
        TmpfsRunMount: "tmpfs",
        SecretRunMount: "secret",
        SshRunMount: "ssh",
    }
    return tuple(f"{kinds[type(each)]} at {each.target or 'a place of its own'}" for each in asked)
