"""OsciQuant under the Hugging Face Trainer, on a tiny BERT that needs no download: one method of it is overridden."""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from oscillations.nn import OscillationMonitor, OsciQuantRegularizer

torch.manual_seed(0)
config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
model = BertForSequenceClassification(config)
ids = torch.randint(0, 64, (512, 12))
data = [{"input_ids": row, "labels": row[0] % 2} for row in ids]  # whether the first token is odd

layers = ["bert.encoder.*"]
regularizer, monitor = OsciQuantRegularizer(model, bits=4, layers=layers), OscillationMonitor(model, 4, layers=layers)


class OsciQuantTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + regularizer() if model.training else loss
        return (loss, outputs) if return_outputs else loss


class Count(TrainerCallback):
    def on_optimizer_step(self, args, state, control, **kwargs):
        monitor.step()


arguments = TrainingArguments(
    "hugging-face-run", num_train_epochs=3, per_device_train_batch_size=32, learning_rate=2e-3, use_cpu=True,
    report_to=[], save_strategy="no", disable_tqdm=True,
)  # fmt: skip
trainer = OsciQuantTrainer(model, arguments, train_dataset=data, callbacks=[Count()])
trainer.train()
print(monitor.table()[["layer", "steps", "corrected", "near_threshold"]].head(6).to_string(index=False))
