import builtins
import contextlib
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from lert_ds.corpus.annotators.ltp_models import load_ltp
from lert_ds.errors import ModelError, UserError

TEXTS = ["今天天气很好。", "他去了，我没有去。", "好", "Hello world 2023年。"]


@pytest.fixture
def broken(neural_folder: Path, tmp_path: Path) -> Path:
    """A copy of the neural model for a test to damage."""
    return Path(shutil.copytree(neural_folder, tmp_path / "model"))


def test_a_batch_parses_as_its_sentences_do_alone(neural_folder: Path) -> None:
    model = load_ltp(str(neural_folder), "cpu")
    together = model.parse(TEXTS)
    assert together == [model.parse([text])[0] for text in TEXTS]
    assert len({parsed.pos[0] for parsed in together if parsed.pos}) > 1
    for text, parsed in zip(TEXTS, together, strict=True):
        sizes = {
            len(values)
            for values in (parsed.pos, parsed.ner, parsed.heads, parsed.relations)
            if values is not None
        }
        assert sizes == {len(parsed.words)}
        assert "".join(parsed.words) == text


def test_the_tags_are_those_of_ltp_itself(neural_folder: Path) -> None:
    from ltp.nerual import LTP
    from transformers import AutoTokenizer

    theirs = LTP(config=json.loads((neural_folder / "config.json").read_text("utf-8")))
    theirs.model.load_state_dict(torch.load(neural_folder / "pytorch_model.bin"))
    theirs.tokenizer = AutoTokenizer.from_pretrained(
        str(neural_folder), config=theirs.model.backbone.config
    )
    theirs.tokenizer.batch_encode_plus = theirs.tokenizer.__call__
    expected = theirs.pipeline(TEXTS, tasks=["cws", "pos", "ner", "dep"])
    for place, parsed in enumerate(load_ltp(str(neural_folder), "cpu").parse(TEXTS)):
        assert parsed.words == expected["cws"][place]
        assert parsed.pos == expected["pos"][place]
        assert parsed.heads == expected["dep"][place]["head"]
        assert parsed.relations == expected["dep"][place]["label"]
        entities = [(first, last) for _, _, first, last in expected["ner"][place]]
        assert parsed.ner is not None
        for first, last in entities:
            ends = (parsed.ner[first][0], parsed.ner[last][0])
            assert ends == (("S", "S") if first == last else ("B", "E"))


def test_tokens_are_counted_without_the_special_ones(neural_folder: Path) -> None:
    model = load_ltp(str(neural_folder), "cpu")
    assert model.count_tokens(["你好", "", " \u200b", "hello 한"]) == [2, 0, 0, 4]
    assert model.longest == 510


def test_perceptrons_know_what_they_were_trained_on(perceptron_folder: Path) -> None:
    (parsed,) = load_ltp(str(perceptron_folder), "auto").parse(["小明去上海了。"])
    assert parsed.words == ["小明", "去", "上海", "了", "。"]
    assert parsed.pos == ["nh", "v", "ns", "u", "wp"]
    assert parsed.ner == ["S-Nh", "O", "S-Ns", "O", "O"]
    assert parsed.heads is None
    assert parsed.relations is None


def test_perceptrons_do_not_spell_english_words(perceptron_folder: Path) -> None:
    (parsed,) = load_ltp(str(perceptron_folder), "cpu").parse(["他在Google工作2023年"])
    assert sum(word.isascii() and word.isalpha() for word in parsed.words) <= 2
    assert sum(word.isdigit() for word in parsed.words) <= 2


def test_missing_weights_are_refused(broken: Path) -> None:
    weights = torch.load(broken / "pytorch_model.bin")
    lost = next(name for name in weights if name.startswith("task_heads.pos"))
    del weights[lost]
    torch.save(weights, broken / "pytorch_model.bin")
    with pytest.raises(ModelError, match=f"weights are missing .*{lost}"):
        load_ltp(str(broken), "cpu")


@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin"])
def test_a_folder_without_a_file_is_refused(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_ltp(str(broken), "cpu")


def test_a_damaged_file_is_refused(broken: Path) -> None:
    (broken / "pytorch_model.bin").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: cannot be loaded"):
        load_ltp(str(broken), "cpu")
    (broken / "config.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match=r"config\.json: not valid JSON"):
        load_ltp(str(broken), "cpu")
    (broken / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    with pytest.raises(ModelError, match=r"config\.json: no nerual"):
        load_ltp(str(broken), "cpu")


def test_a_model_without_vocabulary_is_refused(broken: Path) -> None:
    with (broken / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("additional")
    with pytest.raises(ModelError, match="they are not of one model"):
        load_ltp(str(broken), "cpu")
    (broken / "vocab.txt").unlink()
    with pytest.raises(ModelError, match=r"no vocab\.txt"):
        load_ltp(str(broken), "cpu")


@pytest.mark.parametrize("key", ["auto_map", "attn_implementation", "quantization_config"])
def test_keys_by_which_transformers_would_take_code_are_refused(broken: Path, key: str) -> None:
    config = json.loads((broken / "config.json").read_text("utf-8"))
    config["model"]["backbone"]["config"][key] = {"AutoModel": "modeling_evil.Model"}
    (broken / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match=f"{key} is refused: it may run code"):
        load_ltp(str(broken), "cpu")


def test_code_beside_the_tokenizer_is_neither_run_nor_asked_about(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = broken / "trace"
    (broken / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    settings = {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (broken / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    monkeypatch.setattr(builtins, "input", lambda _: pytest.fail("it asked at the terminal"))
    with contextlib.suppress(ModelError):  # told, where transformers knows no other way
        load_ltp(str(broken), "cpu")
    assert not trace.exists()


def test_perceptrons_outside_the_folder_are_refused(perceptron_folder: Path) -> None:
    config = perceptron_folder / "config.json"
    before = config.read_text("utf-8")
    tree = json.loads(before)
    tree["tasks"]["pos"] = "../../pos_model.bin"
    config.write_text(json.dumps(tree), "utf-8")
    try:
        with pytest.raises(UserError, match=r"names '\.\./\.\./pos_model\.bin', which leaves"):
            load_ltp(str(perceptron_folder), "cpu")
    finally:
        config.write_text(before, "utf-8")


@pytest.mark.parametrize("target", ["os.system", "ltp_core.models.utils.instantiate.importlib.x"])
def test_a_configuration_makes_nothing_but_parts_of_ltp(broken: Path, target: str) -> None:
    config = json.loads((broken / "config.json").read_text("utf-8"))
    config["model"]["heads"]["pos"]["_ltp_target_"] = target
    (broken / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match=target):
        load_ltp(str(broken), "cpu")


def test_a_model_that_does_not_segment_is_refused(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text("utf-8"))
    config["vocabs"]["cws"] = []
    (broken / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="does not segment words"):
        load_ltp(str(broken), "cpu")


def test_a_missing_perceptron_is_refused(perceptron_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(perceptron_folder, tmp_path / "model"))
    (folder / "pos_model.bin").unlink()
    with pytest.raises(ModelError, match=r"pos_model\.bin"):
        load_ltp(str(folder), "cpu")
    (folder / "pos_model.bin").write_bytes(b"not a perceptron")
    with pytest.raises(ModelError, match="not perceptrons"):
        load_ltp(str(folder), "cpu")


def test_a_hub_name_is_downloaded(neural_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(name: str, revision: str | None = None) -> str:
        asked.append((name, revision))
        return str(neural_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_ltp("LTP/tiny", "cpu").parse(["好。"])
    assert load_ltp("LTP/tiny@main", "cpu").parse(["好。"])
    assert asked == [("LTP/tiny", None), ("LTP/tiny", "main")]


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, revision: str | None = None) -> str:
        raise LocalEntryNotFoundError("no network\nlong story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        ModelError, match=r"model = LTP/tiny.*no network.*hf download LTP/tiny"
    ) as e:
        load_ltp("LTP/tiny", "cpu")
    assert "\n" not in str(e.value)


def test_a_model_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelError, match=r"model\.bin: it is a file"):
        load_ltp(str(tmp_path / "model.bin"), "cpu")


def test_a_missing_gpu_is_named(neural_folder: Path) -> None:
    with pytest.raises(UserError, match="device = cuda:99"):
        load_ltp(str(neural_folder), "cuda:99")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_ltp(name: str, *args: object, **kwargs: object) -> object:
        if name == "ltp":
            raise ImportError("No module named 'ltp'")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_ltp)
    with pytest.raises(UserError, match=r"pip install lert-ds\[ltp\]"):
        load_ltp("anywhere", "cpu")
