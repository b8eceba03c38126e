"""The card of a model: what it is, what it was fitted on, how good it is, in Markdown for people.

Floor 6: imports nothing of the package. Made of `model.json` alone, so that it never says what the model does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_MOST = 12
"""Names or sources that are listed; the rest is counted."""
_BESIDE = {"doubt": "What is usual on held-out text of the language model in the folder above; for `streamfit doubt`."}
"""What is kept beside a model, and is none by itself."""


def card_of(spec: dict[str, Any]) -> str:
    """The card of a model.

    Parameters
    ----------
    spec : dict
        What `model.json` holds.

    Returns
    -------
    str
        Markdown, with front matter as model hubs read it.

    Examples
    --------
    >>> card_of({"kind": "linear", "info": {}}).splitlines()[:3]
    ['---', 'library_name: streamfit', 'tags: [streamfit, linear]']
    """
    if spec["kind"] in _BESIDE:
        return "\n".join([*_front(spec["kind"], {}), "", _BESIDE[spec["kind"]]]) + "\n"
    part = spec.get("network") or spec  # a language model may be without a network
    info = part.get("info", {})
    data = info.get("data", {})
    lines = [*_front(spec["kind"], data), "", f"# {data.get('title') or _title(spec['kind'], info)}", ""]
    lines += _what(spec, part, info)
    lines += ["", "## Data", "", *_data(data, info)]
    lines += ["", "## Fit", "", *_fit(part, info)]
    lines += ["", "## Use", "", *_use(spec["kind"], "posterior" in part)]
    written = spec.get("written_by", "streamfit")
    version = spec.get("schema_version", 1)
    lines += ["", f"Written by {written}, `model.json` in schema version {version}; arrays are in `model.safetensors`."]
    return "\n".join(lines) + "\n"


def _front(kind: str, data: dict[str, Any]) -> Iterator[str]:
    yield "---"
    yield "library_name: streamfit"
    yield f"tags: [streamfit, {kind.replace('_', '-')}]"
    if data.get("licence"):
        yield f"license: {json.dumps(data['licence'])}"
    yield "---"


def _title(kind: str, info: dict[str, Any]) -> str:
    targets = info.get("reader", {}).get("target", [])
    return "A language model" if kind == "language_model" else f"A linear model of {_listed(targets) or 'its targets'}"


def _what(spec: dict[str, Any], part: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    if spec["kind"] == "language_model":
        network = "a network linear in its weights, mixed with " if part is not spec else ""
        yield (
            f"A distribution over {spec['vocab_size']:,} tokens, given the last {spec['n_context']}: {network}n-gram"
            f" models of up to order {spec['order']}."
        )
    else:
        reader = info.get("reader", {})
        names, targets = _listed(reader.get("features", [])), _listed(reader.get("target", []))
        classes = f", {reader['n_classes']:,} classes" if reader.get("n_classes") else ""
        yield f"Predicts {targets or 'its targets'}{classes} from {names or 'inputs'}."
    if "features" in part:
        yield ""
        yield f"Features: {_described(part['features'])}."


def _data(data: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    if "ledger" not in data:
        rows = f"{info['n_rows']:,} rows" if "n_rows" in info else "an unknown number of rows"
        yield f"Fitted on {rows}; the model does not say where they came from."
        yield ""
        yield f"- Licence: {data.get('licence') or 'not stated'}"
        return
    yield f"{data['n_rows']:,} rows of {data['n_shards']:,} shards, each counted exactly once."
    yield ""
    yield "| source | rows | shards |"
    yield "|---|--:|--:|"
    sources = sorted(data["sources"], key=lambda source: -source["n_rows"])
    for source in sources[:_MOST]:
        yield f"| {_cell(source['source'])} | {source['n_rows']:,} | {source['n_shards']:,} |"
    if rest := sources[_MOST:]:
        yield f"| {len(rest):,} more | {sum(s['n_rows'] for s in rest):,} | {sum(s['n_shards'] for s in rest):,} |"
    yield ""
    if data.get("removed_rows"):
        yield f"- {data['removed_rows']:,} rows were forgotten or replaced, and are not in the weights."
    yield f"- Licence: {data.get('licence') or 'not stated'}"
    yield f"- Ledger digest (SHA-256 of what was counted): `{data['ledger']}`"
    yield f"- Store header: `{data['header']}`, commit {data['sequence']:,} (`{data['commit']}`)"


def _fit(part: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    solution = part.get("solution")
    if solution is None:
        yield "Not stated."
        return
    c = solution["certificate"]
    alpha = f"alpha {solution['alpha']:g}"
    if solution.get("block_alphas"):
        alpha = "alpha " + ", ".join(f"{name} {value:g}" for name, value in solution["block_alphas"].items())
    yield (
        f"The minimum of the squared error plus a penalty, {alpha}, by {solution['method'].replace('_', ' ')}, rank"
        f" {solution['rank']:,}, {solution['effective_dof']:.1f} effective degrees of freedom."
    )
    yield ""
    share = c["suboptimality"] / c["null_loss"] if c["null_loss"] > 0 else c["suboptimality"]
    unique = "proved unique" if c["strong_convexity"] > 0 else "not proved unique"
    yield f"- Certificate: within {share:.1e} of the optimum, as a share of the targets' sum of squares; {unique}"
    yield f"- Relative gradient {c['relative_gradient']:.2e}, condition {c['condition']:.3g}, loss {c['loss']:.10g}"
    if c["null_loss"] > 0:
        yield f"- Training loss, penalty included, is {c['loss'] / c['null_loss']:.2%} of the targets' sum of squares"
    if trusted := [r2 for r2 in info.get("held_out_r2", []) if r2 is not None]:
        yield f"- Held-out R² over folds, at the best of {len(info['alphas'])} alphas: {max(trusted):.6f}"


def _use(kind: str, has_posterior: bool) -> Iterator[str]:
    yield "```"
    if kind == "language_model":
        yield "streamfit generate FOLDER 'def '"
        yield "streamfit explain FOLDER 'def '"
        yield "streamfit evaluate FOLDER texts/"
    else:
        yield f"streamfit predict FOLDER data.parquet -o predicted.parquet{' --std' if has_posterior else ''}"
        yield "streamfit export-model FOLDER --onnx model.onnx"
    yield "```"


def _described(spec: dict[str, Any]) -> str:
    """A feature map in words."""
    kind = spec["kind"]
    if kind == "Chain":
        return f"{_described(spec['outer'])} of {_described(spec['inner'])}"
    if kind == "Concat":
        return ", and ".join(_described(part) for part in spec["parts"])
    words = {
        "Linear": "the inputs as they are",
        "Standardize": "standardised inputs",
        "RBF": f"Gaussian bumps around centers, gamma {spec.get('gamma', 0):.4g}",
        "Nystroem": f"Nyström features of a Gaussian kernel, gamma {spec.get('gamma', 0):.4g}",
        "RandomFourier": f"{spec.get('n', 0):,} random Fourier features, gamma {spec.get('gamma', 0):.4g}",
        "Hashed": f"columns hashed into {spec.get('n', 0):,}",
        "Lookup": "embeddings of tokens",
        "Nearest": "the nearest tokens",
        "Decayed": "a decaying mean of embeddings",
    }
    return f"some of {_described(spec['inner'])}" if kind == "Pick" else words.get(kind, kind)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
    return ", ".join(f"`{_cell(name)}`" for name in names[:_MOST]) + more


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("`", "'").replace("\n", " ")
