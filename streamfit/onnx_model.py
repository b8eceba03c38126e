"""A linear model as an ONNX graph, for programs that have no Python. Floor 6: imports features, models.

The graph takes the steps that `LinearModel.predict` takes, in the same types: what that computes in float64 for the
sake of digits is computed in float64 here.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from streamfit.corpus.recipe import Recipe
from streamfit.errors import ConfigError, MismatchError
from streamfit.features import RBF, Chain, Concat, FeatureMap, Linear, Nystroem, RandomFourier, Standardize
from streamfit.features.base import Pick
from streamfit.features.hashed import Hashed
from streamfit.features.lookup import Lookup
from streamfit.features.nystroem import computed_wide as nystroem_wide
from streamfit.features.rbf import computed_wide as rbf_wide
from streamfit.models import LinearModel
from streamfit.onnx_columns import Input, inputs_of

OPSET, ML_OPSET, IR_VERSION = 18, 3, 9
"""Of the graph, the second for text: old enough for the runtimes of 2023 on."""
Dtype = Literal["float32", "float64"]
_WHOLE_FLOAT32 = 2**24
"""Whole numbers from zero that float32 tells apart."""


def export_onnx(model: LinearModel, path: str | Path, *, dtype: Dtype = "float32", std: bool = False) -> None:
    """Write the predictions of a model as an ONNX file.

    The graph's input is `x`, of shape (n_rows, n_inputs). Of a model with categories it has the numbers alone, NaN
    where one is missing and stands for the mean, and each category is an input of text by its name, of shape (n_rows,).
    Its outputs are `predicted`, of shape (n_rows, n_targets); `std` of the same shape where asked for; and `class_id`
    of shape (n_rows,) where the targets are classes. Names of inputs and targets, and where the model comes from, are
    in the file's metadata.

    Parameters
    ----------
    model : LinearModel
        Of dense features: linear, standardised, RBF, Fourier, Nyström, look-up tables, chains, sums and selections of
        these.
    path : str or Path
    dtype : {'float32', 'float64'}
        Of inputs, weights and outputs.
    std : bool
        Standard deviations of predictions as well; the model must carry its posterior.

    Raises
    ------
    ConfigError
        If `onnx` is not installed, the features are of another kind, or the file cannot be written.
    MismatchError
        If there is no posterior.
    """
    data = onnx_model(model, dtype=dtype, std=std).SerializeToString()
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise ConfigError(msg, "a file in a folder that is there") from error


def onnx_model(model: LinearModel, *, dtype: Dtype = "float32", std: bool = False) -> Any:
    """The graph as an `onnx.ModelProto`, checked; see `export_onnx`."""
    if dtype not in ("float32", "float64"):
        msg = f"dtype {dtype!r}"
        raise ConfigError(msg, "float32 or float64")
    if std and model.posterior is None:
        msg = "a model without its posterior"
        raise MismatchError(msg, "one that carries it", "save it by `streamfit solve --std`")
    graph = _Graph(dtype)
    solution, reader = model.solution, model.info.get("reader", {})
    recipe = Recipe.from_json(reader["recipe"]) if "recipe" in reader else None
    if recipe is not None and not recipe.categories and not recipe.fills:
        recipe = None  # the numbers are all there is
    x, inputs = inputs_of(graph, recipe, model.features.n_inputs)
    if model.needs_float64:
        x, graph.dtype = graph.cast(x, "float64", dtype), "float64"
    phi = graph.features(model.features, x)
    product = graph.node("MatMul", phi, graph.constant(solution.weights, graph.dtype))
    total = graph.node("Add", product, graph.constant(solution.intercept, graph.dtype))
    outputs = {"predicted": graph.output("predicted", total)}
    if reader.get("n_classes"):
        outputs["class_id"] = graph.node("ArgMax", "predicted", name="class_id", axis=1, keepdims=0)
    if std and model.posterior is not None:
        outputs["std"] = graph.deviations(model.posterior, phi)
    return graph.finished(model, inputs, outputs, reader)


class _Graph:
    """Nodes and constants, and how each feature map becomes some of them.

    Parameters
    ----------
    dtype : {'float32', 'float64'}
        Of inputs and outputs, and of what is computed between them until the attribute of that name is set anew.
    """

    def __init__(self, dtype: Dtype) -> None:
        try:
            import onnx  # optional, and takes long
        except ImportError as error:
            msg = "an ONNX export without the package `onnx`"
            raise ConfigError(msg, "it installed", "pip install 'streamfit[onnx]'") from error
        self._onnx = onnx
        self.given: Dtype = dtype
        self.dtype: Dtype = dtype
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._types = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add an operation; returns the name of what it gives."""
        output = name or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [output], name=f"{output}_op", **attributes))
        return output

    def constant(self, value: Any, dtype: str) -> str:
        """Add numbers; returns their name."""
        name = f"constant_{len(self._constants)}"
        array = np.ascontiguousarray(value, dtype=dtype)
        self._constants.append(self._onnx.numpy_helper.from_array(array.reshape(np.shape(value)), name))
        return name

    def cast(self, value: str, to: str, of: str) -> str:
        """`value` of type `of` as the type `to`."""
        return value if to == of else self.node("Cast", value, to=self._types[to])

    def output(self, name: str, value: str) -> str:
        """`value` under a name of its own, in the type of outputs."""
        return self.node("Cast", value, name=name, to=self._types[self.given])

    def features(self, features: FeatureMap, x: str) -> str:
        """The features of `x`, both in the graph's type."""
        if isinstance(features, Linear):
            return x
        if isinstance(features, Standardize):
            return self._standardized(features, x)
        if isinstance(features, RBF):
            kind = "float64" if rbf_wide(features) else self.dtype
            return self.cast(self._bumps(features, x, self.dtype, kind), self.dtype, kind)
        if isinstance(features, RandomFourier):
            return self._cosines(features, x)
        if isinstance(features, Nystroem):
            return self._whitened(features, x)
        if isinstance(features, Chain):
            return self.features(features.outer, self.features(features.inner, x))
        if isinstance(features, Concat):
            return self.node("Concat", *(self.features(part, x) for part in features.parts), axis=1)
        if isinstance(features, Pick):
            return self.node(
                "Gather", self.features(features.inner, x), self.constant(features.indices, "int64"), axis=1
            )
        if isinstance(features, Lookup):
            return self._looked_up(features, x)
        if isinstance(features, Hashed):
            msg = f"hashed features of {', '.join(map(repr, features.columns))} in ONNX, which hashes no text"
            remedy = "fit columns of few values as [corpus] categories, which are exported, or use `streamfit predict`"
            raise ConfigError(msg, "dense features", remedy)
        msg = f"features of kind {type(features).__name__} in ONNX"
        raise ConfigError(msg, "linear, standardised, RBF, Fourier, Nyström or look-up features, chains, sums of them")

    def _looked_up(self, features: Lookup, x: str) -> str:
        """A row of each table; an index that is out of range is an error there as it is here."""
        n_values = features.tables[0].shape[0]
        if self.given == "float32" and n_values > _WHOLE_FLOAT32:
            msg = f"look-up tables of {n_values:,} rows by indices in float32"
            raise ConfigError(msg, f"at most {_WHOLE_FLOAT32:,}, which float32 tells apart", "--dtype float64")
        indices = self.node("Cast", x, to=self._onnx.TensorProto.INT64)
        # A negative index would count from the end.
        negative = self.node("Less", indices, self.constant(0, "int64"))
        indices = self.node("Where", negative, self.constant(n_values, "int64"), indices)
        rows = [
            self.node("Gather", self.constant(table, self.dtype), self._column(indices, i), axis=0)
            for i, table in enumerate(features.tables)
        ]
        return self.node("Concat", *rows, axis=1)

    def _column(self, rows: str, index: int) -> str:
        """One column, as a vector."""
        return self.node("Gather", rows, self.constant(index, "int64"), axis=1)

    def _standardized(self, features: Standardize, x: str) -> str:
        away = self.node("Sub", self.cast(x, "float64", self.dtype), self.constant(features.mean, "float64"))
        return self.cast(self.node("Div", away, self.constant(features.scale, "float64")), self.dtype, "float64")

    def _bumps(self, features: RBF, x: str, given: str, kind: str) -> str:
        """exp(2γ x'c - γ||c||² - γ||x||²) about the centers' mean, as in `RBF`: of `x` of type `given`, in `kind`."""
        exact = np.asarray(features.centers, dtype=np.float64)
        middle = exact.mean(axis=0).astype(given)
        centers = (exact - middle.astype(np.float64)).astype(kind)
        near = self.cast(self.node("Sub", x, self.constant(middle, given)), kind, given)
        inner = self.node("MatMul", near, self.constant(centers.T * (2.0 * features.gamma), kind))
        inner = self.node("Add", inner, self.constant(-features.gamma * (centers * centers).sum(axis=1), kind))
        squares = self._row_squares(near)
        size = self.node("Mul", squares, self.constant(features.gamma, kind))
        return self.node("Exp", self.node("Min", self.node("Sub", inner, size), self.constant(0.0, kind)))

    def _row_squares(self, rows: str) -> str:
        axes = self.constant([1], "int64")
        return self.node("ReduceSum", self.node("Mul", rows, rows), axes, keepdims=1)

    def _cosines(self, features: RandomFourier, x: str) -> str:
        angles = self.node("MatMul", x, self.constant(features.frequencies, self.dtype))
        angles = self.node("Add", angles, self.constant(features.phases, self.dtype))
        return self.node("Mul", self.node("Cos", angles), self.constant(np.sqrt(2.0 / features.n), self.dtype))

    def _whitened(self, features: Nystroem, x: str) -> str:
        kernel = RBF(features.centers, features.gamma)
        kind = "float64" if nystroem_wide(features) else self.dtype
        inner = "float64" if rbf_wide(kernel) else kind
        bumps = self._bumps(kernel, self.cast(x, kind, self.dtype), kind, inner)
        phi = self.node("MatMul", self.cast(bumps, kind, inner), self.constant(features.whitening, kind))
        return self.cast(phi, self.dtype, kind)

    def deviations(self, posterior: Any, phi: str) -> str:
        """σ sqrt(1 + leverage), in float64 as `Posterior.predictive_variance`."""
        away = self.node("Sub", self.cast(phi, "float64", self.dtype), self.constant(posterior.mean_x, "float64"))
        squares = self._row_squares(self.node("MatMul", away, self.constant(posterior.factor.T, "float64")))
        level = 1.0 + (1.0 / posterior.weight if posterior.fit_intercept else 0.0)
        spread = self.node("Sqrt", self.node("Add", squares, self.constant(level, "float64")))
        both = self.node("Mul", spread, self.constant(np.sqrt(posterior.noise_variance)[None, :], "float64"))
        return self.output("std", both)

    def finished(self, model: LinearModel, inputs: list[Input], outputs: dict[str, str], reader: dict[str, Any]) -> Any:
        """The checked model."""
        helper, kind = self._onnx.helper, self._types[self.given]
        types = self._types | {"text": self._onnx.TensorProto.STRING}
        domains = {"": OPSET} | {node.domain: ML_OPSET for node in self._nodes if node.domain}
        n_targets = len(model.solution.intercept)
        shapes: dict[str, Any] = {"predicted": (kind, ["rows", n_targets]), "std": (kind, ["rows", n_targets])}
        shapes["class_id"] = (self._onnx.TensorProto.INT64, ["rows"])
        graph = helper.make_graph(
            self._nodes,
            "streamfit",
            [helper.make_tensor_value_info(name, types[each], shape) for name, each, shape in inputs],
            [helper.make_tensor_value_info(name, *shapes[name]) for name in outputs],
            self._constants,
        )
        made = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
            ir_version=IR_VERSION,
            producer_name="streamfit",
            producer_version=importlib.metadata.version("streamfit"),
        )
        data = model.info.get("data", {})
        facts = {"inputs": reader.get("features"), "targets": reader.get("target"), "classes": reader.get("classes")}
        facts |= {"licence": data.get("licence"), "ledger": data.get("ledger"), "alpha": model.solution.alpha}
        facts["certificate"] = model.solution.certificate.to_json()
        helper.set_model_props(made, {name: _text(value) for name, value in facts.items() if value})
        self._onnx.checker.check_model(made, full_check=True)
        return made


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
