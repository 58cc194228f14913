"""How far a result may be from the truth: no further than plain PyTorch in the same precision, plus a few roundings.

The truth is worked out in float64. The naive result is readable PyTorch code in the precision the kernel computes in
(float32 for half types), rounded at the end to what the kernel returns. Element by element

    |actual - truth| <= |naive - truth| + eps(stored) |truth| + ROUNDINGS eps(computed) (|truth| + scale)

with the magnitude of the terms that cancel in the truth as scale.
"""

import torch

# Needed by the CPU kernel over 1300 problems: 5.8 in float32 and 10.1 in float64, whose truth is no better itself.
ROUNDINGS = {torch.float32: 8, torch.float64: 16}


def assert_as_good_as_naive(actual, naive, truth, *, scale=None, what="result"):
    """Fails unless `actual` is as near to `truth` (float64) as the rule above wants.

    scale: a number or a tensor that broadcasts; by default the largest finite |truth|.
    """
    assert actual.shape == naive.shape == truth.shape, f"{what}: {actual.shape}, {naive.shape}, {truth.shape}"
    assert actual.dtype == naive.dtype, f"{what}: {actual.dtype} instead of {naive.dtype}"
    assert truth.dtype == torch.float64
    computed = torch.promote_types(actual.dtype, torch.float32)
    stored = torch.finfo(actual.dtype)
    actual, naive, truth = (x.detach().double() for x in (actual, naive, truth))
    finite = truth.isfinite()
    other = f"{what}: NaN or inf"
    torch.testing.assert_close(actual[~finite], truth[~finite], rtol=0, atol=0, equal_nan=True, msg=other)

    if scale is None:
        scale = truth[finite].abs().max() if finite.any() else 0
    error = (actual - truth).abs()
    allowed = (naive - truth).abs() + stored.eps * (truth.abs() + stored.smallest_normal)
    allowed = allowed + ROUNDINGS[computed] * torch.finfo(computed).eps * (truth.abs() + scale)
    wrong = finite & ~(error <= allowed)
    if wrong.any():
        worst = int(torch.where(wrong, (error / allowed).nan_to_num(torch.inf), 0).argmax())
        where = [int(i) for i in torch.unravel_index(torch.tensor(worst), truth.shape)]
        got, wanted, plain, off, most = (float(x.flatten()[worst]) for x in (actual, truth, naive, error, allowed))
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {truth.numel()} elements are too far off, the worst at {where}: "
            f"got {got:.9g}, truth {wanted:.9g}, naive {plain:.9g}; error {off:.3g}, allowed {most:.3g}"
        )
