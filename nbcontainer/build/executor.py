"""Running a plan: each stage in a thread of its own, its instructions in order, what is known already not again.

The thread that asked draws: events come to it by a queue, so a listener needs no lock, and Ctrl-C arrives where it
waits. An interrupt, or the first failure, ends every RUN (SIGINT, after a grace SIGTERM, then all of it) and no step
begins any more. Nothing has a name before everything is built.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import signal
import threading
import time
from collections import defaultdict, deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from nbcontainer.build import downloads
from nbcontainer.build.borrowing import BorrowedSteps
from nbcontainer.build.keys import step_key
from nbcontainer.build.mounts import MountMaker, mount_texts
from nbcontainer.build.parts import TreePart, archive_parts
from nbcontainer.build.plan import SCRATCH, PlannedStage, plan
from nbcontainer.build.request import BuiltStage, FailedStep
from nbcontainer.build.scratch import Scratch
from nbcontainer.build.sources import FileTree, Selection
from nbcontainer.build.stage import (
    PROXIES,
    created_by_run,
    scratch,
    started_from,
    with_arguments,
    with_metadata,
)
from nbcontainer.build.workshop import Job
from nbcontainer.dockerfile import instructions as i
from nbcontainer.dockerfile.expansion import expand
from nbcontainer.dockerfile.lines import Finding
from nbcontainer.dockerfile.lint import Choice
from nbcontainer.dockerfile.mounts import BindRunMount, CacheRunMount
from nbcontainer.dockerfile.parser import parse_trigger
from nbcontainer.errors import BuildFailed, ContainerInterrupted, DockerfileError, InvalidInput, NbcontainerError
from nbcontainer.images.committing import config_of
from nbcontainer.model import BuildWarning, Notice, Platform, PullStarted, StepFinished, StepOutput, StepStarted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from nbcontainer.build.cache import BuildCache, MadeLayer
    from nbcontainer.build.context import Context
    from nbcontainer.build.making import Maker
    from nbcontainer.build.parts import Part
    from nbcontainer.build.plan import Plan
    from nbcontainer.build.request import BuildOptions, CacheSource
    from nbcontainer.build.stage import StageState
    from nbcontainer.build.workshop import Ran, Workshop
    from nbcontainer.dockerfile.lines import Origin
    from nbcontainer.dockerfile.parser import Dockerfile
    from nbcontainer.images.image import Image
    from nbcontainer.images.lent import LentImage
    from nbcontainer.model import Digest, Event, Listener, StepEnd
    from nbcontainer.registry import Interrupt

__all__ = ["Executor"]

_I = TypeVar("_I", bound=i.Instruction)
_TAIL = 16 * 1024
_TAIL_LINES = 20
_TERM_GRACE = 1.0
_KILL_GRACE = 15.0
_LARGE = 512 * 1024 * 1024
_PLATFORM_CHECK = "InvalidBaseImagePlatform"
_MAKES_FILES = (i.Run, i.Copy, i.Add, i.Workdir)


class _Cancelled(NbcontainerError):
    """Another stage has failed, or the person asked: nothing is begun any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """A stage thread has ended."""


class Executor:
    """One build. Used once; `run` is called in the thread that draws."""

    def __init__(
        self,
        workshop: Workshop,
        options: BuildOptions,
        context: Context,
        *,
        maker: Maker,
        cache: BuildCache,
        grace: float,
        listener: Listener,
    ) -> None:
        self.workshop = workshop
        self.options = options
        self.context = context
        self.maker = maker
        self.cache = cache
        self.failed: FailedStep | None = None
        self.steps = 0
        self.cached = 0
        self.notices: dict[str, None] = {}
        self.fetched: set[str] = set()
        self._grace = grace
        self._listener = listener
        self._events: queue.SimpleQueue[Event | _Done] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._interrupt: Interrupt | None = None
        self._futures: dict[int, Future[StageState]] = {}
        self._threads: list[threading.Thread] = []
        self._key_locks: defaultdict[Digest, threading.Lock] = defaultdict(threading.Lock)
        self._images: dict[tuple[str, str], Future[Image]] = {}
        self._failure: BaseException | None = None
        self.borrowed = BorrowedSteps(
            options.cache_from, workshop=workshop, open_source=self._lent, check=self.check, notice=self.notice
        )
        self.plan: Plan

    # --- the thread that draws --------------------------------------------------------------------------------------

    def run(self, dockerfile: Dockerfile) -> BuiltStage:
        """Build the target; raise the first failure, when every thread has ended."""
        self.plan = plan(dockerfile, target=self.options.target, given=self.options.arguments, platform=self._platform)
        interrupted = False
        try:
            for index in self.plan.stages:
                self.stage(index)
            self._draw()
        except KeyboardInterrupt:
            interrupted = True
            self.cancel()
        except BaseException:
            self.cancel()
            self._wind_down()
            raise
        if interrupted or self.stopped:
            self._wind_down()
        if interrupted:
            raise ContainerInterrupted(130, (), image="the build", reason="interrupted; every process of it has ended")
        if self._failure is not None:
            raise self._failure
        return BuiltStage(
            state=self._futures[self.plan.target].result(),
            steps=self.steps,
            cached=self.cached,
            notices=tuple(self.notices),
        )

    def _draw(self) -> None:
        """Pass events on until every stage is over, or one has failed."""
        while not self.stopped and any(not each.done() for each in list(self._futures.values())):
            event = self._events.get()
            if not isinstance(event, _Done):
                self._listener(event)
        self._pass_on()

    def _pass_on(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if not isinstance(event, _Done):
                    self._listener(event)

    def cancel(self) -> None:
        """Begin nothing any more, and wake whoever waits."""
        with self._lock:
            self._cancelled.set()
            interrupt = self._interrupt
        if interrupt is not None:
            interrupt.trip()

    @property
    def stopped(self) -> bool:
        """Whether nothing is to be begun any more."""
        return self._cancelled.is_set()

    @property
    def interrupt(self) -> Interrupt:
        """The switch that ends downloads; made for the first one, because it brings the registry's modules along."""
        from nbcontainer.registry import Interrupt

        with self._lock:
            if self._interrupt is None:
                self._interrupt = Interrupt("the build")
            found = self._interrupt
        if self.stopped:
            found.trip()
        return found

    def _wind_down(self) -> None:
        """End every RUN, from an interrupt to the end of all its processes; another Ctrl-C goes to the end at once."""
        try:
            for number, patience in ((signal.SIGINT, self._grace), (signal.SIGTERM, _TERM_GRACE)):
                if self._ended(0):
                    break
                self.workshop.stop(number)
                if self._ended(patience):
                    break
        except KeyboardInterrupt:
            pass
        deadline = time.monotonic() + _KILL_GRACE
        while not self._ended(0.05) and time.monotonic() < deadline:
            with contextlib.suppress(KeyboardInterrupt):
                self.workshop.stop(signal.SIGKILL)
        with contextlib.suppress(KeyboardInterrupt):
            self._pass_on()

    def _ended(self, within: float) -> bool:
        deadline = time.monotonic() + within
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # --- what stages ask --------------------------------------------------------------------------------------------

    def stage(self, index: int) -> Future[StageState]:
        """The stage of that number, begun if nobody has."""
        with self._lock:
            found = self._futures.get(index)
            if found is not None:
                return found
            planned = self.plan.stages.get(index)
            if planned is None:  # a trigger of a base image asks for it
                smaller = plan(
                    self.plan.dockerfile, target=str(index), given=self.options.arguments, platform=self._platform
                )
                planned = smaller.stages[index]
            future: Future[StageState] = Future()
            self._futures[index] = future
            thread = threading.Thread(
                target=self._build, args=(planned, future), name=f"nbcontainer-stage-{index}", daemon=True
            )
            self._threads.append(thread)
        thread.start()
        return future

    @property
    def _platform(self) -> Platform:
        return Platform.parse(self.options.platform) if self.options.platform else Platform.host()

    def _build(self, planned: PlannedStage, future: Future[StageState]) -> None:
        try:
            result = _StageRun(self, planned).run()
        except BaseException as problem:  # noqa: BLE001 - raised again in the thread that asked
            with self._lock:
                if self._failure is None and not isinstance(problem, _Cancelled):
                    self._failure = problem
            future.set_exception(problem)
            self.cancel()
        else:
            future.set_result(result)
        self._events.put(_Done())

    def check(self) -> None:
        """Raise when nothing is to be begun any more."""
        if self.stopped:
            raise _Cancelled("the build was stopped")

    def emit(self, event: Event) -> None:
        """Tell the thread that draws."""
        self._events.put(event)

    def notice(self, text: str) -> None:
        """A sentence for the person, once."""
        with self._lock:
            if text in self.notices:
                return
            self.notices[text] = None
        self.emit(Notice(text=text))

    def number(self) -> int:
        """A number for a step."""
        return next(self._numbers)

    def image(self, name: str, platform: str) -> Image:
        """An image that is built upon or copied from, fetched once."""
        with self._lock:
            future = self._images.get((name, platform))
            mine = future is None
            if future is None:
                future = self._images[name, platform] = Future()
        if mine:
            try:
                future.set_result(
                    self.workshop.image(
                        name, platform, fresh=self.options.pull, listener=lambda event: self._fetching(name, event)
                    )
                )
            except BaseException as problem:  # noqa: BLE001 - whoever waits gets it
                future.set_exception(problem)
        return future.result()

    def _lent(self, source: CacheSource) -> LentImage:
        """An image that steps are borrowed of."""
        return self.workshop.lent(
            source,
            self._platform,
            fresh=self.options.pull,
            interrupt=self.interrupt,
            listener=self._heard,
        )

    def _heard(self, event: Event) -> None:
        """Pass on what somebody tells, unless the build is stopped."""
        self.check()
        self.emit(event)

    def _fetching(self, name: str, event: Event) -> None:
        """Pass on what a pull tells, and remember that there was one; its threads end by what is raised here."""
        if isinstance(event, PullStarted):
            self.fetched.add(name)
        self._heard(event)

    @contextlib.contextmanager
    def alone(self, key: Digest) -> Iterator[None]:
        """Have two stages that want the same step do it once."""
        with self._lock:
            lock = self._key_locks[key]
        with lock:
            yield


class _Step:
    """One step while it is under way."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.cached = False
        self.tail: deque[bytes] = deque()
        self._size = 0

    def keep(self, data: bytes) -> None:
        """Remember the end of what was written."""
        self.tail.append(data)
        self._size += len(data)
        while self._size - len(self.tail[0]) >= _TAIL:
            self._size -= len(self.tail.popleft())

    @property
    def last_lines(self) -> str:
        """The end of what the command wrote."""
        text = b"".join(self.tail)[-_TAIL:].decode(errors="replace")
        return "\n".join(text.splitlines()[-_TAIL_LINES:])


class _StageRun:
    """One stage, from its base to its last instruction."""

    def __init__(self, executor: Executor, planned: PlannedStage) -> None:
        self._executor = executor
        self._planned = planned
        self._options = executor.options
        self._maker = executor.maker
        self._cache = executor.cache
        self._number = 0
        self._total = 0
        self._empty: MadeLayer | None = None

    def run(self) -> StageState:
        state = self._base()
        triggers = state.triggers
        state = state.without_triggers()
        instructions = [*(parse_trigger(text) for text in triggers), *self._planned.stage.instructions]
        self._total += sum(isinstance(each, _MAKES_FILES) for each in instructions) - len(
            [each for each in self._planned.stage.instructions if isinstance(each, _MAKES_FILES)]
        )
        for number, instruction in enumerate(instructions):
            self._executor.check()
            try:
                state = self._after(state, instruction)
            except DockerfileError as problem:
                if number < len(triggers) and not problem.line:
                    raise DockerfileError(f"ONBUILD {triggers[number]} of the base image: {problem}") from problem
                raise
            except (BuildFailed, _Cancelled, ContainerInterrupted):
                raise
            except NbcontainerError as problem:
                words = instruction.sources if isinstance(instruction, i.Transfer) else ()
                raise _at(instruction.origin, problem, words) from problem
        return state

    # --- headings ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _step(self, text: str) -> Iterator[_Step]:
        executor = self._executor
        executor.check()
        self._number += 1
        step = _Step(executor.number())
        executor.emit(
            StepStarted(
                step=step.number, stage=self._label, number=self._number, total=self._total, text=" ".join(text.split())
            )
        )
        began = time.monotonic()
        end: StepEnd = "failed"
        try:
            yield step
            end = "cached" if step.cached else "done"
        except NbcontainerError:
            end = "cancelled" if executor.stopped else end
            raise
        finally:
            executor.steps += 1
            executor.cached += end == "cached"
            executor.emit(StepFinished(step=step.number, end=end, seconds=time.monotonic() - began))

    @property
    def _label(self) -> str:
        return self._planned.label if len(self._executor.plan.stages) > 1 else ""

    # --- where it starts --------------------------------------------------------------------------------------------

    def _base(self) -> StageState:
        planned = self._planned
        self._total = sum(isinstance(each, _MAKES_FILES) for each in planned.stage.instructions)
        if planned.parent is not None:
            return replace(self._stage(planned.parent), reset_command=True)
        if planned.image == SCRATCH:
            return scratch(planned.platform)
        self._total += 1
        wanted = str(planned.platform) if self._options.platform or planned.stage.base.platform else ""
        with self._step(f"FROM {planned.image}") as step:
            try:
                image = self._executor.image(planned.image, wanted)
            except NbcontainerError as problem:
                raise _at(planned.stage.base.origin, problem) from problem
            step.cached = planned.image not in self._executor.fetched
            self._check_platform(image)
            config = config_of(image, self._executor.workshop.content)
            return started_from(config, image.manifest.layers, image.config.diff_ids)

    def _check_platform(self, image: Image) -> None:
        """BuildKit's check InvalidBaseImagePlatform, the one that needs the image."""
        planned = self._planned
        offered = image.config.platform
        choice = Choice.parse(self._executor.plan.dockerfile.directives)
        if planned.platform.preference(offered) is not None or not choice.wants(_PLATFORM_CHECK):
            return
        text = (
            f"{planned.image} is made for {offered}, and this build is for {planned.platform}; its programs may not run"
        )
        finding = Finding(check=_PLATFORM_CHECK, message=text, origin=planned.stage.base.origin)
        if choice.error:
            raise finding.fatal()
        self._executor.emit(BuildWarning(check=finding.check, text=text, line=finding.origin.first))

    def _stage(self, index: int) -> StageState:
        """Another stage, when it is built."""
        future = self._executor.stage(index)
        try:
            return future.result()
        except BaseException as problem:
            raise _Cancelled("a stage that this one needs has failed") from problem

    def _wait_for(self, names: Iterable[str]) -> None:
        """Wait until the stages among what a ``from`` names are built, so that no step is shown that only waits."""
        for name in names:
            found = self._executor.plan.dockerfile.stage(name, before=self._planned.index) if name else None
            if found is not None:
                self._stage(found.index)

    def _files_of(self, name: str) -> Digest | None:
        """The files that a ``from`` names: of an earlier stage, else of an image."""
        found = self._executor.plan.dockerfile.stage(name, before=self._planned.index)
        if found is not None:
            return self._stage(found.index).chain
        if name == SCRATCH:
            return None
        if name == "host":
            raise InvalidInput("host is this machine's own root, which a build cannot copy from; use the build context")
        wanted = str(self._planned.platform) if self._options.platform else ""
        return self._executor.image(name, wanted).chain

    # --- instructions -----------------------------------------------------------------------------------------------

    def _after(self, state: StageState, instruction: i.Instruction) -> StageState:
        expanded = self._expanded(instruction, state)
        if isinstance(expanded, i.Run):
            return self._run(state, expanded)
        if isinstance(expanded, i.Transfer):
            return self._transfer(state, expanded)
        if isinstance(expanded, i.Workdir):
            return self._workdir(state, expanded)
        if isinstance(expanded, i.Arg):
            return with_arguments(state, expanded, given=self._options.arguments, outer=self._executor.plan.globals)
        return with_metadata(state, expanded)

    def _expanded(self, instruction: _I, state: StageState) -> _I:
        return expand(instruction, state.environment, escape=self._executor.plan.escape).instruction

    def _known(self, step: _Step, key: Digest, parent: Digest | None, *, unpacked: bool = True) -> MadeLayer | None:
        """What came of the step before, here or, where that was asked for, elsewhere: then it is not remembered."""
        if self._options.no_cache:
            return None
        made = self._cache.find(key, unpacked=unpacked)
        if made is None:

            def place(borrowed: MadeLayer) -> MadeLayer:
                return self._maker.on(parent, borrowed)

            made = self._executor.borrowed.find(key, parent, place if unpacked else None)
        step.cached = made is not None
        return made

    def _grown(self, state: StageState, made: MadeLayer, created_by: str, key: Digest) -> StageState:
        for notice in made.notices:
            self._executor.notice(notice)
        return state.with_layer(made.blob, made.diff_id, created_by, created=made.created, key=key)

    # RUN

    def _run(self, state: StageState, instruction: i.Run) -> StageState:
        if instruction.security != "sandbox":
            raise InvalidInput(
                "RUN --security=insecure asks for a command without a sandbox, which there is not here; leave it out"
            )
        words = instruction.arguments(state.shell)
        script = instruction.script
        program = script.body.encode() if script is not None and script.body.startswith("#!") else None
        declared = state.environment
        proxies = {
            name: value for name, value in self._options.arguments.items() if name in PROXIES and name not in declared
        }
        network = instruction.network if instruction.network != "default" else self._options.network
        shown = {name: declared[name] for name in state.arguments}
        created_by = created_by_run(words, shown)
        self._wait_for([each.from_ for each in instruction.mounts if isinstance(each, (BindRunMount, CacheRunMount))])
        with self._step(instruction.code) as step, contextlib.ExitStack() as undo:
            mounted = MountMaker(
                workshop=self._executor.workshop,
                maker=self._maker,
                cache=self._cache,
                context=self._executor.context.tree,
                secrets=self._options.secrets,
                agents=self._options.agents,
                source=self._files_of,
                resolved=state.resolved,
                check=self._executor.check,
                undo=undo,
            ).mount(instruction.mounts)
            key = step_key(
                "run",
                state.chain,
                words=list(words),
                script=program.decode() if program else None,
                environment=sorted(declared.items()),
                directory=state.directory,
                user=state.user,
                network=network,
                hosts=list(self._options.hosts),
                mounts=mounted.key,
                **self._common,
            )
            with self._executor.alone(key):
                made = self._known(step, key, state.chain)
                if made is None:
                    for make in mounted.makers:
                        make()
                    job = Job(
                        title=instruction.code,
                        chain=state.chain or self._nothing.chain,
                        argv=words,
                        environment=tuple(
                            f"{name}={value}" for name, value in {**declared, **proxies, **mounted.variables}.items()
                        ),
                        directory=state.directory,
                        user=state.user,
                        network=self._network if network == "default" else network,
                        hosts=self._options.hosts,
                        script=program,
                        mounts=tuple(mounted.mounts),
                        files=tuple(mounted.files),
                    )
                    made = self._carried_out(state, instruction, job, step, {*proxies, *mounted.variables})
                    self._cache.keep(key, made)
            return self._grown(state, made, created_by, key)

    @property
    def _common(self) -> Mapping[str, Any]:
        """What counts for every step: whether files have owners, the epoch, the platform."""
        return {
            "owners": self._executor.workshop.owners,
            "epoch": self._options.epoch,
            "platform": str(self._planned.platform),
        }

    @property
    def _network(self) -> str:
        """The network of a command for which none was asked: most builds install something."""
        problem = self._executor.workshop.no_bridge
        if not problem:
            return "bridge"
        self._executor.notice(
            f"RUN has this machine's own network, loopback included, because there is no bridge here: {problem};"
            " --network none gives it none"
        )
        return "host"

    @property
    def _nothing(self) -> MadeLayer:
        """An empty layer, for a stage without files to stand on."""
        if self._empty is None:
            self._empty = self._maker.nothing(None)
        return self._empty

    def _carried_out(
        self, state: StageState, instruction: i.Run, job: Job, step: _Step, hidden: AbstractSet[str]
    ) -> MadeLayer:
        """Run it; the variables named in `hidden` may be secrets."""
        executor = self._executor

        def output(stream: Any, data: bytes) -> None:
            step.keep(data)
            executor.emit(StepOutput(step=step.number, stream=stream, data=data))

        with executor.workshop.run(job, output) as ran:
            executor.check()
            if ran.reason == "exited" and ran.exit_code == 0:
                made = self._maker.of_run(job, ran)
                return made if state.chain is not None else self._maker.on(None, made)
            raise self._failure(instruction, job, ran, step, hidden)

    def _failure(self, instruction: i.Run, job: Job, ran: Ran, step: _Step, hidden: AbstractSet[str]) -> BuildFailed:
        """What to raise; the files of the step are kept for whoever wants to look."""
        hint = ""
        with contextlib.suppress(NbcontainerError, OSError):
            after = self._maker.of_run(job, ran)
            assert job.chain is not None
            self._executor.failed = FailedStep(
                text=instruction.code,
                line=instruction.origin.first,
                stage=self._label,
                code=ran.exit_code,
                before=job.chain,
                after=after.chain,
                variables=tuple(each for each in job.environment if each.partition("=")[0] not in hidden),
                directory=job.directory,
                user=job.user,
                network=job.network,
                command=job.argv,
                mounts=mount_texts(instruction.mounts),
                shown=tuple(each for each in job.mounts if not each.upper and not each.source.endswith("/agent")),
                moment=time.time(),
            )
            hint = "`%container debug` says how to look at the files of this step, and to go on from them"
        return BuildFailed(
            ran.exit_code,
            job.argv,
            image=f"step {self._number}/{self._total}" + (f" of {self._label}" if self._label else ""),
            reason=ran.detail or f"exit code {ran.exit_code}",
            stderr_tail=step.last_lines,
            line=instruction.origin.first,
            drawing=_drawn(instruction),
            hint=hint,
        )

    # COPY and ADD

    def _transfer(self, state: StageState, instruction: i.Transfer) -> StageState:
        inline = (f"<<{each.name}" for each in instruction.heredocs)
        flags = [
            *(["--parents"] if isinstance(instruction, i.Copy) and instruction.parents else []),
            *([f"--chown={instruction.owner}"] if instruction.owner else []),
            *([f"--chmod={instruction.mode}"] if instruction.mode else []),
        ]  # those that BuildKit tells, in its order
        words = (instruction.NAME, *flags, *instruction.sources, *inline, instruction.destination)
        created_by = f"{' '.join(words)} # nbcontainer"
        self._wait_for([instruction.from_ if isinstance(instruction, i.Copy) else ""])
        with self._step(instruction.code) as step, contextlib.ExitStack() as undo:
            selection = Selection(
                sources=instruction.sources,
                excludes=instruction.excludes,
                parents=isinstance(instruction, i.Copy) and instruction.parents,
                mode=instruction.mode,
            )
            copied_from = instruction.from_ if isinstance(instruction, i.Copy) else ""
            chain = self._files_of(copied_from) if copied_from else None
            parts: list[Part] = []
            scanned: dict[str, Any] = {}
            if copied_from:
                if chain is None:
                    raise InvalidInput(f"--from={copied_from} has no files to copy")
                scanned = self._maker.scanned(chain, selection, copied_from, self._cache)
                tops = [(name, is_dir) for _, name, is_dir in scanned["tops"]]
                entries, digests = scanned["entries"], [scanned["digest"]]
                above = scanned["above"]
            else:
                parts = self._parts(instruction, selection, undo)
                tops = [(top.name, top.is_dir) for part in parts for top in part.tops]
                entries, digests = _merged(parts), [part.digest for part in parts]
                trees = [part for part in parts if isinstance(part, TreePart)]
                above = [folder for part in trees for folder in part.tree.above(part.tops, selection)]
            # a name in --chown is looked up in the stage's accounts, so then the stage has a say in what is made
            link = instruction.link and not any(mark.isalpha() for mark in instruction.owner)
            directory = _is_directory(instruction.destination) or len(tops) > 1
            key = step_key(
                "copy",
                None if link else state.chain,
                contents=digests,
                tops=[list(top) for top in tops],
                destination=state.resolved(instruction.destination),
                directory=directory,
                owner=instruction.owner,
                mode=instruction.mode,
                parents=selection.parents,
                **({"above": above} if above else {}),
                **self._common,
            )
            with self._executor.alone(key):
                made = self._known(step, key, None if link else state.chain, unpacked=not link)
                if made is None:
                    landed = self._maker.call(
                        "land",
                        {
                            "view": None if link else self._maker.view(state.chain),
                            "destination": state.resolved(instruction.destination),
                            "directory": directory,
                            "parents": selection.parents,
                            "owner": instruction.owner,
                            "tops": [list(top) for top in tops],
                            "entries": entries,
                            "above": above,
                        },
                    )
                    made, faithful = self._copied(
                        None if link else state.chain,
                        chain=chain,
                        name=copied_from,
                        selection=selection,
                        parts=parts,
                        scanned=scanned,
                        landed=landed,
                    )
                    if faithful:
                        self._cache.keep(key, made)
            if link:
                made = self._maker.on(state.chain, made)
            return self._grown(state, made, created_by, key)

    def _copied(
        self,
        parent: Digest | None,
        *,
        chain: Digest | None,
        name: str,
        selection: Selection,
        parts: Sequence[Part],
        scanned: Mapping[str, Any],
        landed: Mapping[str, Any],
    ) -> tuple[MadeLayer, bool]:
        if not name:
            return self._maker.of_parts(parent, parts, landed)
        owner = landed["owner"]
        chosen = selection if owner is None else replace(selection, owner=(owner[0], owner[1]))
        arguments = {
            "view": self._maker.view(chain),
            "name": name,
            "selection": chosen.fields(),
            "tops": scanned["tops"],
        }
        return self._maker.of_stage(parent, arguments, landed), True

    def _parts(self, instruction: i.Transfer, selection: Selection, undo: contextlib.ExitStack) -> list[Part]:
        """What is copied from the context, from heredocs, from elsewhere."""
        tree, scratch = self._executor.context.tree, Scratch(self._executor.workshop.folder)
        local = list(instruction.sources)
        parts: list[Part] = []
        if isinstance(instruction, i.Add):
            local = [source for source in local if not downloads.is_remote(source)]
            remote = [source for source in instruction.sources if downloads.is_remote(source)]
            interrupt = self._executor.interrupt
            parts += [
                downloads.fetched(source, instruction, selection, interrupt=interrupt, scratch=scratch, undo=undo)
                for source in remote
            ]
        if local:
            chosen = replace(selection, sources=tuple(local))
            tops = tree.tops(chosen)
            if isinstance(instruction, i.Add) and instruction.unpack is not False:
                archives, tops_left = archive_parts(tree, tops, mode=instruction.mode, scratch=scratch, undo=undo)
                parts += archives
                tops = tuple(tops_left)
            if tops:
                parts.append(TreePart.of(tree, chosen, tops))
        if instruction.heredocs:
            files = {each.name: each.body.encode() for each in instruction.heredocs}
            inline = FileTree(root_fd=-1, name="the Dockerfile", files=files)
            parts.append(TreePart.of(inline, replace(selection, sources=tuple(files), parents=False, excludes=())))
        return parts

    # WORKDIR

    def _workdir(self, state: StageState, instruction: i.Workdir) -> StageState:
        path = state.resolved(instruction.path)
        created_by = f"WORKDIR {path}"
        changed = state.setting(WorkingDir=path)
        with self._step(instruction.code) as step:
            key = step_key("workdir", state.chain, path=path, user=state.user, **self._common)
            with self._executor.alone(key):
                made = self._known(step, key, state.chain)
                if made is None:
                    asked = {
                        "view": self._maker.view(state.chain),
                        "destination": path,
                        "directory": True,
                        "parents": False,
                        "owner": state.user,
                        "tops": [["", True]],
                        "entries": [],
                    }
                    folders = self._maker.call("land", asked)["folders"]
                    new = any("mtime" not in folder for folder in folders)
                    made = self._maker.of_folders(state.chain, folders) if new else self._maker.nothing(state.chain)
                    self._cache.keep(key, made)
            return self._grown(changed, made, created_by, key)


def _merged(parts: Sequence[Part]) -> list[list[Any]]:
    """The entries of several parts, their tops counted on."""
    merged: list[list[Any]] = []
    before = 0
    for part in parts:
        merged += [[before + number, below, is_dir] for number, below, is_dir in part.entries]
        before += len(part.tops)
    return merged


def _is_directory(destination: str) -> bool:
    """Whether a destination must be a folder by how it is written."""
    return destination.endswith("/") or destination.rpartition("/")[2] in {".", ".."}


def _drawn(instruction: i.Instruction) -> str:
    """The instruction's own lines, with a caret below its name."""
    column = len(instruction.origin.text) - len(instruction.origin.text.lstrip()) + 1
    first = instruction.origin.text.split("\n")[0]
    return instruction.origin.error("", column=column, width=len(first.strip()) or 1).drawing


def _at(origin: Origin, problem: NbcontainerError, words: Sequence[str] = ()) -> NbcontainerError:
    """The same error, with the line of the Dockerfile before its sentence.

    The caret is below the line, or below the one of `words` that the sentence begins with.
    """
    if isinstance(problem, DockerfileError) and problem.line:
        return problem
    rows = origin.text.split("\n")
    line, column, width = origin.first, 1, len(rows[0])
    word = next((each for each in words if problem.message.startswith(repr(each))), "")
    places = [(number, row.index(word)) for number, row in enumerate(rows) if word and row.count(word) == 1]
    if len(places) == 1:  # else nobody can tell which is meant
        line, column, width = origin.first + places[0][0], places[0][1] + 1, len(word)
    drawing = origin.error("", line=line, column=column, width=width).drawing
    # a new one, because several stages may have got the same; whatever more the class knows is taken along
    copied = type(problem).__new__(type(problem))
    copied.__dict__.update(problem.__dict__)
    copied.args = (f"line {line}: {problem.message}\n{drawing}", *problem.args[1:])
    return copied
