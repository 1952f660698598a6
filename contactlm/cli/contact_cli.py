"""``contactlm fit | validate | test | predict``: LightningCLI with this package's parts in place."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler

from contactlm.atomic import file_name
from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.checkpoint import SafeCheckpoint
from contactlm.callbacks.dashboard import TensorBoardDashboard
from contactlm.callbacks.evaluation import ContactEvaluation
from contactlm.callbacks.flops import FlopsMeter
from contactlm.callbacks.guard import LossGuard
from contactlm.callbacks.memory import MemoryAdvice
from contactlm.callbacks.prediction_files import INDEX
from contactlm.callbacks.progress import BudgetProgressBar, ThroughputMeter
from contactlm.callbacks.record import RunRecord
from contactlm.callbacks.writer import PredictionWriter
from contactlm.cli.arguments import BASE, NOT_PATHS, check_trainer_options, chosen_class
from contactlm.cli.commands import ABOUT, SOME_SKIPPED
from contactlm.cli.console import about_checkpoint, run_line, score_table
from contactlm.cli.parser import ContactParser, HelpFormatter
from contactlm.data.datamodule import ContactDataModule
from contactlm.data.files import find_structures
from contactlm.data.sources import check_sources, find_sources
from contactlm.maps.contact_map import ContactMap
from contactlm.maps.restraints import RestraintOptions
from contactlm.modules.base import MapModule
from contactlm.modules.checkpoint import CHECKPOINT_KEY, check_checkpoint, found_backbone
from contactlm.modules.predict import DEFAULT
from contactlm.modules.sharded import check_strategy_options
from contactlm.modules.trained_weights import defined_contact
from contactlm.runs.checkpoint_io import AtomicCheckpointIO, find_last, outlast_full_disk
from contactlm.runs.directory import RunConfig, claim_directory, make_logger, names_instead, run_directory
from contactlm.shipped import OPTION, config_folder
from contactlm.structure.contacts import contact_labels
from contactlm.structure.files import split_name
from contactlm.types import ContactDefinition, ContactLMError, ModelError, singular

log = logging.getLogger(__name__)

HOW_HELD = ("pretrained", "backbone_dtype", "quantization")  # of the backbone: flags come before a checkpoint's


class ContactCLI(LightningCLI):
    """LightningCLI with the budget, the scores and the shipped base config in place."""

    model: MapModule
    datamodule: ContactDataModule

    def __init__(self, args: Sequence[str]) -> None:
        self.arguments = list(args)
        self.status = 0
        self.parsers: list[LightningArgumentParser] = []  # of the subcommands
        base = [str(config_folder() / BASE)]
        super().__init__(
            chosen_class(args),
            ContactDataModule,
            save_config_callback=RunConfig,
            parser_class=ContactParser,
            args=self.arguments,
            auto_configure_optimizers=False,
            parser_kwargs={
                "prog": "contactlm",
                "description": ABOUT,
                "formatter_class": HelpFormatter,
                **{name: {"default_config_files": base} for name in self.subcommands()},
            },
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static there
        """Those whose parsers are built, a quarter of a second each: the one that is asked for, else all."""
        every = super().subcommands()
        asked = self.arguments[0] if self.arguments else None
        return {asked: every[asked]} if asked in every else every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give the callbacks that must be there keys of their own: a list in ``trainer.callbacks`` can be replaced."""
        self.parsers.append(parser)
        parser.add_lightning_class_args(TokenBudget, "budget")
        parser.add_lightning_class_args(FlopsMeter, "flops")
        parser.add_lightning_class_args(LossGuard, "guard")
        parser.add_lightning_class_args(MemoryAdvice, "memory")
        parser.add_lightning_class_args(ContactEvaluation, "evaluation")
        parser.add_lightning_class_args(RunRecord, "record")
        parser.add_lightning_class_args(ThroughputMeter, "speed")
        parser.add_lightning_class_args(TensorBoardDashboard, "dashboard")
        parser.add_lightning_class_args(SafeCheckpoint, "checkpoint")
        parser.add_argument("--name", type=str, help="Run name, for loggers and directory.")
        parser.add_argument(f"--{OPTION}", type=str, default=DEFAULT, help="The LightningModule, as package.Class.")
        parser.add_argument("--test_after_fit", type=bool, default=True, help="After fit, score the test set, if any.")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_plain_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Find the checkpoint, and say clearly when it is none, before Lightning takes model options from it."""
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]]
        path = config.get("ckpt_path")
        if path == "last":
            path = config["ckpt_path"] = self._find_last(config)
        checkpoint = check_checkpoint(path) if path and path not in NOT_PATHS else None
        if checkpoint is not None:
            say("%s", about_checkpoint(path, checkpoint, resumes=self.config["subcommand"] == "fit"))
        self._backbone = None if checkpoint is None else found_backbone(checkpoint)
        self._held = {name: config["model"][name] for name in HOW_HELD if name in config["model"]}
        if checkpoint is not None and config["data"]["contact"] is None:  # files are read before the checkpoint is
            kept = defined_contact(checkpoint[CHECKPOINT_KEY])
            config["data"]["contact"] = None if kept == ContactDefinition() else Namespace(vars(kept))

    def _hold_as_asked(self) -> None:
        """Let flags come before a checkpoint's options of how the backbone is held."""
        model = self._given("model")
        if self._backbone is not None:
            model["pretrained"] = self._backbone
        for name, value in self._held.items():
            # the weights may lie elsewhere than when they were trained on, or be held otherwise; a checksum shows
            # whether they are the same
            if any(argument.partition("=")[0] == f"--model.{name}" for argument in self.arguments):
                model[name] = value

    def _find_last(self, config: Mapping[str, Any]) -> str | None:
        """The newest run's checkpoint to resume; None: there is none, so that one command starts and resumes a run."""
        seed = _plain_seed(config["seed_everything"]) if self.config["subcommand"] == "fit" else None
        path, folder = find_last(config["trainer"], config["name"], config["checkpoint"]["dirpath"], seed)
        if path is None and self.config["subcommand"] != "fit":
            raise ModelError(f"ckpt_path: last: no last.ckpt in {folder} and below; give the path of a checkpoint")
        if path is None:
            say("ckpt_path: no last.ckpt in %s and below: starting a new run", folder)
        return None if path is None else str(path)

    def before_instantiate_classes(self) -> None:
        """Say what can be said before a backbone is looked for; name the loggers, and say where they have others."""
        self._hold_as_asked()
        check_sources(str(self.subcommand), self._given("data"))
        check_trainer_options(self._given("trainer"))
        check_strategy_options(self._given("trainer"))
        if self.subcommand == "predict":
            names = ("out", "formats", "overwrite", "dtype", "pairs_per_residue", "structure")
            restraints = RestraintOptions(**self._given("restraints"))
            self.writer = PredictionWriter(**{name: self._given(name) for name in names}, restraints=restraints)
        name = self._given("name")
        others = names_instead(self._given("trainer")["logger"], name)
        if others and name != self._own_parser.get_default("name"):
            say("name: %s: the loggers of trainer.logger have names of their own: %s", name, ", ".join(others))
        self.parser.add_instantiator(partial(make_logger, name), Logger)

    def instantiate_classes(self) -> None:
        """Make the model last: errors in options of data and callbacks come before a backbone is fetched."""
        self._own_parser._action_groups.sort(key=lambda group: getattr(group, "dest", "") == "model")
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Let all loggers of a run share one directory; predictions need neither loggers nor a saved config."""
        if self.subcommand == "predict":
            self.save_config_callback = None
            kwargs["logger"] = False
        plugins = self._made("trainer")["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        trainer = self.make_trainer(**kwargs)
        claim_directory(trainer)
        profiler: Any = trainer.profiler  # type: ignore[attr-defined]  # a connector sets it
        if profiler.filename is None and not isinstance(profiler, PassThroughProfiler):
            profiler.filename = "profile"  # in the run directory; its report would go to a log that is not shown
        return trainer

    def make_trainer(self, **options: Any) -> Trainer:
        """The trainer, which shows progress towards the budget, unless another progress bar or none is wanted."""
        config = {**self._made("trainer"), **options}
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        ours: list[Callback] = [self._made(key) for key in self._own_parser.callback_keys]
        if config["enable_progress_bar"] in (None, True) and not any(isinstance(each, ProgressBar) for each in given):
            ours.append(BudgetProgressBar())
        if config["enable_model_summary"] is None:
            config["enable_model_summary"] = False  # one line says enough
        budget = self._made("budget")
        if config["val_check_interval"] is None:
            if config["check_val_every_n_epoch"] is not None:
                budget.look_every = None
            config["check_val_every_n_epoch"] = config["check_val_every_n_epoch"] or 1  # then the budget's to say
        if self.save_config_callback and not config["fast_dev_run"]:
            ours.append(self.save_config_callback(self._own_parser, self.config[self.subcommand]))
        # EarlyStopping asks the trainer how it validates, which the budget has said by then
        config["callbacks"] = [budget, *given, *(each for each in ours if each is not budget)]
        return self.trainer_class(**config)

    def _given(self, name: str) -> Any:
        """What an option of the subcommand says."""
        return self.config[self.subcommand][name]

    def _made(self, name: str) -> Any:
        """What was made of an option of the subcommand."""
        return self.config_init[self.subcommand][name]

    @property
    def _own_parser(self) -> LightningArgumentParser:
        return self.parsers[list(self.subcommands()).index(str(self.subcommand))]

    def before_fit(self) -> None:
        """Without a dev set there is no score to watch: keep the latest checkpoint then."""
        if self._trains_nothing:  # a fast_dev_run would ask for a step
            self.trainer.fit_loop.epoch_loop.max_steps = 0
        if self.trainer.is_global_zero:
            log.info("%s", run_line(self.trainer, self.model, self._made("budget").max_tokens))
        checkpoint = self.trainer.checkpoint_callback
        if self.datamodule.dev_fraction == 0 and isinstance(checkpoint, SafeCheckpoint):
            checkpoint.monitor, checkpoint.save_top_k = None, 1

    @property
    def _trains_nothing(self) -> bool:
        """Whether this is a run of no steps, whose model is scored as it is."""
        return self._given("trainer")["max_steps"] == 0

    def after_fit(self) -> None:
        """Score the test set with the best checkpoint, and say where everything lies."""
        saver = self.trainer.checkpoint_callback
        best = getattr(saver, "best_model_path", "") or None
        checkpoint = best or getattr(saver, "last_model_path", "") or None
        if self._trains_nothing:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            if self.model.learnt_on_dev:  # dev is scored again, with what was learnt, and that is kept
                self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
                checkpoint = self._keep_what_was_learnt()
        lines = [self._scores("dev", ", last look at dev")]  # test forgets the metrics of fit
        if self._given("trainer")["fast_dev_run"]:
            return
        if self._given("test_after_fit") and "test" in self.datamodule.chains:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, verbose=False)
            lines.append(self._scores("test", ", best checkpoint" if best else ""))
            called = f"contacts above {self.model.call_threshold:.3f}, {self.model.threshold_kind}"
            lines.append(f"map         {self._draw_example()}  ({called})")
        if checkpoint:
            highest = getattr(saver, "best_model_score", None)
            score = "" if highest is None else f"  ({getattr(saver, 'monitor', '')} {float(highest):.3f})"
            lines.append(f"checkpoint  {checkpoint}{score}")
            lines.append(f"next        contactlm predict --ckpt_path {checkpoint} --data.predict_paths my.fasta")
        lines.append(f"logs        {run_directory(self.trainer)}")
        if self.datamodule.synthetic is not None:
            lines.append("The proteins are synthetic: the scores show that the package works, nothing about biology.")
        self.say("\n".join(lines))

    def _keep_what_was_learnt(self) -> str | None:
        folder = getattr(self.trainer.checkpoint_callback, "dirpath", None)
        if folder is None:
            return None
        path = Path(folder) / "calibrated.ckpt"
        with outlast_full_disk(path):
            self.trainer.save_checkpoint(path, weights_only=True)
        return str(path) if path.is_file() else None

    def after_test(self) -> None:
        """Show the test scores, and say where they lie."""
        self.say(self._scores("test") + self._where())

    def after_validate(self) -> None:
        """Show the dev scores, and say where they lie."""
        self.say(self._scores("dev") + self._where())

    def _where(self) -> str:
        folder = run_directory(self.trainer)
        if folder is None:  # a trial leaves nothing
            return ""
        rows = "  (test_scores.csv: one line per protein)" if (Path(folder) / "test_scores.csv").is_file() else ""
        return f"\nlogs        {folder}{rows}"

    def _scores(self, prefix: str, remark: str = "") -> str:
        threshold = self._made("evaluation").threshold
        return score_table(prefix, self.trainer.callback_metrics, remark, threshold)

    def before_predict(self) -> None:
        """Write maps as they come."""
        self.trainer.callbacks.append(self.writer)  # type: ignore[attr-defined]  # a connector sets it

    def after_predict(self) -> None:
        """Say what was written, and let the exit status report inputs that could not be used."""
        problems = len(self.datamodule.problems)
        kept = f", {self.writer.kept} already present" if self.writer.kept else ""
        kept += f" ({self.writer.completed} in fewer formats)" if self.writer.completed else ""
        skipped = f", {problems} inputs skipped (named above)" if problems else ""
        there = f"{self.writer.written} maps written to {self.writer.out}{kept}{skipped}"
        self.say(f"contacts are pairs above {self.model.call_threshold:.3f} ({self.model.threshold_kind})")
        self.say(f"{there}; open {self.writer.out / INDEX}")
        self.status = SOME_SKIPPED if problems else 0

    def _draw_example(self) -> str:
        """Draw the predicted map of a test protein of middle length over its true one, as a page where that can be."""
        store = self.datamodule.chains["test"]
        index = int(store.lengths.argsort()[len(store) // 2])
        predicted = self.model.predict_map(
            store.sequence_of(index),
            id=store.ids[index],
            chain_lengths=None if store.chain_lengths is None else store.chain_lengths[index],
        )
        labels = contact_labels(torch.tensor(store.cb_of(index))[None], self.model.contact.below)
        predicted.labels = labels[0].numpy()
        path = Path(run_directory(self.trainer) or ".") / f"{file_name(store.ids[index])}.png"
        with outlast_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            predicted.save(path)
            with suppress(ContactLMError):  # no library for pages, or a structure that does not fit
                path = self._on_its_structure(predicted).save(path.with_suffix(".html"))
        return str(path) if path.is_file() else "none: the disk is full"

    def _on_its_structure(self, predicted: ContactMap) -> ContactMap:
        """Number the residues as the test protein's file does, where it is one of a folder."""
        source = find_sources(vars(self.datamodule), Path())["test"]
        files = find_structures(source.location) if Path(source.location).is_dir() and not source.is_ids else []
        file = next((path for path in files if predicted.id.startswith(f"{split_name(path)[0]}_")), None)
        return predicted if file is None else predicted.on_structure(file)

    def say(self, text: str) -> None:
        """Print, from one process only."""
        if self.trainer.is_global_zero:
            sys.stdout.write(f"{singular(text)}\n")
            sys.stdout.flush()


@rank_zero_only
def say(message: str, *values: object) -> None:
    """Log, from one process only, while there is no trainer yet."""
    log.info(message, *values)


def _plain_seed(seed: bool | int) -> int:
    """The seed of the data: that of the run; 0 where the run has none or a random one."""
    return 0 if isinstance(seed, bool) else seed
