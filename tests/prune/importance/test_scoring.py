import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lert_ds.config import parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from prune.importance import pruner, scores
from prune.importance.rows import masked_rows
from prune.importance.scores import Scores
from prune.importance.scoring import NEEDS_WHOLE_SHAPE, ScoringConfig, score

OURS = ("fisher", "gate_gradient", "magnitude")


def make_model(**changes: object) -> LertForPreTraining:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 45, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 12, "max_position_embeddings": 16, "initializer_range": 0.2,
        "tag_sets": {"pos": list(LTP_TAGS["pos"])},
    }  # fmt: skip
    return LertForPreTraining(LertConfig(**shape | changes))


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 45, (4, 8), generator=generator)
    positions = torch.tensor([1, 9, 11, 20, 30])
    tags = {"pos": torch.randint(0, 5, (5,), generator=generator)}
    return Batch(ids, None, positions, ids.flatten()[positions], tags)


def flat(scores: Scores) -> Tensor:
    return torch.cat([*scores.heads, *scores.neurons])


def config(method: str, **changes: object) -> ScoringConfig:
    return parse(ScoringConfig, {"method": method, **changes}, "test")


def test_textpruners_scores_are_the_default() -> None:
    found = score(make_model(), [make_batch()], ScoringConfig(), masked_rows(("pos",)))
    wanted = pruner.importance(make_model(), [make_batch()], masked_rows(("pos",)))
    assert found.method == "textpruner"
    assert torch.equal(flat(found), flat(wanted))


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"seed": 1}])
def test_ours_are_called_with_what_the_configuration_says(
    method: Any, changes: dict[str, Any]
) -> None:
    found = score(make_model(), [make_batch()], config(method, **changes), masked_rows(("pos",)))
    wanted = scores.score(make_model(), [make_batch()], method, masked_rows(("pos",)), **changes)
    assert found.method == method
    assert torch.equal(flat(found), flat(wanted))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_textpruners_are_called_with_what_the_configuration_says(precision: Any) -> None:
    reference = make_model(initializer_range=0.1)
    found = score(
        make_model(), [make_batch()], config("textpruner_logits", precision=precision),
        masked_rows(("pos",)), ffn_even_masking=False, reference=reference,
    )  # fmt: skip
    wanted = pruner.importance(
        make_model(), [make_batch()], use_logits=True, precision=precision,
        ffn_even_masking=False, reference=reference,
    )  # fmt: skip
    assert found.method == "textpruner_logits"
    assert torch.equal(flat(found), flat(wanted))
    even = score(make_model(), [make_batch()], config("textpruner", precision=precision))
    uneven = score(
        make_model(), [make_batch()], config("textpruner", precision=precision),
        ffn_even_masking=False,
    )  # fmt: skip
    assert torch.equal(torch.cat(even.heads), torch.cat(uneven.heads))
    assert not torch.equal(torch.cat(even.neurons), torch.cat(uneven.neurons))


@pytest.mark.parametrize("method", [*OURS, "textpruner", "textpruner_logits"])
def test_methods_that_need_a_whole_shape_refuse_another(method: str) -> None:
    uneven = make_model(layer_attention_heads=[1, 2])

    def make() -> Scores:
        return score(uneven, [make_batch()], config(method))

    if method in NEEDS_WHOLE_SHAPE:
        with pytest.raises(ConfigError, match=r"heads \[1, 2\] and neurons \[12, 12\].*fisher"):
            make()
    else:
        assert [len(heads) for heads in make().heads] == [1, 2]


def test_of_a_model_that_is_compared_with_itself_it_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run: Callable[..., Scores] = lambda **more: score(  # noqa: E731
        make_model(), [make_batch()], config("textpruner_logits"), **more
    )
    with caplog.at_level(logging.INFO):
        run(reference=make_model())
        assert not caplog.messages
        model = make_model()
        score(model, [make_batch()], config("textpruner_logits"), reference=model)
        run()
    assert len(caplog.messages) == 2
    assert "compares the model with itself" in caplog.text
    assert "fisher" in caplog.text


@pytest.mark.parametrize(
    "change", [{"method": "taylor"}, {"instances": 0}, {"batch_size": 0}, {"precision": "fp16"}]
)
def test_what_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        parse(ScoringConfig, change, "test")
