"""Recurrent and attention language models, trained for given CPU-seconds in one thread: peers of the closed form.

Run by compare_lm.py in a process of its own, so that its threads and its clock are its own. Needs the extra `bench`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH, STEPS = 20, 35
"""Streams that the recurrent net reads side by side, and tokens of each between two updates."""
SEGMENTS, WINDOW = 8, 128
"""Segments in an update of the attention net, and their tokens: what its positions are learned for."""


def low_precision(torch: Any) -> Any:
    """Products in bfloat16 where the processor has wide registers; elsewhere float32 is faster, or all there is."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.backends.cpu.get_cpu_capability().startswith("AVX512"))


def perplexity(model: Any, torch: Any, ids: Any) -> tuple[float, float]:
    """Perplexity and top-1 of a stream, each token but the first scored once.

    The state is carried along; attention's windows slide by half of the length that they were trained at, so that a
    token is predicted from 64 to 127 before it.
    """
    model.eval()
    nats, hits = 0.0, 0
    with torch.no_grad(), low_precision(torch):
        for logits, y in (_slid if hasattr(model, "place") else _carried)(model, ids):
            nats += float(torch.nn.functional.cross_entropy(logits.float(), y, reduction="sum"))
            hits += int((logits.argmax(1) == y).sum())
    model.train()
    return math.exp(nats / (len(ids) - 1)), hits / (len(ids) - 1)


def _carried(model: Any, ids: Any) -> Iterator[tuple[Any, Any]]:
    state = None
    for lo in range(0, len(ids) - 1, 512):
        x, y = ids[lo : lo + 512], ids[lo + 1 : lo + 513]
        logits, state = model(x[: len(y)][None], state)
        yield logits[0], y


def _slid(model: Any, ids: Any) -> Iterator[tuple[Any, Any]]:
    half = WINDOW // 2
    for lo in range(0, len(ids) - 1, half):
        start = max(0, lo - half)
        x, y = ids[start : lo + half], ids[lo + 1 : lo + half + 1]
        logits, _ = model(x[: len(y) + lo - start][None], None)
        yield logits[0, lo - start :], y


VALIDATED = 40_000
"""First tokens of the validation text, on which a peer is looked at while it is trained: all of them take minutes."""
CUTOFFS = (2000, 10_000)
"""Ids, which go by frequency, at which the adaptive softmax begins a cluster of rarer words."""


def make(kind: str, vocab_size: int, width: int) -> Any:
    """A `lstm` of two layers on tied embeddings; `adaptive`, the same beneath an adaptive softmax; a `transformer` so.

    An adaptive softmax costs a fifth of the work for each token of a large vocabulary. The transformer has four layers
    and learned positions.
    """
    import torch
    from torch import nn

    class Tied(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocab_size, width)
            self.body = nn.LSTM(width, width, 2, dropout=0.3, batch_first=True)
            self.drop, self.bias = nn.Dropout(0.3), nn.Parameter(torch.zeros(vocab_size))

        def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
            h, state = self.body(self.drop(self.embed(x)), state)
            return self.drop(h) @ self.embed.weight.T + self.bias, tuple(s.detach() for s in state)

    class Adaptive(nn.Module):  # type: ignore[misc]
        """A body beneath an adaptive softmax (Grave and others, Efficient softmax approximation for GPUs, 2017)."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocab_size, width)
            cutoffs = [c for c in CUTOFFS if c < vocab_size]
            self.head = nn.AdaptiveLogSoftmaxWithLoss(width, vocab_size, cutoffs, div_value=4.0)

        def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
            h, state = self.hidden(x, state)
            with torch.autocast("cpu", enabled=False):
                return self.head.log_prob(h.float().reshape(-1, width)).reshape(*x.shape, vocab_size), state

    class Recurrent(Adaptive):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop = nn.LSTM(width, width, 2, dropout=0.3, batch_first=True), nn.Dropout(0.3)

        def hidden(self, x: Any, state: Any) -> tuple[Any, Any]:
            h, state = self.body(self.drop(self.embed(x)), state)
            return self.drop(h), tuple(s.detach() for s in state)

    class Attention(Adaptive):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(0.02 * torch.randn(WINDOW, width))
            layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.2, "gelu", batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(layer, 4, nn.LayerNorm(width), enable_nested_tensor=False)

        def hidden(self, x: Any, state: Any) -> tuple[Any, Any]:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            embedded = self.embed(x) * width**0.5 + self.place[: x.shape[1]]
            return self.body(embedded, mask=mask, is_causal=True), None

    model: Any = {"lstm": Tied, "adaptive": Recurrent, "transformer": Attention}[kind]()
    nn.init.normal_(model.embed.weight, 0.0, width**-0.5 if kind == "transformer" else 0.1)
    return model


def multiplied(model: Any, ids: Any) -> float:
    """Weights that a token is multiplied by, on average: of an adaptive softmax a cluster's for its words alone."""
    sizes = {name: float(p.numel()) for name, p in model.named_parameters()}
    if not hasattr(model, "head"):
        return sum(sizes.values())
    found = sum(n for name, n in sizes.items() if not name.startswith(("embed", "head.tail")))
    for i, lo in enumerate(model.head.cutoffs[:-1]):
        share = float(((ids >= lo) & (ids < model.head.cutoffs[i + 1])).float().mean())
        found += share * sum(n for name, n in sizes.items() if name.startswith(f"head.tail.{i}."))
    return found


def train(told: dict[str, Any]) -> dict[str, Any]:
    """Train for the CPU-seconds told, and score; the learning rate falls along a cosine to the end of the budget.

    Validation during training is not counted in the budget, nor is the test, which is scored once at the end.
    """
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    with np.load(told["tokens"]) as kept:
        parts = {name: torch.from_numpy(kept[name].astype(np.int64)) for name in ("train", "valid", "test")}
    recurrent = told["kind"] != "transformer"
    steps, batch = (STEPS, BATCH) if recurrent else (WINDOW, SEGMENTS)
    model = make(told["kind"], told["vocab_size"], told["width"])
    rate = 2e-3 if recurrent else 1e-3
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    n_weights = multiplied(model, parts["train"])
    streams = parts["train"][: len(parts["train"]) // batch * batch].view(batch, -1)
    budget, spent, at, state, n_tokens = float(told["cpu_seconds"]), 0.0, 0, None, 0
    curve: list[dict[str, float]] = []
    marks = [budget * share for share in (0.25, 0.5, 1.0)]
    while spent < budget:
        clock = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * min(spent / budget, 1.0))) + 1e-5
        if at + steps + 1 > streams.shape[1]:
            at, state = 0, None
        x, y = streams[:, at : at + steps], streams[:, at + 1 : at + steps + 1]
        at += steps
        with low_precision(torch):
            if hasattr(model, "head"):
                hidden, state = model.hidden(x, state)
                with torch.autocast("cpu", enabled=False):  # its logarithms have too few digits in bfloat16
                    loss = model.head(hidden.float().reshape(-1, told["width"]), y.reshape(-1)).loss
            else:
                logits, state = model(x, state)
                loss = torch.nn.functional.cross_entropy(logits.reshape(-1, told["vocab_size"]).float(), y.reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25 if recurrent else 1.0)
        optimizer.step()
        n_tokens += x.numel()
        spent += time.process_time() - clock
        if spent >= marks[0]:
            marks.pop(0)
            valid = perplexity(model, torch, parts["valid"][:VALIDATED])[0]
            flops = 6.0 * n_weights * n_tokens  # the usual count: tied weights are multiplied, the look-up is free
            curve.append({"cpu_seconds": spent, "valid": valid, "tokens": n_tokens, "flops": flops})
    test, top1 = perplexity(model, torch, parts["test"])
    total = {"weights": sum(p.numel() for p in model.parameters()), "flops": curve[-1]["flops"]}
    return {**told, "curve": curve, "test": test, "top1": top1, **total}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    Path(asked["result"]).write_text(json.dumps(train(asked)), encoding="utf-8")
