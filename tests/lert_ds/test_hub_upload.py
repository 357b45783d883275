"""Uploads: which files go, what is not in them, and what is said when they cannot."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from lert_ds import hub_upload, model_card
from lert_ds.errors import UserError
from lert_ds.hub_upload import push, try_push, without_places

OWN = {
    *("config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json"),
    *("configuration_lert.py", "modeling_lert.py", "run.json", "README.md"),
}
TOKEN = "hf_0123456789abcdef0123456789"


class Hub:
    """Stands for the hub: keeps what it is sent."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.files: dict[str, bytes] = {}
        self.is_private = True
        self.error: Exception | None = None
        self.upload: dict[str, Any] = {}

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> Any:
        assert exist_ok
        self.calls.append(f"create {name} private={private}")
        if self.error is not None:
            raise self.error
        full = name if "/" in name else f"me/{name}"

        class Url(str):
            repo_id = full

        return Url(f"https://huggingface.co/{full}")

    def repo_info(self, name: str) -> Any:
        return SimpleNamespace(private=self.is_private)

    def create_branch(self, name: str, *, branch: str, exist_ok: bool) -> None:
        assert exist_ok
        self.calls.append(f"branch {name} {branch}")

    def upload_folder(self, *, folder_path: str, **given: Any) -> None:
        self.calls.append("upload")
        self.upload = given
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).rglob("*")}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(hub_upload, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    return made


@pytest.fixture
def folder(tmp_path: Path, write_filler: Any) -> Path:
    place = tmp_path / "runs" / "tiny" / "model"
    place.parent.mkdir(parents=True)
    write_filler(place)
    run = {"config": {"output": "/home/me/runs/tiny", "corpus": ["corpora/wiki"]}}
    (place / "run.json").write_text(json.dumps(run), "utf-8")
    model_card.write_card(place, "tiny")
    (place / "checkpoints" / "step-1").mkdir(parents=True)
    (place / "checkpoints" / "step-1" / "model.safetensors").write_bytes(b"not this")
    for name in ("notes.txt", ".env", "optimizer.bin", "README.md.swp", "other.safetensors"):
        (place / name).write_text(TOKEN, "utf-8")
    return place


def test_only_the_files_of_a_model_folder_go(hub: Hub, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert push(folder, "me/tiny-lert") == "https://huggingface.co/me/tiny-lert"
    assert hub.calls == ["create me/tiny-lert private=False", "upload"]
    assert hub.files.keys() == OWN
    assert hub.upload["repo_id"] == "me/tiny-lert"
    assert hub.upload["revision"] is None
    for name in OWN - {"run.json", "README.md"}:
        assert hub.files[name] == (folder / name).read_bytes()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_no_path_of_the_machine_goes(hub: Hub, folder: Path) -> None:
    push(folder, "tiny-lert", private=True, revision="v1")
    assert hub.calls == ["create tiny-lert private=True", "branch me/tiny-lert v1", "upload"]
    assert hub.upload["revision"] == "v1"
    run = json.loads(hub.files["run.json"])
    assert run["config"] == {"output": "tiny", "corpus": ["corpora/wiki"]}
    for content in hub.files.values():
        assert b"/home/me" not in content
        assert str(folder).encode() not in content


def test_the_card_names_the_place_on_the_hub_unless_it_was_edited(hub: Hub, folder: Path) -> None:
    push(folder, "tiny-lert")
    card = hub.files["README.md"].decode("utf-8")
    assert 'from_pretrained("me/tiny-lert", trust_remote_code=True)' in card
    assert "# tiny\n" in card
    assert "FOLDER" in (folder / "README.md").read_text("utf-8")
    (folder / "README.md").write_text("# Mine\n", "utf-8")
    push(folder, "tiny-lert")
    assert hub.files["README.md"] == b"# Mine\n"
    (folder / "README.md").unlink()
    push(folder, "tiny-lert")
    assert hub.files["README.md"].decode("utf-8") == card


def test_a_training_makes_a_new_name_private_and_takes_one_that_is_there(
    hub: Hub, folder: Path
) -> None:
    hub.is_private = False
    push(folder, "me/x", private=None)
    assert hub.calls == ["create me/x private=True", "upload"]


@pytest.mark.parametrize("error", [ConnectionError("no route"), KeyError("ours")])
def test_a_failed_upload_fails_no_training(
    error: Exception, hub: Hub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        try_push(folder, "me/x")
    assert "uploaded: https://huggingface.co/me/x" in caplog.text
    hub.error = error
    try_push(folder, "me/x")
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    told = warning.getMessage()
    assert "NOT uploaded: " in told
    assert told.endswith(f"say again: lert-ds card {folder} --push-to-hub me/x --private")


def test_several_files_of_weights_go_all(hub: Hub, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}", "utf-8")
    push(folder, "me/x")
    wanted = {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert hub.files.keys() == OWN - {"model.safetensors"} | wanted


def test_private_never_goes_to_what_is_public(hub: Hub, folder: Path) -> None:
    hub.is_private = False
    with pytest.raises(UserError, match="me/x: it is there already and public"):
        push(folder, "me/x", private=True)
    assert not hub.files


@pytest.mark.parametrize("name", ["a b", "a/b/c", "", "me/x--y", "-x", "x.git"])
def test_a_bad_name_is_told_before_anything_is_done(name: str, hub: Hub, folder: Path) -> None:
    with pytest.raises(UserError, match=r"this is no name on the Hugging Face hub .*owner/name"):
        push(folder, name)
    assert not hub.calls


def test_without_a_token_it_is_told_how_to_get_one(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"me/x: there is no token .*hf auth login"):
        push(folder, "me/x")
    assert not hub.calls


def test_the_command_that_uploads_is_one_for_a_shell() -> None:
    told = hub_upload.command(Path("runs/my model"), "me/x", private=True, revision="a;b")
    assert told == "lert-ds card 'runs/my model' --push-to-hub me/x --private --revision 'a;b'"


def response_error(status: int) -> Exception:
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"{status} for url with {TOKEN}")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


def connection_error() -> Exception:
    library = __import__(HfHubHTTPError.__mro__[1].__module__)
    made: Exception = library.ConnectError("no route")
    return made


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (response_error(401), "the token is not accepted: say `hf auth login` anew"),
        (response_error(403), "the token may not write there"),
        (response_error(404), "there is no such place"),
        (response_error(503), "try again later"),
        (ConnectionError("no route"), r"no connection to the hub.*\(no route\)"),
        (connection_error(), r"no connection to the hub.*\(no route\)"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (ValueError("Invalid metadata in README.md.\n- x"), r"front matter .*- x\); correct it"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    error: Exception, message: str, hub: Hub, folder: Path
) -> None:
    hub.error = error
    with pytest.raises(UserError, match=message) as caught:
        push(folder, "me/x")
    assert str(caught.value).startswith("me/x: ")
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_our_own_mistakes_are_not_told_as_the_hubs(hub: Hub, folder: Path) -> None:
    for error in (KeyError("ours"), ValueError("ours")):
        hub.error = error
        with pytest.raises(type(error)) as caught:
            push(folder, "me/x")
        assert caught.value is error


def test_what_is_no_model_folder(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config.json, so it is no model folder"):
        push(tmp_path, "me/x")
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="a model folder without weights"):
        push(tmp_path, "me/x")
    assert not hub.calls


def test_absolute_paths_lose_their_places() -> None:
    tree = {
        "a": ["/x/runs/b/model", "runs/b", "~/data/c", 1, None, {"d": "C:\\Users\\me\\e"}],
        "mlm/loss": 0.5,
        "url": "https://huggingface.co/a",
        "text": "a / b",
        "/key": "x",
    }
    assert without_places(tree) == {
        **tree,
        "a": ["b", "runs/b", "c", 1, None, {"d": "e"}],
    }
