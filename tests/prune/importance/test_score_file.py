import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lert_ds.configuration_lert import LertConfig
from lert_ds.data.shards import MANIFEST
from lert_ds.errors import ModelError
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining
from prune.importance import score_file
from prune.importance.score_file import FORMAT, fingerprint, read, reuse, write
from prune.importance.scores import Scores

CPU = torch.device("cpu")


def make_model(**changes: object) -> LertForPreTraining:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 12,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 6,
        "max_position_embeddings": 8,
        "tag_sets": {"pos": list(LTP_TAGS["pos"])},
    }
    return LertForPreTraining(LertConfig(**shape | changes))


def make_scores(offset: float = 0.0) -> Scores:
    """Scores of uneven layers, some without a unit, as parts of one tensor."""
    heads, neurons = torch.arange(3.0) + offset, torch.arange(7.0) / 3 + offset
    return Scores("fisher", heads.split([3, 0]), neurons.split([2, 5]), 64)


def equal(one: Scores | None, other: Scores) -> bool:
    assert one is not None
    parts = zip((*one.heads, *one.neurons), (*other.heads, *other.neurons), strict=True)
    return (one.method, one.examples) == (other.method, other.examples) and all(
        torch.equal(a, b) for a, b in parts
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.safetensors"
    write(path, make_scores(), "mark")
    assert equal(read(path, "mark"), make_scores())


def test_layers_keep_their_order_beyond_nine(tmp_path: Path) -> None:
    units = tuple(torch.tensor([float(layer)]) for layer in range(12))
    write(tmp_path / "scores", Scores("magnitude", units, units, 0), "mark")
    assert equal(read(tmp_path / "scores", "mark"), Scores("magnitude", units, units, 0))


def test_scores_of_another_fingerprint_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    assert read(path, "mark") is None
    write(path, make_scores(), "mark")
    assert read(path, "other") is None


def test_what_is_no_file_of_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"scores\.safetensors: no file of scores .*delete"):
        read(path, "mark")
    write(path, make_scores(), "mark")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"scores\.safetensors: no file of scores .*delete"):
        read(path, "mark")
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ModelError, match=r"scores\.safetensors: no file of scores .*delete"):
        read(path, "mark")
    save_file({"weight": torch.ones(2)}, path, {"format": FORMAT})
    with pytest.raises(ModelError, match=r"scores\.safetensors: no file of scores .*delete"):
        read(path, "mark")


def _other_weight(model: LertForPreTraining) -> None:
    with torch.no_grad():
        model.cls.predictions.bias[3] += 1e-6


@pytest.mark.parametrize(
    "change",
    [
        _other_weight,
        lambda model: setattr(model.config, "hidden_act", "relu"),
        lambda model: model.to(torch.bfloat16),
    ],
)
def test_every_weight_and_what_is_done_with_it_make_the_fingerprint(
    change: Callable[[LertForPreTraining], object],
) -> None:
    model = make_model()
    before = fingerprint(model, [], {})
    assert fingerprint(make_model(), [], {}) == before
    change(model)
    assert fingerprint(model, [], {}) != before


def test_a_model_keeps_its_fingerprint_through_a_folder(tmp_path: Path) -> None:
    model = make_model(layer_attention_heads=[1, 0], layer_intermediate_sizes=[0, 3])
    model.save_pretrained(tmp_path)
    again = LertForPreTraining.from_pretrained(tmp_path)
    assert fingerprint(again, [], {}) == fingerprint(model, [], {})


def test_corpora_and_settings_make_the_fingerprint(tmp_path: Path) -> None:
    model = make_model()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(json.dumps({"shards": name}))
    a, b = tmp_path / "a", tmp_path / "b"
    cases: list[tuple[list[Path], dict[str, object]]] = [
        ([], {}),
        ([a], {}),
        ([b], {}),
        ([a, b], {}),
        ([b, a], {}),
        ([a], {"seed": 1}),
        ([a], {"seed": 2}),
    ]
    assert len({fingerprint(model, *case) for case in cases}) == len(cases)
    assert fingerprint(model, [a], {"x": 1, "y": 2}) == fingerprint(model, [a], {"y": 2, "x": 1})


def test_scores_are_made_once(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    made: list[Scores] = []

    def make() -> Scores:
        made.append(make_scores(float(len(made))))
        return made[-1]

    assert reuse(path, "mark", make, CPU) is made[0]
    assert equal(reuse(path, "mark", make, CPU), made[0])
    assert len(made) == 1
    assert reuse(path, "other", make, CPU) is made[1]
    assert read(path, "mark") is None
    assert equal(read(path, "other"), made[1])


def test_scores_are_made_again_where_one_process_does_not_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scores.safetensors"
    write(path, make_scores(), "mark")
    monkeypatch.setattr(score_file, "world_size", lambda: 2)
    found_elsewhere = {"yes": 1, "no": 0}
    for answer, wanted in [("yes", make_scores()), ("no", make_scores(5))]:
        monkeypatch.setattr(
            score_file, "sum_over_ranks", lambda own, n=found_elsewhere[answer]: own + n
        )
        assert equal(reuse(path, "mark", lambda: make_scores(5), CPU), wanted)


def test_the_main_process_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    reuse(tmp_path / "scores.safetensors", "mark", make_scores, CPU)
    assert not list(tmp_path.iterdir())
