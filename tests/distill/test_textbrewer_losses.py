import subprocess
import sys
from pathlib import Path

import pytest
import textbrewer
import torch
from torch import nn

from distill import textbrewer_losses
from distill.distillation_config import DistillationConfig, MatchConfig
from distill.textbrewer_losses import Float32Out, compute_only, weight_at


def test_a_weight_follows_its_scheduler() -> None:
    config = DistillationConfig(
        kd_loss_weight=2.0, kd_loss_weight_scheduler="linear_decay", hard_label_weight=3.0,
        hard_label_weight_scheduler="linear_growth",
    )  # fmt: skip
    assert [weight_at(config, "kd_loss_weight", x) for x in (0, 0.25, 1)] == [2.0, 1.5, 0.0]
    assert [weight_at(config, "hard_label_weight", x) for x in (0, 0.25, 1)] == [0.0, 0.75, 3.0]
    assert weight_at(DistillationConfig(), "kd_loss_weight", 0.5) == 1.0


@pytest.mark.parametrize("kind", ["ce", "mse", "kl"])
@pytest.mark.parametrize("squared", [False, True])
def test_every_kd_loss_has_its_name_in_textbrewer(kind: str, squared: bool) -> None:
    config = DistillationConfig(kd_loss_type=kind, temperature_squared=squared)
    distiller = compute_only(config, ())
    student, teacher = torch.randn(2, 5, 7)
    loss, _ = distiller.compute_loss({"logits": [student]}, {"logits": [teacher]})
    plain = {"ce": textbrewer.losses.kd_ce_loss, "mse": textbrewer.losses.kd_mse_loss}
    if kind in plain:
        expected = plain[kind](student, teacher, config.temperature)
        torch.testing.assert_close(loss, expected * (16 if squared else 1))


def test_nothing_is_made_on_disk_and_nothing_of_the_configuration_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    match = MatchConfig(
        feature="hidden", loss="hidden_mse", layer_T=1, layer_S=1, proj=("linear", 4, 8, {})
    )
    before = match.model_copy(deep=True)
    distiller = compute_only(DistillationConfig(), [match])
    assert isinstance(distiller.projs[0], nn.Linear)
    assert match == before
    assert not list(tmp_path.iterdir())


def test_a_projection_in_16_bits_gives_float32() -> None:
    projection = Float32Out(nn.Linear(8, 4)).bfloat16()
    for dtype in (torch.float32, torch.bfloat16):
        assert projection(torch.ones(2, 8, dtype=dtype)).dtype == torch.float32


def test_without_textbrewer_one_sentence_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['textbrewer'] = None\n"
        "from lert_ds.cli import main\n"
        "main(['distill', 'distill-quickstart'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'lert-ds[distill]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert textbrewer_losses.textbrewer is textbrewer
