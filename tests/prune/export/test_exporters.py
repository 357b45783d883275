"""What the exporters are given, and that they stay quiet without staying so."""

import logging
import sys
import warnings

import pytest
import torch

from lert_ds.configuration_lert import LertConfig
from lert_ds.modeling_lert import LertModel
from prune.export import exporters


@pytest.mark.parametrize("positions", [4, 512])
def test_samples_have_padding_and_open_axes(positions: int) -> None:
    with torch.device("meta"):
        model = LertModel(LertConfig(vocab_size=9, max_position_embeddings=positions))
    inputs = exporters.sample_inputs(model, masked_positions=True)
    assert set(inputs) == set(exporters.AXES)
    batch, length = inputs["input_ids"].shape
    assert batch == 2
    assert 2 <= length <= positions
    assert inputs["attention_mask"].sum(1).tolist() == [length, length // 2]
    assert inputs["masked_positions"].max() < batch * length
    open_axes = exporters.dynamic_shapes(model, inputs)
    assert {name: len(axes) for name, axes in open_axes.items()} == {
        name: tensor.dim() for name, tensor in inputs.items()
    }
    assert open_axes["input_ids"][1].max == positions
    assert "masked_positions" not in exporters.sample_inputs(model, masked_positions=False)


def test_outputs_are_named_by_their_task() -> None:
    assert exporters.output_name("tag_logits.pos") == "pos_logits"
    assert exporters.output_name("logits") == "logits"


def test_quiet_is_over_afterwards(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def export() -> None:
        with exporters.quiet():
            sys.stdout.write("steps")
            logging.getLogger("onnxscript").warning("versions")
            warnings.warn("torchvision", stacklevel=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        export()
    assert (capsys.readouterr().out, caplog.text) == ("", "")
    logging.getLogger("onnxscript").warning("later")
    assert "later" in caplog.text
