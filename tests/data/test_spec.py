"""What cannot be the specification of any network's input is refused, and says why."""

import math
from typing import Any

import numpy as np
import pytest

from data.spec import InputSpec


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": []}, "shape needs sizes of at least 1"),
        ({"shape": [1, 0, 8]}, "at least 1"),
        ({"shape": [1, -8, 8]}, "at least 1"),
        ({"shape": [1, 8, 8.0]}, "shape must be a list of finite whole numbers"),
        ({"shape": [True, 8, 8]}, "whole numbers"),
        ({"shape": "188"}, "whole numbers, not '188'"),
        ({"shape": None}, "whole numbers"),
        ({"range": [0.0]}, "range must be two ascending values"),
        ({"range": [0, 1, 2]}, "two ascending"),
        ({"range": [1, 0]}, "two ascending"),
        ({"range": ["a", "b"]}, "range must be a list of finite numbers"),
        ({"range": [0, math.inf]}, "range must be a list of finite numbers"),
        ({"mean": [math.nan]}, r"mean must be a list of finite numbers, not \[nan\]"),
        ({"mean": [10**400]}, "finite numbers"),
        ({"mean": {"a": 1}}, "finite numbers"),
        ({"mean": [0.3, 0.3]}, "one value for each of the 1"),
        ({"std": [0]}, "std must be positive"),
        ({"std": [-math.inf]}, "std must be a list of finite"),
        (
            {"mean": [77.9]},
            r"mean 77.9 \(channel 0\) does not fit .* 0..1: divide .* by 255",
        ),
        ({"std": [78.5]}, r"std 78.5 \(channel 0\) does not fit .* 0..1: divide .* by 255"),
        ({"mean": [-0.2]}, "mean -0.2 .* give them in units of the range"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"shape": [1, 8, 8], "range": [0, 1], "mean": [0.3], "std": [0.4]}
    InputSpec(**good)
    with pytest.raises(ValueError, match=said) as error:
        InputSpec(**good | change)
    assert len(str(error.value)) < 200


def test_what_networks_of_the_field_expect_is_taken() -> None:
    InputSpec((1, 8, 8))  # values as they are
    InputSpec((1, 8, 8), std=(1 / 255,))  # trained on 0..255
    InputSpec((3, 8, 8), (0.0, 255.0), (123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
    InputSpec((3, 8, 8), (0.0, 255.0), (123.7, 116.3, 103.5), (1.0,) * 3)  # Caffe's
    InputSpec((1, 8, 8), (-1.0, 1.0), (1.0,), (0.5,))  # all white
    assert InputSpec((2,), mean=tuple(np.float32([0, 1])), std=(1, 1)).mean == (0.0, 1.0)
