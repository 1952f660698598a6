"""``contactlm export``: a trained run as a PEFT adapter, or as a plain Hugging Face checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contactlm.cli.commands import CommandParser
from contactlm.runs.record_file import RUN_FILE, read_run
from contactlm.shipped import checkpoint_of


def export_command(arguments: Sequence[str]) -> int:
    """Run ``contactlm export``; the exit status is 0."""
    parser = CommandParser("contactlm export", description="Write a trained model for others to load.")
    parser.add_argument("--ckpt_path", required=True, help="Checkpoint of a run, or its folder: the best.")
    parser.add_argument("--out", required=True, help="Directory to write.")
    parser.add_argument(
        "--merge", action="store_true", help="Write a plain Hugging Face checkpoint instead of a PEFT adapter."
    )
    parser.add_argument("--pretrained", help="Backbone, if it has moved since training.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier export.")
    given = parser.parse_args(arguments)
    from contactlm.modules.checkpoint import CHECKPOINT_KEY, CONTACT_HEAD, check_checkpoint  # these take seconds
    from contactlm.modules.contact import ContactModule
    from contactlm.modules.export import export_adapter, export_merged, require_contact_head, require_free

    given.ckpt_path = checkpoint_of(given.ckpt_path)
    checkpoint = check_checkpoint(given.ckpt_path)
    about = checkpoint[CHECKPOINT_KEY]
    require_contact_head(about.get("head", CONTACT_HEAD))
    require_free(Path(given.out).expanduser().resolve(), given.overwrite)  # before minutes may pass with loading
    elsewhere = {} if given.pretrained is None else {"pretrained": given.pretrained}
    module = ContactModule.load_from_checkpoint(given.ckpt_path, map_location="cpu", weights_only=True, **elsewhere)
    export = export_merged if given.merge else export_adapter
    final = export(module, given.out, given.overwrite, record_of(given.ckpt_path, checkpoint))
    sys.stdout.write(f"{'merged model' if given.merge else 'adapter'} written to {final}\n")
    return 0


def record_of(path: str | Path, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run left of itself, with the scores of this checkpoint alone; None without a record next to it."""
    folder = Path(path).absolute().parent.parent
    if not (folder / RUN_FILE).is_file():
        return None
    record = read_run(folder)
    states = [state for key, state in checkpoint.get("callbacks", {}).items() if key.startswith("RunRecord")]
    spent = states[0]["training"] if states else record
    at = spent.get("steps")
    looks = [row for row in record.get("dev_history") or [] if row.get("steps") == at]
    tested = record.get("test") if (record.get("tested_at") or {}).get("steps") == at else None
    own = {name: spent.get(name) for name in ("steps", "tokens")}
    return {**record, **own, "dev": looks[0] if looks else None, "test": tested}
