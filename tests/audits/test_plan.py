"""A plan is the same plan however it is written, and a plan from a file grants nothing."""

from __future__ import annotations

import pickle
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.audits.consent import admit
from holdfast.audits.plan import Plan
from holdfast.core.errors import BudgetError, HoldfastError, UnsafeFileError, UsageError

_TEXT = st.text(max_size=10)
_SIZE = (
    st.fractions(min_value=0)
    | st.floats(0, 1e300)
    | st.decimals(min_value=0, max_value=10, allow_nan=False).map(str)
    | st.sampled_from(["8/255", "1e-3", " 0.1 ", "0.10", "1 / 4"])
)
_FIELDS = {
    "model": st.none() | _TEXT, "arch": st.none() | _TEXT, "trust": st.booleans(), "data": _TEXT,
    "normalise": st.none() | st.tuples(*[st.lists(st.floats(0.1, 2), min_size=1, max_size=3).map(tuple)] * 2),
    "train_data": st.none() | _TEXT, "surrogate": st.none() | _TEXT | st.lists(_TEXT, max_size=3).map(tuple),
    "surrogate_arch": st.none() | _TEXT, "samples": st.none() | st.integers(1), "norm": st.sampled_from(["l0", "l2", "linf"]),
    "eps": _SIZE, "low": st.floats(), "high": st.floats(), "suite": st.sampled_from(["fast", "minimal", "black-box"]),
    "certify": st.sampled_from(["crown", "ibp", "none"]), "radius_max": st.none() | _SIZE, "sigma": st.floats(min_value=1e-9),
    "grid": st.none() | _SIZE, "eps_grid": st.lists(_SIZE, max_size=3).map(tuple), "queries": st.none() | st.integers(1),
    "seed": st.integers(0), "device": _TEXT,
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(values=st.fixed_dictionaries({}, optional=_FIELDS))
def test_the_hash_is_that_of_what_is_read_back(tmp_path_factory, values):
    file = tmp_path_factory.getbasetemp() / "plan.yaml"
    try:
        plan = Plan.of(**values)
    except HoldfastError:
        return
    file.write_bytes(plan.to_yaml().encode())
    again = Plan.read(file)
    assert again.sha256 == plan.sha256
    assert again.decisive() == plan.decisive()
    assert (again.eps, again.eps_text) == (plan.eps, plan.eps_text)
    assert not again.trust


@pytest.mark.parametrize("written", ["0.1", "1/10", "1e-1", 0.1, Fraction(1, 10), " 0.10"])
def test_a_size_shows_as_it_was_typed_and_counts_as_what_it_is(written):
    plan = Plan.of(eps=written)
    assert plan.eps_text == str(written).strip()
    assert plan.eps == Fraction(1, 10)
    assert pickle.loads(pickle.dumps(plan)).eps_text == plan.eps_text
    assert plan.sha256 == Plan.of().sha256
    assert plan.sha256 != Plan.of(eps="0.1000001").sha256
    assert plan.sha256 == Plan.of(radius_max=None, trust=True, max_queries=7).sha256


@pytest.mark.parametrize("name", ["Fast", "autoattack", "black_box", "../plan", ""])
def test_a_suite_that_is_not_there_is_refused_by_name(name):
    with pytest.raises(UsageError, match=f"there is no suite '{name}'"):
        Plan.of(suite=name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("clever", "sound bounds .* 'clever' is none of these"),
        ("pgd", "'pgd' is none of these"),
        ("krown", "mean crown"),
    ],
)
def test_a_certificate_that_an_audit_does_not_serve_is_refused_by_name(name, told):
    with pytest.raises(UsageError, match=told):
        Plan.of(certify=name)


def test_an_old_plan_keeps_its_hash():
    assert Plan.of(eps="1/10").sha256 == "16919d3b4e4c1aca61ff9a9ad350a531b623eb83490a2ae92d47363d39288b11"


def test_what_differs_is_said_field_by_field():
    there, here = Plan.of(eps="0.1", seed=3), Plan.of(eps="0.2", surrogate=("a.pt", "b.pt"))
    assert there.differences(here) == [
        "surrogate none there, a.pt,b.pt here",
        "eps 0.1 there, 0.2 here",
        "seed 3 there, 0 here",
    ]
    assert Plan.of(eps="0.1").differences(Plan.of(eps="1/10")) == []


@pytest.mark.parametrize("text", ["- a\n", "1: 2\n", "eps: 0.1\neps: 0.2\n", "\xff", "eps: !!python/name:os.system\n"])
def test_what_is_no_plan_is_refused(tmp_path, text):
    (tmp_path / "plan.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError):
        Plan.read(tmp_path / "plan.yaml")
    with pytest.raises(UsageError, match="cannot read"):
        Plan.read(tmp_path / "none.yaml")


_CODE = [
    {"arch": "net.py:build"}, {"arch": "os:getcwd"}, {"arch": "holdfast.models.zoo:torch"}, {"model": "predict.py:function"},
    {"surrogate": "s.pt", "surrogate_arch": "package.net:build"},
    {"surrogate": ("a", "b"), "surrogate_arch": ("timm:resnet18", "net.py:build")},
]  # fmt: skip


@pytest.mark.parametrize("values", _CODE)
def test_code_that_only_a_file_names_needs_the_callers_word(tmp_path, values):
    values = {"model": "m.safetensors"} | values
    admit(Plan.of(**values))  # typed by the caller
    file = tmp_path / "plan.yaml"
    file.write_text(Plan.of(**values).to_yaml() + "trust: true\n")
    plan = Plan.read(file)
    assert not plan.trust
    for same in (plan, pickle.loads(pickle.dumps(plan)), plan.model_copy(update={"seed": 1})):
        with pytest.raises(UnsafeFileError, match="no consent to run it"):
            admit(same)
    admit(Plan.read(file, trust=True))
    admit(Plan.read(file, **values))


def test_an_api_that_only_a_file_names_is_not_asked(tmp_path):
    file = tmp_path / "plan.yaml"
    url = "https://api.example/predict"
    file.write_text(f"model: {url}\nclasses: 3\nmax_queries: 9\nsuite: black-box\ncertify: none\n")
    with pytest.raises(BudgetError, match=r"--model https://api\.example/predict"):
        admit(Plan.read(file))
    with pytest.raises(BudgetError):
        admit(Plan.read(file, trust=True))
    named = Plan.read(file, model=url)
    admit(named)
    assert "model" not in named.theirs, "so it gets the token"
    agreed = Plan.read(file).confirmed(may_ask=True)
    admit(agreed)
    assert "model" in agreed.theirs, "so it gets none"


def test_a_default_that_a_target_rules_out_steps_down_and_says_so():
    plan = Plan.of(goal="targeted")
    assert plan.certify == "none"
    assert "about every other class" in plan.stepped_down
    again = Plan.of(**plan.model_dump())
    assert (again.certify, again.stepped_down) == ("none", "")
    assert not Plan.of().stepped_down
    with pytest.raises(UsageError, match="--certify none"):
        Plan.of(goal="targeted", certify="crown")
