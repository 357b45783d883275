"""Our losses are those of TextBrewer's own training, step by step."""

import importlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.data.loader import training_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.sampler import MicroBatches
from lert_ds.data.shards import Corpus
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch

pytestmark = pytest.mark.usefixtures("process_group")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STEPS = 6


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's comparison: the same loop, so it is written once."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("textbrewer_parity")


@pytest.fixture
def batches(tiny_corpus: Path) -> list[Batch]:
    """Batches of four, the first row of which ends in padding."""
    corpus = Corpus([tiny_corpus])
    order = MicroBatches(len(corpus), seed=0, batch_size=4, micro_batch_size=4)
    endless = training_batches(corpus, MaskingConfig(share=0.3, max_predictions=9), order)
    real = torch.ones(4, corpus.length, dtype=torch.bool)
    real[0, 20:] = False
    return [batch._replace(attention_mask=real) for _, batch in itertools.islice(endless, STEPS)]


@pytest.fixture
def models(tiny_corpus: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Teacher and student; the teacher's weights are large, so that it is sure of itself."""
    torch.manual_seed(0)
    folders = tmp_path / "teacher", tmp_path / "student"
    for folder, layers, width, spread in zip(folders, (4, 2), (32, 16), (1.0, 0.02), strict=True):
        shape = LertConfig(
            vocab_size=45, num_hidden_layers=layers, hidden_size=width, num_attention_heads=2,
            intermediate_size=2 * width, max_position_embeddings=32, initializer_range=spread,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model_dir.save(LertForPreTraining(shape), tiny_corpus, folder)
    return folders


def match(of_teacher: int, of_student: int, loss: str, **changes: Any) -> dict[str, Any]:
    return {
        "layer_T": of_teacher, "layer_S": of_student, "feature": "hidden", "loss": loss,
        "weight": 1.0, "proj": ["linear", 16, 32], **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    "distillation",
    [
        {
            "temperature": 8.0,
            "hard_label_weight": 1.0,
            "intermediate_matches": [match(2 * k, k, "hidden_mse") for k in range(3)],
        },
        {
            "temperature": 2.0,
            "temperature_scheduler": ["flsw", 1.0, 2.0],
            "kd_loss_type": "mse",
            "kd_loss_weight_scheduler": "linear_decay",
            "hard_label_weight": 0.5,
            "intermediate_matches": [
                match(0, 0, "hidden_mse", weight=0.3, proj=["tanh", 16, 32]),
                match(4, 2, "cos"),
            ],
        },
    ],
    ids=["as MiniRBT", "schedulers"],
)
def test_losses_are_those_of_textbrewers_own_training(
    parity: Any, models: tuple[Path, Path], batches: list[Batch], distillation: dict[str, Any]
) -> None:
    theirs, ours = parity.losses_of_both(*models, batches, distillation, learning_rate=3e-3)
    assert len(theirs) == STEPS
    assert theirs[-1]["total"] < theirs[0]["total"] - 0.1  # there was something to learn
    for of_step, of_ours in zip(theirs, ours, strict=True):
        assert of_ours == pytest.approx(of_step, abs=1e-5)
