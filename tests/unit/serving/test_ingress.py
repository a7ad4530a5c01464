"""What the ingress decides without asking anybody."""

from genret.retrieval.fusion import FUSION
from genret.serving.ingress import workers_of


def test_the_fusion_works_on_as_many_batches_as_its_slowest_part() -> None:
    replicas = {"sft": 4, "bm25": 1, "dense": 8, FUSION: 1}
    found = [workers_of(name, replicas, ("sft", "bm25")) for name in ("sft", "bm25", "dense", FUSION)]
    assert found == [4, 1, 8, 4]
    assert workers_of("sft", {}, ()) == workers_of(FUSION, replicas, ()) == 1
