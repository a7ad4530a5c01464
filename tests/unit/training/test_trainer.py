"""What decides the memory of a stage, before anything of its model is loaded."""

import pytest

from genret.config import PretrainedModel, RpoConfig, SftConfig
from genret.errors import InputError
from genret.training.setup import SINGLE
from genret.training.trainer import demand_of


def test_a_bundle_tells_what_its_training_needs(make_bundle, tmp_path) -> None:
    make_bundle().save(tmp_path)
    demand, architecture = demand_of(RpoConfig(), SINGLE, tmp_path, None)
    assert (demand.section, demand.sequences) == ("rpo", 2)
    assert architecture.parameters == sum(weight.numel() for weight in make_bundle().model.parameters())


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_model_that_cannot_be_reached_is_named(make_bundle, tmp_path, content) -> None:
    make_bundle().save(tmp_path / "bundle")
    model = tmp_path / "model"
    if content is not None:
        model.mkdir()
        (model / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"^sft\.model\.name: cannot load '{model}' at 'main': "):
        demand_of(SftConfig(), SINGLE, tmp_path / "bundle", PretrainedModel(name=str(model)))
