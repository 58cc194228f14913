"""ToastLoss and HardReplay in a LightningModule; the loss is a submodule, so checkpoints have its state.

python examples/lightning_replay.py                    (needs lightning)
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from toast_kernels import HardReplay, ToastLoss

CLASSES, WIDTH, ROWS, EPOCHS = 20, 16, 640, 3


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)
        self.criterion = ToastLoss(CLASSES, num_epochs=EPOCHS)
        self.replay = HardReplay()
        # With DDP: the loss's table is no part of what is broadcast in every step.
        self._ddp_params_and_buffers_to_ignore = [f"criterion.{name}" for name, _ in self.criterion.named_buffers()]

    def on_train_epoch_start(self):
        self.criterion.set_epoch(self.current_epoch)

    def training_step(self, batch, _):
        x, y, past = self.replay.extend(*batch)
        logits = self.head(x)
        loss, stats = self.criterion(logits, y, past, return_stats=True)
        return {"loss": loss, "kept": (x, y, logits, stats.cross_entropy)}

    def on_train_batch_end(self, outputs, *_):
        self.replay.keep(*outputs["kept"])  # after backward
        if self.trainer.is_last_batch:  # before validation and a checkpoint: the pool is not saved
            self.criterion.set_epoch(self.current_epoch + 1)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["replay"] = self.replay.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.replay.load_state_dict(checkpoint["replay"])

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", self.criterion(self.head(x), y), prog_bar=True)  # in eval mode: plain cross-entropy

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


if __name__ == "__main__":
    torch.manual_seed(0)
    y = torch.arange(2 * ROWS) % CLASSES
    x = 2 * torch.randn(CLASSES, WIDTH)[y] + torch.randn(2 * ROWS, WIDTH)
    training, held_out = random_split(TensorDataset(x, y), [ROWS, ROWS])
    trainer = lightning.Trainer(max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Classifier(), DataLoader(training, 64, shuffle=True, drop_last=True), DataLoader(held_out, 64))
    print(f"validation loss {trainer.callback_metrics['val_loss']:.3f}")
