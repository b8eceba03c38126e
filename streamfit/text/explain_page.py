"""Explanations as text and as one HTML file that needs nothing else. Floor 6: imports explain."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from streamfit.text.explain import Aboutness, Explanation, Share

_WIDTH = 60
_NO_WEIGHT = 5e-4
"""Weights below this are 0 with three decimals."""
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --paper: #fdfdfb; --rule: #d5dae0;
  --for: #2f7d5b; --against: #b4541a; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ea; --paper: #15181c; --rule: #363d45; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.number { text-align: right; white-space: nowrap; } code { white-space: pre-wrap; }
.bar { display: inline-block; height: .7rem; background: var(--for); } .bar.against { background: var(--against); }
mark { background: none; color: var(--against); font-weight: 600; }
"""


def name_of(share: Share) -> str:
    """What a share is, in words."""
    names = {
        "center": "center",
        "others": "other centers",
        "linear": "embedded context",
        "fourier": "Fourier of decayed sums",
        "intercept": "intercept",
        "projection": "made a distribution",
        "uniform": "any token",
    }
    if share.kind == "rest":
        return "all that round to 0"
    if share.kind != "suffix":
        return f"{share.expert}: {names[share.kind]}"
    return f"{share.expert}: {'after' if share.text else 'without context'}"


def lines(found: Explanation, top: int) -> Iterator[str]:
    """The explanation as lines of text.

    Parameters
    ----------
    found : Explanation
    top : int
        Centers that are shown one by one.
    """
    yield f"{''.join(found.before)!r} -> {found.token!r}: {found.probability:.4%}"
    unused = [name for name, weight in found.weights.items() if weight < _NO_WEIGHT]
    for name, weight in found.weights.items():
        if name not in unused:
            yield f"  {name}: weight {weight:.3f}, probability {found.by_expert[name]:.4%}"
    if unused:
        yield f"  weight 0.000: {', '.join(unused)}"
    if found.topic is not None:
        yield f"  {_about(found.topic)}"
    yield "  most probable: " + ", ".join(f"{token!r} {p:.2%}" for token, p in found.likely)
    yield ""
    for share in found.shown(top):
        about = share.text if share.kind in ("rest", "others") or not share.text else repr(share.text)
        about = about if len(about) <= _WIDTH or share.kind == "rest" else "..." + about[-_WIDTH + 3 :]
        yield "  ".join(
            part for part in (f"{share.share:>+10.4%}", f"{name_of(share):<28}", about, _facts(share)) if part
        ).rstrip()
    yield f"{found.probability:>+10.4%}  in all"


def _about(topic: Aboutness) -> str:
    """What the topic does, in words."""
    words = ", ".join(f"{token!r} {part:+.2f}" for token, part in topic.words)
    told = f"topic: all of it times {topic.factor:.3f}, for the token is {topic.ratio:.2f} times as likely in such text"
    return f"{told}: {words}" if words else told


def _facts(share: Share) -> str:
    if share.kind == "suffix":
        return f"seen {share.seen:,} times"
    nearness = f"activation {share.activation:.3f}" if share.activation else ""
    return "  ".join(part for part in (nearness, share.place) if part)


def page(explanations: Sequence[Explanation], top: int) -> str:
    """One HTML page of explanations.

    Parameters
    ----------
    explanations : sequence of Explanation
    top : int
        Centers that are shown one by one, of each.
    """
    body = "\n".join(_section(found, top) for found in explanations)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>What carried this prediction</title><style>{_STYLE}</style>"
        f"<h1>What carried this prediction</h1>\n{body}\n</html>\n"
    )


def _section(found: Explanation, top: int) -> str:
    shares = found.shown(top)
    widest = max((abs(share.share) for share in shares), default=1.0) or 1.0
    rows = []
    for share in shares:
        against = " against" if share.share < 0 else ""
        bar = f"<span class='bar{against}' style='width:{6 * abs(share.share) / widest:.2f}rem'></span>"
        rows.append(
            f"<tr><td class=number>{share.share:+.4%}</td><td>{bar}</td><td>{html.escape(name_of(share))}</td>"
            f"<td><code>{html.escape(share.text)}</code></td><td>{html.escape(_facts(share))}</td></tr>"
        )
    likely = ", ".join(f"<code>{html.escape(repr(token))}</code> {p:.2%}" for token, p in found.likely)
    weights = ", ".join(
        f"{html.escape(name)} {weight:.3f} &times; {found.by_expert[name]:.4%}"
        for name, weight in found.weights.items()
    )
    about = "" if found.topic is None else f"<p>{html.escape(_about(found.topic))}.</p>"
    return (
        f"<h2><code>{html.escape(''.join(found.before))}</code> &rarr;"
        f" <code><mark>{html.escape(found.token)}</mark></code>"
        f" {found.probability:.4%}</h2><p>{weights}. Most probable: {likely}.</p>{about}"
        "<table><tr><th>share</th><th></th><th>what</th><th>text</th><th></th></tr>"
        f"{''.join(rows)}<tr><td class=number>{found.probability:+.4%}</td><td colspan=4>in all</td></tr></table>"
    )
