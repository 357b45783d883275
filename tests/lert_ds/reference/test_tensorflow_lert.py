"""The same weights in TensorFlow 1's graph, in NumPy and in our model, through real checkpoints."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lert_ds import cli, model_dir
from lert_ds.modeling_lert import LertModel
from lert_ds.pretraining_objective import masked_logits

pytest.importorskip("tensorflow", reason="needs pip install 'lert-ds[tf]' (docs/convert.md)")


@pytest.fixture(scope="module")
def parameters(lert: Any, shape: Any) -> Any:
    """In float64, of values that float32 has."""
    made = lert.random_parameters(shape, np.random.default_rng(5))
    return {name: values.astype(np.float32).astype(np.float64) for name, values in made.items()}


@pytest.fixture(scope="module")
def pooler(shape: Any) -> Any:
    generator = np.random.default_rng(6)
    return {
        "bert/pooler/dense/kernel": generator.standard_normal((shape.hidden, shape.hidden)),
        "bert/pooler/dense/bias": generator.standard_normal(shape.hidden),
    }


@pytest.fixture(scope="module")
def checkpoint(
    tensorflow_lert: Any, shape: Any, parameters: Any, pooler: Any, tmp_path_factory: Any
) -> Path:
    """A folder as TensorFlow's own Saver writes it, in the middle of a training."""
    folder: Path = tmp_path_factory.mktemp("tensorflow")
    tensorflow_lert.write_checkpoint(folder / "lert_model.ckpt", parameters | pooler, steps=7)
    tree = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.neurons,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": shape.types,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
    }
    (folder / "lert_config.json").write_text(json.dumps(tree), "utf-8")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = special + [chr(0x4E00 + k) for k in range(shape.vocabulary - len(special))]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a model folder."""
    output = tmp_path_factory.mktemp("ours") / "model"
    cli.main(["convert", str(checkpoint), str(output)])
    return output


@pytest.fixture(scope="module")
def example(make_example: Any) -> Any:
    return make_example(0, all_tags=True, segments=True)


def test_three_programs_compute_the_same(
    lert: Any, tensorflow_lert: Any, shape: Any, parameters: Any, checkpoint: Path, folder: Path,
    example: Any, batch_of: Any,
) -> None:  # fmt: skip
    """Largest differences found: 5e-7 between TensorFlow and NumPy, 6e-7 between ours and it."""
    theirs = tensorflow_lert.run_checkpoint(checkpoint / "lert_model.ckpt", shape, example)
    result = lert.forward(parameters, shape, example)
    losses = lert.losses_of(result, example, lert.PUBLISHED)
    model, report = model_dir.load(folder)
    assert report.random == ()
    model.eval()
    batch = batch_of(example)
    segments = torch.from_numpy(example.segment_ids)
    given = {"attention_mask": batch.attention_mask, "token_type_ids": segments}
    with torch.no_grad():
        output = model(batch.input_ids, masked_positions=batch.masked_positions, **given)
        hidden = model.bert(batch.input_ids, **given).last_hidden_state
    ours = {"mlm": output.logits, **output.tag_logits}
    assert np.abs(theirs["hidden"] - result.hidden[-1]).max() < 5e-6
    assert np.abs(hidden.numpy() - result.hidden[-1]).max() < 5e-6
    for name, logits in result.logits.items():
        assert np.abs(theirs[f"{name}/logits"] - logits).max() < 5e-6
        assert np.abs(ours[name].numpy() - logits).max() < 5e-6
        assert theirs[f"{name}/loss"] == pytest.approx(losses[name], abs=2e-6)
    assert masked_logits(model, batch).keys() == ours.keys()


def test_the_pooler_is_the_same(
    tensorflow_lert: Any, shape: Any, checkpoint: Path, folder: Path, example: Any
) -> None:
    theirs = tensorflow_lert.run_checkpoint(checkpoint / "lert_model.ckpt", shape, example)
    model, report = model_dir.load(folder, LertModel)
    assert report.random == ()
    with torch.no_grad():
        output = model.eval()(
            torch.from_numpy(example.input_ids),
            attention_mask=torch.from_numpy(example.input_mask),
            token_type_ids=torch.from_numpy(example.segment_ids),
        )
    assert np.abs(output.pooler_output.numpy() - theirs["pooled"]).max() < 5e-6


def test_what_is_written_back_is_what_their_program_reads(
    tensorflow_lert: Any, shape: Any, checkpoint: Path, folder: Path, example: Any, tmp_path: Path
) -> None:
    """Every variable that its graph asks for is there, and it computes the same, bit for bit."""
    cli.main(["convert", str(folder), str(tmp_path / "back")])
    before, after = (
        tensorflow_lert.run_checkpoint(place / "lert_model.ckpt", shape, example)
        for place in (checkpoint, tmp_path / "back")
    )
    for name, values in before.items():
        assert np.array_equal(after[name], values), name
