"""Proved radii beside witnesses: a column of a sound method may not reach one that the referee upheld."""

import numpy as np
import pytest

from holdfast.core.verdict import Clash
from holdfast.studies.common.columns import Crossing, RadiiColumn, crossings


def _column(name, guarantee, radius, **more):
    return RadiiColumn(name=name, title=name, guarantee=guarantee, radius=np.array(radius), seconds=0.0, **more)


@pytest.mark.parametrize(
    ("deployed", "asked", "meaning"),
    [
        (None, ("float32", "float64"), Clash.CONTRADICTION),
        (None, ("float32",), Clash.FINDING),
        ("float16", ("float32", "float64"), Clash.FINDING),
        ("float32", ("float32",), Clash.CONTRADICTION),
    ],
)
def test_a_sound_radius_that_reaches_a_witness_crosses_it(deployed, asked, meaning):
    up = _column("fmn", "witness", [0.2, 0.3, np.nan], arithmetics=asked)
    low = _column("crown", "sound", [0.2, np.nextafter(0.3, 0), 0.5], deployed=deployed)
    assert crossings([up, low]) == (Crossing(certifier="crown", attack="fmn", sample=0, meaning=meaning),)


def test_what_is_no_proof_crosses_nothing():
    up = _column("fmn", "witness", [0.2])
    assert not crossings([up, _column("clever", "estimate", [0.5]), _column("cohen", "probabilistic", [0.5])])
    assert not crossings([up, _column("crown", "sound", [np.nan])])
