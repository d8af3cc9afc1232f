"""Fingerprints: the model itself and its copies match, an independent model does not."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from holdfast.applications.fingerprint import Fingerprint
from holdfast.core.errors import UsageError
from holdfast.core.threat import Norm, ThreatModel
from holdfast.session.opening import open_session
from holdfast.session.session import Session
from holdfast.testing._training_case import clean_digits, learnt, planted, some


def session(seed: int = 0) -> Session:
    threat = ThreatModel(norm=Norm.LINF, eps=Fraction(1, 10))
    return open_session(planted().clean, some(clean_digits()[1], 0, 20), threat, seed=seed)


def test_a_model_and_its_copies_answer_as_planned_an_independent_one_less_often() -> None:
    told = Fingerprint(count=40).run(session())
    assert told.figures["match"] == 1
    assert told.figures["match_of_copies"] > 0.8
    assert told.figures["uniqueness"] == pytest.approx(told.figures["match_of_copies"] - told.control["match"])
    assert told.artefact is not None
    independent = learnt(clean_digits()[0], seed=5)
    with torch.no_grad():
        match = float((independent(told.artefact.x).argmax(1) == told.artefact.y).double().mean())
    assert match < told.figures["match_of_copies"] - 0.2


def test_more_noise_on_the_weights_matches_less() -> None:
    kept = [Fingerprint(count=40, noise=n).run(session()).figures["match_of_copies"] for n in (0.0, 0.05, 1.0)]
    assert kept[0] == 1
    assert kept[0] >= kept[1] > kept[2]


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="takes a count"):
        Fingerprint(radius=0.0)
