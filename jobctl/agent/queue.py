"""The jobs on hosts: when each of them may begin, and what is done to it there."""

from __future__ import annotations

import functools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jobctl import process, quoting, records
from jobctl.agent import endings
from jobctl.agent.caller import People
from jobctl.agent.endings import Endings, Errors
from jobctl.agent.far import Far
from jobctl.agent.hands import attempt, hand
from jobctl.agent.link import Link
from jobctl.agent.shares import Share, Spread
from jobctl.agent.slots import Slots
from jobctl.carried import Carried
from jobctl.errors import BadUsage, JobctlError, Unreachable
from jobctl.folder import Folder
from jobctl.jobs import Jobs
from jobctl.links import Links
from jobctl.model import TYPE_REMOTE, State, printable
from jobctl.process import Identity
from jobctl.runner import SCRIPT, SHELL, Sent, sent
from jobctl.share import FarTask
from jobctl.store import Store
from jobctl.transport.base import Ask
from jobctl.whole import lack

_HOSTS_AT_ONCE = 32
_UNLIMITED = 1 << 31
_WHOLES = 64
"""Jobs with children that end at the same time, usually."""
_BEAT = 1.0
"""Seconds between looks at whether a process that a job depends on is still there."""
_C = TypeVar("_C", bound=Carried)
_LEFT = "some of its processes there cannot be ended"
_TO_BE_TOLD = 20.0
"""Seconds that the end of a job that was stopped takes, at most, to be known here."""


class Queue:
    """The jobs on hosts of one state directory."""

    def __init__(
        self,
        state_dir: str,
        link_of: Callable[[Carried], Link],
        tell: Callable[[str], None],
        tell_why: Callable[[set[str], str, Ask | None], None],
        people: People,
    ) -> None:
        """Begin with nothing known.

        :param link_of: the link over which a job is reached.
        :param tell: is told the id of each job that has changed.
        :param tell_why: is told the ids of whole jobs that do not go on, why, and who knows that.
        :param people: who waits for jobs at a terminal.
        """
        self._state_dir = state_dir
        self._jobs = Jobs(state_dir)
        self._folder = functools.lru_cache(_WHOLES)(self._jobs.folder)
        """Gives a whole job's folder, which may have read its spec already."""
        self._book = Links(state_dir)
        self._boot = process.boot_id()
        self._link_of = link_of
        self._tell = tell
        self._tell_why = tell_why
        self._people = people
        self._looking = threading.Lock()
        self._attended = set[str]()
        self.waiting = set[str]()
        """Ids of jobs that wait for others."""
        self._slots = Slots()
        self._endings = Endings()
        self._spreads: dict[str, Spread] = {}
        self._carriers: dict[str, Link] = {}
        """The links over which shares of jobs with items are reached, by the shares' ids."""

    @property
    def busy(self) -> bool:
        """Whether there is a job that depends on what happens here."""
        return bool(self.waiting or self._attended or self._slots.busy or self._spreads)

    # --- finding what there is to do ---

    def look(self, ids: Collection[str] = ()) -> None:
        """Have a link look after each unfinished job on a host.

        :param ids: look at these jobs only.
        """
        with self._looking:
            if ids:
                for job_id in ids:
                    self._attempt(job_id, functools.partial(self._look_at, job_id))
                return
            # One of this thread's own: SQLite's connections belong to one.
            store = Store(self._state_dir)
            waiting, self.waiting = self.waiting, set()
            try:
                found = list(map(str, store.unsettled("type = ?", [TYPE_REMOTE])))
                self._slots.keep(set(found))
                for job_id in found:
                    self._attempt(job_id, functools.partial(self._look_at, job_id))
            except BaseException:
                self.waiting |= waiting
                raise

    def _look_at(self, job_id: str) -> None:
        whole = self._jobs.folder(job_id)
        if isinstance(whole, FarTask):
            self._spread_out(whole)
            return
        if not whole.exists() or not whole.remote:
            return  # it was removed, or is being written
        spec = whole.spec()
        count = records.integer(spec.get("children")) or 0
        throttle = records.integer(spec.get("throttle"))
        most = 1 if not count else _UNLIMITED if throttle is None else throttle
        for part in [whole.child(number) for number in range(1, count + 1)] or [whole]:
            self._attempt(job_id, functools.partial(self._look_after, part, most))

    def _attempt(self, job_id: str, work: Callable[[], object]) -> None:
        """Do something for a job, or again with the next look if the disk had no room for it."""
        if why := lack(self._state_dir, attempt(work)):
            self.waiting.add(job_id)
            self._tell_why({job_id}, why, None)

    def _look_after(self, folder: Folder, most: int) -> None:
        if not folder.exists() or folder.finished():
            return
        job = Carried(folder)
        self._attend(job)
        if self._may_begin(job) and not self._let_go(job):
            if not self._slots.take(job, most):
                job.folder.replace("run", quoting.dump({"held": b"1"}))
            elif attempt(functools.partial(self._begin, job)):
                self._give_place(job)

    def _spread_out(self, task: FarTask) -> None:
        """Have the shares of a job with items looked after."""
        if not task.exists() or task.finished():
            return  # not there before its spec is, whose count of items would be 0
        whole = Carried(task)
        self._attend(whole)
        spread = self._spreads.get(task.id)
        if spread is None:
            given = any(share.folder.has("accepted") for share in Spread.shares_of(task))
            if not given and not self._may_begin(whole):
                return
            task.unlink("run")
            why = functools.partial(self.held_up, [Carried(task)])
            spread = Spread(task, self._far_of, self._tell, self._spread_ended, why)
            self._spreads[task.id] = spread
            spread.begin()
            spread.conclude()  # all had ended when the last agent was killed
        if task.id not in self._spreads:
            return  # they end in threads of their own
        for share in spread.shares:
            if not share.hopeless and not self._let_go(share):
                error = attempt(functools.partial(self._begin, share))
                if isinstance(error, JobctlError):  # of it alone
                    spread.fail(share, f"damaged: {error}")

    def _far_of(self, share: Share) -> Far | None:
        """Return the far end of a share's connection, while that stands."""
        link = self._carriers.get(share.id)
        far = link.far if link else None
        return far if far and far.alive() else None

    def _spread_ended(self, job_id: str) -> None:
        """Do what is to be done when all items of a job have ended."""
        spread = self._spreads.pop(job_id, None)
        for share in spread.shares if spread else ():
            if link := self._carriers.pop(share.id, None):
                link.drop(share.id)
        self._tell(job_id)
        self._after(job_id)

    def _begin(self, job: Carried) -> None:
        while not (link := self._link_of(job)).add(job):
            continue  # it was just closed
        if isinstance(job, Share):
            self._carriers[job.id] = link

    def _may_begin(self, job: Carried) -> bool:
        """Whether the jobs that this one waits for are finished; ends it if they went wrong."""
        if job.sent or job.adopted:
            return True
        if job.folder.has("stop"):
            self._end_here(job, os.fsdecode(job.folder.get("stop").strip()))
            return False
        spec = job.folder.spec()
        needed = spec.get("after_ok", b"").decode().split()
        for number in (*spec.get("after", b"").decode().split(), *needed):
            other = self._jobs.folder(number).read(self._boot)
            if other is not None and not other.state.finished:
                self.waiting.add(job.id)
                job.folder.replace("run", quoting.dump({"waiting": number.encode()}))
                return False
            if number in needed and (other is None or other.state is not State.COMPLETED):
                self._end_here(job, f"not begun: job {number} did not complete")
                return False
        return True

    def _let_go(self, job: Carried) -> bool:
        """Whether a job's session was disconnected on purpose."""
        return bool(job.session) and self._book.disconnected(job.session)

    def _attend(self, job: Carried) -> None:
        """From now on, stop a job when the process that started it has ended."""
        caller = job.folder.spec().get("caller", b"").decode("ascii", "replace")
        pid, _, start = caller.partition(" ")
        if pid.isdigit() and job.id not in self._attended:
            self._attended.add(job.id)
            alone = functools.partial(self._until_alone, job, Identity(int(pid), start, self._boot))
            hand(alone, lambda _: self._attended.discard(job.id))

    def _until_alone(self, job: Carried, caller: Identity) -> None:
        why = "stopped: the process that started it ended"
        while job.exists() and not job.folder.finished():
            if process.alive(caller, self._boot):
                time.sleep(_BEAT)
                continue
            attempt(lambda: self.stop([job.id], endings.GRACE, why))
            if not job.folder.finished():
                time.sleep(endings.AGAIN)
        self._attended.discard(job.id)

    # --- what happens to jobs: see link.Company ---

    def changed(self, job: Carried) -> None:
        """Tell those who wait for news that a job has changed."""
        self._tell(job.id)

    def back(self, job: Carried, far: Far) -> None:
        """End a job, as was asked for when its host could not be told, or told nothing back."""
        self._endings.back(job, far)

    def person(self, jobs: Iterable[Carried]) -> Ask | None:
        """Return somebody at a terminal who waits for one of these jobs."""
        return self._people.who_waits(job.whole for job in jobs)

    def held_up(self, jobs: Iterable[Carried], reason: str, but: Ask | None = None) -> None:
        """Tell all who wait for them, but one, that jobs cannot go on as they are."""
        self._tell_why({job.whole for job in jobs}, reason, but)

    def ended(self, job: Carried) -> None:
        """Tell that a job is finished, and do what was to be done then."""
        self._tell(job.id)
        self._give_place(job)
        self._after(job.id.partition(".")[0])

    def _give_place(self, job: Carried) -> None:
        """Begin another child of the same whole job, as this one does no more."""
        following = self._slots.give_back(job)
        while following:
            folder = following.folder
            if folder.exists() and not folder.finished() and not folder.has("stop"):
                folder.unlink("run")
                if not attempt(functools.partial(self._begin, following)):
                    break
            following = self._slots.give_back(following)

    def _after(self, job_id: str) -> None:
        """Begin what waited for the end of a job, and say that it has come if it was the whole."""
        if self.waiting:
            hand(self.look)
        folder = self._folder(job_id)
        if not folder.spec().get("on_finish"):
            return
        whole = folder.read(self._boot)
        if whole is None or not whole.state.finished or not folder.claim("announced"):
            return
        code = "" if whole.exit_code is None else str(whole.exit_code)
        words = (*SHELL, SCRIPT, "announce", folder.path, whole.state.value, code)
        threading.Thread(
            target=subprocess.run,
            args=(words,),
            kwargs={"env": {"JOBCTL_RUNNER": "1"}, "stdin": subprocess.DEVNULL},
            daemon=True,
        ).start()

    def _end_here(self, job: Carried, reason: str) -> None:
        """Write down that a job was stopped of which the host knows nothing."""
        if isinstance(job.folder, FarTask):
            job.folder.note_stop("stop", reason)
            job.folder.conclude()  # raises where the disk is full: then it is done again
            self.waiting.discard(job.id)
            self._tell(job.id)
            self._after(job.id)
            return
        first = job.end(State.STOPPED.value, reason)
        self.waiting.discard(job.id)
        if first:
            self.ended(job)

    # --- what is done to jobs ---

    def _on_hosts(self, jobs: list[_C], act: Callable[[Link, list[_C]], None]) -> Errors:
        """Do something with jobs, on all hosts at once; return errors by the jobs' ids."""
        errors = Errors()
        found: dict[Link, list[_C]] = {}
        for job in jobs:
            if self._let_go(job):
                session = printable(job.session)
                errors[job.id] = Unreachable(f"session {session} was disconnected; connect it")
            elif job.nowhere:
                errors[job.id] = Unreachable(job.nowhere)
            else:
                try:
                    found.setdefault(self._link_of(job), []).append(job)
                except BadUsage as error:
                    errors[job.id] = Unreachable(f"damaged: {error}; see --local-only")

        def try_on(link: Link, group: list[_C]) -> None:
            try:
                act(link, group)
            except JobctlError as error:
                errors.update(dict.fromkeys([job.id for job in group], error))
            except OSError as error:
                errors.update(dict.fromkeys([job.id for job in group], self._unwritten(error)))

        with ThreadPoolExecutor(_HOSTS_AT_ONCE) as pool:
            for done in [pool.submit(try_on, *entry) for entry in found.items()]:
                done.result()
        return errors

    def _unwritten(self, error: OSError) -> JobctlError:
        """Return what to say of what could not be written down."""
        return JobctlError(lack(self._state_dir, error) or error.strerror)

    def _carried(self, ids: list[str]) -> list[Carried]:
        folders = (self._jobs.folder(job_id) for job_id in ids)
        return [Carried(folder) for folder in folders if folder.exists()]

    def _there(self, ids: list[str]) -> list[Carried]:
        """Return those of some jobs that their hosts may have."""
        return [job for job in self._carried(ids) if job.sent or job.adopted]

    def stop(
        self, ids: list[str], grace: float, reason: str, ask: Ask | None = None
    ) -> tuple[list[str], Errors]:
        """Stop jobs, and what finished ones left running.

        :param ask: who answers what hosts want to know, here and below.

        :return: the ids of those of which something is left, and errors by id.
        """
        asked = dict[Carried, Link]()
        with self._endings.asked_for(ids):
            answer = self._stop(ids, grace, reason, ask, asked)
        for job, link in asked.items():
            if far := link.far:
                self.back(job, far)
        return answer

    def _stop(
        self, ids: list[str], grace: float, reason: str, ask: Ask | None, asked: dict[Carried, Link]
    ) -> tuple[list[str], Errors]:
        """Do what stop() does.

        :param asked: is given the jobs that are to end all the same where there was no answer.
        """
        ids, of_items = self._apart(ids)
        left, errors = list[str](), Errors()
        # First of all, as this agent may be killed.
        chosen = self._carried(ids)
        before = {job for job in chosen if job.stop_asked}
        for job in chosen:
            try:
                job.ask_for_stop(reason)
            except OSError as failure:
                errors[job.id] = self._unwritten(failure)
        chosen = [job for job in chosen if job.id not in errors]
        for task, numbers in of_items.items():
            try:
                some, error = self._stop_items(task, numbers, grace, reason, ask)
            except OSError as failure:
                some, error = False, self._unwritten(failure)
            if error:
                errors[task.id] = error
                shares = spread.shares if (spread := self._spreads.get(task.id)) else []
                asked |= {s: link for s in shares if (link := self._carriers.get(s.id))}
            elif some:
                left.append(task.id)
        there = list[Carried]()
        for job in chosen:
            if job.sent or job.adopted or not self._withdrawn(job):
                there.append(job)
            else:
                self._end_here(job, reason)

        def act(link: Link, jobs: list[Carried]) -> None:
            for job in jobs:
                if not job.folder.finished():
                    link.add(job)  # to hear of its end
            link.opened(ask)
            asked.update(dict.fromkeys(jobs, link))
            some, elsewhere = self._end(link, jobs, grace, reason, ask)
            left.extend(some)
            errors.update(elsewhere)
            for job in jobs:
                if isinstance(elsewhere.get(job.id), Unreachable):
                    del asked[job]

        errors |= self._on_hosts(there, act)
        for job in there:
            if not (error := errors.get(job.id)):
                asked.pop(job, None)
            elif job not in asked and job not in before:
                job.folder.unlink("stop")
            elif isinstance(error, Unreachable):
                errors[job.id] = Unreachable(f"{error}; it is stopped as soon as it can be")
        return left, errors

    def _apart(self, ids: list[str]) -> tuple[list[str], dict[FarTask, set[int] | None]]:
        """Return the ids of jobs without items, and items by their jobs, None for all of one."""
        others, found = list[str](), dict[FarTask, set[int] | None]()
        for job_id in ids:
            whole, _, number = job_id.partition(".")
            task = self._jobs.folder(whole)
            if not isinstance(task, FarTask):
                others.append(job_id)
            elif not number:
                found[task] = None
            elif (numbers := found.setdefault(task, set())) is not None:
                numbers.add(int(number))
        return others, found

    def _stop_items(
        self,
        task: FarTask,
        numbers: set[int] | None,
        grace: float,
        reason: str,
        ask: Ask | None,
    ) -> tuple[bool, JobctlError | None]:
        if task.finished():
            return self._end_leftovers(task, numbers, grace, ask)
        if spread := self._spread_of(task, ask):
            return spread.stop(numbers, grace, reason)
        if numbers is None:  # it waits for another job
            self._end_here(Carried(task), reason)
        else:
            for number in numbers:
                task.note_end(number, State.STOPPED, reason)
        return False, None

    def _spread_of(self, task: FarTask, ask: Ask | None) -> Spread | None:
        """Return what shares items out, if that has begun, with its hosts reached if they can be.

        An agent that has just begun may not have come to this job yet.
        """
        self.look([task.id])
        spread = self._spreads.get(task.id)
        if spread:
            shares: list[Carried] = [s for s in spread.shares if s.folder.has("accepted")]

            def reach(link: Link, _: list[Carried]) -> None:
                link.opened(ask)

            self._on_hosts(shares, reach)
        return spread

    def _end_leftovers(
        self, task: FarTask, numbers: set[int] | None, grace: float, ask: Ask | None
    ) -> tuple[bool, JobctlError | None]:
        """End what items of a finished job left running; return what Spread.stop() does."""
        answers = list[bytes]()

        def held(share: Share) -> list[int]:
            return [0] if numbers is None else sorted(share.place.holds(numbers))

        def act(link: Link, shares: list[Share]) -> None:
            for share in shares:
                far = link.opened(ask)
                answers.append(share.end_items(far, held(share), grace, "stopped by user"))

        errors = self._on_hosts([*filter(held, self._shares_there(task))], act)
        return any(answer.split() for answer in answers), next(iter(errors.values()), None)

    @staticmethod
    def _shares_there(task: FarTask) -> list[Share]:
        """Return the shares of a finished job that hosts may have."""
        return [share for share in Spread.shares_of(task) if share.sent and share.exists()]

    def _withdrawn(self, job: Carried) -> bool:
        """Take a job back that was not handed to its host; return False if it just was."""
        if self._let_go(job) or job.folder.finished() or job.id in self.waiting:
            return True
        if self._slots.withdraw(job):
            return True
        return self._link_of(job).withdraw(job)

    def _end(
        self, link: Link, jobs: list[Carried], grace: float, reason: str, ask: Ask | None
    ) -> tuple[list[str], Errors]:
        """Stop jobs on a host.

        :return: the ids of those of which something is left, and errors by the ids of those
            that run on another machine, or whose end cannot be written down here.
        """
        left, elsewhere = endings.request_end(link.opened(ask), jobs, grace, reason)
        for job in jobs:
            if job.id not in left and job.id not in elsewhere:
                endings.until(lambda: job.folder.finished() or bool(link.lacking), _TO_BE_TOLD)  # noqa: B023
                if not job.folder.finished():
                    why = link.lacking or "its end is not known here yet; stop it again"
                    elsewhere[job.id] = JobctlError(f"it has ended there; {why}")
        return left, elsewhere

    def signal(self, ids: list[str], name: str, ask: Ask | None = None) -> tuple[Sent, Errors]:
        """Send a signal to jobs.

        :return: what is said of them, by their ids, and errors by id.
        """
        result, elsewhere = Sent(set(), set()), Errors()

        def act(link: Link, jobs: list[Carried]) -> None:
            for folder, group in endings.by_folder(jobs).items():
                answer = link.opened(ask).request("signal", folder, name.encode(), *group).split()
                elsewhere.update(endings.elsewhere_of(answer, group))
                said = sent(map(os.fsdecode, answer))
                for ids, numbers in zip(result, said, strict=True):
                    ids.update(endings.named([*map(os.fsencode, numbers)], group))
            link.opened().look()

        ids, of_items = self._apart(ids)
        errors = Errors()
        for task, numbers in of_items.items():
            if spread := self._spread_of(task, ask):
                said, error = spread.signal(numbers, name)
                result.missed.update(said.missed)
                result.unbegun.update(said.unbegun)
                if error:
                    errors[task.id] = error
            elif not task.finished():
                result.unbegun.update(task.ids_of(map(str, numbers or {0})))
        there = self._there(ids)
        waiting = {job.id for job in self._carried(ids) if not job.folder.finished()}
        result.unbegun.update(waiting.difference(job.id for job in there))
        errors |= self._on_hosts(there, act)
        return result, errors | elsewhere

    def erase(self, ids: list[str], ask: Ask | None = None) -> Errors:
        """Delete finished jobs on their hosts, with what they left running; return errors by id."""
        refused = Errors()
        ids, of_items = self._apart(ids)

        def erase_shares(link: Link, shares: list[Share]) -> None:
            for share in shares:
                if share.end_items(link.opened(ask), [0], endings.GRACE, "removed").split():
                    refused[share.task.id] = JobctlError(_LEFT)
                    continue
                link.opened(ask).request("erase", os.fsencode(share.path))
                link.drop(share.id)

        for task in of_items:
            for error in self._on_hosts(self._shares_there(task), erase_shares).values():
                refused[task.id] = error

        def act(link: Link, jobs: list[Carried]) -> None:
            left, elsewhere = self._end(link, jobs, endings.GRACE, "removed", ask)
            refused.update(dict.fromkeys(left, JobctlError(_LEFT)) | elsewhere)
            for job in jobs:
                if job.id in refused:
                    continue
                try:
                    link.opened(ask).request("erase", os.fsencode(job.path))
                except Unreachable:
                    raise
                except JobctlError as error:
                    refused[job.id] = error
                link.drop(job.id)

        return self._on_hosts(self._there(ids), act) | refused

    def fetch(self, ids: list[str], ask: Ask | None = None) -> Errors:
        """Bring home the output of jobs that was to stay on the host, as far as it is there.

        :return: errors by id.
        """
        gone = Errors()
        chosen = self._carried(ids)
        for job in chosen:
            # Of one that the host has not got yet, all comes when it does.
            if (error := attempt(job.want)) and job.exists():
                gone[job.id] = JobctlError(lack(self._state_dir, error) or str(error))

        def act(link: Link, jobs: list[Carried]) -> None:
            link.opened(ask)
            for job in jobs:
                link.add(job, anew=True)
            for job in jobs:
                # As long as something comes: it may be much.
                while job.exists() and not job.caught_up.wait(_BEAT):
                    link.opened(ask)
                    if link.lacking:
                        raise JobctlError(link.lacking)
                if job.gone:
                    gone[job.id] = Unreachable(f"its output on {job.host} was removed")

        return self._on_hosts([job for job in chosen if job.sent or job.adopted], act) | gone
