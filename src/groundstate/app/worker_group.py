"""Starts and stops the workers of an app, one for each of its databases. Carries out nothing itself.

A database that cannot be reached is tried again, and does not keep the others from their work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.exc import DBAPIError

from groundstate.app.store import Store
from groundstate.engine.operate.shard_check import Admitted
from groundstate.engine.recover.startup import WHILE_IT_CAME_UP
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.safe_text import describe
from groundstate.engine.worker import Ended, Worker
from groundstate.rules.specs import ReactionSpec
from groundstate.values.errors import StoppedError

log = logging.getLogger("groundstate")
FIRST_S = 0.5  # seconds before a database is tried again; the pause then doubles each time
LONGEST_S = 30.0  # seconds: the longest pause between two tries to reach a database
START_S = 10.0  # seconds: a start waits for workers that neither come up nor fail, once one is up; then for each to register


@dataclass
class DatabaseWorkerSlot:
    """One database of the app, and the worker that runs on it."""

    store: Store
    sharded: Sequence[ReactionSpec]
    shards: Sequence[str]  # the names of all shards of the store
    reactions: Sequence[str] = ()
    worker: Worker | None = None
    coming: Worker | None = None  # the worker that is being brought up
    error: BaseException | None = None
    tried: bool = field(default=False)
    ended: BaseException | None = None  # the error that ended its worker; None once another worker is up
    pause_s: float = 0.0  # seconds: the last pause before a new worker was made
    since: float = 0.0  # time.monotonic() when its worker came up

    @property
    def up(self) -> bool:
        """Whether the worker of this database came up."""
        return self.worker is not None

    @property
    def trouble(self) -> str | None:
        """The reason why nothing is carried out on this database now. It is None if all is well."""
        if self.worker is not None:
            return self.worker.trouble
        if self.error is None:
            return "its database did not answer yet"
        return f"its worker ended by itself: {_in_words(self.error)}" if self.error is self.ended else _in_words(self.error)


class WorkerGroup:
    """All workers of a running app. It may be used from any thread.

    make(store, waits for `go`, replaces another): returns a worker that is not started yet. greet(store, worker): is called when a worker
    has come up.
    """

    def __init__(
        self,
        posts: Sequence[DatabaseWorkerSlot],
        make: Callable[[Store, bool, bool], Worker],
        greet: Callable[[Store, Worker], None],
        *,
        wait: bool,
    ) -> None:
        self.posts = posts
        self._make = make
        self._greet = greet
        self._waits = wait
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._starting = True  # `start` still waits for the result of the first tries
        self._admitted = Admitted()

    @property
    def workers(self) -> list[Worker]:
        """The workers that are up."""
        return [post.worker for post in self.posts if post.worker is not None]

    def is_over(self) -> bool:
        """Whether the crew was stopped."""
        return self._over.is_set()

    @property
    def failure(self) -> BaseException | None:
        """The error that ended a worker which has not been replaced yet. It is None if there is no such worker."""
        return next((post.ended for post in self.posts if post.ended is not None), None)

    @property
    def down(self) -> dict[str, str]:
        """The databases on which nothing is carried out now, by name, each with the reason."""
        return {post.store.label: post.trouble for post in self.posts if post.trouble is not None}

    @property
    def waiting(self) -> dict[str, str]:
        """The reactions that are not carried out on some database now, by name, each with the reason."""
        found: dict[str, str] = {}
        for post in self.posts:
            if post.worker is not None:
                found |= post.worker.waiting
            else:
                found |= dict.fromkeys(post.reactions, f"{post.store.label} is down: {post.trouble}")
        return found

    # ---- coming up -------------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the workers. Returns once all are up, or once one is and the other databases cannot be reached.

        Raises:
            StoppedError: `stop` was called meanwhile.
            BaseException: a database that was reached cannot be used; or no database can be reached, then the first one's error.
        """
        if len(self.posts) == 1:
            self._starting = False
            self._bring_up(self.posts[0])
            return
        for post in self.posts:
            threading.Thread(target=self._keep_trying, args=(post,), name=f"groundstate-reaching-{post.store.label}", daemon=True).start()
        end = time.monotonic() + START_S
        with self._changed:
            self._changed.wait_for(lambda: self._settled(end), START_S)
            self._changed.wait_for(lambda: self._settled(end))
            self._starting = False
        if self.is_over():
            raise StoppedError(WHILE_IT_CAME_UP)
        standing = [post.error for post in self.posts if post.error is not None and not db_errors.transient(post.error)]
        if not standing and not self.workers:
            standing = [post.error for post in self.posts if post.error is not None]
        if standing:
            self.stop(0)
            raise standing[0]

    def _settled(self, end: float) -> bool:
        """Whether the result of the start is known."""
        if self.is_over():
            return True
        if any(post.error is not None and not db_errors.transient(post.error) for post in self.posts):
            return True
        return all(post.tried for post in self.posts) or (time.monotonic() >= end and bool(self.workers))

    def _keep_trying(self, post: DatabaseWorkerSlot) -> None:
        wait = FIRST_S
        while not self.is_over():
            try:
                self._bring_up(post)
            except BaseException as error:  # noqa: BLE001  # `start` raises the error, or it is logged
                with self._changed:
                    said, post.error, post.tried = self._starting, error, True
                    self._changed.notify_all()
                if self.is_over() or (said and not db_errors.transient(error)):
                    return  # `start` raises the error
                self._say_down(post.store.label, wait, _in_words(error))
                self._over.wait(wait)
                wait = min(wait * 2, LONGEST_S)
            else:
                return

    def _say_down(self, store: str, wait_s: float, error: str) -> None:
        words = "%s: nothing is carried out there, tried again in %.1f s: %s"
        log.warning(words, store, wait_s, error, extra={"event": "store_down", "store": store, "wait_s": wait_s, "error": error})

    def _bring_up(self, post: DatabaseWorkerSlot) -> None:
        worker = self._make(post.store, self._waits, post.ended is not None)
        worker.when_ended = partial(self._replace, post)
        with self._changed:
            if self.is_over():
                raise StoppedError(WHILE_IT_CAME_UP)
            post.coming = worker
        if len(self.posts) > 1:
            self._admit(post, worker)
        worker.start()
        self._greet(post.store, worker)
        worker.until_registered(START_S)
        with self._changed:
            late, replaced = post.tried and post.ended is None, post.ended is not None
            post.worker, post.coming, post.error, post.ended, post.tried = worker, None, None, None, True
            post.since = time.monotonic()
            over = self.is_over()
            self._changed.notify_all()
        if over:
            worker.stop(0)  # the app was stopped while the worker came up
        elif not self._waits:
            worker.go()
        if late:
            words = "%s: can be reached, and is carried out"
            log.warning(words, post.store.label, extra={"event": "store_reached", "store": post.store.label})
        if replaced:
            words = "%s: another worker carries it out, in the place of the one that ended"
            log.warning(words, post.store.label, extra={"event": "worker_replaced", "store": post.store.label})

    def _replace(self, post: DatabaseWorkerSlot, worker: Worker) -> None:
        """Bring up another worker in place of one that ended by itself. It runs in the thread that ends, since a new thread may fail to
        start.
        """
        with self._changed:
            self._changed.wait_for(lambda: post.worker is worker or post.coming is not worker or self.is_over())
            if post.worker is not worker or self.is_over():
                return
            post.worker, post.error, post.ended = None, worker.failure, worker.failure
            lasted = time.monotonic() - post.since
            post.pause_s = FIRST_S if lasted > 2 * LONGEST_S else min(max(post.pause_s * 2, FIRST_S), LONGEST_S)
        self._over.wait(post.pause_s)
        self._keep_trying(post)

    def _admit(self, post: DatabaseWorkerSlot, worker: Worker) -> None:
        try:
            worker.database.connect()
            with self._changed:
                self._admitted.admit(post.store.label, worker.database, post.sharded, post.shards)
        except BaseException:
            worker.database.close()
            raise

    # ---- running and stopping -----------------------------------------------------------------------------------------------------
    def go(self) -> None:
        """Let all workers carry out from now on, also those that come up later."""
        with self._changed:
            self._waits = False
            workers = self.workers
        for worker in workers:
            worker.go()

    def wait_for(self, post: DatabaseWorkerSlot, timeout_s: float | None) -> Worker | None:
        """Return the worker of this database once it is up. Returns None if it was not up in time."""
        with self._changed:
            self._changed.wait_for(lambda: post.up or self.is_over(), timeout_s)
            return post.worker

    def stop(self, limit_s: float) -> Ended:
        """Stop all workers at once, each within the limit. No database is tried any more, and a start in progress ends.

        Idempotent: a second call changes nothing.
        """
        with self._changed:
            if self.is_over():
                return Ended()
            self._over.set()
            self._changed.notify_all()
            workers = [worker for post in self.posts if (worker := post.worker or post.coming) is not None]
        if len(workers) == 1:
            return workers[0].stop(limit_s)
        ends: list[Ended] = []
        threads = [threading.Thread(target=_stop, args=(worker, limit_s, ends), name="groundstate-stopping") for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Ended(
            sum(one.in_doubt for one in ends),
            clean=self.failure is None and all(one.clean for one in ends),
            hangs=any(one.hangs for one in ends),
        )


def _stop(worker: Worker, limit_s: float, ends: list[Ended]) -> None:
    ends.append(worker.stop(limit_s))


def _in_words(error: BaseException) -> str:
    return db_errors.error_in_one_line(error) if isinstance(error, DBAPIError) else describe(error)
