"""A model of every operator that ONNX defines: the standard's own examples, and ours of those that it has none of."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import defs, numpy_helper, parser

Operator = tuple[str, str]
"""Domain ("" for ONNX's main one) and name."""

EXAMPLES = 3
"""Of every operator so many are tried, spread over what the standard has."""
OLDEST_OPSET, OLDER_IR_VERSION = 6, 10
SLOW_MODULES = frozenset({"averagepool", "lppool", "maxpool"})
"""Their examples take seconds each to compute; ours below stand in."""

_HEADS = {
    "": '<ir_version: 10, opset_import: ["": 21]>',
    "ai.onnx.ml": '<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>',
}
_POOL = "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"
_SVM = 'coefficients = [1.0, -1.0], rho = [0.5], support_vectors = [0.0, 1.0, 2.0, 1.0, 0.0, 2.0], kernel_type = "RBF"'
_TREE = (
    'nodes_falsenodeids = [2, 0, 0], nodes_featureids = [0, 0, 0], nodes_modes = ["BRANCH_LEQ", "LEAF", "LEAF"], '
    "nodes_nodeids = [0, 1, 2], nodes_treeids = [0, 0, 0], nodes_truenodeids = [1, 0, 0], "
    "nodes_values = [0.5, 0.0, 0.0]"
)
_WITHOUT_EXAMPLE: dict[Operator, str] = {
    ("", "AveragePool"): f"(float[1,4,9,9] x) => (float[1,4,5,5] y) {{ y = AveragePool<{_POOL}>(x) }}",
    ("", "LpPool"): f"(float[1,4,9,9] x) => (float[1,4,5,5] y) {{ y = LpPool<{_POOL}>(x) }}",
    ("", "MaxPool"): f"(float[1,4,9,9] x) => (float[1,4,5,5] y) {{ y = MaxPool<{_POOL}>(x) }}",
    ("", "GlobalLpPool"): "(float[1,4,8,8] x) => (float[1,4,1,1] y) { y = GlobalLpPool(x) }",
    ("", "MaxRoiPool"): "(float[1,4,8,8] x, float[1,5] r) => (float[1,4,2,2] y) "
    "{ i = Constant<value = float[1,5] {0, 0, 0, 4, 4}>()\n y = MaxRoiPool<pooled_shape = [2, 2]>(x, i) }",
    ("", "Multinomial"): "(float[2,5] x) => (int32[2,7] y) { y = Multinomial<sample_size = 7>(x) }",
    ("", "RandomNormal"): "(float[3,4] x) => (float[3,4] y) { r = RandomNormal<shape = [3, 4]>()\n y = Add(x, r) }",
    ("", "RandomNormalLike"): "(float[3,4] x) => (float[3,4] y) { y = RandomNormalLike(x) }",
    ("", "RandomUniform"): "(float[3,4] x) => (float[3,4] y) { r = RandomUniform<shape = [3, 4]>()\n y = Add(x, r) }",
    ("", "RandomUniformLike"): "(float[3,4] x) => (float[3,4] y) { y = RandomUniformLike(x) }",
    ("", "Upsample"): "(float[1,2,4,4] x) => (float[1,2,8,8] y) "
    "{ s = Constant<value = float[4] {1, 1, 2, 2}>()\n y = Upsample(x, s) }",
    ("", "ConcatFromSequence"): "(float[4,2] x) => (float[4,2] y) "
    "{ s = SplitToSequence<axis = 0>(x)\n y = ConcatFromSequence<axis = 0>(s) }",
    ("", "SequenceConstruct"): "(float[4,2] x) => (float[4,2] y) "
    "{ s = SequenceConstruct(x, x)\n i = Constant<value_int = 0>()\n y = SequenceAt(s, i) }",
    ("", "SequenceAt"): "(float[4,2] x) => (float[2] y) "
    "{ s = SplitToSequence<axis = 0, keepdims = 0>(x)\n i = Constant<value_int = 1>()\n y = SequenceAt(s, i) }",
    ("", "SequenceErase"): "(float[4,2] x) => (float[4,2] y) "
    "{ s = SequenceConstruct(x, x)\n t = SequenceErase(s)\n y = ConcatFromSequence<axis = 0>(t) }",
    ("", "SequenceEmpty"): "(float[4,2] x) => (float[4,2] y) "
    "{ s = SequenceEmpty()\n t = SequenceInsert(s, x)\n y = ConcatFromSequence<axis = 0>(t) }",
    ("", "SequenceLength"): "(float[4,2] x) => (int64 y) { s = SplitToSequence<axis = 0>(x)\n y = SequenceLength(s) }",
    ("", "Optional"): "(float[4,2] x) => (float[4,2] y) { o = Optional(x)\n y = OptionalGetElement(o) }",
    ("ai.onnx.ml", "CastMap"): "(float[4] x) => (float[4] y) { m = ai.onnx.ml.CastMap(x)\n y = Relu(m) }",
    ("ai.onnx.ml", "CategoryMapper"): "(int64[4] x) => (int64[4] y) "
    '{ s = ai.onnx.ml.CategoryMapper<cats_int64s = [0, 1], cats_strings = ["a", "b"]>(x)\n'
    ' y = ai.onnx.ml.CategoryMapper<cats_int64s = [0, 1], cats_strings = ["a", "b"]>(s) }',
    ("ai.onnx.ml", "DictVectorizer"): "(float[4] x) => (float[4] y) "
    "{ y = ai.onnx.ml.DictVectorizer<int64_vocabulary = [0, 1]>(x) }",
    ("ai.onnx.ml", "FeatureVectorizer"): "(float[4,2] x, float[4,3] z) => (float[4,5] y) "
    "{ y = ai.onnx.ml.FeatureVectorizer<inputdimensions = [2, 3]>(x, z) }",
    ("ai.onnx.ml", "Imputer"): "(float[4,2] x) => (float[4,2] y) "
    "{ y = ai.onnx.ml.Imputer<imputed_value_floats = [0.0, 1.0], replaced_value_float = 3.0>(x) }",
    ("ai.onnx.ml", "LabelEncoder"): "(int64[4] x) => (int64[4] y) "
    "{ y = ai.onnx.ml.LabelEncoder<keys_int64s = [0, 1], values_int64s = [5, 6]>(x) }",
    ("ai.onnx.ml", "LinearClassifier"): "(float[4,2] x) => (int64[4] y, float[4,2] p) "
    "{ y, p = ai.onnx.ml.LinearClassifier<classlabels_ints = [0, 1], coefficients = [1.0, 2.0, 3.0, 4.0], "
    "intercepts = [0.0, 1.0]>(x) }",
    ("ai.onnx.ml", "LinearRegressor"): "(float[4,2] x) => (float[4,1] y) "
    "{ y = ai.onnx.ml.LinearRegressor<coefficients = [1.0, 2.0], intercepts = [0.5]>(x) }",
    ("ai.onnx.ml", "Normalizer"): '(float[4,2] x) => (float[4,2] y) { y = ai.onnx.ml.Normalizer<norm = "L2">(x) }',
    ("ai.onnx.ml", "OneHotEncoder"): "(float[4] x) => (float[4,3] y) "
    "{ y = ai.onnx.ml.OneHotEncoder<cats_int64s = [0, 1, 2]>(x) }",
    ("ai.onnx.ml", "SVMClassifier"): "(float[4,3] x) => (int64[4] y, float[4,2] p) "
    f"{{ y, p = ai.onnx.ml.SVMClassifier<{_SVM}, classlabels_ints = [0, 1], vectors_per_class = [1, 1], "
    "kernel_params = [0.5, 0.0, 3.0]>(x) }",
    ("ai.onnx.ml", "SVMRegressor"): "(float[4,3] x) => (float[4,1] y) "
    f"{{ y = ai.onnx.ml.SVMRegressor<{_SVM}, n_supports = 2, kernel_params = [0.5, 0.0, 3.0]>(x) }}",
    ("ai.onnx.ml", "Scaler"): "(float[4,2] x) => (float[4,2] y) "
    "{ y = ai.onnx.ml.Scaler<offset = [0.0, 1.0], scale = [1.0, 2.0]>(x) }",
    ("ai.onnx.ml", "TreeEnsembleClassifier"): "(float[4,2] x) => (int64[4] y, float[4,2] p) "
    f"{{ y, p = ai.onnx.ml.TreeEnsembleClassifier<{_TREE}, classlabels_int64s = [0, 1], class_ids = [0, 1], "
    "class_nodeids = [1, 2], class_treeids = [0, 0], class_weights = [1.0, 1.0]>(x) }",
    ("ai.onnx.ml", "TreeEnsembleRegressor"): "(float[4,2] x) => (float[4,1] y) "
    f"{{ y = ai.onnx.ml.TreeEnsembleRegressor<{_TREE}, n_targets = 1, target_ids = [0, 0], "
    "target_nodeids = [1, 2], target_treeids = [0, 0], target_weights = [1.0, 2.0]>(x) }",
    ("ai.onnx.ml", "ZipMap"): "(float[4,2] x) => (float[4,2] y) "
    "{ m = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1]>(x)\n y = Relu(x) }",
    ("ai.onnx.preview.training", "Gradient"): "(float[4] x) => (float[4] y) "
    '{ z = Exp(x)\n y = ai.onnx.preview.training.Gradient<xs = ["x"], y = "z">(x) }',
}
_HEADS["ai.onnx.preview.training"] = '<ir_version: 10, opset_import: ["": 21, "ai.onnx.preview.training": 1]>'
_OLDER = {("", "Upsample"): 9}
"""Operators that newer operator sets have no more."""


@dataclass(frozen=True)
class OperatorModel:
    """A model with the operator in it, its first input fed and the others constant as far as that is possible."""

    operator: Operator
    name: str
    model: onnx.ModelProto


def every_operator() -> list[Operator]:
    """Every operator of every domain that the installed onnx defines."""
    return sorted({(schema.domain, schema.name) for schema in defs.get_all_schemas()})


@cache
def _examples() -> dict[Operator, list[onnx.backend.test.case.test_case.TestCase]]:
    """The standard's examples by operator, smallest first, without those that spell an operator's function out."""
    with warnings.catch_warnings():
        # The examples divide by zero, and cast what does not fit, to say what comes of it.
        warnings.simplefilter("ignore", RuntimeWarning)
        import onnx.backend.test.case.node as node_cases

        for module in pkgutil.walk_packages(node_cases.__path__, f"{node_cases.__name__}."):
            if module.name.rpartition(".")[2] not in SLOW_MODULES:
                importlib.import_module(module.name)
        cases = list(node_cases._NodeTestCases)  # `collect_testcases` would import the slow ones too
    found: dict[Operator, list[onnx.backend.test.case.test_case.TestCase]] = {}
    for case in cases:
        if not case.name.endswith("_expanded"):
            for operator in dict.fromkeys((node.domain, node.op_type) for node in case.model.graph.node):
                found.setdefault(operator, []).append(case)
    return {operator: sorted(cases, key=lambda case: len(case.model.graph.node)) for operator, cases in found.items()}


def models_of(operator: Operator) -> Iterator[OperatorModel]:
    """Up to `EXAMPLES` models of the operator as its newest version is written."""
    if operator in _WITHOUT_EXAMPLE:
        model = parser.parse_model(f"{_HEADS[operator[0]]} example {_WITHOUT_EXAMPLE[operator]}")
        if operator in _OLDER:
            model.opset_import[0].version = _OLDER[operator]
        yield OperatorModel(operator, f"example of {operator[1]}", model)
        return
    cases = _examples()[operator]
    cases = [case for case in cases if len(case.model.graph.node) == len(cases[0].model.graph.node)]
    for case in cases[:: max(1, len(cases) // EXAMPLES)][:EXAMPLES]:
        yield OperatorModel(operator, case.name, _with_constants(case))


def older(one: OperatorModel) -> Iterator[OperatorModel]:
    """The same model by the versions before, newest first, for runtimes that do not know the newest yet."""
    domain, _ = one.operator
    versions = {
        schema.since_version
        for schema in defs.get_all_schemas_with_history()
        if (schema.domain, schema.name) == one.operator and not schema.deprecated
    }
    written = {entry.domain: entry.version for entry in one.model.opset_import}
    newest = written.get(domain, max(written.values()))
    for version in sorted({v for v in versions if OLDEST_OPSET <= v < newest}, reverse=True):
        model = onnx.ModelProto()
        model.CopyFrom(one.model)
        model.ir_version = min(model.ir_version, OLDER_IR_VERSION)
        for entry in model.opset_import:
            if entry.domain == domain:
                entry.version = version
        yield OperatorModel(one.operator, f"{one.name} as of {version}", model)


def _with_constants(case: onnx.backend.test.case.test_case.TestCase) -> onnx.ModelProto:
    """The example with all its inputs but the first as constants: shapes, axes and indices mean something."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    arrays = case.data_sets[0][0]
    values = list(model.graph.input)
    fed = next((i for i, array in enumerate(arrays) if _kind(array) == "f"), 0)
    if len(arrays) == len(values):
        constant = [i for i, array in enumerate(arrays) if i != fed and _kind(array) in "fiub"]
        kept = [
            onnx.ValueInfoProto.FromString(v.SerializeToString()) for i, v in enumerate(values) if i not in constant
        ]
        model.graph.initializer.extend(numpy_helper.from_array(arrays[i], values[i].name) for i in constant)
        del model.graph.input[:]
        model.graph.input.extend(kept)
    return model


def _kind(array: object) -> str:
    """Of an array its dtype's kind; "?" for what is none, as sequences and absent optionals."""
    return array.dtype.kind if isinstance(array, np.ndarray | np.generic) else "?"
