"""Packed attention against its definition, one sequence at a time; values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from efficient_mae.backbones.kernels import attention as module
from efficient_mae.backbones.kernels.attention import grouped_attention, packed_attention
from efficient_mae.backbones.kernels.sequences import Sequences
from efficient_mae.flat import Flat
from tests.operators import Operators

# Several sequences of one length beside single ones; queries are fewer than keys, as in the last decoder block, where
# an image may have none, or more, as in cross-attention.
KEYS = torch.tensor([3, 3, 5, 6, 9, 9, 9, 40])
QUERIES = torch.tensor([1, 2, 4, 0, 7, 7, 5, 40])
MORE = torch.tensor([0, 9, 9, 20, 50, 50, 50, 60])
HEADS, CHANNELS = 2, 8


@pytest.fixture(params=["PyTorch's private operators", "without them"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Both forms of attention without a packed kernel."""
    if request.param == "without them":
        monkeypatch.setattr(module, "_HAS_FUSED", False)
        monkeypatch.setattr(module, "_HAS_SOFTMAX_BACKWARD", False)


def packed(lengths: torch.Tensor, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(int(lengths.sum()), HEADS, CHANNELS, generator=generator, dtype=torch.float64)
    return rows.to(dtype).requires_grad_()


def one_at_a_time(q, k, v, query_lengths, key_lengths) -> torch.Tensor:
    """By its definition, in float64."""
    parts = zip(*(x.double().split(n.tolist()) for x, n in ((q, query_lengths), (k, key_lengths), (v, key_lengths))))
    found = []
    for query, key, value in parts:
        scores = torch.einsum("qhd,khd->hqk", query, key) / CHANNELS**0.5
        found.append(torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value))
    return torch.cat(found)


@pytest.mark.parametrize("query_lengths", [KEYS, QUERIES, MORE], ids=["all", "targets", "more"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_packed_is_one_sequence_at_a_time(form, dtype: torch.dtype, tolerance: float, query_lengths: torch.Tensor):
    rows = [packed(query_lengths, dtype, 0), packed(KEYS, dtype, 1), packed(KEYS, dtype, 2)]
    out = packed_attention(*rows, Sequences.of(query_lengths, 64), Sequences.of(KEYS, 64))
    expected = one_at_a_time(*rows, query_lengths, KEYS)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    seed = torch.randn_like(out)
    for ours, theirs in zip(torch.autograd.grad(out, rows, seed), torch.autograd.grad(expected, rows, seed.double())):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_bfloat16_is_near_float64(form):
    exact = [packed(KEYS, torch.float64, seed) for seed in range(3)]
    rows = [x.detach().bfloat16().requires_grad_() for x in exact]
    out = packed_attention(*rows, Sequences.of(KEYS, 64), Sequences.of(KEYS, 64))
    expected = one_at_a_time(*exact, KEYS, KEYS)
    seed = torch.randn_like(expected)
    for ours, theirs in zip(
        [out, *torch.autograd.grad(out, rows, seed.bfloat16())],
        [expected, *torch.autograd.grad(expected, exact, seed)],
    ):
        assert (ours.double() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.01)]
)
def test_of_one_length_it_is_pytorchs_dense_attention(form, dtype: torch.dtype, tolerance: float):
    images, length = 5, 70
    lengths = torch.full((images,), length)
    rows = [packed(lengths, dtype, seed) for seed in range(3)]
    out = packed_attention(*rows, Sequences.of(lengths, length), Sequences.of(lengths, length))
    q, k, v = (x.double().unflatten(0, (images, length)).transpose(1, 2) for x in rows)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
    seed = torch.randn_like(out)
    for ours, theirs in zip(
        [out, *torch.autograd.grad(out, rows, seed)],
        [expected, *torch.autograd.grad(expected, rows, seed.double())],
    ):
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm()


def test_the_backward_pass_may_be_within_autocast():
    rows = [packed(KEYS, torch.bfloat16, seed) for seed in range(3)]
    sequences = Sequences.of(KEYS, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = packed_attention(*rows, sequences, sequences)
        within = torch.autograd.grad(out.sum(), rows, retain_graph=True)
    for mine, theirs in zip(within, torch.autograd.grad(out.sum(), rows)):
        assert torch.equal(mine, theirs)


def test_a_long_group(form):
    lengths = torch.full((3,), 700)  # 2 heads of 700 x 700 scores: more than are worked on at a time in bfloat16
    rows = [packed(lengths, torch.float32, seed) for seed in range(3)]
    out = packed_attention(*rows, Sequences.of(lengths, 700), Sequences.of(lengths, 700))
    expected = one_at_a_time(*rows, lengths, lengths)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    rounded = packed_attention(*(x.bfloat16() for x in rows), Sequences.of(lengths, 700), Sequences.of(lengths, 700))
    assert (rounded.double() - expected).norm() < 0.01 * expected.norm()


def test_the_operator_is_what_pytorch_expects_of_one():
    rows = [packed(QUERIES, torch.float64, 0), packed(KEYS, torch.float64, 1), packed(KEYS, torch.float64, 2)]
    # Probabilities beyond the groups are never written, so runs of the operator are not compared with each other.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(grouped_attention, (*rows, QUERIES, KEYS, 64), test_utils=checks)


@pytest.mark.parametrize(("channels", "is_packed"), [(8, True), (64, True), (256, True), (12, False), (264, False)])
def test_a_gpu_has_a_packed_kernel_for_some_widths_of_a_head(
    channels: int, is_packed: bool, monkeypatch: pytest.MonkeyPatch
):
    taken = []

    def varlen(q: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        taken.append("varlen")
        return torch.empty_like(q)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    sequences, total = Sequences.of(KEYS, 64), int(KEYS.sum())
    with FakeTensorMode(allow_non_fake_inputs=True), Operators() as seen:
        rows = [torch.empty(total, HEADS, channels, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
        out = packed_attention(*rows, sequences, sequences)
    assert (out.shape, out.dtype, out.device.type) == (rows[0].shape, torch.bfloat16, "cuda")
    assert (taken, grouped_attention._qualname in seen.names) == (["varlen"] * is_packed, not is_packed)


def test_a_gpus_window_leaves_out_no_key_where_queries_are_more(monkeypatch: pytest.MonkeyPatch):
    """Windows lie where the last query has the last key, and queries are up to 60."""
    windows = []

    def varlen(q: torch.Tensor, *_: object, window_size: tuple[int, int]) -> torch.Tensor:
        windows.append(window_size)
        return torch.empty_like(q)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    sequences, totals = (Sequences.of(MORE, 60), Sequences.of(KEYS, 40)), (int(MORE.sum()), int(KEYS.sum()))
    with FakeTensorMode(allow_non_fake_inputs=True):
        q, k = (torch.empty(total, 2, 8, dtype=torch.bfloat16, device="cuda") for total in totals)
        packed_attention(q, k, k, *sequences)
    assert all(side >= 60 for side in windows[0])


def test_no_query_at_all_gives_keys_and_values_a_gradient_of_zero():
    """A gradient that is not there would keep other processes waiting for it."""
    none = torch.zeros_like(KEYS)
    rows = [packed(lengths, torch.float32, 0) for lengths in (none, KEYS, KEYS)]
    out = packed_attention(*rows, Sequences.of(none, 64), Sequences.of(KEYS, 64))
    assert out.shape == rows[0].shape
    for row, gradient in zip(rows, torch.autograd.grad(out.sum(), rows)):
        assert gradient.shape == row.shape and not gradient.any()


@pytest.mark.gpu
@pytest.mark.parametrize("query_lengths", [KEYS, QUERIES, MORE], ids=["all", "targets", "more"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu(dtype: torch.dtype, query_lengths: torch.Tensor):
    exact = [packed(query_lengths, torch.float64, 0), packed(KEYS, torch.float64, 1), packed(KEYS, torch.float64, 2)]
    rows = [x.detach().to("cuda", dtype).requires_grad_() for x in exact]
    queries, keys = (Flat.of(Sequences.of(lengths, 64)).to("cuda").value for lengths in (query_lengths, KEYS))
    out = packed_attention(*rows, queries, keys)
    expected = one_at_a_time(*exact, query_lengths, KEYS)
    seed = torch.randn_like(expected)
    for ours, theirs in zip(
        [out, *torch.autograd.grad(out, rows, seed.to("cuda", dtype))],
        [expected, *torch.autograd.grad(expected, exact, seed)],
    ):
        assert (ours.double().cpu() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.gpu
def test_long_sequences_on_a_gpu_are_not_cudnns_which_plans_anew_for_every_number_of_rows():
    lengths = torch.tensor([130, 196, 197])
    exact = [packed(lengths, torch.float64, seed) for seed in range(3)]
    rows = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in exact]
    sequences = Flat.of(Sequences.of(lengths, 197)).to("cuda").value
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = packed_attention(*rows, sequences, sequences)
        out.sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"aten::_flash_attention_forward", "aten::_flash_attention_backward"} <= names
    assert not any("cudnn" in name for name in names)
    expected = one_at_a_time(*exact, lengths, lengths)
    assert (out.double().cpu() - expected).norm() < 0.01 * expected.norm()
