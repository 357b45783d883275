import torch

from lert_ds.kernels.seed import draw_seed


def test_a_seed_follows_from_torchs_generator_and_no_two_are_alike() -> None:
    torch.manual_seed(3)
    seeds = [draw_seed() for _ in range(1000)]
    torch.manual_seed(3)
    assert [draw_seed() for _ in range(1000)] == seeds
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # all of the 63 bits


def test_a_state_that_is_restored_repeats_it() -> None:
    state = torch.get_rng_state()
    first = draw_seed()
    assert draw_seed() != first
    torch.set_rng_state(state)
    assert draw_seed() == first
