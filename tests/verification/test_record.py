"""What came out of an instance, read back from a journal."""

import pytest

from holdfast.verification.record import parsed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"verdict": "unsat", "seconds": -1}', "seconds: "),
        ('{"verdict": "unsat", "seconds": 1, "colour": "red"}', "colour: "),
        ('{"verdict": "unsat", "seconds": 1, "bound": NaN}', "NaN"),
        ("[]", "the record as a whole"),
    ],
)
def test_a_record_is_checked_when_it_is_read_back(text, says):
    with pytest.raises(ValueError, match=says):
        parsed(text)
