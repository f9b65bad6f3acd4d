"""TensorRT sessions and builds on a GPU, on a stand-in for its module in the shapes of 10.x and 11.x."""

from __future__ import annotations

import numpy as np
import pytest
from fake_tensorrt import CountingStream, FakeTensorRt

from akd_deploy.engines.tensorrt_session import TensorRtSession
from akd_deploy.errors import AkdError, CorruptFileError, MismatchError, UsageError


def fake_session(trt: FakeTensorRt, stream: CountingStream | None = None, plan: bytes = b"plan") -> TensorRtSession:
    return TensorRtSession(trt, plan, "m.plan", 2, device="cpu", stream=stream or CountingStream())


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_session_runs_on_its_own_buffers_and_resolves_the_batch():
    trt = FakeTensorRt()
    with fake_session(trt) as session:
        assert [(s.name, s.shape, s.dtype) for s in session.inputs] == [("x", (2, 3), "float32")]
        first = session.run({"x": X})
        session.run({"x": X + 1})
        np.testing.assert_array_equal(first["y"], 2 * X + 1)
    assert trt.runtimes[0].engine_host_code_allowed is False


def test_bound_call_waits_for_the_stream_every_time():
    stream = CountingStream()
    with fake_session(FakeTensorRt(), stream) as session:
        call = session.bind({"x": X})
        assert call() is None
        call()
        np.testing.assert_array_equal(session.bound_outputs()["y"], 2 * X + 1)
    assert stream.waits == 2


def test_feeds_that_do_not_fit_are_refused():
    with fake_session(FakeTensorRt()) as session, pytest.raises(UsageError, match="x"):
        session.run({"x": X.astype(np.float64)})


def test_plan_of_another_version_is_refused_with_tensorrts_reason():
    with pytest.raises(MismatchError, match=r"m\.plan.*Version tag does not match"):
        fake_session(FakeTensorRt(), plan=b"other")


def test_empty_plan_is_corrupt_and_never_reaches_tensorrt():
    trt = FakeTensorRt()
    with pytest.raises(CorruptFileError, match="empty"):
        fake_session(trt, plan=b"")
    assert trt.runtimes == []


def test_failed_inference_is_an_error_and_no_old_result():
    with fake_session(FakeTensorRt(fails=True)) as session, pytest.raises(AkdError, match="one inference"):
        session.run({"x": X})


def test_inputs_whose_shapes_stay_open_are_named():
    with pytest.raises(AkdError, match="inputs without a shape: lengths"):
        fake_session(FakeTensorRt(unresolved=("lengths",)))


def test_bfloat16_inputs_are_refused_since_numpy_has_none():
    with pytest.raises(MismatchError, match="bfloat16"):
        fake_session(FakeTensorRt(dtype="BF16"))
