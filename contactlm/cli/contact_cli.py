"""``contactlm fit | validate | test | predict``: LightningCLI with this package's parts in place."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import DefaultHelpFormatter
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
from contactlm.callbacks.prediction_files import DEFAULT_FORMATS, FORMATS, INDEX
from contactlm.callbacks.progress import BudgetProgressBar, ThroughputMeter
from contactlm.callbacks.record import RunRecord
from contactlm.callbacks.writer import PredictionWriter
from contactlm.cli.arguments import BASE, NOT_PATHS, check_trainer_options, chosen_class
from contactlm.cli.commands import ABOUT, SOME_SKIPPED, STATUSES, CommandParser, description
from contactlm.cli.console import run_line, score_table
from contactlm.data.datamodule import ContactDataModule
from contactlm.data.sources import check_sources
from contactlm.maps.contact_map import RR_PAIRS_PER_RESIDUE
from contactlm.modules.base import MapModule
from contactlm.modules.checkpoint import check_checkpoint, found_backbone
from contactlm.modules.predict import DEFAULT, OPTION
from contactlm.modules.sharded import check_strategy_options
from contactlm.runs.checkpoint_io import AtomicCheckpointIO, find_last, outlast_full_disk
from contactlm.runs.directory import RUN_NAME, RunConfig, claim_directory, make_logger, names_instead, run_directory
from contactlm.shipped import config_folder
from contactlm.structure.contacts import contact_labels
from contactlm.types import ModelError, singular

log = logging.getLogger(__name__)

HOW_HELD = ("pretrained", "backbone_dtype", "quantization")  # of the backbone: flags come before a checkpoint's
KINDS = (
    "Files of a map; html: a page; csv: its pairs; pml, cxc, pdb: on its structure, for PyMOL, ChimeraX, as B-factors."
)


USAGE = "contactlm {name} [--config NAME_OR_FILE ...] [--GROUP.OPTION VALUE ...]"
MORE = """\
Options may be collected in a YAML file for --config, alone or on top of a shipped one; what comes later counts.
A file whose first line is config: OTHER.yaml is laid over that one. A group may also be given as a file:
--data my_data.yaml. --print_config shows what a command would run with."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of descriptions."""


class ContactParser(CommandParser, LightningArgumentParser):
    """Lightning's parser; a logger whose name is not given takes the run's, in place of its class's default.

    A default of our own, since a name that was given may be that of the class (``lightning_logs``), or none.
    """

    def format_help(self) -> str:
        """All options, without addresses of functions and marks of other documentation."""
        text = re.sub(r"<(?:function|class)\s+'?([\w.]+)'?[^>]*>", r"\1", super().format_help())
        return re.sub(r":\w+:`~?([^`]+)`", r"\1", text)

    def add_class_arguments(self, theclass: type, *args: Any, **options: Any) -> list[str]:
        """Add the arguments of a class; see jsonargparse. Each class that a config names has a parser of its own."""
        added = super().add_class_arguments(theclass, *args, **options)
        if isinstance(theclass, type) and issubclass(theclass, Logger) and "name" in added:
            self.set_defaults(name=RUN_NAME)
        return added


class ContactCLI(LightningCLI):
    """LightningCLI with the budget, the scores and the shipped base config in place."""

    model: MapModule
    datamodule: ContactDataModule

    def __init__(self, args: Sequence[str]) -> None:
        self.arguments = list(args)
        self.status = 0
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
        parser.add_lightning_class_args(TokenBudget, "budget")
        parser.add_lightning_class_args(FlopsMeter, "flops")
        parser.add_lightning_class_args(LossGuard, "guard")
        parser.add_lightning_class_args(MemoryAdvice, "memory")
        parser.add_lightning_class_args(ContactEvaluation, "evaluation")
        parser.add_lightning_class_args(RunRecord, "record")
        parser.add_lightning_class_args(ThroughputMeter, "speed")
        parser.add_lightning_class_args(TensorBoardDashboard, "dashboard")
        parser.add_lightning_class_args(SafeCheckpoint, "checkpoint")
        parser.add_argument(
            "--name", type=str, help="Of the run: in its loggers (if not given there), and its directory."
        )
        parser.add_argument(f"--{OPTION}", type=str, default=DEFAULT, help="The LightningModule, as package.Class.")
        parser.add_argument("--test_after_fit", type=bool, default=True, help="After fit, score the test set, if any.")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_plain_seed)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Add what only one subcommand has."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # maps are written as they come, not kept
            parser.add_argument("--out", type=str, default="predictions", help="Folder for maps and summary.csv.")
            kinds = list[Literal[FORMATS]]  # type: ignore[valid-type]  # one list of them, for the writers too
            parser.add_argument("--formats", type=kinds, default=list(DEFAULT_FORMATS), help=KINDS)
            parser.add_argument(
                "--overwrite", type=bool, default=False, help="Predict again also what would be the same."
            )
            parser.add_argument(
                "--dtype", type=Literal["float16", "float32"], default="float32", help="Of probabilities in .npz files."
            )
            parser.add_argument(
                "--pairs_per_residue",
                type=float | None,
                default=RR_PAIRS_PER_RESIDUE,
                help="Most pairs in an .rr file, times L, the most probable first; null: all with p at least 0.01.",
            )
            parser.add_argument(
                "--structure", type=str | None, default=None, help="Structure file to show the maps of sequences on."
            )
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # we have a table of our own
        parser.usage = USAGE.format(name=subcommand)
        parser.description = f"{description(subcommand)}\n\n{MORE}"
        parser.epilog = STATUSES
        return parser

    def _parse_ckpt_path(self) -> None:
        """Take model options from a checkpoint, and say clearly when it is none."""
        subcommand = self.config["subcommand"]
        path = self.config[subcommand].get("ckpt_path")
        if path == "last":
            path = self.config[subcommand]["ckpt_path"] = self._find_last(self.config[subcommand])
        if path and path not in NOT_PATHS:
            checkpoint = check_checkpoint(path)
        model = self.config[subcommand]["model"]
        given = {name: model[name] for name in HOW_HELD if name in model}
        super()._parse_ckpt_path()
        if path and path not in NOT_PATHS and (found := found_backbone(checkpoint)) is not None:
            self.config[subcommand]["model"]["pretrained"] = found
        for name, value in given.items():
            # the weights may lie elsewhere than when they were trained on, or be held otherwise; a checksum tells
            # whether they are the same
            if any(argument.partition("=")[0] == f"--model.{name}" for argument in self.arguments):
                self.config[subcommand]["model"][name] = value

    def _find_last(self, config: Mapping[str, Any]) -> str | None:
        """Where the newest run of this name can go on; None, and a note, when there is nothing to go on with.

        So the command that starts a run is the one that goes on with it.
        """
        seed = _plain_seed(config["seed_everything"]) if self.config["subcommand"] == "fit" else None
        path, folder = find_last(config["trainer"], config["name"], config["checkpoint"]["dirpath"], seed)
        if path is None and self.config["subcommand"] != "fit":
            raise ModelError(f"ckpt_path: last: no last.ckpt in {folder} and below; give the path of a checkpoint")
        tell("ckpt_path: %s", f"no last.ckpt in {folder} and below: a new run begins" if path is None else path)
        return None if path is None else str(path)

    def before_instantiate_classes(self) -> None:
        """Say what can be said before a backbone is looked for; name the loggers, and tell where they have others."""
        check_sources(str(self.subcommand), self._get(self.config, "data"))
        check_trainer_options(self._get(self.config, "trainer"))
        check_strategy_options(self._get(self.config, "trainer"))
        if self.subcommand == "predict":
            names = ("out", "formats", "overwrite", "dtype", "pairs_per_residue", "structure")
            self.writer = PredictionWriter(*(self._get(self.config, option) for option in names))
        name = self._get(self.config, "name")
        others = names_instead(self._get(self.config, "trainer")["logger"], name)
        if others and name != self._parser(self.subcommand).get_default("name"):
            tell("name: %s: the loggers of trainer.logger have names of their own: %s", name, ", ".join(others))
        self.parser.add_instantiator(partial(make_logger, name), Logger)

    def instantiate_classes(self) -> None:
        """Make the model last: options of data and callbacks that cannot be are told before a backbone is fetched."""
        self._parser(self.subcommand)._action_groups.sort(key=lambda group: getattr(group, "dest", "") == "model")
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Let all loggers of a run share one directory; predictions need neither loggers nor a saved config."""
        if self.subcommand == "predict":
            self.save_config_callback = None
            kwargs["logger"] = False
        plugins = self._get(self.config_init, "trainer")["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        claim_directory(trainer)
        profiler: Any = trainer.profiler  # type: ignore[attr-defined]  # a connector sets it
        if profiler.filename is None and not isinstance(profiler, PassThroughProfiler):
            profiler.filename = "profile"  # in the run directory; its report would go to a log that is not shown
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Show progress towards the budget, unless another progress bar or none is wanted."""
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        bars = [callback for callback in given if isinstance(callback, ProgressBar)]
        if config["enable_progress_bar"] in (None, True) and not bars:
            callbacks = [*callbacks, BudgetProgressBar()]
        if config["enable_model_summary"] is None:
            config["enable_model_summary"] = False  # one line says enough
        budget = next(callback for callback in callbacks if isinstance(callback, TokenBudget))
        if config["val_check_interval"] is None:
            if config["check_val_every_n_epoch"] is not None:
                budget.look_every = None
            config["check_val_every_n_epoch"] = config["check_val_every_n_epoch"] or 1  # then the budget's to say
        # EarlyStopping asks the trainer how it validates, which the budget has said by then
        config["callbacks"] = [budget, *given]
        callbacks = [callback for callback in callbacks if callback is not budget]
        return super()._instantiate_trainer(config, callbacks)

    def before_fit(self) -> None:
        """Without a dev set there is no score to watch: keep the latest checkpoint then."""
        if self._trains_nothing:  # a fast_dev_run would ask for a step
            self.trainer.fit_loop.epoch_loop.max_steps = 0
        if self.trainer.is_global_zero:
            log.info("%s", run_line(self.trainer, self.model, self._get(self.config_init, "budget").max_tokens))
        checkpoint = self.trainer.checkpoint_callback
        if self.datamodule.dev_fraction == 0 and isinstance(checkpoint, SafeCheckpoint):
            checkpoint.monitor, checkpoint.save_top_k = None, 1

    @property
    def _trains_nothing(self) -> bool:
        """Whether this is a run of no steps, whose model is scored as it is."""
        return self._get(self.config, "trainer")["max_steps"] == 0

    def after_fit(self) -> None:
        """Score the test set with the best checkpoint, and say where everything lies."""
        checkpoint = getattr(self.trainer.checkpoint_callback, "best_model_path", "") or None
        if self._trains_nothing:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            if self.model.learnt_on_dev:  # dev is scored again, with what was learnt, and that is kept
                self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
                checkpoint = self._keep_what_was_learnt()
        lines = [self._scores("dev", ", last look at dev")]  # test forgets the metrics of fit
        if self._get(self.config, "trainer")["fast_dev_run"]:
            return
        if self._get(self.config, "test_after_fit") and "test" in self.datamodule.chains:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, verbose=False)
            lines.append(self._scores("test", ", best checkpoint" if checkpoint else ""))
            told = f"contacts above {self.model.call_threshold:.3f}, {self.model.threshold_kind}"
            lines.append(f"map         {self._draw_example()}  ({told})")
        if checkpoint:
            saver = self.trainer.checkpoint_callback
            best = getattr(saver, "best_model_score", None)
            score = "" if best is None else f"  ({getattr(saver, 'monitor', '')} {float(best):.3f})"
            lines.append(f"checkpoint  {checkpoint}{score}")
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
        rows = "  (test_scores.csv: a line a protein)" if (Path(folder) / "test_scores.csv").is_file() else ""
        return f"\nlogs        {folder}{rows}"

    def _scores(self, prefix: str, remark: str = "") -> str:
        threshold = self._get(self.config_init, "evaluation").threshold
        return score_table(prefix, self.trainer.callback_metrics, remark, threshold)

    def before_predict(self) -> None:
        """Write maps as they come."""
        self.trainer.callbacks.append(self.writer)  # type: ignore[attr-defined]  # a connector sets it

    def after_predict(self) -> None:
        """Say what was written, and let the exit status tell of inputs that could not be used."""
        problems = len(self.datamodule.problems)
        kept = f", {self.writer.kept} were there already" if self.writer.kept else ""
        kept += f" ({self.writer.completed} in fewer formats)" if self.writer.completed else ""
        skipped = f", {problems} inputs skipped (named above)" if problems else ""
        there = f"{self.writer.written} maps written to {self.writer.out}{kept}{skipped}"
        self.say(f"contacts are pairs above {self.model.call_threshold:.3f} ({self.model.threshold_kind})")
        self.say(f"{there}; open {self.writer.out / INDEX}")
        self.status = SOME_SKIPPED if problems else 0

    def _draw_example(self) -> str:
        """Draw the predicted map of a test protein of middle length over its true one."""
        store = self.datamodule.chains["test"]
        index = int(store.lengths.argsort()[len(store) // 2])
        predicted = self.model.predict_map(
            store.sequence_of(index),
            id=store.ids[index],
            chain_lengths=None if store.chain_lengths is None else store.chain_lengths[index],
        )
        predicted.labels = contact_labels(torch.tensor(store.cb_of(index))[None])[0].numpy()
        path = Path(run_directory(self.trainer) or ".") / f"{file_name(store.ids[index])}.png"
        with outlast_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            predicted.save(path)
        return str(path) if path.is_file() else "none: the disk is full"

    def say(self, text: str) -> None:
        """Print, from one process only."""
        if self.trainer.is_global_zero:
            sys.stdout.write(f"{singular(text)}\n")
            sys.stdout.flush()


def tell(message: str, *values: object) -> None:
    """Log, from one process only, while there is no trainer yet."""
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # Lightning puts it there
        log.info(message, *values)


def _plain_seed(seed: bool | int) -> int:
    """The seed of the data: that of the run; 0 where the run has none or a random one."""
    return 0 if isinstance(seed, bool) else seed
