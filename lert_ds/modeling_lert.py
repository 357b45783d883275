"""LERT for PyTorch: token ids to hidden states, masked words and their linguistic tags.

BERT as transformers implements it (the very parameter names, so weights go both ways), plus

- layers that may each have their own number of attention heads, 0 included, and feed-forward size:
  what pruning leaves;
- `LertForPreTraining`: the MLM head and one linear head per linguistic task, all on the masked
  positions only, as in LERT (Cui et al. 2022, arXiv 2211.05344).

Self-contained (torch, transformers and its sibling `configuration_lert` only): both files travel
inside model folders, so that these load where this package is not installed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
)
from transformers import initialization as init
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertLayer,
    BertOnlyMLMHead,
    BertPooler,
    BertSelfAttention,
)
from transformers.utils import ModelOutput

# Relative: transformers copies and imports the files of a model folder by their relative imports.
from .configuration_lert import LertConfig  # noqa: TID252


class NoSelfAttention(BertSelfAttention):  # type: ignore[misc]
    """A self-attention whose heads are all pruned: the output layer's bias is what is left of it.

    It is a `BertSelfAttention`, so that `output_attentions=True` still lists one tensor a layer.
    """

    def __init__(self, head_size: int) -> None:
        nn.Module.__init__(self)
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 0, head_size, 0

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return no features, [batch, length, 0], and no probabilities, [batch, 0, length, length].

        Args:
            hidden_states: [batch, length, hidden].
            *args: What other self-attentions take.
            **kwargs: The same.
        """
        batch, length = hidden_states.shape[:2]
        return hidden_states[..., :0], hidden_states.new_zeros(batch, 0, length, length)


class EmptyLinear(nn.Module):
    """A linear layer without inputs or without outputs: its bias is what is left of it.

    It has no parameter without elements, which ZeRO-3 cannot gather.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        assert not inputs or not outputs, (inputs, outputs)
        self.in_features, self.out_features = inputs, outputs
        self.bias = nn.Parameter(torch.zeros(outputs)) if outputs else None

    def forward(self, features: Tensor) -> Tensor:
        """Return [..., outputs] for [..., inputs]."""
        if self.bias is None:
            return features[..., :0]
        return self.bias.expand(*features.shape[:-1], -1)


def _shape_layer(layer: BertLayer, hidden_size: int, heads: int, intermediate_size: int) -> None:
    attention = layer.attention
    if heads != attention.self.num_attention_heads:
        size = heads * attention.self.attention_head_size
        if heads:
            attention.self.num_attention_heads, attention.self.all_head_size = heads, size
            for name in ("query", "key", "value"):
                setattr(attention.self, name, nn.Linear(hidden_size, size))
        else:
            attention.self = NoSelfAttention(attention.self.attention_head_size)
        attention.output.dense = _linear(size, hidden_size)
    if intermediate_size != layer.intermediate.dense.out_features:
        layer.intermediate.dense = _linear(hidden_size, intermediate_size)
        layer.output.dense = _linear(intermediate_size, hidden_size)


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs) if inputs and outputs else EmptyLinear(inputs, outputs)


class _Lert:
    """What every LERT class adds to its BERT class.

    The constructors below do what those of BERT do, with a `LertModel` for the `BertModel`.
    """

    config_class = LertConfig
    config: LertConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Start weights as LERT does: normal, cut at two deviations (transformers does not cut).

        The row of [PAD] starts as any other, as in TensorFlow's BERT.
        """
        if isinstance(module, nn.Linear | nn.Embedding | EmptyLinear):
            if not isinstance(module, EmptyLinear):
                deviation = self.config.initializer_range
                init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)  # type: ignore[misc]


class LertModel(_Lert, BertModel):  # type: ignore[misc]
    """The encoder: token ids to hidden states; the interface of `BertModel`."""

    def __init__(self, config: LertConfig, add_pooling_layer: bool = True) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        for number, layer in enumerate(self.encoder.layer):
            heads, neurons = config.heads_of(number), config.intermediate_size_of(number)
            _shape_layer(layer, config.hidden_size, heads, neurons)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()


class LertForMaskedLM(_Lert, BertForMaskedLM):  # type: ignore[misc]
    """The interface of `BertForMaskedLM`; linguistic heads in a model folder are left unread."""

    _keys_to_ignore_on_load_unexpected = (r"cls\.predictions\.output_\w+\.(weight|bias)",)

    def __init__(self, config: LertConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.bert = LertModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()


def _classifier_dropout(config: LertConfig) -> nn.Dropout:
    dropout = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)


class LertForSequenceClassification(_Lert, BertForSequenceClassification):  # type: ignore[misc]
    """The interface of `BertForSequenceClassification`."""

    def __init__(self, config: LertConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = LertModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class LertForTokenClassification(_Lert, BertForTokenClassification):  # type: ignore[misc]
    """The interface of `BertForTokenClassification`."""

    def __init__(self, config: LertConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = LertModel(config, add_pooling_layer=False)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class LertForQuestionAnswering(_Lert, BertForQuestionAnswering):  # type: ignore[misc]
    """The interface of `BertForQuestionAnswering`."""

    def __init__(self, config: LertConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = LertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


@dataclass
class LertForPreTrainingOutput(ModelOutput):  # type: ignore[misc]
    """What `LertForPreTraining` returns; `positions` stands for [masked] or [batch, length]."""

    logits: Tensor | None = None
    """[positions, vocabulary] of the MLM head."""
    tag_logits: dict[str, Tensor] | None = None
    """Task to [positions, classes] of its linguistic head."""
    transformed: Tensor | None = None
    """[positions, hidden], what the MLM decoder takes, where it was not asked."""
    hidden_states: tuple[Tensor, ...] | None = None
    """[batch, length, hidden] of the embeddings and of each layer, where they were asked for."""
    attentions: tuple[Tensor, ...] | None = None
    """[batch, heads, length, length] of each layer, where they were asked for."""


class LertForPreTraining(_Lert, BertForMaskedLM):  # type: ignore[misc]
    """LERT as it is pre-trained: masked words, and the tags of the masked words.

    The hidden states of the masked positions pass one transform (dense, GELU, LayerNorm); on its
    output stand the MLM decoder, tied to the word embeddings, and one linear layer per task of
    `config.tag_sets`, `cls.predictions.output_<task>`. All other parameters are named as in
    `BertForMaskedLM`, which loads them with equal logits.
    """

    def __init__(self, config: LertConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.bert = LertModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        for task in config.tasks:
            self._add_tag_head(task)
        self.post_init()

    def _add_tag_head(self, task: str) -> nn.Linear:
        assert self.config.tag_sets is not None
        head = nn.Linear(self.config.hidden_size, len(self.config.tag_sets[task]))
        self.cls.predictions.add_module(f"output_{task}", head)
        return head

    def tag_head(self, task: str) -> nn.Linear:
        """Return the linear layer of `task`, [hidden] to [classes]."""
        head = self.cls.predictions.get_submodule(f"output_{task}")
        assert isinstance(head, nn.Linear)
        return head

    def set_tag_sets(self, tag_sets: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Give the model the heads of `tag_sets` and return the tasks whose head starts anew.

        A head whose tags stay the same, in the same order, is kept; that of a task that is not
        in `tag_sets` is taken away.
        """
        old = self.config.tag_sets or {}
        heads = {task: self.tag_head(task) for task in self.config.tasks}
        for task in heads:
            delattr(self.cls.predictions, f"output_{task}")
        self.config.tag_sets = {task: list(tags) for task, tags in tag_sets.items()}
        fresh = []
        decoder = self.cls.predictions.decoder.weight
        for task in self.config.tasks:  # all are put back in order: optimizers count on it
            if old.get(task) == self.config.tag_sets[task]:
                self.cls.predictions.add_module(f"output_{task}", heads[task])
            else:
                head = self._add_tag_head(task).to(device=decoder.device, dtype=decoder.dtype)
                self._init_weights(head)
                fresh.append(task)
        return tuple(fresh)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
        decode_words: bool = True,
        **kwargs: Any,
    ) -> LertForPreTrainingOutput:
        """Return the logits of every head at the masked positions.

        Args:
            input_ids: int64 [batch, length].
            attention_mask: [batch, length], true or 1 at real tokens; None where nothing is padded,
                which builds no mask and so lets attention take its fastest kernel.
            token_type_ids: int64 [batch, length]; None for zeros.
            position_ids: int64 [batch, length]; None for 0, 1, 2, …
            masked_positions: int64 [masked], indices into the flattened [batch * length]; the heads
                run on these alone (at 15 % masked, 1.4 times the training speed of LERT-small).
                None for every position; there may be none masked.
            decode_words: False leaves the MLM decoder to the caller, who gets its inputs.
            **kwargs: `output_hidden_states`, `output_attentions`.
        """
        encoded = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            use_cache=False,  # an encoder has none; asked here, gradient checkpointing warns of it
            return_dict=True,
            **kwargs,
        )
        hidden = encoded.last_hidden_state
        if masked_positions is not None:
            hidden = hidden.flatten(0, 1).index_select(0, masked_positions)
        predictions = self.cls.predictions
        transformed = predictions.transform(hidden)
        return LertForPreTrainingOutput(
            logits=predictions.decoder(transformed) if decode_words else None,
            transformed=None if decode_words else transformed,
            tag_logits={task: self.tag_head(task)(transformed) for task in self.config.tasks},
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


AUTO_CLASSES: dict[str, type[nn.Module]] = {
    "AutoModel": LertModel,
    "AutoModelForPreTraining": LertForPreTraining,
    "AutoModelForMaskedLM": LertForMaskedLM,
    "AutoModelForSequenceClassification": LertForSequenceClassification,
    "AutoModelForTokenClassification": LertForTokenClassification,
    "AutoModelForQuestionAnswering": LertForQuestionAnswering,
}
"""Name of a transformers Auto class to what it makes of a LERT."""


def register() -> None:
    """Make transformers' Auto classes know model type `lert` without `trust_remote_code`."""
    transformers.AutoConfig.register("lert", LertConfig, exist_ok=True)
    transformers.AutoTokenizer.register(
        LertConfig, tokenizer_class=transformers.BertTokenizer, exist_ok=True
    )
    for name, cls in AUTO_CLASSES.items():
        getattr(transformers, name).register(LertConfig, cls, exist_ok=True)


# Not where this file is a copy out of a model folder: its code is trusted for that folder alone.
if not __name__.startswith("transformers_modules."):
    register()
