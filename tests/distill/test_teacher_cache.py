from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distill import teacher_cache
from distill.answers import Answer, TopLogits, keep_top
from distill.teacher_cache import Kind, Layout, Rows, TeacherCache
from lert_ds.errors import ConfigError

VOCABULARY, K, WIDTH, LENGTH, INSTANCES, MASKS = 300, 8, 6, 10, 40, 2
MASKED = np.array([3, 0, 4, 2])
TOKENS = np.array([10, 10, 7, 10])
HIDDEN, QUERY = ("hidden", 2), ("query", 1)


def layout(kind: Kind = "top") -> Layout:
    heads = {"mlm": VOCABULARY, "pos": 5}
    top_k = K if kind == "top" else 0
    return Layout((heads, heads), ({HIDDEN: WIDTH, QUERY: 4}, {}), kind, top_k)


def answers(seed: int, kind: Kind = "top") -> list[Answer]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 5 * torch.randn(*shape, generator=generator)

    found = []
    for sources in layout().sources:
        words = draw(int(MASKED.sum()), VOCABULARY)
        kept = keep_top(words, K, 2.0) if kind == "top" else words
        features = {source: draw(len(MASKED), LENGTH, width) for source, width in sources.items()}
        found.append(Answer({"mlm": kept, "pos": draw(int(MASKED.sum()), 5)}, features))
    return found


def rows(*indices: int, masks: int = 0) -> Rows:
    return Rows(np.full(len(indices), masks), np.array(indices))


def put(cache: TeacherCache, some: Rows, given: list[Answer]) -> None:
    cache.put(some, ~cache.has(some), MASKED, TOKENS, given)


def tensors(given: list[Answer]) -> list[Tensor]:
    """Return what an answer says at masked positions and real tokens; all else is 0."""
    found: list[Tensor] = []
    real = torch.arange(LENGTH) < torch.from_numpy(TOKENS)[:, None]
    for answer in given:
        for logits in answer.logits.values():
            found += [*logits] if isinstance(logits, TopLogits) else [logits]
        found += [features * real[..., None] for features in answer.sources.values()]
    return found


@pytest.mark.parametrize("kind", ["top", "bytes", "exact"])
def test_what_was_written_is_read(tmp_path: Path, kind: Kind) -> None:
    cache = TeacherCache(tmp_path, layout(kind), MASKS, INSTANCES)
    first, second = answers(1, kind), answers(2, kind)
    put(cache, rows(5, 39, 0, 7), first)
    put(cache, rows(5, 1, 2, 3, masks=1), second)
    cache.write()
    for known in (cache, TeacherCache(tmp_path, layout(kind), MASKS, INSTANCES)):
        assert len(known) == 8
        for some, given in ((rows(5, 39, 0, 7), first), (rows(5, 1, 2, 3, masks=1), second)):
            wanted = [known.rounded(answer) for answer in given]
            found = known.read(some, LENGTH)
            for one, other in zip(tensors(found), tensors(wanted), strict=True):
                assert one.dtype in (torch.float32, torch.int64)
                torch.testing.assert_close(one, other, rtol=0, atol=0)
            for exact, other in zip(tensors(given), tensors(wanted), strict=True):
                # float16 has 11 bits; the logits of a row go from -16 to 16, in 255 steps.
                relative, absolute = {"top": (1e-3, 1e-6), "bytes": (1e-3, 0.07)}.get(kind, (0, 0))
                torch.testing.assert_close(exact, other, rtol=relative, atol=absolute)


def test_batches_are_put_together_anew(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, layout(), MASKS, INSTANCES)
    put(cache, rows(5, 39, 0, 7), answers(1))
    cache.write()
    put(cache, rows(1, 2, 3, 4), answers(2))
    cache.write()
    (found, _) = cache.read(rows(0, 1), 12)
    (first, _), (second, _) = answers(1), answers(2)
    top = found.logits["mlm"]
    assert isinstance(top, TopLogits)
    other, another = first.logits["mlm"], second.logits["mlm"]
    assert isinstance(other, TopLogits)
    assert isinstance(another, TopLogits)
    # Instance 0 was the third of its batch, after 3 and 0 masked positions; 1 the first.
    assert top.indices.equal(torch.cat([other.indices[3:7], another.indices[:3]]))
    features = found.sources[HIDDEN]
    assert features.shape == (2, 12, WIDTH)
    torch.testing.assert_close(features[0, :7], first.sources[HIDDEN][2, :7], rtol=1e-3, atol=1e-3)
    assert not features[0, 7:].any()


def test_only_what_is_missing_is_kept(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, layout(), MASKS, INSTANCES)
    put(cache, rows(5, 39, 0, 7), answers(1))
    cache.write()
    put(cache, rows(5, 8, 0, 9), answers(2))
    cache.write()
    assert len(cache) == 6
    kept = cache.read(rows(5), LENGTH)[0].logits["mlm"]
    wanted = answers(1)[0].logits["mlm"]
    assert isinstance(kept, TopLogits)
    assert isinstance(wanted, TopLogits)
    assert kept.indices.equal(wanted.indices[:3])


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    one, other = (TeacherCache(tmp_path, layout(), MASKS, INSTANCES) for _ in range(2))
    put(one, rows(5, 39, 0, 7), answers(1))
    put(other, rows(1, 2, 3, 4), answers(2))
    one.write()
    other.write()
    one.refresh()
    assert len(one) == len(other) == 8
    put(other, rows(6, 8, 9, 10), answers(3))
    other.write()
    assert not one.has(rows(6)).any()  # it looks again after a while
    one._looked -= 2 * teacher_cache._LOOK_SECONDS
    assert one.has(rows(6)).all()


def test_what_was_not_written_is_lost_and_nothing_else(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, layout(), MASKS, INSTANCES)
    put(cache, rows(5, 39, 0, 7), answers(1))
    cache.write()
    put(cache, rows(1, 2, 3, 4), answers(2))
    (tmp_path / ".x.safetensors.00000000.1.part").write_bytes(b"half")  # a kill while it wrote
    again = TeacherCache(tmp_path, layout(), MASKS, INSTANCES)
    assert again.has(rows(5, 39, 0, 7)).all()
    assert not again.has(rows(1, 2, 3, 4)).any()


def test_files_are_written_when_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "FILE_BYTES", 2000)
    cache = TeacherCache(tmp_path, layout(), MASKS, INSTANCES)
    for start in range(0, 12, 4):
        put(cache, rows(*range(start, start + 4)), answers(start))
    assert list(tmp_path.glob("*.safetensors"))


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, layout(), MASKS, INSTANCES)
    put(cache, rows(5, 39, 0, 7), answers(1))
    cache.write()
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    damaged = TeacherCache(tmp_path, layout(), MASKS, INSTANCES)
    damaged.verify(1, 2)  # the other process's share
    with pytest.raises(ConfigError, match=f"{path.name} is damaged; delete it"):
        damaged.verify(0, 2)


def test_its_size_is_told_in_advance(tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("top", "bytes", "exact")
    for kind in kinds:
        folder = tmp_path / kind
        folder.mkdir()
        cache = TeacherCache(folder, layout(kind), MASKS, INSTANCES)
        put(cache, rows(5, 39, 0, 7), answers(1, kind))
        cache.write()
        (path,) = folder.glob("*.safetensors")
        told = 4 * layout(kind).instance_bytes(MASKED.mean(), TOKENS.mean())
        header = path.stat().st_size - told - 4 * 4 * 8  # rows (two), masked, tokens
        assert 0 < header < 2000
