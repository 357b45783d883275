import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lert_ds.errors import CheckpointError
from lert_ds.train.fragments import WEIGHTS, Fragment, Fragments, Place, deal, write


def piece(start: int, shape: tuple[int, ...], **tensors: torch.Tensor) -> Fragment:
    return Fragment(Place(start, shape), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_safetensors_library_reads_what_is_written(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "rank-00000.safetensors"
    weights, moment = torch.randn(5).to(dtype), torch.randn(5)
    count = torch.arange(3)
    written = write(
        path,
        {
            "层.dense.weight": piece(7, (4, 3), weights=weights, exp_avg=moment),
            "count": piece(0, (3,), weights=count),
        },
    )
    read = safetensors.torch.load_file(path)
    assert read.keys() == {
        "weights/层.dense.weight", "exp_avg/层.dense.weight", "weights/count",
    }  # fmt: skip
    assert read["weights/层.dense.weight"].dtype == dtype
    assert torch.equal(read["weights/层.dense.weight"], weights)
    assert torch.equal(read["exp_avg/层.dense.weight"], moment)
    assert torch.equal(read["weights/count"], count)
    with safe_open(path, framework="pt") as file:
        places = json.loads(file.metadata()["places"])
    assert places == {"层.dense.weight": [7, 4, 3], "count": [0, 3]}
    content = path.read_bytes()
    assert written == (len(content), hashlib.sha256(content).hexdigest())


def test_views_of_a_larger_tensor_are_written_alone(tmp_path: Path) -> None:
    whole = torch.arange(20.0)
    path = tmp_path / "file"
    write(path, {"a": piece(0, (4,), weights=whole[4:8]), "b": piece(0, (5,), weights=whole[::4])})
    assert path.stat().st_size < 400
    found = Fragments([path])
    assert found.whole("a").tolist() == [4, 5, 6, 7]
    assert found.whole("b").tolist() == [0, 4, 8, 12, 16]


def test_a_process_may_have_nothing(tmp_path: Path) -> None:
    # ZeRO 0 deals parameters out, and there may be more processes than parameters.
    write(tmp_path / "0", {"a": piece(0, (2,), weights=torch.ones(2))})
    write(tmp_path / "1", {})
    found = Fragments([tmp_path / "0", tmp_path / "1"])
    assert found.shapes == {"a": (2,)}
    assert found.whole("a").tolist() == [1, 1]


def test_a_parameter_of_one_number_has_no_shape(tmp_path: Path) -> None:
    write(tmp_path / "0", {"temperature": piece(0, (), weights=torch.tensor([8.0]))})
    whole = Fragments([tmp_path / "0"]).whole("temperature")
    assert whole.shape == ()
    assert whole.item() == 8.0


def test_the_file_is_flushed_to_the_disk_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    written = write(tmp_path / "0", {"a": piece(0, (2,), weights=torch.ones(2))})
    assert sizes == [written.size_bytes]


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    write(tmp_path / "0", {"a": piece(0, (2,), weights=torch.ones(2))})
    with pytest.raises(FileExistsError):
        write(tmp_path / "0", {"a": piece(0, (2,), weights=torch.zeros(2))})
    assert Fragments([tmp_path / "0"]).whole("a").tolist() == [1, 1]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, int, int]]]:
    """A shape, and (start, stop, file) of its pieces: in any order, perhaps some twice."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=3)))
    size = torch.Size(shape).numel()
    borders = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=5))})
    stretches = [
        (start, stop, draw(st.integers(0, 2))) for start, stop in itertools.pairwise(borders)
    ]
    if draw(st.booleans()):  # replicas, and pieces of another cut
        stretches.append((0, draw(st.integers(1, size)), 2))
    return shape, draw(st.permutations(stretches))


@settings(max_examples=60, deadline=None)
@given(cuts(), st.data())
def test_any_stretch_is_read_from_any_cut(
    tmp_path_factory: pytest.TempPathFactory,
    cut: tuple[tuple[int, ...], list[tuple[int, int, int]]],
    data: st.DataObject,
) -> None:
    shape, stretches = cut
    size = torch.Size(shape).numel()
    kinds = {WEIGHTS: torch.randn(size), "exp_avg": torch.randn(size)}
    folder = tmp_path_factory.mktemp("cut")
    paths = []
    for number, (start, stop, _) in enumerate(sorted(stretches, key=lambda stretch: stretch[2])):
        # A file has one piece of a parameter; the pieces of one process are files here.
        paths.append(folder / str(number))
        tensors = {kind: tensor[start:stop] for kind, tensor in kinds.items()}
        write(paths[-1], {"p": Fragment(Place(start, shape), tensors)})
    found = Fragments(paths)
    assert found.kinds == kinds.keys()
    assert torch.equal(found.whole("p"), kinds[WEIGHTS].reshape(shape))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    for kind, tensor in kinds.items():
        assert torch.equal(found.read(kind, "p", start, stop), tensor[start:stop])


def test_a_hole_is_refused(tmp_path: Path) -> None:
    for start, stop in ((0, 3), (5, 9)):
        values = torch.arange(12.0)[start:stop]
        write(tmp_path / f"from-{start}", {"p": piece(start, (12,), weights=values)})
    found = Fragments(sorted(tmp_path.iterdir()))
    assert found.read(WEIGHTS, "p", 5, 9).tolist() == [5, 6, 7, 8]
    for stretch, missing in (((0, 12), "3 to 11"), ((4, 6), "4 to 5"), ((8, 12), "9 to 11")):
        with pytest.raises(CheckpointError) as error:
            found.read(WEIGHTS, "p", *stretch)
        assert str(error.value) == (
            f"{tmp_path}: no file has the numbers {missing} of weights of p"
        )
    with pytest.raises(CheckpointError, match="no file has the numbers 0 to 1 of weights of q"):
        found.read(WEIGHTS, "q", 0, 2)


def test_a_kind_that_a_file_lacks_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "0", {"p": piece(0, (4,), weights=torch.ones(2), exp_avg=torch.ones(2))})
    write(tmp_path / "1", {"p": piece(2, (4,), weights=torch.ones(2))})
    found = Fragments([tmp_path / "0", tmp_path / "1"])
    assert found.read("exp_avg", "p", 0, 2).tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="numbers 2 to 3 of exp_avg of p"):
        found.read("exp_avg", "p", 0, 4)


def header(tree: Mapping[str, object], content: bytes = b"") -> bytes:
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + content


ONE = {"weights/p": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
DAMAGED = {
    "empty": b"",
    "no header": b"not a file of tensors",
    "cut short": header({"__metadata__": {"places": '{"p": [0, 1]}'}, **ONE}, b"\0\0"),
    "no places": header(ONE, b"\0\0\0\0"),
    "places that are no JSON": header({"__metadata__": {"places": "{"}, **ONE}, b"\0\0\0\0"),
    "places of another form": header({"__metadata__": {"places": '{"p": 3}'}, **ONE}, b"\0" * 4),
    "places that are no object": header({"__metadata__": {"places": "[1]"}, **ONE}, b"\0" * 4),
    "a place without a start": header({"__metadata__": {"places": '{"p": []}'}, **ONE}, b"\0" * 4),
    "a place that is text": header({"__metadata__": {"places": '{"p": ["0"]}'}, **ONE}, b"\0" * 4),
    "a place of nothing": header({"__metadata__": {"places": '{"q": [0, 1]}'}, **ONE}, b"\0" * 4),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_no_file_of_a_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rank-00003.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank-00003\.safetensors: not a file of a"):
        Fragments([path])


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors: not a file"):
        Fragments([tmp_path / "rank-00001.safetensors"])


@given(st.dictionaries(st.text(max_size=4), st.integers(0, 1000), max_size=30), st.integers(1, 8))
def test_names_are_dealt_evenly(sizes: dict[str, int], hands: int) -> None:
    dealt = deal(sizes, hands)
    assert len(dealt) == hands
    assert sorted(name for hand in dealt for name in hand) == sorted(sizes)
    totals = [sum(sizes[name] for name in hand) for hand in dealt]
    assert max(totals) - min(totals) <= max(sizes.values(), default=0)
    backwards = dict(reversed(sizes.items()))
    assert deal(backwards, hands) == dealt, "all processes must come to the same"
