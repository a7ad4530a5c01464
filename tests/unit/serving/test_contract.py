"""The OpenAPI document is kept to: schemathesis sends whatever it allows and forbids, to every operation."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from local import local_app
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance
from small_run import make_run

from genret.config import ServingConfig

KEY = {"authorization": "Bearer master"}
EXAMPLES = 25


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    app, _ = local_app(make_run(tmp_path_factory.mktemp("contract") / "run"), ServingConfig(), api="master")
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_operation_keeps_to_the_document(schema: Any) -> None:
    """No 5xx, no undocumented status, no other form of an answer, no bad request that is accepted."""
    tested = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            # An operation without parameters cannot be asked wrongly.
            if mode == schemathesis.GenerationMode.POSITIVE or operation.body or operation.path_parameters:
                send_all(operation.as_strategy(generation_mode=mode))
        tested += 1
    assert tested == 13


def send_all(cases: Any) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )
    @given(case=cases)
    def check(case: Any) -> None:
        # Which retrievers there are, what a filter is and that there is one query stand in no schema: 422 says it. That
        # keys are asked for is tested elsewhere: this check sends ours along when it means to send none.
        answer = case.call(headers=KEY)
        # A text that is too long for its field may be too long for a body before anybody looks at it.
        refused = [negative_data_rejection] if answer.status_code == 413 else []
        case.validate_response(answer, excluded_checks=[positive_data_acceptance, ignored_auth, *refused])

    check()
