"""Every registered method of the training phase, the defences and the applications under its public contract."""

from holdfast.testing import parametrize_with_checks


@parametrize_with_checks("poisoner")
def test_a_poisoner_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("backdoor")
def test_a_backdoor_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("adversary")
def test_an_adversary_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("aggregator")
def test_an_aggregator_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("sanitiser")
def test_a_sanitiser_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("detector")
def test_a_detector_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("inspector")
def test_an_inspector_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("repair")
def test_a_repair_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("training defence")
def test_a_defence_that_trains_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("learner certifier")
def test_a_certifier_of_training_sets_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("application")
def test_an_application_keeps_its_contract(method, check):
    check(method)


@parametrize_with_checks("set certifier")
def test_a_certifier_over_sets_keeps_its_contract(method, check):
    check(method)
