"""Running the plan: one group's work, the cluster it runs on, and the loops that commit."""

from streamfit.engine.cluster import connect
from streamfit.engine.cluster_spec import rendered
from streamfit.engine.crew import n_workers
from streamfit.engine.hashing import hashing_on
from streamfit.engine.machine import Machine
from streamfit.engine.progress import progressing, say
from streamfit.engine.recount import recount
from streamfit.engine.rewrite import Rewritten, find_rows, rewrite
from streamfit.engine.run import RunSummary, accumulate, bands_of, plan_for
from streamfit.engine.visit import visit
from streamfit.engine.work import WorkOptions, placed, work_group

__all__ = [
    "Machine",
    "Rewritten",
    "RunSummary",
    "WorkOptions",
    "accumulate",
    "bands_of",
    "connect",
    "find_rows",
    "hashing_on",
    "n_workers",
    "placed",
    "plan_for",
    "progressing",
    "recount",
    "rendered",
    "rewrite",
    "say",
    "visit",
    "work_group",
]
