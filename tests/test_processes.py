"""Tests of avis/processes.py: results of every task, and workers that end with the program, however it ends."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from avis.processes import end_with_parent, run_in_processes

ROOT = Path(__file__).resolve().parents[1]
TESTS = Path(__file__).parent
_prepared = []
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


def prepare(value: int) -> None:
    _prepared.append(value)


def add(number: int) -> tuple[int, int]:
    if number == 3:
        raise ValueError("three")
    return number + sum(_prepared), os.getpid()


def die(number: int) -> None:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)


def sleep(folder: str) -> None:
    """Leave a file named after this process, and sleep for longer than any test."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(300)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def workers_in(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def test_every_task_comes_back_with_its_result_or_error():
    """Guards against: tasks lost or doubled, an initializer that is not run, work done in this process, and one error
    that ends the others."""
    results = {task: job for task, job in run_in_processes(add, iter(range(6)), 2, prepare, (10,))}
    assert sorted(results) == list(range(6))
    with pytest.raises(ValueError, match="three"):
        results.pop(3).result()
    assert {task: job.result()[0] for task, job in results.items()} == {task: task + 10 for task in results}
    processes = {job.result()[1] for job in results.values()}
    assert len(processes) <= 2 and os.getpid() not in processes


def test_no_tasks_need_no_process():
    assert list(run_in_processes(add, [], 2)) == []


def test_a_worker_that_dies_does_not_hang_the_program():
    """Guards against: a wait for the result of a process that the system has killed for its memory."""
    jobs = dict(run_in_processes(die, range(4), 2))
    assert sorted(jobs) == list(range(4))
    assert any(isinstance(job.exception(), BrokenProcessPool) for job in jobs.values())


@needs_proc
def test_a_generator_closed_early_ends_its_workers_alone(tmp_path):
    """Guards against: workers that finish what nobody waits for, and other processes of the program ended with them."""
    own = subprocess.Popen(["sleep", "60"])
    running = run_in_processes(sleep_or_return, [str(tmp_path), str(tmp_path), ""], 3)
    try:
        task, job = next(running)
        assert (task, job.result()) == ("", None) and wait_until(lambda: len(workers_in(tmp_path)) == 2)
        running.close()
        assert wait_until(lambda: not any(map(is_running, workers_in(tmp_path))))
        assert own.poll() is None
    finally:
        own.kill()
        own.wait()


def sleep_or_return(folder: str) -> None:
    if folder:
        sleep(folder)


PROGRAM = """
import sys
sys.path[:0] = sys.argv[2:]
from avis.processes import run_in_processes
from test_processes import sleep

if __name__ == "__main__":
    try:
        for _ in run_in_processes(sleep, [sys.argv[1]] * 2, 2):
            pass
    except KeyboardInterrupt:
        print("interrupted")
"""


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["at work", "starting"])
def test_workers_end_with_the_program(tmp_path, how, when):
    """Guards against: workers that outlive a killed program and hold its GPU; at Ctrl-C, which goes to all processes of a
    terminal, tracebacks of workers, those that are still starting included."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    seen = tmp_path / "seen"
    seen.mkdir()
    command = [sys.executable, str(program), str(seen), str(ROOT), str(TESTS)]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    def children() -> list[int]:
        found = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    assert wait_until(lambda: len(workers_in(seen)) == 2 if when == "at work" else len(children()) == 2)
    workers = children()
    if how == signal.SIGINT:
        os.killpg(running.pid, how)  # as a terminal does
    else:
        running.send_signal(how)
    out, err = running.communicate(timeout=30)
    assert wait_until(lambda: not any(map(is_running, workers)))
    if how == signal.SIGINT:
        assert (out, err) == ("interrupted\n", "")


def test_the_program_itself_has_no_parent_to_end_with():
    end_with_parent()
