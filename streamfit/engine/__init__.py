"""Running the plan: one group's work, the cluster it runs on, and the loop that commits."""

from streamfit.engine.cluster import Machine, connect
from streamfit.engine.progress import say
from streamfit.engine.run import RunSummary, accumulate, plan_for
from streamfit.engine.work import WorkOptions, work_group

__all__ = ["Machine", "RunSummary", "WorkOptions", "accumulate", "connect", "plan_for", "say", "work_group"]
