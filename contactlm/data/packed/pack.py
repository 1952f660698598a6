"""Packing: structure files in, a packed set out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from contactlm.data.cache import parse_task, progress_bar, read_files
from contactlm.data.files import FoundFiles, find_structures
from contactlm.data.packed.manifest import ClusterRule, Manifest
from contactlm.data.packed.writer import SHARD_RESIDUES, PackedWriter
from contactlm.data.selection import name_problems
from contactlm.data.store import ChainStore
from contactlm.homology.relations import processors

log = logging.getLogger(__name__)


def pack_structures(
    structures: Sequence[str],
    out: str | Path,
    shard_residues: int = SHARD_RESIDUES,
    sequence: str = "seqres",
    clusters: ClusterRule | None = None,
    workers: int | None = None,
    progress: bool = True,
    cache_dir: Path | None = None,
) -> Manifest:
    """Read structure files and write their chains as a packed set.

    The chains are those that a data module reads from the same files, in the same order. Files that cannot be read are
    counted and named. A packing that was ended goes on where it stopped when it is asked for again.

    Args:
        structures: Folders, structure files and text files of paths, packed one after the other.
        out: Folder of the set.
        shard_residues: Most residues of a shard, 13 bytes each.
        sequence: ``"seqres"`` or ``"observed"``, as for :func:`contactlm.read_chains`.
        clusters: Which sequence clusters to compute and record; None: none.
        workers: Processes that read; 0 reads in this process, None takes one for each available processor.
        progress: Whether to show a progress bar.
        cache_dir: The cache folder, where clusters are kept, and what a clustering that was ended had found so far;
            None: they are not kept.

    Returns:
        The manifest, when all is written.

    Raises:
        DataError: There is nothing to pack, or the folder cannot be used.
    """
    found = [(path, _name(path, given)) for given in structures for path in _find(given)]
    paths = [path for path, _ in found]
    writer = PackedWriter(Path(out).expanduser(), shard_residues, sequence, cache_dir)
    done = writer.resume(lambda i: _mark(*found[i]), len(found))
    if done:
        log.info("%s: %d of %d files were packed before", out, done, len(found))
    with progress_bar("Packing", "file", len(found), progress, done) as bar:
        contents = _read_in_order(paths[done:], sequence, workers)
        for (path, name), content in zip(found[done:], contents, strict=True):
            problem = content.meta["problem"]
            writer.add(name, content if problem is None else problem, _mark(path, name))
            bar.update()
    manifest = writer.finish(clusters)
    name_problems(list(writer.problems.items()))
    return manifest


def _find(given: str) -> FoundFiles:
    paths = find_structures(given, "structures")
    if paths.passed_over:
        log.warning("%s: %s", given, paths.remark())
    return paths


def _name(path: Path, given: str) -> str:
    """A file's name in messages: below the folder it was found in, so that it does not matter where that lies."""
    folder = Path(given).expanduser()
    return path.relative_to(folder).as_posix() if folder.is_dir() else str(path)


def _mark(path: Path, name: str) -> str:
    """What tells a file from others, for going on after an interruption: name, size and time of change."""
    try:
        stat = path.stat()
    except OSError:
        return name
    return f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}"


def _read_in_order(paths: Sequence[Path], sequence: str, workers: int | None) -> Iterator[ChainStore]:
    """Read files in parallel; results come in the order of the files, and no more than a few are in memory."""
    work = partial(parse_task, sequence=sequence)
    results = read_files(list(enumerate(paths)), work, processors() if workers is None else workers)
    yield from (entry for _, entry in results)
