"""The workers of a running app, one for each of its databases. Carries out nothing itself.

A database that cannot be reached is tried again, and keeps no other from its work.
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
from groundstate.engine import trouble
from groundstate.engine.apart import Admitted
from groundstate.engine.guarded import describe
from groundstate.engine.succession import WHILE_IT_CAME_UP
from groundstate.engine.worker import Ended, Worker
from groundstate.rules.reaction import ReactionSpec
from groundstate.values.errors import Stopped

log = logging.getLogger("groundstate")
FIRST_S = 0.5  # so soon a database is tried again, and then each time after twice as long
LONGEST_S = 30.0
START_S = 10.0  # so long the start waits for those that neither come up nor are refused, once one is up; and for what each finds then


@dataclass
class Post:
    """One database, and who carries out on it."""

    store: Store
    sharded: Sequence[ReactionSpec]
    shards: Sequence[str]  # all of its sharded store
    reactions: Sequence[str] = ()
    worker: Worker | None = None
    coming: Worker | None = None  # that is to be it
    error: BaseException | None = None
    tried: bool = field(default=False)
    ended: BaseException | None = None  # what ended its worker by itself; None once another one is up
    pause_s: float = 0.0  # before another one was made
    since: float = 0.0  # monotonic: when its worker came up

    @property
    def up(self) -> bool:
        """Whether its worker came up."""
        return self.worker is not None

    @property
    def trouble(self) -> str | None:
        """Why nothing is carried out there just now."""
        if self.worker is not None:
            return self.worker.trouble
        if self.error is None:
            return "its database did not answer yet"
        return f"its worker ended by itself: {_in_words(self.error)}" if self.error is self.ended else _in_words(self.error)


class Crew:
    """For any thread. make: a worker that is not started yet (held; in another's place). greet: is told of each that came up."""

    def __init__(
        self, posts: Sequence[Post], make: Callable[[Store, bool, bool], Worker], greet: Callable[[Store, Worker], None], *, held: bool
    ) -> None:
        self.posts = posts
        self._make = make
        self._greet = greet
        self._held = held
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._starting = True  # somebody waits for what the first tries come to
        self._admitted = Admitted()

    @property
    def workers(self) -> list[Worker]:
        """Those that are up."""
        return [post.worker for post in self.posts if post.worker is not None]

    def is_over(self) -> bool:
        """Whether it was stopped."""
        return self._over.is_set()

    @property
    def failure(self) -> BaseException | None:
        """What ended a worker by itself in whose place no other one is yet."""
        return next((post.ended for post in self.posts if post.ended is not None), None)

    @property
    def down(self) -> dict[str, str]:
        """By the name of each database on which nothing is carried out just now, why."""
        return {post.store.label: post.trouble for post in self.posts if post.trouble is not None}

    @property
    def waiting(self) -> dict[str, str]:
        """By the name of each reaction that is not carried out somewhere just now, why."""
        found: dict[str, str] = {}
        for post in self.posts:
            if post.worker is not None:
                found |= post.worker.waiting
            else:
                found |= dict.fromkeys(post.reactions, f"{post.store.label} is down: {post.trouble}")
        return found

    # ---- coming up -------------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Returns once all are up, or one is, and the others cannot be reached.

        Raises:
            Stopped: `stop` was called meanwhile.
            what stands in the way: of a database that was reached, or of the first where none can be.
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
            raise Stopped(WHILE_IT_CAME_UP)
        standing = [post.error for post in self.posts if post.error is not None and not trouble.transient(post.error)]
        if not standing and not self.workers:
            standing = [post.error for post in self.posts if post.error is not None]
        if standing:
            self.stop(0)
            raise standing[0]

    def _settled(self, end: float) -> bool:
        """Whether it is known what the start comes to."""
        if self.is_over():
            return True
        if any(post.error is not None and not trouble.transient(post.error) for post in self.posts):
            return True
        return all(post.tried for post in self.posts) or (time.monotonic() >= end and bool(self.workers))

    def _keep_trying(self, post: Post) -> None:
        wait = FIRST_S
        while not self.is_over():
            try:
                self._bring_up(post)
            except BaseException as error:  # noqa: BLE001  # told by the start, or in the log
                with self._changed:
                    said, post.error, post.tried = self._starting, error, True
                    self._changed.notify_all()
                if self.is_over() or (said and not trouble.transient(error)):
                    return  # by the start
                self._say_down(post.store.label, wait, _in_words(error))
                self._over.wait(wait)
                wait = min(wait * 2, LONGEST_S)
            else:
                return

    def _say_down(self, store: str, wait_s: float, error: str) -> None:
        words = "%s: nothing is carried out there, tried again in %.1f s: %s"
        log.warning(words, store, wait_s, error, extra={"event": "store_down", "store": store, "wait_s": wait_s, "error": error})

    def _bring_up(self, post: Post) -> None:
        worker = self._make(post.store, self._held, post.ended is not None)
        worker.when_ended = partial(self._replace, post)
        with self._changed:
            if self.is_over():
                raise Stopped(WHILE_IT_CAME_UP)
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
            worker.stop(0)  # the app was stopped meanwhile
        elif not self._held:
            worker.go()
        if late:
            words = "%s: can be reached, and is carried out"
            log.warning(words, post.store.label, extra={"event": "store_reached", "store": post.store.label})
        if replaced:
            words = "%s: another worker carries it out, in the place of the one that ended"
            log.warning(words, post.store.label, extra={"event": "worker_replaced", "store": post.store.label})

    def _replace(self, post: Post, worker: Worker) -> None:
        """Another one in its place, by the very thread that ends: there may be no other to be had."""
        with self._changed:
            self._changed.wait_for(lambda: post.worker is worker or post.coming is not worker or self.is_over())
            if post.worker is not worker or self.is_over():
                return
            post.worker, post.error, post.ended = None, worker.failure, worker.failure
            lasted = time.monotonic() - post.since
            post.pause_s = FIRST_S if lasted > 2 * LONGEST_S else min(max(post.pause_s * 2, FIRST_S), LONGEST_S)
        self._over.wait(post.pause_s)
        self._keep_trying(post)

    def _admit(self, post: Post, worker: Worker) -> None:
        try:
            worker.database.connect()
            with self._changed:
                self._admitted.admit(post.store.label, worker.database, post.sharded, post.shards)
        except BaseException:
            worker.database.close()
            raise

    # ---- going on, and the end ---------------------------------------------------------------------------------------------------
    def go(self) -> None:
        """Carries out from now on, those that come up later too."""
        with self._changed:
            self._held = False
            workers = self.workers
        for worker in workers:
            worker.go()

    def wait_for(self, post: Post, timeout_s: float | None) -> Worker | None:
        """The worker of this database, once it is up; None where it was not in time."""
        with self._changed:
            self._changed.wait_for(lambda: post.up or self.is_over(), timeout_s)
            return post.worker

    def stop(self, limit_s: float) -> Ended:
        """All at once, each within the limit; nothing is tried any more, and a start ends. Once: who comes second changes nothing."""
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
    return trouble.told(error) if isinstance(error, DBAPIError) else describe(error)
