import copy
import inspect
import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from akd_deploy import errors
from akd_deploy.errors import AkdError, StorageError, UncoveredOperatorError, UnknownNameError, UsageError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, AkdError)]
PLAIN = [c for c in CLASSES if c not in (UnknownNameError, UncoveredOperatorError)]

EXIT_CODES = {
    "error": 2,
    "usage": 2,
    "unknown_name": 2,
    "missing_file": 2,
    "corrupt_file": 2,
    "uncovered_operator": 2,
    "mismatch": 2,
    "training": 2,
    "infeasible_budget": 3,
    "gate": 3,
    "verification": 3,
    "parity": 4,
    "storage": 5,
    "missing_runtime": 5,
    "experiment": 5,
    "build": 6,
    "defect": 1,
    "interrupted": 130,
}


@pytest.mark.parametrize("kind", PLAIN)
def test_message_says_what_was_asked_what_was_found_and_what_to_do(kind):
    error = kind(asked="a table", found="a chair", next="Move it.")
    for part in ("a table", "a chair", "Move it."):
        assert part in str(error)
    assert not str(error).startswith(("'", '"'))


@pytest.mark.parametrize("kind", PLAIN)
def test_error_as_json_keeps_its_parts_and_details(kind):
    error = kind(asked="a table", found="a chair", next="Move it.", legs=4)
    assert json.loads(json.dumps(error.as_dict())) == {
        "kind": kind.kind,
        "asked": "a table",
        "found": "a chair",
        "next": "Move it.",
        "legs": 4,
    }


def test_every_kind_of_error_is_also_a_builtin_and_has_its_own_name():
    for kind in CLASSES:
        if kind is not AkdError:
            assert any(base.__module__ == "builtins" and base is not Exception for base in kind.__mro__[1:-3]), kind
    kinds = [kind.kind for kind in CLASSES]
    assert len(set(kinds)) == len(kinds)


def test_exit_codes_are_those_the_commands_promise():
    assert {kind.kind: kind.exit_code for kind in CLASSES} == EXIT_CODES


def test_unknown_name_lists_the_known_ones_and_the_closest():
    error = UnknownNameError("engine", "openvin", ["torch", "openvino"], where="target t")
    assert isinstance(error, LookupError)
    assert "engine 'openvin' in target t" in str(error)
    assert "Did you mean 'openvino'?" in str(error)
    assert "Known: openvino, torch." in str(error)
    assert error.as_dict()["known"] == ["openvino", "torch"]


def test_unknown_name_far_from_all_known_ones_suggests_nothing():
    assert "Did you mean" not in str(UnknownNameError("engine", "zzz", ["torch"]))
    assert "(none)" in str(UnknownNameError("engine", "zzz", []))


def test_uncovered_operators_are_named_once_each_and_sorted():
    error = UncoveredOperatorError(["Relu", "Conv", "Relu"], asked="the latency of m.onnx", next="Profile them.")
    assert error.as_dict()["uncovered"] == ["Conv", "Relu"]
    assert "Conv, Relu" in str(error)


def test_errors_are_caught_as_the_builtins_they_also_are():
    with pytest.raises(ValueError, match="a chair"):
        raise UsageError(asked="a table", found="a chair", next="Move it.")
    with pytest.raises(OSError, match="a chair"):
        raise StorageError(asked="a table", found="a chair", next="Move it.")


ONE_OF_EACH = [kind(asked="a table", found="a chair", next="Move it.", legs=4) for kind in PLAIN] + [
    UnknownNameError("engine", "openvin", ["torch", "openvino"], where="target t"),
    UncoveredOperatorError(["Relu", "Conv"], asked="the latency of m.onnx", next="Profile them."),
]


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_error_that_is_sent_to_another_process_arrives_whole(error, copied):
    error.add_note("seen in a worker")
    arrived = copied(error)
    assert type(arrived) is type(error)
    assert (str(arrived), repr(arrived), arrived.args) == (str(error), repr(error), error.args)
    assert arrived.as_dict() == error.as_dict()
    assert vars(arrived) == vars(error)
    assert arrived.exit_code == error.exit_code


def raise_it(error):
    raise error


def test_every_error_comes_out_of_a_pool_of_processes_as_itself():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for error in ONE_OF_EACH:
            with pytest.raises(type(error)) as caught:
                pool.submit(raise_it, error).result()
            assert type(caught.value) is type(error)
            assert caught.value.as_dict() == error.as_dict()
