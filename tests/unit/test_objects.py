"""Where boto3 and adlfs look for the store that a URL of pyarrow names."""

import pytest
from pyarrow import fs

from genret.objects import azure_options, s3_options


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


@pytest.mark.parametrize(
    "url",
    [
        "abfs://container@account.dfs.core.windows.net/run",
        "abfss://container@account.blob.core.windows.net/run",
        "abfss://account.blob.core.windows.net/container/run",
        "abfs://account@container/run",
    ],
)
def test_the_account_is_the_one_that_pyarrow_finds_in_the_url(url: str):
    filesystem, _ = fs.FileSystem.from_uri(url)
    (options,) = filesystem.__reduce__()[1]
    assert azure_options(url) == {"account_name": options["account_name"], "anon": False}
    assert options["account_name"] == "account"


def test_other_stores_have_no_account():
    assert azure_options("gs://bucket/run") == {}
