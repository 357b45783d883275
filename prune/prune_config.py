"""What `lert-ds prune` can be asked for."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from lert_ds.config import Config, Paths
from lert_ds.data.masking import MaskingConfig
from lert_ds.finetune.settings import TaskConfig
from prune.importance.scoring import ScoringConfig
from prune.layer_choice import Measure
from prune.masks import PruningConfig
from prune.search.target import TargetConfig
from prune.vocabulary.choice import VocabularyConfig


class RepairConfig(Config):
    """Refitting the output maps of what is left, by least squares; see repair.py."""

    enabled: bool = True
    """Whether what is left is refitted."""
    instances: int = Field(512, ge=1)
    """Instances of the corpus to refit by; 512 of 128 tokens were as good as more."""
    ridge: float = Field(1e-2, ge=0)
    """How strongly the weights are held where they were."""


class PruneRun(Config):
    """Configuration of `lert-ds prune`."""

    model: str
    """Model folder or hub name to prune."""
    output: Path
    """Run folder to write: model, masks.safetensors, summary.json."""
    overwrite: bool = False
    """Replace a result that the output folder holds."""
    task: TaskConfig | None = None
    """Of a model that is fine-tuned: its task, whose examples take the place of a corpus."""
    corpus: Paths = ()
    """Corpus folders: for scores, for the choice of layers, for repair; no tags are needed."""
    corpus_valid: Paths = ()
    """Corpus folders to measure the result on; by default the held_out folders of the corpus."""
    held_out_instances: int = Field(256, ge=1)
    """How many of corpus_valid are read."""
    masking: MaskingConfig = MaskingConfig()
    """Which tokens are predicted where losses are measured."""
    seed: int = Field(20221110, ge=0, lt=2**63)
    """Of the sample of instances and of their masks."""
    drop_layers: Annotated[int, Field(ge=0)] | Annotated[tuple[int, ...], Field(strict=False)] = ()
    """Whole layers to drop: how many, or a list of which, counted from 1."""
    drop_layers_by: Measure = "loss_change"
    """Of a number of layers, which: those that change the least, by this measure."""
    pruning: PruningConfig = PruningConfig()
    """Heads and neurons: TextPruner's TransformerPruningConfig."""
    scoring: ScoringConfig = ScoringConfig()
    """How heads and neurons are scored."""
    vocabulary: VocabularyConfig | None = None
    """Which pieces stay; without this table all do. Counts over `corpus` where it names no text."""
    repair: RepairConfig = RepairConfig()
    """Refitting what is left."""
    target: TargetConfig | None = None
    """A size or a speed to reach, in the place of numbers of heads, neurons and layers, which may
    then differ from layer to layer; up to half of the layers go."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        asked = self.pruning
        scored = asked.pruning_method == "iterative" and (
            asked.target_num_of_heads is not None or asked.target_ffn_size is not None
        )
        if self.target is not None:
            if scored or asked.pruning_method == "masks" or self.drop_layers:
                raise ValueError(
                    "target finds the numbers of heads, neurons and layers itself; leave out "
                    "pruning.target_num_of_heads, pruning.target_ffn_size, pruning.masks and "
                    "drop_layers, or target"
                )
            if asked.n_iters > 1 or asked.pruning_order is not None:
                raise ValueError(
                    "target: what is left is searched at once, by the scores of the whole model; "
                    "leave out pruning.n_iters and pruning.pruning_order"
                )
            scored = True
        reads = {
            "scores by importance": scored and self.scoring.method != "magnitude",
            "drop_layers by their effect": self.drop_layers and isinstance(self.drop_layers, int),
            "target": self.target is not None,
            "vocabulary": self.vocabulary is not None
            and not (self.vocabulary.input or self.vocabulary.corpus),
        }
        if self.task is not None and (self.corpus or self.corpus_valid):
            raise ValueError("corpus and task are both given; keep one of them")
        needed = [name for name, needs in reads.items() if needs]
        has_data = bool(self.corpus) or self.task is not None
        if needed and not has_data:
            raise ValueError(f"corpus = []: {', '.join(needed)} need text; name a corpus folder")
        changed = scored or self.drop_layers or asked.pruning_method == "masks"
        if self.repair.enabled and changed and not has_data:
            raise ValueError(
                "corpus = []: repair needs text; name a corpus folder, or set repair.enabled=false"
            )
        return self
