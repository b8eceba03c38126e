"""The part of a store's sums that a language model's network was solved from. Floor 6: imports models, centered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import ConfigError
from streamfit.models import LinearModel
from streamfit.text.model import LanguageModel

KEPT = "kept"
"""What a distilled network calls the features that it kept, among those of the store."""


def network_of(model: LanguageModel) -> LinearModel:
    """A model's network.

    Raises
    ------
    ConfigError
        If it has none.
    """
    if model.network is None:
        msg = "a language model without a network"
        raise ConfigError(msg, "one with RBF centers or linear features")
    return model.network


def network_sums(moments: Statistic | Centered, network: LinearModel) -> Centered:
    """Sums of the network's own features: a topic's come after them, and a distilled network has not kept all.

    Parameters
    ----------
    moments : Moments or Centered
        Of the store.
    network : LinearModel
    """
    kept = network.info.get(KEPT, range(network.features.n_features))
    return columns(as_centered(moments), np.asarray(kept, dtype=np.int64))


def columns(c: Centered, kept: np.ndarray) -> Centered:
    """The sums of some features, by their indices."""
    return replace(
        c,
        mean_x=c.mean_x[kept],
        gram=c.gram[np.ix_(kept, kept)],
        cross=c.cross[kept],
        noise=c.noise[kept],
        hidden=None if c.hidden is None else c.hidden[kept],
    )
