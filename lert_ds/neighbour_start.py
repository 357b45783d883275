"""First weights whose attention looks at neighbours: a small model on little text learns sooner.

A masked language model stays for thousands of steps at the unigram entropy, until some heads have
found out by chance that the words beside a mask matter and where they are. Here the heads of the
first layers start there, each at its own distance (-1, +1, -2, +2, …):

- positions are waves, cos(w t) and sin(w t), in the last dimensions of the hidden state, where the
  words are kept small; a query is the wave turned by the distance, so that its product with a key
  peaks at that distance (as in Vaswani et al. 2017, arXiv 1706.03762, section 3.5, where a shift of
  position is a rotation of its encoding);
- the MLM transform starts near the identity, so that a token that was kept predicts itself.

It is a start and nothing else: the weights are those of a plain BERT, all of them are trained. On
a large corpus the plain start gets there too: LERT's presets use that. To compare the two:
`lert-ds pretrain pretrain-quickstart architecture.start=plain output=runs/plain`, then report.
"""

import math

import torch
from torch import Tensor

from lert_ds.modeling_lert import LertForPreTraining

WAVE_DIMENSIONS = 32
"""Most dimensions that the positions take; half of them cosines, half sines."""
WAVE_SHARE = 0.33
"""Share of the positions in the squared length of an embedding."""
WORD_DEVIATION = 0.04
"""Standard deviation of word embeddings: larger learns to copy sooner, smaller to use context."""
WORDS_IN_WAVES = 0.1
"""Factor on the word embeddings where the waves are."""
NOISE = 0.2
"""Factor on the random part of queries and keys: the waves decide at first."""
LAYERS = 2
"""How many layers start so; those above combine what the first ones gathered."""


@torch.no_grad()
def start_with_neighbours(model: LertForPreTraining) -> None:
    """Set the first weights of `model`, in place; it draws from torch's generator."""
    config = model.config
    hidden, head_size = config.hidden_size, config.hidden_size // config.num_attention_heads
    waves = min(WAVE_DIMENSIONS, head_size) // 2 * 2
    # From slow to fast: the slow ones tell far from near, the fast ones left from right.
    frequencies = math.pi * ((torch.arange(waves // 2) + 0.5) / (waves // 2)) ** 1.3

    embeddings = model.bert.embeddings
    words = embeddings.word_embeddings.weight
    words.normal_(0.0, WORD_DEVIATION)
    words[:, -waves:] *= WORDS_IN_WAVES
    embeddings.token_type_embeddings.weight.zero_()
    positions = embeddings.position_embeddings.weight
    angles = torch.arange(len(positions))[:, None] * frequencies
    share = WAVE_SHARE / (1 - WAVE_SHARE)
    amplitude = WORD_DEVIATION * math.sqrt(2 * (hidden - waves) / waves * share)
    positions.zero_()
    positions[:, -waves:] = amplitude * torch.cat([angles.cos(), angles.sin()], dim=1)

    for layer in model.bert.encoder.layer[:LAYERS]:
        attention = layer.attention.self
        for head in range(attention.num_attention_heads):
            # -1, +1, -2, +2, … and again from -1 after eight heads.
            distance = (head % 8 // 2 + 1) * (-1 if head % 2 == 0 else 1)
            rows = slice(head * head_size, (head + 1) * head_size)
            attention.query.weight[rows] *= NOISE
            attention.key.weight[rows] *= NOISE
            rows = slice(head * head_size, head * head_size + waves)
            attention.query.weight[rows, -waves:] += _turn(frequencies * distance)
            attention.key.weight[rows, -waves:] += torch.eye(waves)

    model.cls.predictions.transform.dense.weight += torch.eye(hidden)


def _turn(angles: Tensor) -> Tensor:
    """Return [2n, 2n]: what turns n waves (cosines, then sines) by `angles` [n]."""
    cosine, sine = torch.diag(angles.cos()), torch.diag(angles.sin())
    return torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)], 0)
