"""Edge folders are told from model folders by what lies in them."""

from pathlib import Path

from lert_ds.edge.folder import GRAPHS, OPENVINO_GRAPHS, is_edge_folder


def test_told_by_what_lies_there(tmp_path: Path) -> None:
    assert not is_edge_folder(tmp_path / "none")
    assert not is_edge_folder(tmp_path)
    for file in (*GRAPHS.values(), *OPENVINO_GRAPHS.values()):
        folder = tmp_path / file.replace("/", "-")
        (folder / file).parent.mkdir(parents=True)
        assert is_edge_folder(folder)
        # Some models on the hub have both: these are PyTorch's.
        (folder / "model.safetensors").touch()
        assert not is_edge_folder(folder)
