"""A model for EleutherAI's lm-evaluation-harness, which the extra `lm-eval` brings. Floor 7.

    python -m streamfit.harness run --model streamfit --model_args path=runs/demo/model --tasks NAME --include_path DIR

takes the arguments of `lm_eval`; in Python, importing this file makes the model known to `lm_eval.simple_evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    told = "error: no lm_eval; expected the extra `lm-eval`; pip install 'streamfit[lm-eval]'"
    raise SystemExit(told) from missing

from streamfit.text import LanguageModel, Sampling, generate_text
from streamfit.text.likelihood import continuation_likelihoods

_MOST_TOKENS = 256


@register_model("streamfit")
class StreamfitLM(LM):  # type: ignore[misc]  # the harness has no annotations
    """A language model of streamfit.

    Parameters
    ----------
    path : str
        Folder of the model.
    expert : str
        'mixture', or one of the model's experts.
    seed : int
        Of what is sampled.
    **others
        What the harness passes to every model (device, batch sizes), of which this one has no need.
    """

    def __init__(self, path: str, expert: str = "mixture", seed: int = 0, **others: Any) -> None:
        super().__init__()
        self.model = LanguageModel.load(path)
        self.expert, self.seed = expert, int(seed)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log probability of each continuation after its context, and whether it is what greedy decoding gives."""
        pairs = [(str(r.args[0]), str(r.args[1])) for r in requests]
        found = continuation_likelihoods(self.model, pairs, expert=self.expert)
        return [(each.log_probability, each.greedy) for each in found]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log probability of each text from the start of a document; a context is never longer than the model's."""
        pairs = [("", str(r.args[0])) for r in requests]
        return [each.log_probability for each in continuation_likelihoods(self.model, pairs, expert=self.expert)]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of its stop strings; greedily, unless `do_sample` is set."""
        return [self._generated(str(r.args[0]), dict(r.args[1])) for r in requests]

    def _generated(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stop = [until] if isinstance(until, str) else [str(each) for each in until]
        sampling = Sampling(
            n_tokens=int(options.get("max_gen_toks", _MOST_TOKENS)),
            temperature=float(options.get("temperature", 1.0)) if options.get("do_sample") else 0.0,
            top_k=int(options.get("top_k") or 0),
            top_p=float(options.get("top_p") or 1.0),
            seed=self.seed,
        )
        pieces = generate_text(self.model, context, sampling, stop=[each for each in stop if each], expert=self.expert)
        return "".join(pieces)


if __name__ == "__main__":
    cli_evaluate()
