"""What a file is, by its first bytes: for messages about files that are not what they should be."""

from __future__ import annotations

from pathlib import Path

HEAD = 512  # bytes
BEGINNINGS = (
    (b"PK\x03\x04", "a zip archive that is no checkpoint, or one that is cut short: copy it again"),
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a picture"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file: fetch it with `git lfs pull`"),
    (b"\x80", "a pickle, such as older versions of torch wrote"),
)
STARTS_OF_TEXT = (
    ("<", "a web page or XML"),
    (">", "a FASTA file"),
    ("data_", "an mmCIF file"),
    ("HEADER", "a PDB file"),
)


def describe_file(path: Path) -> str:
    """Say what a file is, as far as its first bytes tell.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as handle:
        head = handle.read(HEAD)
    if not head.strip(b"\0"):
        return "a file of zeros: a copy or download that broke off" if head else "an empty file"
    for start, kind in BEGINNINGS:
        if head.startswith(start):
            return kind
    if head[8:10] == b'{"':
        return "a safetensors file: give its folder as model.pretrained"
    try:
        text = head.decode("utf-8").lstrip()
    except UnicodeDecodeError:
        return "no checkpoint, and of no kind that is known here"
    return next((kind for start, kind in STARTS_OF_TEXT if text.startswith(start)), "a text file")
