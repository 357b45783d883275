"""Tag the words of sentences with PyTorch: a model folder's model to a `Tagger`.

    model, tokenizer = fill_mask.load("runs/quickstart/model")
    tagger = make_tagger(model, tokenizer, "runs/quickstart/model")
    tagger.tag([Words("今天天气很好。", ["今天", "天气", "很", "好", "。"])])

What is masked, and what is read where: `tagging.py`.
"""

from typing import Any

import torch

from lert_ds import fill_mask
from lert_ds.errors import ModelError
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.predictions import SpecialTokens
from lert_ds.tagging import TOKENS_PER_BATCH, Encoded, MaskedCopies, Scores, SpecialIds, Tagger


def make_tagger(
    model: LertForPreTraining,
    tokenizer: Any,
    source: str,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Tagger:
    """Return what tags words with a model, on the device that this is on.

    Args:
        model: As `fill_mask.load` gives it: with the linguistic heads that it has learnt.
        tokenizer: Its own.
        source: What it is called in messages.
        tokens_per_batch: Padding included.

    Raises:
        ModelError: it has no linguistic head.
    """
    if not model.config.tasks:
        raise ModelError(
            f"{source}: it has no linguistic heads that have learnt to tag words; name a model "
            "that was pre-trained or distilled with lip.tasks, or leave --tag out and put a [MASK] "
            "into the text"
        )

    def encode(text: str) -> Encoded:
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return Encoded(made["input_ids"], made["offset_mapping"])

    tag_sets = model.config.tag_sets or {}
    # Rows of the embedding beyond the vocabulary, kept for a round size, name no piece.
    pieces = len(tokenizer)
    return Tagger(
        encode=encode,
        score=lambda copies: _score(model, copies, tokenizer.pad_token_id, pieces),
        name_of=tokenizer.convert_ids_to_tokens,
        special=SpecialTokens(tokenizer.mask_token, tokenizer.cls_token, tokenizer.sep_token),
        special_ids=SpecialIds(
            tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id
        ),
        positions=model.config.max_position_embeddings,
        tag_sets={task: tag_sets[task] for task in model.config.tasks},
        tokens_per_batch=tokens_per_batch,
    )


@torch.inference_mode()
def _score(model: LertForPreTraining, copies: MaskedCopies, pad_id: int, pieces: int) -> Scores:
    """Return the probabilities at the scored places; `pieces` of the vocabulary can be true."""
    input_ids, real = fill_mask.padded(copies.ids, pad_id)
    output = model(
        input_ids.to(model.device),
        attention_mask=None if real is None else real.to(model.device),
        masked_positions=torch.from_numpy(copies.places).to(model.device),
    )
    assert output.logits is not None
    assert output.tag_logits is not None
    logits = output.logits[:, :pieces].float()
    truth = torch.from_numpy(copies.truth).to(logits.device)[:, None]
    # Not softmax and then one column of it: that would keep a second table of this size.
    true_pieces = (logits.gather(1, truth)[:, 0] - logits.logsumexp(-1)).exp()
    tags = {
        task: logits.float().softmax(-1).cpu().numpy() for task, logits in output.tag_logits.items()
    }
    return Scores(true_pieces.cpu().numpy(), tags)
