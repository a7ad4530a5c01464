"""Objects that must not be overwritten: created at once, or not at all where there is one already."""

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import fsspec
from pyarrow import fs

from genret.errors import InputError

_EXISTS = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


def create_object(filesystem: fs.FileSystem, url: str, path: str, content: bytes) -> bool:
    """Upload an object unless there is one of that name.

    Two processes that do this at once cannot both succeed on

    * S3 and what speaks its protocol with conditional writes (AWS since August 2024, MinIO, R2): `If-None-Match: *`
      (https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html). pyarrow has no such call, boto3
      has.
    * Google Cloud Storage, through gcsfs (`ifGenerationMatch=0`), and Azure, through adlfs.
    * any other filesystem of fsspec whose `pipe_file(mode="create")` is atomic.

    On HDFS it looks and then writes: not safe.

    Args:
        filesystem: As pyarrow or fsspec opened it.
        url: Of the run; its options say where the store is.
        path: Of the object, in that filesystem.
        content: All of it; small.

    Returns:
        Whether it was created.

    Raises:
        InputError: The package that can do this for the store is not installed.
        OSError: The store does not answer, or refuses.
    """
    if isinstance(filesystem, fs.PyFileSystem):
        return _create_by_fsspec(filesystem.handler.fs, path, content)
    if isinstance(filesystem, fs.S3FileSystem):
        return _create_on_s3(url, path, content)
    scheme = urlsplit(url).scheme
    if scheme in ("gs", "gcs", "abfs", "abfss"):
        try:
            return _create_by_fsspec(fsspec.filesystem(scheme, **azure_options(url)), path, content)
        except ImportError as error:
            package = "gcsfs" if scheme.startswith("g") else "adlfs"
            raise InputError(
                f"run: {scheme}:// needs a package that is not installed: pip install {package}"
            ) from error
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        return False
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)
    return True


def _create_by_fsspec(filesystem: Any, path: str, content: bytes) -> bool:
    try:
        filesystem.pipe_file(path, content, mode="create")
    except FileExistsError:
        return False
    return True


def _create_on_s3(url: str, path: str, content: bytes) -> bool:
    try:
        boto3, exceptions = import_module("boto3"), import_module("botocore.exceptions")
    except ImportError as error:
        raise InputError("run: s3:// needs a package that is not installed: pip install genret[s3]") from error
    bucket, _, key = path.partition("/")
    client = boto3.client("s3", **s3_options(url, os.environ))
    try:
        client.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
    except exceptions.ClientError as error:
        if error.response.get("Error", {}).get("Code") in _EXISTS:
            return False
        raise OSError(str(error)) from error
    except exceptions.BotoCoreError as error:
        raise OSError(str(error)) from error
    finally:
        client.close()
    return True


def azure_options(url: str) -> dict[str, Any]:
    """Arguments of adlfs for a URL of pyarrow: the account; keys come from the environment. None for other stores.

    CONTAINER@ACCOUNT.dfs.core.windows.net, ACCOUNT.blob.core.windows.net, and ACCOUNT@ before any other name.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("abfs", "abfss"):
        return {}
    user, _, host = parts.netloc.rpartition("@")
    account = host.partition(".")[0] if host.endswith(".core.windows.net") else user.partition(":")[0]
    return {"account_name": account, "anon": False}


def s3_options(url: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Arguments of a boto3 client for a URL of pyarrow: its options `endpoint_override`, `scheme` and `region`.

    What the URL does not say, boto3 finds in the environment, as pyarrow does: AWS_ENDPOINT_URL, AWS_REGION, keys.
    Where no region is named anywhere, us-east-1 is taken, which stores of one's own do not look at.
    """
    options = dict(parse_qsl(urlsplit(url).query))
    found = {}
    if endpoint := options.get("endpoint_override"):
        found["endpoint_url"] = endpoint if "://" in endpoint else f"{options.get('scheme', 'https')}://{endpoint}"
    if region := options.get("region", environment.get("AWS_REGION", "")):
        found["region_name"] = region
    elif not environment.get("AWS_DEFAULT_REGION") and (found or environment.get("AWS_ENDPOINT_URL")):
        found["region_name"] = "us-east-1"
    return found
