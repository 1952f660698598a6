"""The short ``--help`` of Lightning's subcommands: the options that people use; ``--help all`` shows the rest.

Nothing heavy is imported here. A test compares names and defaults with those of the parser.
"""

from __future__ import annotations

from contactlm.cli.commands import STATUSES, description

Option = tuple[str, str, str]  # name, default as a config has it, what it is

RUN: list[Option] = [
    ("--config", "", "an arm such as crop200, or a YAML file; several are laid over each other"),
    ("--name", "contactlm", "of the run, which goes to runs/NAME/version_N"),
    ("--ckpt_path", "null", "go on with a checkpoint; last: with the newest of this name"),
    ("--seed_everything", "0", "decides samples, batches and dropout"),
    ("--budget.max_tokens", "5000000", "to train on; also 5M or 5e6"),
]
TRAIN: list[Option] = [
    ("--data.train_dir", "null", "structure files, or a packed set"),
    ("--data.test_dir", "null", "likewise, to score in the end"),
    ("--data.crop", "random", "random, cut, whole or two_segments"),
    ("--data.crop_length", "200", "residues of a sample"),
    ("--data.batch_size", "16", "samples of a batch"),
    ("--data.dev_fraction", "0.1", "of the training clusters, held out to watch training"),
    ("--data.split", "cluster", "cluster, or random: relatives on both sides"),
    ("--data.assembly", "chain", "chain, or complex: the chains of a file together"),
    ("--data.num_workers", "0", "processes that make samples"),
]
MODEL: list[Option] = [
    ("--model.pretrained", "facebook/esm2_t6_8M_UR50D", "hub name or folder of the language model"),
    ("--model.lora.r", "8", "rank of the adapters; --model.lora null trains all weights"),
    ("--model.optimizer.init_args.lr", "0.0001", "learning rate"),
    ("--model.head_lr_factor", "1.0", "the contact head's rate over the others'"),
    ("--model.activation_checkpointing", "false", "less memory, more time"),
    ("--model.backbone_dtype", "float32", "of frozen weights; bfloat16 takes half the memory"),
]
MACHINE: list[Option] = [
    ("--trainer.accelerator", "auto", "cpu, gpu, …"),
    ("--trainer.devices", "auto", "how many"),
    ("--trainer.precision", "null", "such as bf16-mixed"),
    ("--trainer.accumulate_grad_batches", "1", "batches of an optimizer step"),
    ("--trainer.val_check_interval", "null", "batches between looks at dev; null: 20 looks a budget"),
]
WEIGHTS: list[Option] = [
    ("--ckpt_path", "null", "a checkpoint, or the folder of a run: its best"),
    ("--model.pretrained", "facebook/esm2_t6_8M_UR50D", "without a checkpoint: the published contact head"),
    ("--model.window", "1022", "residues of a pass; longer chains take several"),
]
SCORED: list[Option] = [
    ("--data.train_dir", "null", "structure files, of which dev is a part"),
    ("--data.test_dir", "null", "structure files to score"),
    ("--data.min_length", "30", "shorter chains are left out"),
    ("--data.assembly", "chain", "chain, or complex: the chains of a file together"),
    ("--data.eval_batch_size", "null", "chains of a batch; null: as many as fit"),
    ("--evaluation.threshold", "0.5", "above which scores call a pair a contact"),
    ("--name", "contactlm", "of the results, which go to runs/NAME/version_N"),
]
PREDICTED: list[Option] = [
    ("--out", "predictions", "folder of the maps, summary.csv and index.html"),
    ("--formats", "npz,rr,png", "also html (a page), csv, pml, cxc, pdb"),
    ("--structure", "null", "a structure file to show maps of sequences on"),
    ("--overwrite", "false", "predict again what is there"),
    ("--pairs_per_residue", "20.0", "most pairs of an .rr file, times L; null: all"),
    ("--dtype", "float32", "of probabilities in .npz; float16 takes half the space"),
    ("--model.threshold", "null", "above which a pair is called a contact; null: as tuned on dev"),
    ("--data.assembly", "chain", "chain, or complex: the chains of a file together"),
    ("--data.eval_batch_size", "null", "chains of a batch; null: as many as fit"),
]
SCORING = {"weights": WEIGHTS, "what is scored": SCORED, "machine": MACHINE[:3]}
GROUPS: dict[str, dict[str, list[Option]]] = {
    "fit": {"run": RUN, "data": TRAIN, "model": MODEL, "machine": MACHINE},
    "validate": SCORING,
    "test": SCORING,
    "predict": {"weights": WEIGHTS, "results": PREDICTED, "machine": MACHINE[:3]},
}
USAGE = {
    "fit": "contactlm fit [--config NAME_OR_FILE ...] [--OPTION VALUE ...]",
    "validate": "contactlm validate [--ckpt_path FILE] [--OPTION VALUE ...]",
    "test": "contactlm test [--ckpt_path FILE] [--OPTION VALUE ...]",
    "predict": "contactlm predict [CHECKPOINT.ckpt] FILE_OR_FOLDER ... [--OPTION VALUE ...]",
}


def short_help(name: str) -> str:
    """What ``contactlm fit --help`` shows, and that of the other subcommands of Lightning."""
    lines = [f"usage: {USAGE[name]}", "", description(name)]
    for group, options in GROUPS[name].items():
        lines += ["", f"{group}:"]
        lines += [f"  {option:<34} {default:<12} {what}".rstrip() for option, default, what in options]
    lines += ["", f"contactlm {name} --help all shows every option; --print_config what a command would run with."]
    return "\n".join([*lines, "", STATUSES])
