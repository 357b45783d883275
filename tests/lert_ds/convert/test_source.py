"""Where the files of a checkpoint are: folders, archives, prefixes, and what is in the way."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from lert_ds.convert.source import Choice, count_pieces, is_checkpoint, open_source
from lert_ds.errors import ModelError, UserError

FILES = {
    "lert_model.ckpt.index": "names",
    "lert_model.ckpt.data-00000-of-00001": "numbers",
    "lert_model.ckpt.meta": "a graph",
    "lert_config.json": "{}",
    "vocab.txt": "[PAD]\n",
}


def write(folder: Path, **changes: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**FILES, **changes}.items():
        if text is not None:
            (folder / name).write_text(text, "utf-8")
    return folder


def pack(path: Path, folder: str = "", **more: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {**{f"{folder}{n}": t for n, t in FILES.items()}, **more}.items():
            archive.writestr(name, text)
    return path


def found(source: Path, **choice: Any) -> tuple[str, str, str]:
    chosen = Choice(**choice)
    assert is_checkpoint(source, chosen)
    with open_source(source, chosen) as files:
        assert Path(f"{files.prefix}.index").read_text("utf-8") == "names"
        assert Path(f"{files.prefix}.data-00000-of-00001").is_file()
        assert files.configuration.is_file()
        assert files.vocabulary.is_file()
        return files.prefix.name, files.configuration.name, files.vocabulary.name


USUAL = ("lert_model.ckpt", "lert_config.json", "vocab.txt")


def test_folder_prefix_and_archive_are_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "tf")
    assert found(folder) == USUAL
    assert found(tmp_path) == USUAL  # one level up
    assert found(folder / "lert_model.ckpt") == USUAL
    assert found(folder / "lert_model.ckpt.index") == USUAL
    assert found(pack(tmp_path / "flat.zip")) == USUAL
    assert found(pack(tmp_path / "deep.zip", "chinese_lert/")) == USUAL


def test_what_is_unpacked_goes(tmp_path: Path) -> None:
    with open_source(pack(tmp_path / "a.zip"), Choice()) as files:
        place = files.prefix.parent
        assert not (place / "lert_model.ckpt.meta").exists()  # unread, and often large
    assert not place.exists()


def test_names_of_other_models(tmp_path: Path) -> None:
    folder = write(tmp_path / "bert", **dict.fromkeys(FILES))
    for name, text in FILES.items():
        (folder / name.replace("lert_", "bert_")).write_text(text, "utf-8")
    assert found(folder) == ("bert_model.ckpt", "bert_config.json", "vocab.txt")


def test_a_macs_copies_are_not_taken(tmp_path: Path) -> None:
    more = {f"__MACOSX/._{name}": "attributes" for name in FILES}
    assert found(pack(tmp_path / "mac.zip", **more)) == USUAL


def test_a_configuration_called_config_json(tmp_path: Path) -> None:
    changes = {"lert_config.json": None, "config.json": "{}", "tokenizer_config.json": "{}"}
    assert found(write(tmp_path / "tf", **changes)) == (USUAL[0], "config.json", USUAL[2])


def test_what_is_not_of_tensorflow(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", "utf-8")
    (folder / "model.safetensors.index.json").write_text("{}", "utf-8")
    assert not is_checkpoint(folder, Choice())
    assert not is_checkpoint(Path("hfl/chinese-lert-base"), Choice())
    assert not is_checkpoint(tmp_path / "nowhere", Choice())


def test_a_folder_of_both_kinds_asks_which(tmp_path: Path) -> None:
    folder = write(tmp_path / "both", **{"model.safetensors": ""})
    with pytest.raises(UserError, match=r"both model.safetensors and .* --checkpoint"):
        is_checkpoint(folder, Choice())
    assert found(folder, checkpoint="lert_model.ckpt") == USUAL


def several(tmp_path: Path) -> Path:
    more = {f"model.ckpt-{n}{end}": t for n in (10, 20)
            for end, t in ((".index", "names"), (".data-00000-of-00001", ""))}  # fmt: skip
    return write(tmp_path / "several", **more)


def test_several_checkpoints_ask_which(tmp_path: Path) -> None:
    folder = several(tmp_path)
    with pytest.raises(UserError, match=r"ckpt, model.ckpt-10, model.ckpt-20.*--checkpoint"):
        found(folder)
    assert found(folder, checkpoint="model.ckpt-20")[0] == "model.ckpt-20"
    assert found(folder / "model.ckpt-10")[0] == "model.ckpt-10"
    with pytest.raises(ModelError, match=r"no checkpoint model.ckpt-3 \(there are: .*-10"):
        found(folder, checkpoint="model.ckpt-3")


def test_several_configurations_ask_which(tmp_path: Path) -> None:
    folder = write(tmp_path / "tf", **{"bert_config.json": "{}", "vocab_old.txt": ""})
    with pytest.raises(UserError, match=r"bert_config.json, lert_config.json; choose by --config"):
        found(folder)
    with pytest.raises(UserError, match=r"vocab.txt, vocab_old.txt; choose by --vocabulary"):
        found(folder, configuration=folder / "lert_config.json")
    chosen = {"configuration": folder / "bert_config.json", "vocabulary": folder / "vocab_old.txt"}
    assert found(folder, **chosen) == (USUAL[0], "bert_config.json", "vocab_old.txt")
    with pytest.raises(ModelError, match=r"c.json: there is no such file"):
        found(folder, **{**chosen, "configuration": folder / "c.json"})


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ("lert_config.json", r"no configuration .*--config"),
        ("vocab.txt", r"no vocabulary .*--vocabulary"),
        ("lert_model.ckpt.index", r"no TensorFlow checkpoint \(no file .index"),
    ],
)
def test_what_is_missing_is_named(lacking: str, told: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "tf", **{lacking: None})
    with pytest.raises(ModelError, match=told) as error:
        found(folder)
    assert str(error.value).startswith(str(folder))


@pytest.mark.parametrize("name", ["../../evil_config.json", "/tmp/evil_config.json"])
def test_an_archive_cannot_write_elsewhere(name: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "evil.zip", **{name: "{}"})
    with pytest.raises(UserError, match="leaves the folder"), open_source(path, Choice()):
        pass


def test_an_archive_that_swells_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.index", bytes(65 << 20))
    with pytest.raises(UserError, match="unpack to 68,157,440"), open_source(path, Choice()):
        pass


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "not.zip"
    text.write_text("text", "utf-8")
    with pytest.raises(ModelError, match=r"no \.zip"), open_source(text, Choice()):
        pass
    path = pack(tmp_path / "cut.zip")
    content = bytearray(path.read_bytes())
    content[60] ^= 255  # in the first member
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be unpacked"), open_source(path, Choice()):
        pass


def test_lines_of_a_vocabulary_are_those_of_line_feeds(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("a\nb\u2028c\nd", "utf-8", newline="\n")
    assert count_pieces(path) == 3
    path.write_text("a\nb\n", "utf-8", newline="\n")
    assert count_pieces(path) == 2
