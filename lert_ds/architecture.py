"""The shape of a model that starts anew: a released size, or numbers of one's own."""

from typing import Literal, Self

from pydantic import model_validator

from lert_ds.config import Config
from lert_ds.configuration_lert import LertConfig
from lert_ds.training_data import DataFacts

SIZES: dict[str, dict[str, int]] = {
    "large": {"layers": 24, "hidden_size": 1024, "heads": 16, "intermediate_size": 4096},
    "base": {"layers": 12, "hidden_size": 768, "heads": 12, "intermediate_size": 3072},
    "small": {"layers": 12, "hidden_size": 256, "heads": 4, "intermediate_size": 1024},
}
"""The shapes of the released models (`lert_config.json` of ymcui/LERT)."""


class ArchitectureConfig(Config):
    """The shape of a model that starts from random weights."""

    size: Literal["large", "base", "small"] = "large"
    """A released shape; the numbers below change single parts of it."""
    layers: int | None = None
    """Encoder layers."""
    hidden_size: int | None = None
    """Width of the hidden states."""
    heads: int | None = None
    """Attention heads a layer; divides the width."""
    intermediate_size: int | None = None
    """Width of the feed-forward part."""
    positions: int = 512
    """Longest instance that the model can take."""
    dropout: float = 0.1
    """Of hidden states and of attention probabilities."""
    initializer_range: float = 0.02
    """Standard deviation of the first weights."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("layers", "hidden_size", "heads", "intermediate_size", "positions"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} = {value}: must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: must be from 0 to below 1")
        if self.number("hidden_size") % self.number("heads"):
            raise ValueError(
                f"heads = {self.number('heads')} does not divide "
                f"hidden_size = {self.number('hidden_size')}"
            )
        return self

    def number(self, key: str) -> int:
        """Return a dimension: as given, or that of `size`."""
        given = getattr(self, key)
        return SIZES[self.size][key] if given is None else int(given)

    def model_config_for(self, facts: DataFacts, tasks: tuple[str, ...]) -> LertConfig:
        """Return the model's configuration for the vocabulary and the tags of a corpus."""
        return LertConfig(
            vocab_size=facts.vocabulary_size,
            hidden_size=self.number("hidden_size"),
            num_hidden_layers=self.number("layers"),
            num_attention_heads=self.number("heads"),
            intermediate_size=self.number("intermediate_size"),
            max_position_embeddings=self.positions,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            initializer_range=self.initializer_range,
            pad_token_id=facts.pad_id,
            tag_sets={task: list(facts.tag_sets[task]) for task in tasks if facts.tag_sets[task]},
        )
