"""EpochState: alpha and the class soft targets of an epoch, in memory that stays where it is."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from .bank import MedoidBank
from .pool import is_fake
from .soft_targets import SoftTargets
from .state import LARGE, keeping_dtypes, of_another_loss, warn
from .uncompiled import leave_uncompiled

_TABLE = ("values", "indices", "entropy", "filled")  # of SoftTargets
NEARLY_ONE_HOT = 1e-3  # nats of entropy: of 1,000 classes the others share less than 1e-4


class EpochState(nn.Module):
    """The state of a ToastLoss, which says what is in it. weight is the user's: it has no dtype of its own."""

    def __init__(self, bank: MedoidBank, max_alpha: float, weight: Tensor | None):
        super().__init__()
        leave_uncompiled(EpochState, "_move")
        self.max_alpha = max_alpha
        self.bank = bank
        self.register_buffer("weight", weight)
        self._table = self._table_device = None
        with torch.inference_mode(False):
            self.register_buffer("alpha", torch.empty((), dtype=torch.float32))
            self.register_buffer("epoch", torch.empty((), dtype=torch.int64))
            if max_alpha > 0:
                self._make_table()
        self.reset_parameters()
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers() if name != "weight"]

    def _make_table(self) -> None:
        bank = self.bank
        size = bank.num_classes * (bank.top_k or bank.num_classes) * bank.dtype.itemsize
        if size > LARGE and bank.top_k is None:
            warn(
                f"the soft targets of {bank.num_classes} classes take {size / 2**30:.1f} GiB: with top_k=64 they would "
                f"take {bank.num_classes * 64 * 8 / 2**30:.1g}"
            )
        table = SoftTargets.empty(bank.num_classes, bank.num_classes, top_k=bank.top_k, dtype=bank.dtype)
        for name in _TABLE:
            self.register_buffer(name, getattr(table, name))
        self.register_buffer("soft_temperature", torch.empty((), dtype=torch.float32))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As new: no epoch has begun, no soft target is there, and the pool is empty."""
        self._may_warn = {"growing", "one-hot", "empty", "backwards"}
        self.alpha.zero_()
        self.epoch.fill_(-1)
        self.bank.reset_parameters()
        if self.max_alpha > 0:
            self.soft_temperature.fill_(self.bank.temperature)
            for part in (self.values, self.entropy, self.filled):
                part.zero_()
            if self.indices is not None:
                self.indices.copy_(torch.arange(self.bank.top_k, dtype=torch.int32, device=self.indices.device))

    @property
    def soft_targets(self) -> SoftTargets | None:
        buffers = self._buffers
        values = buffers.get("values")
        if values is None:
            return None
        table = self._table
        if (
            table is None or table.values is not values or table.entropy is not buffers["entropy"]
            or table.filled is not buffers["filled"] or table.indices is not buffers["indices"]
            or self._table_device != values.device
        ):  # fmt: skip
            parts = {name: buffers[name] for name in _TABLE}
            table = SoftTargets(**parts, num_classes=self.bank.num_classes, temperature=self.bank.temperature)
            self._table, self._table_device = table, values.device
        return table

    @soft_targets.setter
    def soft_targets(self, table: SoftTargets) -> None:
        if self.soft_targets is None:
            raise ValueError("a loss with alpha = 0 has no soft targets")
        self.soft_targets[:] = replace(table, temperature=self.bank.temperature)

    def _renew(self, new: SoftTargets) -> None:
        """Takes over the rows that are filled."""
        new = new.to(self.alpha.device)
        rows = new.filled.nonzero()[:, 0]
        new = new[rows]
        self.soft_targets[rows] = new
        if len(new) and "one-hot" in self._may_warn and new.entropy.mean() < NEARLY_ONE_HOT:
            self._may_warn.discard("one-hot")
            warn(
                "the soft targets are nearly one-hot, so that alpha has hardly any effect: raise soft_temperature, "
                f"now {self.bank.temperature} (for logits of a margin head start with a sixteenth of their scale)"
            )

    def _state_for(self, logits: Tensor) -> tuple[Tensor, SoftTargets | None]:
        """(alpha, soft targets) where the logits are. The state follows them, but not those of a dry run."""
        if self.alpha.device != logits.device:
            if _is_dry_run(logits, self.alpha):
                table = self.soft_targets
                return self.alpha.to(logits.device), None if table is None else table.to(logits.device)
            self._move(logits.device)
        return self.alpha, self.soft_targets

    def _move(self, device: torch.device) -> None:
        weight = self.weight
        self._apply(lambda t: t if t is weight else t.to(device))

    def _apply(self, fn, recurse=True):
        """Leaves all dtypes but weight's."""
        was_meta, weight, keeping = self.alpha.is_meta, self.weight, keeping_dtypes(fn)
        with torch.inference_mode(False), torch.no_grad():
            super()._apply(lambda t: fn(t) if t is weight else keeping(t), recurse)
            if was_meta and not self.alpha.is_meta:  # to_empty
                self.reset_parameters()
        return self

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        if of_another_loss(self, state, prefix, errors):
            return
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        self._may_warn.discard("growing")


def _is_dry_run(logits: Tensor, state: Tensor) -> bool:
    """Whether logits have no values while the state has."""
    return (logits.is_meta and not state.is_meta) or is_fake(logits)
