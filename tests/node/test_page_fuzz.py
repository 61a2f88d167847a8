"""The interface is fuzzed from its own OpenAPI description."""

import pytest
from small_page import node_folder, node_sources

schemathesis = pytest.importorskip("schemathesis")
pytest.importorskip("fastapi")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

from cddnet.node.web.access import Access  # noqa: E402
from cddnet.node.web.http import app  # noqa: E402
from cddnet.node.web.uploads import Limits  # noqa: E402

pytestmark = pytest.mark.slow
LIMITS = Limits(body_bytes=2**20, total_bytes=2**20, smallest_free_bytes=0)


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    sources = node_sources(node_folder(tmp_path_factory.mktemp("node")))
    page = app(sources, Access(hosts=("localhost", "testserver")), limits=LIMITS)
    return schemathesis.openapi.from_asgi("/api/openapi.json", page)


def test_answers_are_as_described(schema, monkeypatch):
    monkeypatch.setattr("cddnet.node.web.http._WRONG_TOKEN_WAIT_S", 0)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        def check(case):
            # Bytes that the description allows are refused where they are no DICOM.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()
