"""The deployments together, in Ray Serve's local testing mode: real handles and replicas, all in this process."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from small_run import make_run

from genret.config import ServingConfig, resolved_yaml
from genret.errors import InputError
from genret.runs import RunStore
from genret.serving.app import Arguments, build, deployed, serve_config
from genret.serving.asks import Ask
from genret.serving.documents import read_changes
from genret.serving.schemas import DocumentRequest
from genret.serving.versions import find_version, read_config

NAMES = ["sft", "bm25", "fusion"]


class Service:
    """A started application, and its run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = make_run(folder)
        self.handle: Any = serve.run(build(Arguments(run=str(folder))), _local_testing_mode=True)

    def ids(self, name: str, query: str, k: int = 5) -> list[str]:
        _, answers = self.handle.ask.remote(name, [Ask(query, k, "", 30.0, explain=False)]).result()
        return [passage_id for passage_id, _ in answers[0].places]

    def version(self) -> str:
        version: str = self.handle.info.remote().result()["version"]
        return version


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    # Nothing is shut down: in this mode there is no Ray, and `serve.shutdown` would look for a cluster elsewhere.
    return Service(tmp_path_factory.mktemp("service") / "run")


def test_every_retriever_answers_alone_and_beside_others(service: Service) -> None:
    queries = [f"what is near the model{number}x" for number in range(32)]
    for name in NAMES:
        alone = [service.ids(name, query) for query in queries[:4]]
        with ThreadPoolExecutor(16) as pool:
            beside = list(pool.map(lambda query, name=name: service.ids(name, query), queries))
        assert beside[:4] == alone
        assert [found[0] for found in beside] == [f"d{number}" for number in range(32)]


def test_it_tells_what_there_is(service: Service) -> None:
    there = service.handle.retrievers.remote().result()
    assert [(entry["name"], entry["default"], entry["replicas"]) for entry in there] == [
        ("sft", True, 1), ("bm25", False, 1), ("fusion", False, 1),
    ]  # fmt: skip
    assert "genret_stage_seconds" in service.handle.metrics.remote().result()


def test_documents_come_go_and_outlive_the_service(service: Service) -> None:
    document = DocumentRequest(doc_id="new", text="A zeppelin floats with its gondola.", metadata={"topic": "air"})
    outcome = service.handle.add.remote(document).result()
    assert outcome["found_by"] == NAMES and list(outcome["passages"]) == ["new"]
    for name in NAMES:
        assert "new" in service.ids(name, "zeppelin gondola", 41), name
    with pytest.raises(InputError, match="expected an id that is not served yet"):
        service.handle.add.remote(document).result()
    kept = read_changes(RunStore(service.folder))
    assert kept is not None and kept.changes[0].added[0].passage_id == "new"
    removed = service.handle.remove.remote("new").result()
    assert removed == {"doc_id": "new", "passages": ["new"], "still_found_by": []}
    assert service.handle.remove.remote("new").result() is None
    for name in NAMES:
        assert "new" not in service.ids(name, "zeppelin gondola", 41), name


def test_a_reload_swaps_and_a_rollback_goes_back(service: Service) -> None:
    old = service.version()
    with pytest.raises(InputError, match="there is no version to go back to"):
        service.handle.rollback.remote().result()
    assert service.handle.reload.remote().result()["changed"] is False
    service.handle.add.remote(DocumentRequest(doc_id="kept", text="A submarine dives.")).result()
    make_run(service.folder, k1=0.9)
    with ThreadPoolExecutor(2) as pool:
        reload = pool.submit(lambda: service.handle.reload.remote().result())
        while not reload.done():
            assert service.ids("bm25", "the model7x")[0] == "d7"
        outcome = reload.result()
    assert (outcome["changed"], outcome["previous_version"]) == (True, old)
    assert service.version() == outcome["version"] == find_version(service.store).id
    assert "kept" in service.ids("bm25", "submarine")
    back = service.handle.rollback.remote().result()
    assert back["version"] == old == service.version()
    assert "kept" in service.ids("bm25", "submarine")


@pytest.mark.parametrize("damage", ["cut", "bent", "gone", "flipped", "bent and unchecked"])
def test_a_broken_version_is_refused_and_the_old_one_serves_on(service: Service, damage: str) -> None:
    old = service.version()
    store = make_run(service.folder, k1=0.4 + len(damage) / 100)
    record = store.current()["bm25"]
    index = store.local_folder(store.current()["bm25"], "bm25") / "data.csc.index.npy"
    content = index.read_bytes()
    changed = {
        "cut": content[:-8],
        "bent": content[:-400] + b"\xff" * 400,
        "gone": b"",
        "flipped": content[:200] + bytes([content[200] ^ 1]) + content[201:],
    }
    index.write_bytes(changed[damage.partition(" ")[0]])
    if damage.endswith("unchecked"):
        # As by a run from before there were checksums: it is for the probes to see.
        manifest = service.folder / "stages" / f"bm25-{record.fingerprint}.json"
        content = json.loads(manifest.read_text())
        del content["folders"]["bm25"]["checksums"]
        manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"is refused, {old} serves on"):
        service.handle.reload.remote().result()
    assert service.version() == old and service.ids("bm25", "the model7x")[0] == "d7"


def test_a_config_file_for_serve_deploy(small_run: RunStore) -> None:
    config = yaml.safe_load(serve_config(small_run.url, ServingConfig(port=9001, max_k=7)))
    (application,) = config["applications"]
    assert application["import_path"] == "genret.serving.app:build"
    assert application["args"] == {"run": small_run.url, "serving": {"port": 9001, "max_k": 7}}
    assert config["http_options"] == {"host": "127.0.0.1", "port": 9001}
    build(Arguments(**application["args"]))


def test_a_config_file_takes_back_what_the_run_has_of_its_own(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    own = read_config(store)
    serving = own.serving.model_copy(update={"max_k": 7, "tls_certificate": "c.pem", "tls_key": "k.pem"})
    store.write_file("config.yaml", resolved_yaml(own.model_copy(update={"serving": serving})))
    (application,) = yaml.safe_load(serve_config(store.url, ServingConfig()))["applications"]
    assert application["args"]["serving"] == {"max_k": 100, "tls_certificate": "", "tls_key": ""}
    build(Arguments(**application["args"]))
    with pytest.raises(InputError, match=r"serving\.tls_certificate: expected none .*, found 'c\.pem'"):
        build(Arguments(run=store.url))


def test_a_certificate_is_refused_where_others_speak_http(small_run: RunStore) -> None:
    config = ServingConfig(tls_certificate="c.pem", tls_key="k.pem")
    for make in (
        lambda: serve_config(small_run.url, config),
        lambda: build(Arguments(run=small_run.url, serving=config.model_dump(include={"tls_certificate", "tls_key"}))),
    ):
        with pytest.raises(InputError, match=r"serving\.tls_certificate: expected none behind Ray Serve's proxies"):
            make()


class Calls:
    """What was asked of Ray Serve, in order; to start may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.made: list[str] = []

        def run(*_: Any, **__: Any) -> None:
            self.made.append("run")
            if fails:
                raise RuntimeError("no room")

        monkeypatch.setattr(serve, "start", lambda **_: self.made.append("start"))
        monkeypatch.setattr(serve, "run", run)
        monkeypatch.setattr(serve, "get_app_handle", self._gone)
        monkeypatch.setattr(serve, "delete", lambda _: self.made.append("delete"))

    def _gone(self, _: str) -> None:
        self.made.append("drain")
        raise RayServeException("no such application")


def test_a_service_that_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, fails=True)
    with pytest.raises(InputError, match="a run: the service did not start: no room"), deployed(None, "a run", 1.0):
        pass
    assert calls.made == ["start", "run", "delete"]


@pytest.mark.parametrize("error", [RuntimeError("of the block"), KeyboardInterrupt()])
def test_an_error_while_it_serves_is_told_as_it_is_after_what_has_begun(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    with pytest.raises(type(error)) as caught, deployed(None, "a run", 1.0):
        raise error
    assert caught.value is error and calls.made == ["start", "run", "drain", "delete"]


def test_a_cluster_that_is_gone_has_nothing_to_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)

    def gone(_: str) -> None:
        calls.made.append("delete")
        raise RayActorError

    monkeypatch.setattr(serve, "delete", gone)
    with deployed(None, "a run", 1.0):
        pass
    assert calls.made == ["start", "run", "drain", "delete"]


def test_what_cannot_be_built_says_why(small_run: RunStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run at"):
        build(Arguments(run=str(tmp_path / "none")))
    with pytest.raises(InputError, match=r"serving\.retrievers: expected some of"):
        build(Arguments(run=small_run.url, serving={"retrievers": ["dense"]}))
