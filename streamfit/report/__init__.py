"""Showing results: pages that stand by themselves, figures with their numbers, tables on the console."""

from streamfit.report.drawing import Drawing, save_figure
from streamfit.report.page import Report
from streamfit.report.plots import (
    plot_alphas,
    plot_curve,
    plot_models,
    plot_pruning,
    plot_scores,
    plot_shares,
    plot_times,
)
from streamfit.report.scores import baseline_of, print_adaptive, print_scores, verdict

__all__ = [
    "Drawing",
    "Report",
    "baseline_of",
    "plot_alphas",
    "plot_curve",
    "plot_models",
    "plot_pruning",
    "plot_scores",
    "plot_shares",
    "plot_times",
    "print_adaptive",
    "print_scores",
    "save_figure",
    "verdict",
]
