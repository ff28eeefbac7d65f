"""Gradient-boosted trees: all that is asked of LightGBM, and the trees as ONNX nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.types import GraphBuilder, Snapshot, UserError
from engine.types.arrays import Floats

ML = "ai.onnx.ml"
TINY = 1e-15
"""The least share of a class whose logarithm is taken."""
ZERO = 1.0000000180025095e-35
"""LightGBM takes numbers up to this for 0."""
NO_TREE = {"leaf_value": 0.0}
Rows = NDArray[np.float32]
"""Features, shape (n, numeric + categories)."""
Target = NDArray[np.float32]
"""Numbers, or class numbers, shape (n,)."""
Params = Mapping[str, Any]
"""LightGBM's."""


def lightgbm() -> ModuleType:
    """Return LightGBM; imported here alone, since it is an optional package.

    Raises: UserError if it is not installed, or cannot be loaded.
    """
    try:
        import lightgbm
    except ImportError:
        raise UserError(
            "[model] kind = 'trees' needs the package lightgbm, which is not installed: "
            "pip install 'headrace[trees]'."
        ) from None
    except OSError as error:  # it needs the system's OpenMP
        raise UserError(
            f"[model] kind = 'trees' needs the package lightgbm, which cannot be loaded ({error}): "
            "install the library it names, on Debian the package libgomp1."
        ) from None
    module: ModuleType = lightgbm
    return module


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forest:
    """Constants, and trees that add to them. Learning makes a new one.

    The trees learn what the constants leave, and not both together as LightGBM does by itself: it
    would forget the constants when it moves the leaves.

    Attributes:
        constants: raw scores without trees, shape (outputs,).
        text: LightGBM's own text of the trees; empty without any.
        booster: LightGBM's, of that text.
        leaves: of all trees; of constants, one each.
    """

    constants: Floats
    text: str = ""
    booster: Any = None
    leaves: int = 0

    @classmethod
    def of_target(
        cls, target: Target, task: str, outputs: int, quantile: float | None = None
    ) -> Forest:
        """Return the constants that fit a target best: its mean or quantile, or the shares of the
        classes. Without rows, all classes are equally likely."""
        if task == "regression":
            best = 0.0
            if len(target):
                own = target.astype(np.float64)
                best = float(own.mean() if quantile is None else np.quantile(own, quantile))
            return cls(constants=np.array([best]), leaves=1)
        classes = max(outputs, 2)
        counts = np.bincount(target.astype(np.int64), minlength=classes).astype(np.float64)
        shares = counts / len(target) if len(target) else np.full(classes, 1 / classes)
        logs = np.log(np.clip(shares, TINY, 1.0))
        return cls(constants=logs if outputs > 1 else logs[1:] - logs[:1], leaves=outputs)

    def with_trees(
        self,
        rows: Rows,
        target: Target,
        *,
        params: Params,
        num_trees: int,
        categories: Sequence[int],
    ) -> Forest:
        """Return the constants with new trees, which have learned the rows.

        Args:
            categories: columns of codes.
        """
        data = lightgbm().Dataset(
            rows,
            target,
            init_score=self._start(len(rows)),
            categorical_feature=list(categories),
            params=dict(params),
        )
        booster = lightgbm().train(dict(params), data, num_boost_round=num_trees)
        return self._of(booster.model_to_string())

    def refitted(self, rows: Rows, target: Target, *, params: Params, decay: float) -> Forest:
        """Return the same trees, with the values of their leaves moved towards these rows."""
        self.booster.params = dict(params)  # a text holds none
        booster = self.booster.refit(
            rows,
            target,
            decay_rate=decay,
            init_score=self._start(len(rows)),
            num_threads=params["num_threads"],
        )
        return self._of(booster.model_to_string())

    def raw(self, rows: Rows, threads: int) -> Floats:
        """Return the raw scores, shape (n, outputs)."""
        start = np.tile(self.constants, (len(rows), 1))
        if self.booster is None or not len(rows):
            return start
        raw = self.booster.predict(rows, raw_score=True, num_threads=threads)
        return start + np.asarray(raw, np.float64).reshape(start.shape)

    def snapshot(self) -> dict[str, Snapshot]:
        """Return a plain value."""
        return {"text": self.text, "constants": self.constants}

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> Forest:
        """Return the forest of a `snapshot`."""
        constants: Floats = np.array(value["constants"])
        forest = cls(constants=constants, leaves=len(constants))
        return forest._of(value["text"]) if value["text"] else forest

    def build(self, graph: GraphBuilder, rows: str) -> str:
        """Write the raw scores into an ONNX graph; return their name, float32, (n, outputs).

        Args:
            rows: name of the features, float32, shape (n, numeric + categories).
        """
        outputs = len(self.constants)
        trees = [NO_TREE] * outputs
        if self.booster is not None:
            trees = [tree["tree_structure"] for tree in self.booster.dump_model()["tree_info"]]
        nodes = _Nodes()
        for number, tree in enumerate(trees):
            nodes.add(number, tree, number % outputs)
        return graph.op(
            "TreeEnsembleRegressor",
            rows,
            domain=ML,
            n_targets=outputs,
            base_values=self.constants.tolist(),
            aggregate_function="SUM",
            post_transform="NONE",
            **nodes.attributes(),
        )

    def _of(self, text: str) -> Forest:
        """Return the constants with the trees of a text: what a restored learner has too."""
        sizes = [line[11:] for line in text.splitlines() if line.startswith("num_leaves=")]
        return Forest(
            constants=self.constants,
            text=text,
            booster=lightgbm().Booster(model_str=text),
            leaves=sum(map(int, sizes)),
        )

    def _start(self, rows: int) -> Floats:
        """Return the constants of each row, as LightGBM takes them."""
        start = np.tile(self.constants, (rows, 1))
        return start if len(self.constants) > 1 else start[:, 0]


class _Nodes:
    """The nodes of trees, as attributes of ONNX's TreeEnsembleRegressor."""

    def __init__(self) -> None:
        self._splits: list[tuple[int, int, str, int, float, int, int]] = []
        self._leaves: list[tuple[int, int, int, float]] = []
        self._next = 0

    def add(self, tree: int, root: Mapping[str, Any], output: int) -> None:
        """Add a tree as LightGBM describes it."""
        self._next = 1
        left: list[tuple[Mapping[str, Any], int]] = [(root, 0)]
        while left:
            node, number = left.pop()
            if "leaf_value" in node:
                self._splits.append((tree, number, "LEAF", 0, 0.0, 0, 0))
                self._leaves.append((tree, number, output, float(node["leaf_value"])))
                continue
            below, above = self._number(), self._number()
            left += [(node["right_child"], above), (node["left_child"], below)]
            column = int(node["split_feature"])
            if node["decision_type"] == "<=":
                value = _float_below(float(node["threshold"]))
                self._splits.append((tree, number, "BRANCH_LEQ", column, value, below, above))
                continue
            # One of several categories: a chain of comparisons that lead to the same child.
            *codes, last = map(float, node["threshold"].split("||"))
            for code in codes:
                following = self._number()
                self._splits.append((tree, number, "BRANCH_EQ", column, code, below, following))
                number = following
            self._splits.append((tree, number, "BRANCH_EQ", column, last, below, above))

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def attributes(self) -> dict[str, list[Any]]:
        """Return the attributes by name."""
        trees, numbers, modes, columns, values, below, above = zip(*self._splits, strict=True)
        of_tree, of_node, outputs, weights = zip(*self._leaves, strict=True)
        lists = {
            "nodes_treeids": trees,
            "nodes_nodeids": numbers,
            "nodes_modes": modes,
            "nodes_featureids": columns,
            "nodes_values": values,
            "nodes_truenodeids": below,
            "nodes_falsenodeids": above,
            "nodes_missing_value_tracks_true": [0] * len(trees),
            "target_treeids": of_tree,
            "target_nodeids": of_node,
            "target_ids": outputs,
            "target_weights": weights,
        }
        return {name: list(values) for name, values in lists.items()}


def _float_below(threshold: float) -> float:
    """Return the largest float32 that is not above the threshold: float32 numbers are on the same
    side of both. Numbers that LightGBM takes for 0 are above a threshold below 0."""
    if -ZERO <= threshold < 0:
        threshold = np.nextafter(-ZERO, -np.inf)
    with np.errstate(over="ignore"):  # as infinity, which is then lowered
        rounded = np.float32(threshold)
    above = float(rounded) > threshold
    return float(np.nextafter(rounded, np.float32(-np.inf)) if above else rounded)


__all__ = ["Forest", "Rows", "Target", "lightgbm"]
