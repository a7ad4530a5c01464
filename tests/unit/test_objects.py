"""Where boto3 looks for the store that a URL of pyarrow names."""

import pytest

from genret.objects import s3_options


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("s3://b/r", {}, {}),
        ("s3://b/r?region=eu-west-1", {}, {"region_name": "eu-west-1"}),
        ("s3://b/r", {"AWS_REGION": "eu-west-2"}, {"region_name": "eu-west-2"}),
        ("s3://b/r", {"AWS_ENDPOINT_URL": "http://x"}, {"region_name": "us-east-1"}),
        (
            "s3://b/r?scheme=http&endpoint_override=localhost:9",
            {},
            {"endpoint_url": "http://localhost:9", "region_name": "us-east-1"},
        ),
        (
            "s3://b/r?endpoint_override=https://minio.example",
            {"AWS_DEFAULT_REGION": "eu-west-3"},
            {"endpoint_url": "https://minio.example"},
        ),
    ],
)
def test_options_of_a_url(url: str, environment: dict[str, str], expected: dict[str, str]):
    assert s3_options(url, environment) == expected
