"""One contestant in a process of its own: ``python -m pipelines.peers ORDER``, ORDER being JSON.

Says on standard output, a line each, when it is ready, how far it is, and what it found.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.peers.contestants import PEERS, Job, Setting, exceeded, out_of_memory

MARK = "@peers "


def say(**event: Any) -> None:
    """One event."""
    print(MARK + json.dumps(event), flush=True)


def main(order: dict[str, Any]) -> None:
    """Keep the limit, start the contestant, and give it its jobs one after the other."""
    peer = PEERS[order["peer"]]
    os.sched_setaffinity(0, order["cores"])
    if not peer.jvm:
        # Private writable mappings of each process, touched or not: what malloc, BLAS and threads take.
        resource.setrlimit(resource.RLIMIT_DATA, (order["memory"], order["memory"]))
    try:
        contestant = peer.load()
        setting = Setting(peer.precision, len(order["cores"]), order["memory"], Path(order["scratch"]))
        with contestant(setting) as fit:
            say(event="ready")
            for at, job in enumerate(order["jobs"]):
                seen = partial(_seen, at)
                try:
                    say(event="start", job=at)
                    weights = fit(Job(**job, seen=seen))
                    say(event="done", job=at, weights=weights.tolist())
                except Exception as error:  # a fault of one job is a finding, whatever it is
                    say(event="fault", job=at, reason=reason_of(error, order["memory"]))
    except ImportError as error:
        say(event="missing", reason=reason_of(error, order["memory"]))
    except Exception as error:
        say(event="fault", job=None, reason=reason_of(error, order["memory"]))


def _seen(job: int, n_rows: int) -> None:
    say(event="rows", job=job, n=n_rows)


def reason_of(error: BaseException, memory: int) -> str:
    """Kind and first line of an error; that the limit was exceeded, where that is what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0][:160] if lines else 'no message'}"
    return exceeded(memory) if out_of_memory(f"{text} {error}") else text


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
