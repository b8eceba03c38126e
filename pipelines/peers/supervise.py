"""Run a command and everything it starts: processor time, memory and limits of the whole tree, to the last process.

Linux alone. Imports psutil.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2): orphans of the tree become children of this process, which can count them."""
_PERIOD = 0.1
"""Seconds between two looks at the tree's memory."""


@dataclass
class Course:
    """What became of a tree of processes.

    Parameters
    ----------
    lines : list of (float, float, str)
        Wall and processor seconds of the tree when each marked line came, and the line without its mark.
    exit_code : int
    ended : {'', 'time', 'memory'}
        The limit that it was ended for.
    seconds : float
    peak_bytes : int
        The larger of the largest sum of resident sizes seen, and the largest resident size of one process, which the
        kernel knows exactly.
    tail : str
        Last lines of standard error.
    """

    lines: list[tuple[float, float, str]] = field(default_factory=list)
    exit_code: int = 0
    ended: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0
    tail: str = ""


def supervised(
    command: list[str], *, environ: dict[str, str], mark: str, timeout: float, memory: int, scratch: Path
) -> Course:
    """Run a command in a tree of its own.

    Parameters
    ----------
    command : list of str
    environ : dict
    mark : str
        How lines begin that are kept.
    timeout : float
        Seconds.
    memory : int
        Bytes above which the tree is ended; 0 for none.
    scratch : Path
        Its working files.

    Returns
    -------
    Course
    """
    # In a process of its own, for it becomes the parent of every orphan of the tree.
    with ProcessPoolExecutor(1, get_context("spawn")) as child:
        return child.submit(_watch, command, environ, mark, timeout, memory, scratch).result()


def _watch(
    command: list[str], environ: dict[str, str], mark: str, timeout: float, memory: int, scratch: Path
) -> Course:
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    course, started = Course(), time.perf_counter()
    before = _spent(resource.getrusage(resource.RUSAGE_CHILDREN))
    stderr = scratch / "stderr.txt"
    with stderr.open("w") as errors:
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )

    def listen() -> None:
        for line in process.stdout or ():
            if line.startswith(mark):
                now = time.perf_counter() - started
                course.lines.append((now, _tree_seconds() - before, line.removeprefix(mark)))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    while process.poll() is None and not course.ended:
        time.sleep(_PERIOD)
        resident = sum(_resident(p) for p in psutil.Process().children(recursive=True))
        course.peak_bytes = max(course.peak_bytes, resident)
        if time.perf_counter() - started > timeout:
            course.ended = "time"
        elif memory and resident > memory:
            course.ended = "memory"
    course.seconds = time.perf_counter() - started
    _end_tree(process)
    process.wait()
    listener.join(timeout=5.0)
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    course.peak_bytes = max(course.peak_bytes, largest)
    course.exit_code = process.returncode
    course.tail = stderr.read_text(errors="replace")[-2000:]
    return course


def _spent(usage: Any) -> float:
    return float(usage.ru_utime + usage.ru_stime)


def _tree_seconds() -> float:
    """Processor seconds of all that this process has started: those that were waited for, and those that still run."""
    total = _spent(resource.getrusage(resource.RUSAGE_CHILDREN))
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _end_tree(first: subprocess.Popen[str]) -> None:
    """End what is left of the tree, by process id, and take leave of each."""
    deadline = time.monotonic() + 30.0
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in psutil.Process().children():
            if process.pid != first.pid:
                os.waitpid(process.pid, os.WNOHANG)
        first.poll()
        time.sleep(0.02)
