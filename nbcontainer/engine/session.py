"""What an engine holds once it is used: the store opened, the id map chosen, the parts made and put together."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from nbcontainer._linux import idmaps
from nbcontainer.engine import host_image
from nbcontainer.engine.build_runtime import BuildRuntime
from nbcontainer.engine.networking import Networks
from nbcontainer.engine.records import ContainerRecords
from nbcontainer.engine.successors import Successors
from nbcontainer.engine.volume_use import used_volumes
from nbcontainer.errors import Conflict, NbcontainerError, StorageError, UnsupportedHost
from nbcontainer.images.library import Library
from nbcontainer.layers.overlay import OverlaySnapshotter
from nbcontainer.layers.remove import remove_entry
from nbcontainer.model import Notice
from nbcontainer.runtime.driver import NativeRuntime
from nbcontainer.store import ContentStore, RefStore, VolumeStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.engine.settings import Settings
    from nbcontainer.images.pull import Puller
    from nbcontainer.layers.snapshotter import Snapshotter
    from nbcontainer.model import IdMap, Listener, Mount
    from nbcontainer.runtime.driver import NativeRuntime as Runtime

__all__ = ["Session"]

_FOLDERS = ("run", "containers", "snapshots", "volumes", "build", "build/mounts")
_REMOVE = "nbcontainer.layers.remove:serve"
_TASK_MODULES = (
    "nbcontainer.layers.apply",
    "nbcontainer.layers.remove",
    "nbcontainer.layers.copying",
    "nbcontainer.engine.inside",
)


class Session:
    """The open store and everything that works on it."""

    def __init__(self, settings: Settings, *, runtime: Runtime | None = None, sweeping: bool = True) -> None:
        """`runtime` is for who runs one container alone and can do with less: it becomes ours."""
        self.settings = settings
        self.id_map: IdMap = idmaps.id_map_for_host()
        self.privileged = self.id_map.method == "privileged"
        self._open_store()
        points = host_image.mount_points(_mountinfo())
        self._points = points
        self.runtime: Runtime = runtime or NativeRuntime(
            settings.root,
            self.id_map,
            pool_size=settings.pool_size,
            pool_idle=settings.pool_idle,
            host_paths=host_image.real_file_systems(points) if self.privileged else (),
            modules=_TASK_MODULES,
        )
        self.content = ContentStore(settings.root)
        self.snapshots: Snapshotter = OverlaySnapshotter(settings.root, self.id_map, remove_tree=self._remove_tree)
        self.successors = Successors()
        self.records = ContainerRecords(settings.root, self._owner)
        self.volumes = VolumeStore(
            settings.root,
            ids=self.id_map.key,
            owner=self._owner,
            users=lambda: used_volumes(self.records),
            discard=self._remove_tree,
        )
        self.library = Library(self.content, RefStore(settings.root), self.snapshots)
        self.networks = Networks(
            settings,
            self.records,
            privileged=self.privileged,
            user_namespace=self._user_namespace,
            holds=self.runtime.remember,
        )
        self.build_runtime = BuildRuntime(settings, self.id_map, self.networks)
        self._recovered = 0
        if sweeping:
            self._sweep()

    @property
    def tier(self) -> str:
        """Which of the three kinds of isolation this machine gives us."""
        from nbcontainer.engine.doctor import tier_of

        return tier_of(self.id_map.method).name

    @property
    def _owner(self) -> int | None:
        """The uid outside of container root, when it is not our own."""
        return self.id_map.uids[0].outside if self.privileged else None

    def _open_store(self) -> None:
        """Make the store's folders: closed to everybody but us and container root, who must walk through some."""
        root = self.settings.root
        try:
            os.makedirs(root, mode=0o700, exist_ok=True)
            for folder in _FOLDERS:
                os.makedirs(os.path.join(root, folder), mode=0o700, exist_ok=True)
            owner = self._owner
            if owner is not None:
                for folder in ("", "run", "snapshots", "volumes", "build"):
                    path = os.path.join(root, folder)
                    os.chown(path, 0, owner)
                    os.chmod(path, 0o710)  # noqa: S103 - the group is container root's own: it must walk through
                for folder in ("containers", "build/mounts"):
                    os.chown(os.path.join(root, folder), owner, owner)
        except OSError as problem:
            raise StorageError(
                f"the store {root} cannot be opened: {problem.strerror} ({problem.filename}); "
                "choose another folder with NBCONTAINER_ROOT or %config ContainerMagics.root"
            ) from problem

    def _user_namespace(self) -> int:
        """Open the user namespace in which this user's containers live; -1 as root, who uses the machine's."""
        return -1 if self.privileged else self.runtime.open_user_namespace()

    def adopt(self, descriptor: int) -> None:
        """Give a pipe to container root, so that ``/dev/stdout`` can be opened by name inside."""
        owner = self._owner
        if owner is not None:
            os.fchown(descriptor, owner, owner)

    # --- the host image ---------------------------------------------------------------------------------------------

    def host_root(self, folder: str) -> tuple[Mount, ...]:
        """The mounts of a container on this machine's own root; raise `UnsupportedHost` where that cannot be."""
        listed = host_image.secrets(
            host_image.home_folders(os.path.expanduser("~")),
            self.settings.root,
            (*host_image.host_keys(), os.environ.get("JUPYTER_RUNTIME_DIR", "")),
        )
        hidden = host_image.present(listed)
        if not self.privileged:
            return host_image.plan_as_user(self._points, folder, hidden)
        cloned = self.runtime.host_lowers
        if "/" not in cloned:
            raise UnsupportedHost(
                f"the host image cannot be used as root here: {self.runtime.host_problem() or '/ cannot be cloned'}; "
                "pull an image instead, or run as an ordinary user"
            )
        return host_image.plan_as_root(cloned, folder, hidden)

    # --- pulling and removing ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def puller(self, listener: Listener) -> Iterator[Puller]:
        """Everything a pull needs, with a connection to registries that is closed afterwards."""
        from nbcontainer.images.pull import Puller
        from nbcontainer.registry import RegistryClient, RegistrySettings

        settings = RegistrySettings(
            mirrors=self.settings.mirrors,
            insecure=self.settings.insecure_registries,
            timeout=self.settings.registry_timeout,
        )
        with RegistryClient(settings, notice=lambda text: listener(Notice(text=text))) as client:
            yield Puller(
                content=self.content,
                refs=self.library.refs,
                snapshots=self.snapshots,
                helper=self.runtime,
                client=client,
                owners=not self.id_map.single,
                parallel=self.settings.parallel_downloads,
            )

    def discard(self, directory: str) -> None:
        """Remove a container's directory, whoever owns its files."""
        self._remove_tree(directory)

    def _remove_tree(self, path: str) -> None:
        """Remove a tree that was written inside the namespace: from there, or as real root from here.

        However deep a container has made it: `shutil.rmtree` calls itself for each folder on the way down.
        """
        parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self.privileged:
                with contextlib.suppress(OSError, StorageError):  # what cannot be removed stays for the next sweep
                    remove_entry(parent, os.fsencode(os.path.basename(path)))
            else:
                with contextlib.suppress(Conflict):  # closed meanwhile: likewise
                    self.runtime.call(_REMOVE, {"name": os.path.basename(path)}, (parent,))
        finally:
            os.close(parent)

    def recover(self, since: int) -> None:
        """Take away what launchers that were killed could not.

        `since` is how many had been when the caller began; a container of another thread that has not ended yet is
        that thread's to take away.
        """
        deaths = self.runtime.deaths
        if deaths > min(since, self._recovered):
            self._recovered = deaths
            self._sweep()

    def _sweep(self) -> None:
        """Remove what killed sessions left: the directories of throw-away containers that nobody supervises."""
        abandoned = [stored.directory for stored in self.records.walk() if stored.abandoned]
        for directory in (*abandoned, *self.records.nameless()):
            with contextlib.suppress(NbcontainerError, OSError):  # nobody asked for it, and the next one tries again
                self._remove_tree(directory)
        self.volumes.sweep()

    def close(self, *, for_good: bool = False) -> None:
        """End everything; safe twice. `for_good` nothing is started any more, though something may still be at work."""
        self.build_runtime.close()
        self.runtime.close(for_good=for_good)
        self.networks.close()


def _mountinfo() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
