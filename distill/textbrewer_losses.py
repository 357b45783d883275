"""The one home of TextBrewer: its losses, projections and schedulers, without its training loop.

Yang et al. 2020, arXiv 2002.12620, version 0.2.1. `GeneralDistiller.compute_loss` takes the logits
and features of student and teacher and is all that is used of its distillers. Losses and features
of ours are put into the maps in which it looks them up.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from distill.distillation_config import DistillationConfig, MatchConfig
from distill.features import tap_feature
from distill.losses import KD_LOSSES, minilm_relation
from lert_ds.errors import ConfigError

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its `is not 'none'`, when it is compiled
        import textbrewer
except ImportError as error:
    raise ConfigError(
        f"distillation needs TextBrewer, which cannot be imported ({error}); "
        "pip install 'lert-ds[distill]'"
    ) from error

# TextBrewer looks its losses and features up in these, which are there to be added to.
textbrewer.KD_LOSS_MAP.update(KD_LOSSES)
textbrewer.MATCH_LOSS_MAP["minilm_relation"] = minilm_relation
textbrewer.FEATURES.extend(["attention_scores", "attention_mean_scores", "qkv"])


def weight_at(config: DistillationConfig, name: str, progress: float) -> float:
    """Return a weight of `config` at a point of the run: the configured one times its scheduler.

    TextBrewer's loop replaces the weight by the scheduler's value, and its first step uses the
    weight as it stands; where the weight is 1 a decay is the same at every step.

    Args:
        config: The terms of the loss.
        name: `kd_loss_weight` or `hard_label_weight`.
        progress: Optimizer steps done over those of the run.
    """
    weight: float = getattr(config, name)
    scheduler = getattr(config, f"{name}_scheduler")
    if scheduler == "none":
        return weight
    return weight * float(textbrewer.WEIGHT_SCHEDULER[scheduler](progress))


class ComputeOnly(textbrewer.GeneralDistiller):  # type: ignore[misc]
    """TextBrewer's distiller for its `compute_loss`: no folder, no writer, no models, no device."""

    def __init__(self, config: textbrewer.DistillationConfig) -> None:
        # Its own constructor makes ./saved_models, on every rank at once, and asks for CUDA.
        training = textbrewer.TrainingConfig.__new__(textbrewer.TrainingConfig)
        training.device, training.log_dir, training.local_rank = "cpu", None, -1
        super().__init__(training, config, None, None, None, None)


def compute_only(config: DistillationConfig, matches: Sequence[MatchConfig]) -> ComputeOnly:
    """Return TextBrewer's losses of `config` with these of its matches; KD has the weight 1."""
    keys: dict[str, Any] = {}
    if config.temperature_scheduler != "none":  # TextBrewer knows its default by identity
        scheduler = config.temperature_scheduler
        keys["temperature_scheduler"] = scheduler if isinstance(scheduler, str) else list(scheduler)
    return ComputeOnly(
        textbrewer.DistillationConfig(
            temperature=config.temperature,
            kd_loss_type=_name_of_loss(config),
            probability_shift=config.probability_shift,
            intermediate_matches=[
                {
                    "layer_T": _for_textbrewer(match.layer_T),
                    "layer_S": _for_textbrewer(match.layer_S),
                    "feature": tap_feature(match.feature, match.loss),
                    "loss": match.loss,
                    "weight": match.weight,
                    "proj": _for_textbrewer(match.proj),
                }
                for match in matches
            ],
            **keys,
        )
    )


def _name_of_loss(config: DistillationConfig) -> str:
    """Return the name in `KD_LOSS_MAP`."""
    if config.temperature_squared:
        return f"{config.kd_loss_type}_t2"
    return "lean_ce" if config.kd_loss_type == "ce" else config.kd_loss_type


def _for_textbrewer(value: Any) -> Any:
    """Return lists for tuples: TextBrewer looks for the former, and appends to them."""
    return list(value) if isinstance(value, tuple) else value


class Float32Out(nn.Module):
    """A projection that computes in the type of its weights and returns float32.

    The match losses are sums over batch, length and width: in fp16 they overflow (nan at 16 × 500 ×
    1024), in bf16 their counts are rounded.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        """Return float32 [..., teacher's width] for [..., student's width] of any type."""
        dtype = next(self.inner.parameters()).dtype
        projected: Tensor = self.inner(hidden.to(dtype))
        return projected.float()
