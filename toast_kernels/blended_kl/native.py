"""What the C++ and the CUDA kernel are given: outputs; addresses, sizes and strides in the order of csrc/bindings.h."""

import torch

DTYPE = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_REDUCTION = {"none": 0, "mean": 1, "sum": 2}


def describe(
    logits,  # [N, C]
    target,  # [N] int64 | [N, C] class probabilities
    target_b,  # [N] int64
    lam,  # [N]
    weight,  # [C]
    soft_values,  # [R, C] | [R, k]
    soft_indices,  # [R, k] int32
    soft_logsumexp,  # [R]
    soft_filled,  # [R] bool
    alpha,  # []
    past_values,  # [M, C] | [M, k]
    past_indices,  # [M, k] int32
    past_logsumexp,  # [M]
    past_entropy,  # [M]
    past_filled,  # [M] bool
    past_index,  # [N] int64
    past_weight,  # []
    upstream,  # [] | [N]
    soft_temperature,
    temperature,
    ignore_index,
    label_smoothing,
    reduction,
    need_gradient,
    need_stats,
):
    """The description, what must outlive the call, and the outputs: loss, gradient, stats, argmax."""
    num_rows, num_classes = logits.shape
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logits = rows_of(logits)
    loss = logits.new_empty(num_rows if reduction == "none" else (), dtype=real)
    gradient = logits.new_empty((num_rows, num_classes) if need_gradient else 0)
    stats = logits.new_empty((2, num_rows if need_stats else 0), dtype=real)
    argmax = logits.new_empty(num_rows if need_stats else 0, dtype=torch.int64)

    keep = [logits]

    def address(tensor, dtype=real):
        if tensor is None:
            return 0
        if tensor.dtype != dtype or not tensor.is_contiguous():
            tensor = tensor.to(dtype).contiguous()
            keep.append(tensor)
        return tensor.data_ptr()

    def soft_rows(values, indices=None, logsumexp=None, entropy=None, filled=None, temperature=1.0):
        if values is None:
            return None
        values = rows_of(values)
        keep.append(values)
        return (
            DTYPE[values.dtype], values.data_ptr(), *values.shape, values.stride(0), address(indices, torch.int32),
            address(logsumexp, torch.float64), address(entropy), address(filled, torch.bool), temperature,
        )  # fmt: skip

    def number(setting):
        """Its value and no address; one on a GPU is read there."""
        if setting is None or setting.device.type == "cpu":
            return 0.0 if setting is None else float(setting), 0
        return 0.0, address(setting, torch.float64)

    has_labels = not target.is_floating_point()
    description = (
        DTYPE[logits.dtype], logits.data_ptr(), num_rows, num_classes, logits.stride(0),
        address(target, torch.int64) if has_labels else 0, address(target_b, torch.int64), address(lam),
        None if has_labels else soft_rows(target),
        address(weight),
        soft_rows(soft_values, soft_indices, soft_logsumexp, None, soft_filled, soft_temperature),
        *number(alpha),
        soft_rows(past_values, past_indices, past_logsumexp, past_entropy, past_filled, temperature),
        address(past_index, torch.int64),
        *number(past_weight),
        temperature, ignore_index, label_smoothing, _REDUCTION[reduction],
        address(upstream), 0 if upstream is None or upstream.dim() == 0 else 1,
        loss.data_ptr(), gradient.data_ptr() if need_gradient else 0,
        stats.data_ptr() if need_stats else 0, argmax.data_ptr() if need_stats else 0,
    )  # fmt: skip
    return description, keep, (loss, gradient, stats, argmax)


def dtype_number(dtype):
    return DTYPE[dtype]


def rows_of(tensor):
    """The tensor itself if its rows are contiguous, whatever lies between them; else a copy."""
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()
