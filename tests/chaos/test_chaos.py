"""Kills and races: whatever dies, whenever, the sums end as those of a run that nobody disturbed.

Short versions of the long runs are in every `make test`; `pytest -m slow -s tests/chaos` prints the figures.
"""

import json
import signal
from collections import Counter

import numpy as np
import pytest
from chaos import racer
from chaos.harness import (
    STREAMFIT,
    Chaos,
    Process,
    Truth,
    run_race,
    until,
    write_corpus,
    write_problem,
)

from streamfit.store import Store

N_SHARDS, N_SHARDS_LONG = 24, 120


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), N_SHARDS)


@pytest.fixture(scope="module")
def truth(tmp_path_factory, corpus, serial, quiet):
    return Truth(tmp_path_factory.mktemp("truth"), corpus, serial, quiet)


# Kills


def test_killed_worker_scheduler_and_coordinator(tmp_path, corpus, truth):
    """Four kills, of each kind at least one, on two workers: the bits of an undisturbed run, and no commit is lost."""
    kinds = ("worker", "coordinator", "scheduler", "worker")
    chaos = Chaos(tmp_path, corpus, n_workers=2, seed=4)
    chaos.run(kinds, by_time=0.0)
    truth.assert_reached(tmp_path / "run")
    assert chaos.witness.lost() == []
    assert chaos.kills == Counter(kinds)


@pytest.mark.slow
def test_kills(tmp_path, serial, quiet):
    """At least sixty kills at random times, on 1, 2 and 4 workers."""
    for name in ("corpus", "truth"):
        (tmp_path / name).mkdir()
    corpus = write_corpus(tmp_path / "corpus", N_SHARDS_LONG)
    truth = Truth(tmp_path / "truth", corpus, serial, quiet)
    kills, ends, figures = Counter(), Counter(), Counter()
    rng = np.random.default_rng(6)
    for n_workers in (1, 2, 4):
        for trial in range(2):
            folder = tmp_path / f"{n_workers}-workers-{trial}"
            folder.mkdir()
            kinds = [str(kind) for kind in rng.choice(["worker", "scheduler", "coordinator"], 12, p=[0.4, 0.25, 0.35])]
            chaos = Chaos(folder, corpus, n_workers, seed=10 * n_workers + trial)
            chaos.run(kinds)
            truth.assert_reached(folder / "run")
            assert chaos.witness.lost() == []
            kills, ends = kills + chaos.kills, ends + chaos.codes
            figures += Counter(runs=1, starts=chaos.runs, commits=len(chaos.witness))
    assert sum(kills.values()) >= 60
    print(
        f"\nkills: {sum(kills.values())} ({', '.join(f'{n} of {kind}' for kind, n in sorted(kills.items()))})"
        f" in {figures['runs']} runs on 1, 2 and 4 workers; {figures['starts'] - figures['runs']} resumes,"
        f" {ends[2]} of them after one clear error; {figures['commits']} commits seen; lost 0, double 0, wrong 0"
    )


# Races


@pytest.mark.slow
def test_race(tmp_path):
    """Two coordinators add and forget in one small store, which compacts all the time; one is killed on the way."""
    Store.create(tmp_path / "store", racer.HEADER, max_live=6, keep=4)
    notes = run_race(tmp_path, tmp_path / "store", n_racers=2, n_commits=15, n_kills=1, seed=1)
    figures = racer.assert_nothing_lost(tmp_path / "store", notes)
    assert figures["acknowledged"] == 30


@pytest.mark.slow
def test_long_race(tmp_path):
    """Two coordinators and then three, more than 300 commits, SIGKILL every few seconds."""
    total = Counter()
    for n_racers, n_commits, n_kills in ((2, 160, 4), (3, 110, 4)):
        folder = tmp_path / str(n_racers)
        folder.mkdir()
        Store.create(folder / "store", racer.HEADER, max_live=6, keep=4)
        url = folder / "store"
        notes = run_race(folder, url, n_racers=n_racers, n_commits=n_commits, n_kills=n_kills, seed=n_racers)
        total += Counter(racer.assert_nothing_lost(folder / "store", notes)) + Counter(kills=n_kills)
    assert total["acknowledged"] >= 300
    print(
        f"\nrace of 2 and 3 coordinators: {total['commits']} commits ({total['acknowledged']} acknowledged to them,"
        f" {total['compactions']} compactions), {total['kills']} kills; lost {total['lost']}, double {total['double']},"
        " wrong 0"
    )


@pytest.mark.slow
def test_coordinator_that_slept_loses_and_doubles_nothing(tmp_path, corpus, truth):
    """Stopped in the middle of its run, it wakes after another has finished: it counts nothing twice and ends well."""
    problem = write_problem(tmp_path, corpus, max_live=6)
    machine = tmp_path / "machine.toml"
    machine.write_text('kind = "serial"\n')
    log = tmp_path / "run" / "store" / "_log"
    sleeper = Process(tmp_path / "sleeper.txt", STREAMFIT, "fit", problem, "--machine", machine)
    try:
        until(lambda: sleeper.code is not None or (log / "0000000004.json").exists())
        sleeper.send(signal.SIGSTOP)
        other = Process(tmp_path / "other.txt", STREAMFIT, "resume", tmp_path / "run")
        assert other.wait() == 0, other.text()
        finished = Store(tmp_path / "run" / "store").head()
        sleeper.send(signal.SIGCONT)
        assert sleeper.wait() == 0, sleeper.text()
    finally:
        sleeper.kill()
    truth.assert_reached(tmp_path / "run")
    records = {record.commit for record in Store(tmp_path / "run" / "store").records()}
    assert finished.commit in records
    assert finished.n_rows == truth.moments.n_rows


def test_notes_of_a_racer_are_believed_only_if_they_are_whole(tmp_path):
    """The proof of the proof: a commit that is missing from the log, or a shard too many, is noticed."""
    url, notes = tmp_path / "store", tmp_path / "notes-0.jsonl"
    Store.create(url, racer.HEADER)
    racer.race(url, notes, 0, 4)
    racer.assert_nothing_lost(url, [notes])
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    done = [line for line in lines if line["what"] == "done"]
    racer.note(notes, **{**done[0], "sequence": done[1]["sequence"]})
    with pytest.raises(AssertionError):
        racer.assert_nothing_lost(url, [notes])
    notes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    racer.add(Store(url), 77)
    with pytest.raises(AssertionError, match="77"):
        racer.assert_nothing_lost(url, [notes])
