"""The page of an analysis: what its charts are drawn from."""

import numpy as np

from graftax.pages.analysis_page import _by_time


def test_timesteps_that_no_step_fell_into_leave_no_gap():
    nan = np.nan
    values, times = _by_time([[1.0, 2.0], [nan, nan], [3.0, nan], [nan, nan]])
    assert times == ["0", "500"]
    assert np.array_equal(values, [[1.0, 3.0], [2.0, nan]], equal_nan=True)
