"""Fill [MASK] with PyTorch: a model folder to predictions.

Every [MASK] is filled for itself, given all the others as [MASK].
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lert_ds import model_dir, predictions, tokenizer_files
from lert_ds.errors import ModelError, UserError
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.predictions import Candidate, Prediction, SpecialTokens


def load(source: str) -> tuple[LertForPreTraining, Any]:
    """Return a model for `fill`, with the linguistic heads that it has learnt, and its tokenizer.

    Raises:
        ModelError: it cannot be read, or it has no MLM head.
    """
    model, report = model_dir.load(source, LertForPreTraining)
    if "cls.predictions.transform.dense.weight" in report.random:
        raise ModelError(
            f"{source}: it has no MLM head to fill [MASK] with; name a pre-trained model, "
            "not one that is fine-tuned for a task"
        )
    tag_sets = model.config.tag_sets or {}
    learnt = {
        task: tags
        for task, tags in tag_sets.items()
        if f"cls.predictions.output_{task}.weight" not in report.random
    }
    model.set_tag_sets(learnt)
    tokenizer = tokenizer_files.load(report.folder)
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"{source}: its tokenizer has {len(tokenizer)} pieces, its model embeds "
            f"{model.config.vocab_size}; they are not of one model"
        )
    return model.eval(), tokenizer


@torch.inference_mode()
def fill(
    model: LertForPreTraining, tokenizer: Any, texts: Sequence[str], top_k: int = 5
) -> list[Prediction]:
    """Return the predictions for each of `texts`, which go through the model as one batch.

    Raises:
        UserError: a text without [MASK] or longer than the model's positions, or `top_k` below 1.
    """
    predictions.check_top_k(top_k)
    special = SpecialTokens(tokenizer.mask_token, tokenizer.cls_token, tokenizer.sep_token)
    positions = model.config.max_position_embeddings
    encoded = [
        predictions.encode(
            text, lambda text: tokenizer(text, verbose=False)["input_ids"], special, positions
        )
        for text in texts
    ]
    input_ids, real = padded(encoded, tokenizer.pad_token_id)
    masked_positions = (input_ids == tokenizer.mask_token_id).flatten().nonzero()[:, 0]
    output = model(
        input_ids.to(model.device),
        attention_mask=None if real is None else real.to(model.device),
        masked_positions=masked_positions.to(model.device),
    )
    assert output.logits is not None
    assert output.tag_logits is not None
    # Rows of the embedding beyond the vocabulary, kept for a round size, name no piece.
    pieces = _best(output.logits[:, : len(tokenizer)], top_k, tokenizer.convert_ids_to_tokens)
    tag_sets = model.config.tag_sets or {}
    tags = {
        task: _best(logits, 1, tag_sets[task].__getitem__)
        for task, logits in output.tag_logits.items()
    }
    return predictions.by_text(texts, pieces, tags, special.mask)


def padded(encoded: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor | None]:
    """Return texts of ids as one batch: ids [batch, longest], and where they are real.

    The second is bool [batch, longest], or None where nothing is padded: then attention needs no
    mask and takes its fastest kernel.
    """
    input_ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids in encoded], batch_first=True, padding_value=pad_id
    )
    lengths = torch.tensor([len(ids) for ids in encoded])
    real = torch.arange(input_ids.shape[1]) < lengths[:, None]
    return input_ids, None if bool(real.all()) else real


def _best(logits: Tensor, count: int, name_of: Callable[[int], str]) -> list[list[Candidate]]:
    """Return the `count` most probable classes of each row of `logits`, [rows, classes]."""
    top = logits.float().softmax(-1).topk(min(count, logits.shape[-1]))
    return [
        [Candidate(name_of(place), share) for place, share in zip(places, shares, strict=True)]
        for places, shares in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def find_device(name: str) -> torch.device:
    """Return the device that `--device` names; auto is a GPU where there is one.

    Raises:
        UserError: it is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not on this machine ({reason}); say auto") from error
    return device
