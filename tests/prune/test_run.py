import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from lert_ds import model_dir, tokenizer_files
from lert_ds.data.loader import training_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.sampler import MicroBatches
from lert_ds.data.shards import Corpus
from lert_ds.errors import ConfigError, ModelError
from lert_ds.model_surgery import cut
from lert_ds.modeling_lert import LertForPreTraining, LertModel
from lert_ds.pretraining_objective import masked_logits
from prune import mask_file
from prune.prune_config import PruneRun
from prune.run import load, prune

Make = Callable[..., PruneRun]
IDS = torch.tensor([[2, 20, 17, 30, 8, 3]])
HALF = {"target_num_of_heads": 2, "target_ffn_size": 12}


def sizes_of(folder: Path) -> tuple[list[int], list[int], int]:
    config = model_dir.read_config(folder)
    layers = range(config.num_hidden_layers)
    heads = [config.heads_of(number) for number in layers]
    return heads, [config.intermediate_size_of(number) for number in layers], config.vocab_size


def test_nothing_to_prune_is_the_original_to_the_bit(prune_run: Make) -> None:
    run = prune_run()
    prune(run)
    before, after = load(run.model), load(str(run.output / "model"))
    assert model_dir.read_config(run.model) == model_dir.read_config(run.output / "model")
    pairs = zip(before.state_dict().items(), after.state_dict().items(), strict=True)
    for (name, weight), (other, same) in pairs:
        assert name == other
        assert torch.equal(weight, same)


def test_heads_and_neurons_go_and_the_folder_says_what_is_left(prune_run: Make) -> None:
    run = prune_run(pruning=HALF | {"n_iters": 2, "head_even_masking": False})
    summary = prune(run)
    heads, neurons, pieces = sizes_of(run.output / "model")
    assert (sum(heads), neurons, pieces) == (6, [12] * 3, 45)
    assert (summary["heads"], summary["neurons"]) == (heads, neurons)
    assert set(summary["held_out"]) == {"original", "cut", "repaired"}
    assert len(summary["scored"]) == 2
    written = json.loads((run.output / "summary.json").read_text("utf-8"))
    assert written["parameters"] == summary["parameters"]
    model = load(str(run.output / "model"))
    assert model.num_parameters() == summary["parameters"]["after"]
    record = json.loads((run.output / "model" / "run.json").read_text("utf-8"))
    assert record["pruned_from"] == run.model
    # The masks that it wrote give the same model again, but for the repair.
    shape = mask_file.read_masks(run.output / "masks.safetensors", load(run.model).config)
    again = cut(load(run.model), shape)
    assert torch.equal(
        again.bert.encoder.layer[1].attention.self.query.weight,
        model.bert.encoder.layer[1].attention.self.query.weight,
    )


@pytest.fixture
def learnt_model(small_model: Path, tiny_corpus: Path, tmp_path: Path) -> Path:
    """The small model when it has learnt the tiny corpus for a while."""
    model, corpus = load(str(small_model)).train(), Corpus([tiny_corpus])
    stream = training_batches(corpus, MaskingConfig(), MicroBatches(len(corpus), 0, 8, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _, batch in itertools.islice(stream, 120):
        functional.cross_entropy(masked_logits(model, batch)["mlm"], batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path / "learnt" / "model"
    model_dir.save(model, tiny_corpus, folder)
    return folder


def test_repair_helps_and_can_be_left_out(prune_run: Make, learnt_model: Path) -> None:
    held_out = prune(prune_run(model=str(learnt_model), pruning=HALF))["held_out"]
    assert held_out["repaired"]["mlm/loss"] < held_out["cut"]["mlm/loss"]
    run = prune_run(pruning=HALF, repair={"enabled": False}, overwrite=True)
    assert "repaired" not in prune(run)["held_out"]


@pytest.mark.parametrize("method", ["textpruner", "gate_gradient", "magnitude"])
def test_every_score_prunes(prune_run: Make, method: str) -> None:
    scoring = {"method": method, "instances": 16, "batch_size": 8}
    prune(run := prune_run(pruning=HALF | {"n_iters": 2}, scoring=scoring))
    assert sizes_of(run.output / "model")[:2] == ([2] * 3, [12] * 3)


def test_layers_go_by_name_and_by_effect(prune_run: Make) -> None:
    prune(run := prune_run(drop_layers=[2], pruning=HALF))
    assert sizes_of(run.output / "model")[0] == [2, 2]
    before, after = load(run.model), load(str(run.output / "model"))
    theirs = before.bert.encoder.layer[2].attention.self.query.weight
    ours = after.bert.encoder.layer[1].attention.self.query.weight
    assert {tuple(row) for row in ours.tolist()} <= {tuple(row) for row in theirs.tolist()}
    summary = prune(prune_run(drop_layers=2, overwrite=True))
    assert len(summary["layers"]) == 1


def test_a_smaller_vocabulary_gives_the_same_logits(
    prune_run: Make, tiny_corpus: Path, tmp_path: Path
) -> None:
    keep = tmp_path / "text.txt"
    keep.write_text("丁万\n", "utf-8")
    run = prune_run(vocabulary={"input": str(keep), "keep_groups": []})
    summary = prune(run)
    folder = run.output / "model"
    tokenizer = tokenizer_files.load(folder)
    assert tokenizer_files.pieces(tokenizer) == [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "丁", "万",
    ]  # fmt: skip
    whole = tokenizer_files.load(tiny_corpus)
    ids = torch.tensor([whole("丁万")["input_ids"]])
    new_ids = torch.tensor([tokenizer("丁万")["input_ids"]])
    kept = whole.convert_tokens_to_ids(tokenizer_files.pieces(tokenizer))
    wanted = load(run.model)(ids).logits[..., kept]
    torch.testing.assert_close(load(str(folder))(new_ids).logits, wanted)
    assert summary["vocabulary"]["kept_share"] < 1
    # It fills few of the held-out words, and is not praised for saying [UNK].
    held_out = summary["held_out"]
    assert held_out["cut"]["mlm/loss"] > 0.5 * torch.log(torch.tensor(45.0))


def test_masks_out_of_a_file(prune_run: Make, tmp_path: Path) -> None:
    heads = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
    save_file({"head_mask": heads}, tmp_path / "masks.safetensors")
    masks = {"pruning_method": "masks", "masks": str(tmp_path / "masks.safetensors")}
    summary = prune(run := prune_run(pruning=masks))
    assert sizes_of(run.output / "model")[0] == [2, 4, 1]
    assert not summary["scored"]


def test_what_was_pruned_is_pruned_again(prune_run: Make, tmp_path: Path) -> None:
    first = prune_run(pruning=HALF | {"head_even_masking": False}, vocabulary={"size": 40})
    prune(first)
    assert sizes_of(first.output / "model")[2] < 45
    second = prune_run(
        model=str(first.output / "model"),
        output=str(first.output) + "-again",
        pruning={"target_num_of_heads": 1},
        vocabulary={"size": 30},
    )
    prune(second)
    heads, neurons, pieces = sizes_of(second.output / "model")
    assert (heads, neurons) == ([1] * 3, [12] * 3)
    assert pieces <= 30
    third = second.model_copy(
        update={"model": str(second.output / "model"), "output": tmp_path / "third"}
    )
    summary = prune(third)
    # What was missing before it began is missed by the original too.
    assert summary["held_out"]["original"]["mlm/accuracy"] < 0.9


def test_scores_are_kept_and_reused(
    prune_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = {"method": "fisher", "instances": 16, "file": str(tmp_path / "scores.safetensors")}
    first = prune(prune_run(pruning=HALF | {"n_iters": 2}, scoring=scoring))
    monkeypatch.setattr("prune.importance.scoring.score", None)  # calling it would fail
    run = prune_run(pruning=HALF | {"n_iters": 2}, scoring=scoring, overwrite=True)
    assert prune(run)["held_out"] == first["held_out"]
    monkeypatch.undo()
    prune(prune_run(pruning=HALF, scoring=scoring | {"seed": 1}, overwrite=True))


def test_a_target_is_met(prune_run: Make) -> None:
    whole = load(prune_run().model).num_parameters()
    run = prune_run(target={"parameters": int(0.7 * whole)}, vocabulary={"minimum_count": 1})
    summary = prune(run)
    assert summary["parameters"]["after"] <= 0.7 * whole
    assert load(str(run.output / "model")).num_parameters() == summary["parameters"]["after"]
    tried = summary["search"]["tried"]
    assert len(tried) > 1
    assert all(one["cost"] <= 0.7 * whole for one in tried)


def test_a_target_that_no_shape_meets_is_refused_and_nothing_is_written(prune_run: Make) -> None:
    run = prune_run(target={"parameters": 100})
    with pytest.raises(ConfigError, match=r"parameters = 100.*no shape meets that"):
        prune(run)
    assert not run.output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruning": {"target_num_of_heads": 5}}, "target_num_of_heads"),
        ({"pruning": {"target_ffn_size": 25}}, "target_ffn_size"),
        ({"drop_layers": [4]}, "drop_layers names layer 4"),
        ({"drop_layers": 3}, "drop_layers drops 3 layers of 3"),
        ({"vocabulary": {"keep": ["龘龘"]}}, "keep = '龘龘'"),
        ({"vocabulary": {"size": 3}}, "size = 3"),
        ({"vocabulary": {"size": 5, "keep_groups": []}}, "no piece would be left"),
        ({"vocabulary": {"input": "/none.txt"}}, "/none.txt: there is no such file"),
        ({"vocabulary": {"input_valid": "/none.txt"}}, "/none.txt: there is no such file"),
        ({"scoring": {"file": "/dev/null/scores.safetensors"}}, "scoring.file"),
        ({"target": {"latency_ms": 1, "length": 32, "table": "/dev/null/t.json"}}, "target.table"),
        ({"corpus": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    prune_run: Make, changes: dict[str, Any], message: str
) -> None:
    run = prune_run(**changes)
    with pytest.raises(Exception, match=message) as caught:
        prune(run)
    assert "\n" not in str(caught.value)
    assert not run.output.exists()


def test_a_model_without_its_heads_is_refused(prune_run: Make, small_model: Path) -> None:
    encoder, _ = model_dir.load(small_model, LertModel)
    folder = prune_run().output.parent / "encoder"
    model_dir.save(encoder, small_model, folder)
    with pytest.raises(ModelError, match="has no weights for cls"):
        prune(prune_run(model=str(folder)))


def test_another_tokenizer_is_refused(prune_run: Make, small_model: Path, tmp_path: Path) -> None:
    model, _ = model_dir.load(small_model, LertForPreTraining)
    (tmp_path / "t").mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x5000 + i) for i in range(40))]
    (tmp_path / "t" / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    model_dir.save(model, tmp_path / "t", tmp_path / "other")
    with pytest.raises(ModelError, match="tokenizer"):
        prune(prune_run(model=str(tmp_path / "other")))


def test_the_command_line(
    command_line: Callable[..., str], prune_run: Make, small_model: Path, tiny_corpus: Path
) -> None:
    output = prune_run().output
    arguments = [
        "prune", "prune-quickstart", f"model={small_model}", f"corpus={tiny_corpus}",
        f"output={output}", "scoring.instances=16", "repair.instances=16", "pruning.n_iters=1",
        "pruning.target_num_of_heads=2", "pruning.target_ffn_size=12",
    ]  # fmt: skip
    told = command_line([*arguments, "--dry-run"])
    assert "parameters" in told
    assert not output.exists()
    told = command_line(arguments)
    assert "heads             2, 2, 2" in told
    assert "overwrite=true" in command_line(arguments, 2)
    assert "target_num_of_heads = 9" in command_line(
        [*arguments, "overwrite=true", "pruning.target_num_of_heads=9"], 2
    )
    # A refused run loses nothing of what is there.
    assert sizes_of(output / "model")[0] == [2] * 3
