"""The exception tree: both habits of catching work."""

from __future__ import annotations

import pickle

import pytest

from gemmantle import errors

BUILTINS = {
    "ModelNotFound": FileNotFoundError,
    "CorruptFile": ValueError,
    "UnsupportedModel": ValueError,
    "UnsupportedHardware": RuntimeError,
    "DriverTooOld": RuntimeError,
    "OutOfMemory": MemoryError,
    "RequestError": ValueError,
    "ForkedEngineError": RuntimeError,
    "EngineClosed": RuntimeError,
    "DeviceError": RuntimeError,
    "InternalError": RuntimeError,
}


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_ours_and_keeps_its_message(name):
    error = getattr(errors, name)("what, found 3, do that")
    assert isinstance(error, errors.GemmantleError)
    assert str(error) == "what, found 3, do that"
    assert isinstance(error, BUILTINS.get(name, Exception))
    assert name in (errors.__doc__ or "")


@pytest.mark.parametrize(
    "name",
    [
        "ModelNotFound",
        "GatedModel",
        "CorruptFile",
        "UnsupportedModel",
        "UnsupportedHardware",
        "DriverTooOld",
        "OutOfMemory",
    ],
)
def test_loading_has_one_class_above_all_its_errors(name):
    assert issubclass(getattr(errors, name), errors.LoadError)


def test_a_request_error_carries_code_field_and_status_through_a_pickle():
    error = pickle.loads(pickle.dumps(errors.RequestError("no", code="invalid_prompt", param="prompt[2]", status=400)))
    assert (str(error), error.code, error.param, error.status) == ("no", "invalid_prompt", "prompt[2]", 400)


def test_out_of_memory_can_say_what_would_fit():
    error = errors.OutOfMemory("no", needed=10, free=5, by_part={"weights": 10}, suggestions=["max_context=1024"])
    assert (error.needed, error.free, error.total, error.by_part) == (10, 5, None, {"weights": 10})
    assert error.suggestions == ["max_context=1024"]
