"""No answer is chosen by a number that is not one."""

import numpy as np
import pytest

from icljax.comparison import answers
from icljax.errors import UserError

NAN, INF = float("nan"), float("inf")
FINE = [[-1.0, -2.0], [-3.0, -INF]]  # the second example has one candidate


def test_the_most_probable_candidate():
    assert answers.chosen(np.array([FINE, [[-2.0, -1.0], [-1.0, -INF]]])).tolist() == [
        [0, 0],
        [1, 0],
    ]


@pytest.mark.parametrize("bad", [[NAN, -1.0], [-1.0, NAN], [INF, -1.0], [-INF, -INF]])
def test_none_where_one_is_not_finite(bad):
    logprob = np.array([FINE, [bad, FINE[0]]])
    assert answers.defined(logprob).tolist() == [[True, True], [False, True]]
    with pytest.raises(UserError, match="not finite"):
        answers.chosen(logprob)


def test_the_example_the_setting_and_the_seed_are_named():
    names = ["row 7", "row 9"]
    answers.check("in-context", np.array([FINE, FINE]), names, [1, 2], "none")
    answers.check("zero-shot", np.array(FINE), names, [1, 2], "none")
    bad = np.array([FINE, [FINE[0], [NAN, -1.0]], [[INF, 0], FINE[1]]])
    expected = (
        r"^row 9: in-context of seed 5 gives log-probabilities \[nan, -1.0\], which are not finite "
        r"\(so do 1 more\); likely cause: of nothing$"
    )
    with pytest.raises(UserError, match=expected):
        answers.check("in-context", bad, names, [4, 5, 6], "of nothing")
    with pytest.raises(UserError, match=r"^row 7: zero-shot gives"):
        answers.check("zero-shot", np.array([[NAN, 0], FINE[0]]), names, [4, 5, 6], "x")
