"""Shapes and types in signatures are checked in every test, or a wrong one would go unseen."""

import numpy as np
import pytest
import torch

from efficient_mae.engine.storage.durable import system_error
from efficient_mae.masking import p2dist
from efficient_mae.methods.base import check_mask
from efficient_mae.tasks.classify.probe.statistics import mcnemar
from tests.conftest import check


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (system_error, (5,)),
        (p2dist, (torch.ones(1, 4, 4), 16)),
        (p2dist, (torch.ones(4, 4, dtype=torch.bool), 16)),
        (check_mask, (torch.ones(1, 4, 4, dtype=torch.bool), "1", (4, 4))),
        (mcnemar, (np.ones(3, bool), np.ones(4, bool))),
    ],
    ids=["type", "dtype", "axes", "of several", "sizes of one letter"],
)
def test_arguments(function, arguments):
    with pytest.raises(TypeError, match="violates type hint"):
        function(*arguments)


def test_what_is_returned():
    @check
    def wrong(count: int) -> str:
        return count  # pyright: ignore[reportReturnType]

    with pytest.raises(TypeError, match="violates type hint"):
        wrong(3)
