"""Run work in processes that end with the program, however it ends::

for index, job in run_in_processes(draw, range(100), processes=4, initializer=load, initargs=("models/garden-tiny",)):
    print(index, job.result())
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

Task = TypeVar("Task")


def run_in_processes(
    function: Callable[[Task], Any],
    tasks: Iterable[Task],
    processes: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple = (),
) -> Iterator[tuple[Task, Future]]:
    """Yield every task with its completed future, in order of completion.

    Workers are fresh processes ("spawn"), so that no thread or device of this one is copied; a program that calls this
    needs `if __name__ == "__main__":`. Ctrl-C is for the program, which ends them. A generator that is closed early
    ends them, too. When a worker dies, the futures that are left raise `BrokenProcessPool`.

    Args:
        function: importable by name; called in a worker with a task.
        tasks: picklable; one call each.
        processes: workers, at most one a task.
        initializer: importable by name; called once in each worker.
        initargs: its arguments.

    Raises:
        ValueError: fewer than one process.
    """
    tasks = list(tasks)
    if not tasks:
        return
    workers: set[Any] = set()
    earlier = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(processes, len(tasks)),
        multiprocessing.get_context("spawn"),
        _start_worker,
        (initializer, initargs),
    )
    is_complete = False
    try:
        with _blocked_ctrl_c():
            jobs = {pool.submit(function, task): task for task in tasks}
            workers = set(multiprocessing.active_children()) - earlier
        for job in as_completed(jobs):
            yield jobs.pop(job), job  # popped, because a result may be large and is the caller's now
        is_complete = True
    finally:
        if not is_complete:  # an error or Ctrl-C: a resumed run repeats the tasks under way
            for worker in workers:
                worker.terminate()
        pool.shutdown(wait=is_complete, cancel_futures=True)


@contextmanager
def _blocked_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C back. Processes started meanwhile never get it, not even before their first line of Python."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(initializer: Callable[..., None] | None, initargs: tuple) -> None:
    end_with_parent()
    if initializer is not None:
        initializer(*initargs)


def end_with_parent() -> None:
    """Make this worker end as soon as its parent has ended: a killed program cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
