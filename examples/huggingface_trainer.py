"""ToastLoss in Hugging Face's Trainer: a loss function, and a callback that sets the epoch and keeps the state.

python examples/huggingface_trainer.py                 (needs transformers and accelerate)
"""

import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from toast_kernels import ToastLoss

CLASSES, WIDTH, ROWS = 20, 16, 640


class Classifier(nn.Linear):
    def forward(self, x, labels=None):
        return {"logits": super().forward(x)}


class Toast(TrainerCallback):
    """Put into `callbacks`, with `compute_loss_func=toast.loss`."""

    def __init__(self, criterion: ToastLoss):
        self.criterion = criterion

    def file(self, args, state) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "toast_loss.pt"

    def loss(self, outputs, labels, num_items_in_batch=None):
        loss = self.criterion(outputs["logits"], labels)
        # Trainer adds up what accumulated batches return, so each returns its share of all their rows.
        return loss if num_items_in_batch is None else loss * labels.ne(-100).sum() / num_items_in_batch

    def on_train_begin(self, args, state, control, **kwargs):
        file = self.file(args, state)
        if file.exists():
            self.criterion.load_state_dict(torch.load(file, weights_only=True))
        elif state.global_step:  # a callback is not told where resume_from_checkpoint is
            warnings.warn(f"the run resumes, but there is no {file}: the loss starts anew", stacklevel=2)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.criterion.set_epoch(int(state.epoch))

    def on_epoch_end(self, args, state, control, **kwargs):
        self.criterion.set_epoch(round(state.epoch))  # before a checkpoint: the pool is not saved

    def on_save(self, args, state, control, **kwargs):
        if args.should_save:
            torch.save(self.criterion.state_dict(), self.file(args, state))


def main() -> None:
    torch.manual_seed(0)
    y = torch.arange(ROWS) % CLASSES
    x = 2 * torch.randn(CLASSES, WIDTH)[y] + torch.randn(ROWS, WIDTH)
    rows = [{"x": x[i], "labels": y[i]} for i in torch.randperm(ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        for epochs in (2, 4):  # the second run goes on from the first one's checkpoint
            toast = Toast(ToastLoss(CLASSES, num_epochs=epochs))
            arguments = TrainingArguments(
                folder, num_train_epochs=epochs, learning_rate=1e-2, eval_strategy="epoch", save_strategy="epoch",
                report_to="none", disable_tqdm=True,
            )  # fmt: skip
            trainer = Trainer(
                Classifier(WIDTH, CLASSES), arguments, train_dataset=rows[64:], eval_dataset=rows[:64],
                compute_loss_func=toast.loss, callbacks=[toast],
            )  # fmt: skip
            trainer.train(resume_from_checkpoint=epochs == 4)
    print(f"resumed, and in epoch {int(toast.criterion.epoch)} of 4")


if __name__ == "__main__":
    main()
