"""A recurrent and an attention language model, trained for given CPU-seconds in one thread: peers of the closed form.

Run by compare_lm.py in a process of its own, so that its threads and its clock are its own. Needs the extra `bench`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH, STEPS = 20, 35
"""Streams read side by side, and tokens of each between two updates."""


def perplexity(model: Any, torch: Any, ids: Any) -> tuple[float, float]:
    """Perplexity and top-1 of a stream, the state carried along; attention sees the tokens of its segment before."""
    model.eval()
    nats, hits, state = 0.0, 0, None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for lo in range(0, len(ids) - 1, 512):
            x, y = ids[lo : lo + 512][None], ids[lo + 1 : lo + 513]
            logits, state = model(x[:, : len(y)], state)
            logits = logits[0].float()
            nats += float(torch.nn.functional.cross_entropy(logits, y, reduction="sum"))
            hits += int((logits.argmax(1) == y).sum())
    model.train()
    return math.exp(nats / (len(ids) - 1)), hits / (len(ids) - 1)


def make(kind: str, vocab_size: int, width: int) -> Any:
    """A network of tied embeddings: two layers of LSTM, or four of attention with learned positions."""
    import torch
    from torch import nn

    class Recurrent(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocab_size, width)
            self.body = nn.LSTM(width, width, 2, dropout=0.3, batch_first=True)
            self.drop, self.bias = nn.Dropout(0.3), nn.Parameter(torch.zeros(vocab_size))

        def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
            h, state = self.body(self.drop(self.embed(x)), state)
            return self.drop(h) @ self.embed.weight.T + self.bias, tuple(s.detach() for s in state)

    class Attention(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(vocab_size, width), nn.Parameter(0.02 * torch.randn(512, width))
            layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.2, "gelu", batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(layer, 4, nn.LayerNorm(width), enable_nested_tensor=False)
            self.bias = nn.Parameter(torch.zeros(vocab_size))

        def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
            n = x.shape[1]
            mask = nn.Transformer.generate_square_subsequent_mask(n)
            h = self.body(self.embed(x) * width**0.5 + self.place[:n], mask=mask, is_causal=True)
            return h @ self.embed.weight.T + self.bias, None

    model = Recurrent() if kind == "lstm" else Attention()
    nn.init.normal_(model.embed.weight, 0.0, 0.1 if kind == "lstm" else width**-0.5)
    return model


def train(told: dict[str, Any]) -> dict[str, Any]:
    """Train for the CPU-seconds told, and score; the learning rate falls along a cosine to the end of the budget.

    Validation during training is not counted in the budget, nor is the test, which is scored once at the end.
    """
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    with np.load(told["tokens"]) as kept:
        parts = {name: torch.from_numpy(kept[name].astype(np.int64)) for name in ("train", "valid", "test")}
    recurrent = told["kind"] == "lstm"
    steps, batch = (STEPS, BATCH) if recurrent else (128, 8)
    model = make(told["kind"], told["vocab_size"], told["width"])
    rate = 2e-3 if recurrent else 1e-3
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
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
        with torch.autocast("cpu", torch.bfloat16):
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
            sample = parts["valid"][:40_000]
            curve.append({"cpu_seconds": spent, "valid": perplexity(model, torch, sample)[0], "tokens": n_tokens})
    test, top1 = perplexity(model, torch, parts["test"])
    n_weights = sum(p.numel() for p in model.parameters())
    flops = 6.0 * n_weights * n_tokens  # tied output weights are multiplied, the look-up is free: the usual count
    return {**told, "curve": curve, "test": test, "top1": top1, "weights": n_weights, "flops": flops}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    Path(asked["result"]).write_text(json.dumps(train(asked)), encoding="utf-8")
