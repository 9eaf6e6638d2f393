"""Train on the folder that this file lies in, by TRL's SDFTTrainer on any number of GPUs.

    pip install trl==1.16.0
    accelerate launch --num_processes N FOLDER/train.py

extras/to_trl.py copies this file into FOLDER as train.py, beside data.jsonl (prompts of student and
teacher) and settings.json. It needs nothing else of ours, so the folder alone can be moved.
FSDP or DeepSpeed come from `accelerate config`. The trained weights end up in FOLDER/last.
"""

import json
import os
import sys
from pathlib import Path

import torch
import trl
from accelerate.utils import set_seed
from datasets import Dataset
from transformers import AutoTokenizer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

CHECKED = "1.16.0"  # the TRL that tests/test_to_trl.py compares with sdft.py


class Trainer(SDFTTrainer):
    """SDFTTrainer with the learning rates of sdft.py: TRL's own warm-up starts at a rate of 0.

    And with one trap closed: where all tokens of a process's micro-batch are masked, TRL leaves out
    a gather that the other processes then wait in for ever.
    """

    rates = []  # one for each step

    def _compute_self_distillation_loss(self, model, inputs, distillation_logits):
        if not distillation_logits.loss_mask.any():
            self.accelerator.gather(torch.zeros((), device=self.accelerator.device))
        return super()._compute_self_distillation_loss(model, inputs, distillation_logits)

    def create_scheduler(self, num_training_steps, optimizer=None):
        def share_of_peak(step):
            return self.rates[min(step, len(self.rates) - 1)] / self.args.learning_rate

        optimizer = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
        return self.lr_scheduler


def micro_batch_size(rows, processes, largest):
    """The most rows, up to `largest`, in which a process's share of a step can be cut evenly."""
    if rows % processes:
        raise ValueError(f"{rows} completions a step cannot be shared among {processes} processes")
    share = rows // processes
    return max(size for size in range(1, min(share, largest) + 1) if share % size == 0)


def build_trainer(folder):
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    # split at \n alone: a prompt may hold other line ends
    lines = (folder / "data.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    rows, processes = settings["completions_a_step"], int(os.environ.get("WORLD_SIZE", 1))
    size = micro_batch_size(rows, processes, settings["largest_micro_batch"])
    config = SDFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=rows // processes // size,
        use_cpu=not torch.accelerator.is_available(),
        **settings["trl"],
    )
    # after TRL's check, which wants {prompt} in it: the column has the teacher's whole turn
    config.teacher_prompt_template = "{privileged_context}"
    trainer = Trainer(
        model=settings["model"],
        args=config,
        train_dataset=Dataset.from_list([json.loads(line) for line in lines]).select(
            settings["order"]
        ),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
    )
    trainer.rates = settings["learning_rates"]
    # TRL seeds all processes alike, and they would draw the same completions of the same prompt
    set_seed(config.seed, device_specific=True)
    return trainer


def main():
    folder = Path(__file__).resolve().parent
    if trl.__version__ != CHECKED:
        print(f"TRL {trl.__version__} is installed; this folder was checked with {CHECKED}")
    try:
        trainer = build_trainer(folder)
    except ValueError as error:
        sys.exit(f"error: {error}")
    trainer.train()
    trainer.save_model(str(folder / "last"))


if __name__ == "__main__":
    main()
