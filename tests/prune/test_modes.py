import pytest
from torch import nn

from prune.modes import evaluating


def modes(*models: nn.Module) -> list[bool]:
    return [part.training for model in models for part in model.modules()]


def test_every_part_gets_its_mode_back() -> None:
    mixed = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout().eval())).train()
    mixed[1][0].eval()
    evaluated = nn.Dropout().eval()
    before = modes(mixed, evaluated)
    assert len(set(before)) == 2
    with evaluating(mixed, evaluated):
        assert not any(modes(mixed, evaluated))
    assert modes(mixed, evaluated) == before
    with pytest.raises(ZeroDivisionError), evaluating(mixed):
        raise ZeroDivisionError
    assert modes(mixed, evaluated) == before
