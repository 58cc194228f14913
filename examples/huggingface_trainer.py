"""ToastLoss in Hugging Face's Trainer: a loss function, and a callback that sets the epoch and keeps the state.

python examples/huggingface_trainer.py                 (needs transformers and accelerate)
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from toast_kernels import ToastLoss

CLASSES, WIDTH, ROWS = 20, 16, 640


def points(seed: int) -> list[dict]:
    centres = 2 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return [{"x": centres[i % CLASSES] + noise[i], "labels": i % CLASSES} for i in range(ROWS)]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict:
        return {"logits": self.head(x)}


class Toast(TrainerCallback):
    """Put into `callbacks`, with `compute_loss_func=toast.loss`."""

    def __init__(self, criterion: ToastLoss):
        self.criterion = criterion

    def file(self, args, state) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "toast_loss.pt"

    def loss(self, outputs: dict, labels: Tensor, num_items_in_batch=None) -> Tensor:
        loss = self.criterion(outputs["logits"], labels)
        if num_items_in_batch is None:
            return loss
        # Trainer adds up what accumulated batches return, so each returns its share of all their rows.
        return loss * labels.ne(-100).sum() / num_items_in_batch

    def on_train_begin(self, args, state, control, **kwargs):
        if self.file(args, state).exists():
            self.criterion.load_state_dict(torch.load(self.file(args, state), weights_only=True))

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.criterion.set_epoch(int(state.epoch))

    def on_epoch_end(self, args, state, control, **kwargs):
        self.criterion.set_epoch(round(state.epoch))  # before a checkpoint: the pool is not saved

    def on_save(self, args, state, control, **kwargs):
        if args.should_save:
            torch.save(self.criterion.state_dict(), self.file(args, state))


def train(folder: str, epochs: int, resume: bool = False) -> ToastLoss:
    criterion = ToastLoss(CLASSES, num_epochs=epochs)
    toast = Toast(criterion)
    arguments = TrainingArguments(
        folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=1e-2,
        eval_strategy="epoch", save_strategy="epoch", report_to="none", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(
        Classifier(), arguments, train_dataset=points(1), eval_dataset=points(2), compute_loss_func=toast.loss,
        callbacks=[toast],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return criterion


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        train(folder, epochs=2)
        resumed = train(folder, epochs=4, resume=True)
        print(f"resumed, and in epoch {int(resumed.epoch)} of 4")
