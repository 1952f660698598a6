"""The pages: links that lead somewhere, pictures that are shown, and code, flags and names that exist."""

from __future__ import annotations

import ast
import importlib
import posixpath
import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from contactlm.cli.arguments import resolve_config
from contactlm.cli.commands import COMMANDS
from contactlm.cli.main import main
from contactlm.types import ContactDefinition

ROOT = Path(__file__).parents[1]
MARKDOWN = MarkdownIt("commonmark").enable("table")
ROOMS = ("contactlm", "lightning_configs", "tests", ".github", ".ci")
MODULES = ("ContactModule", "ContrastiveModule", "JacobianModule", "RetrievalModule")
OF_CONTACTS = {f"--data.contact.{each.name}" for each in fields(ContactDefinition)}  # help has --data.contact alone
OF_CLASSES = {"--model.lora.target_modules", "--model.optimizer.init_args.lr"}  # help has --model.lora alone
OF_PROJECTS = {"--model.gamma"}  # options of classes in tests/projects
FOREIGN = {"aot_eager", "contacts_from_pairs", "find_unused_parameters", "return_contacts"}  # names of other packages
README_WORDS, README_LINES, ALL_WORDS = 900, 130, 12_500  # words as `wc -w` counts them
Pages = dict[str, str]  # path from the root, as a code host has it: text


@pytest.fixture(scope="session")
def tracked() -> set[str]:
    """What a code host shows: files that git has, or would have with the next commit."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout: pages link to files that a source distribution lacks")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="session")
def pages(tracked: set[str]) -> Pages:
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in sorted(tracked) if name.endswith(".md")}


class _Tags(HTMLParser):
    """Collects what the HTML in a page points at."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src")]


def tokens_of(text: str) -> Iterator[Token]:
    for token in MARKDOWN.parse(text):
        yield token
        yield from token.children or []


def targets(text: str) -> list[str]:
    """What a page links to or shows."""
    tags, found = _Tags(), []
    for token in tokens_of(text):
        found += [str(token.attrs[name]) for name in ("href", "src") if name in token.attrs]
        if token.type in ("html_inline", "html_block"):
            tags.feed(token.content)
    return found + tags.found


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    tokens, found = MARKDOWN.parse(text), list[str]()
    for opening, heading in pairwise(tokens):
        if opening.type == "heading_open":
            title = "".join(child.content for child in heading.children or [] if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            earlier = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
            found.append(f"{slug}-{earlier}" if earlier else slug)
    return set(found)


def local(page: str, target: str) -> tuple[str, str] | None:
    """The file and the anchor that a page's link points at; None: something on the web."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))) if parts.path else page
    return path, unquote(parts.fragment)


def broken(pages: Pages, files: set[str]) -> list[str]:
    """Links that a code host would not resolve."""
    folders = {posixpath.dirname(name) for name in files}
    folders |= {parent for folder in folders for parent in map(str, Path(folder).parents)}
    faults = []
    for page, text in pages.items():
        for target in targets(text):
            if (found := local(page, target)) is None:
                continue
            path, anchor = found
            if path not in files | folders or (anchor and anchor not in anchors(pages.get(path, ""))):
                faults.append(f"{page}: {target}")
    return faults


def code_of(text: str, *languages: str) -> list[str]:
    """Fenced code of some languages; without any, all of a page's code, that in lines of text included."""
    kinds = ("fence",) if languages else ("fence", "code_inline")
    found = [token for token in tokens_of(text) if token.type in kinds]
    return [token.content for token in found if token.info in languages or not languages]


def commands_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Commands of this package in a page's code: the command's name and the words behind it."""
    for code in code_of(text):
        whole = code.replace("\\\n", " ")
        for match in re.finditer(rf"\bcontactlm ({'|'.join(COMMANDS)})\b([^\n;|&#]*)", whole):
            yield match[1], match[2].split()


def test_the_readme_is_short(pages: Pages) -> None:
    text = pages["README.md"]
    assert len(text.split()) <= README_WORDS and len(text.splitlines()) <= README_LINES


def test_pages_together_are_short(pages: Pages) -> None:
    """The README counts as it should be, since another test holds it to that."""
    words = {page: len(text.split()) for page, text in pages.items() if page != "README.md"}
    assert sum(words.values()) <= ALL_WORDS - README_WORDS, words


def test_links_lead_somewhere(pages: Pages, tracked: set[str]) -> None:
    assert len(pages) > 10
    assert broken(pages, tracked) == []


def test_a_broken_link_is_found() -> None:
    files = {"README.md", "a/B.md", "a/pic.png"}
    text = "# Two `words`, here\n# Two words here\n[x](#two-words-here-1) [y](a) [z](a/B.md#own) ![](a/pic.png) <https://x.y>"
    assert broken({"README.md": text, "a/B.md": "## Own\n[up](../README.md#two-words-here)"}, files) == []
    wrong = ["a/b.md", "#two-words", "a/B.md#other", "../README.md", "/README.md", "a/pic.png#x"]
    text = "\n".join(f"[x]({target})" for target in wrong) + '\n<img src="pic.png" width="9">\n'
    found = broken({"README.md": text, "a/B.md": "## Own"}, files)
    assert sorted(found) == sorted(f"README.md: {target}" for target in [*wrong, "pic.png"])


def test_every_page_is_two_clicks_from_the_readme(pages: Pages) -> None:
    reached = {"README.md"}
    for _ in range(2):
        found = [local(page, target) for page in reached for target in targets(pages[page])]
        reached |= {place[0] for place in found if place is not None} & pages.keys()
    assert reached == pages.keys()


def test_every_picture_is_shown(pages: Pages, tracked: set[str]) -> None:
    shown = {place[0] for page, text in pages.items() for t in targets(text) if (place := local(page, t)) is not None}
    assert {name for name in tracked if name.startswith(".assets/")} <= shown


def test_python_in_pages_compiles_and_its_imports_exist(pages: Pages) -> None:
    blocks = [(page, code) for page, text in pages.items() for code in code_of(text, "python")]
    assert {page for page, _ in blocks} >= {"README.md", "contactlm/retrieval/README.md"}
    for page, code in blocks:
        for node in ast.walk(ast.parse(code, page)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("contactlm"):
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == [], page
            elif isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)


def test_dotted_names_exist(pages: Pages) -> None:
    names = {
        name for text in pages.values() for code in code_of(text) for name in re.findall(r"\bcontactlm(?:\.\w+)+", code)
    }
    assert "contactlm.callbacks.LossGuard" in names
    assert {name for name in names if not _exists(name)} == set()


def _exists(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
        return True
    except ModuleNotFoundError:
        return hasattr(importlib.import_module(module), attribute)


def test_paths_exist(pages: Pages, tracked: set[str]) -> None:
    """Also where they are no links."""
    rooms = "|".join(map(re.escape, ROOMS))
    for page, text in pages.items():
        for path in re.findall(rf"(?<![\w./-])(?:{rooms})/[\w./-]*\w", text):
            assert path in tracked or any(name.startswith(f"{path}/") for name in tracked), f"{page}: {path}"


def test_names_in_code_are_somewhere_in_the_code(pages: Pages, tracked: set[str]) -> None:
    """Constants, options, scores, functions: whatever is one word of code with a capital or an underscore inside."""
    source = "\n".join((ROOT / name).read_text() for name in tracked if name.endswith((".py", ".yaml", ".toml")))
    known = set(re.findall(r"\w+", source))
    for page, text in pages.items():
        for token in tokens_of(text):
            if token.type == "code_inline" and re.fullmatch(r"\w+(_\w+|[A-Z]\w*)(\(.*\))?", token.content):
                assert token.content.partition("(")[0] in known | FOREIGN, f"{page}: {token.content}"


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags that each command's ``--help`` shows, with every module of the package."""
    calls = [("fit", "fit", f"--model_class=contactlm.{name}") for name in MODULES]
    calls += [("predict", "predict"), ("index", "index", "build"), ("head", "head", "fit")]
    calls += [(name, name) for name in ("export", "report", "pack", "benchmark")]
    shown: dict[str, set[str]] = {}
    for command, *arguments in calls:
        shown.setdefault(command, set()).update(re.findall(r"--[a-z][\w.]*\w", help_of(*arguments)))
    ours = shown["fit"] - {"--data", "--model"}
    return shown | {
        "fit": ours,
        "plan": ours | {"--memory"},
        "test": ours,
        "validate": ours,
        "predict": shown["predict"] | ours,
    }


def help_of(*arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        text: list[str] = []
        patch.setattr("sys.stdout", type("Text", (), {"write": text.append, "flush": lambda: None, "isatty": bool}))
        main([*arguments, "--help", *(["all"] if arguments[0] in ("fit", "predict", "head") else [])])
    assert stop.value.code == 0
    return "".join(text)


@pytest.mark.slow
def test_commands_in_pages_have_flags_and_configs_that_exist(pages: Pages, flags: dict[str, set[str]]) -> None:
    seen = set()
    for page, text in pages.items():
        for command, words in commands_of(text):
            given = [word.strip("'\"`()").partition("=")[0] for word in words if word.startswith("--")]
            assert [
                flag for flag in given if flag not in flags[command] | OF_PROJECTS | OF_CLASSES | {"--help"}
            ] == [], page
            for option, name in pairwise(words):
                if option == "--config" and name[0] not in "$…" and not name.startswith("my"):
                    seen.add(resolve_config(name))
        dotted = {flag for code in code_of(text) for flag in re.findall(r"--[a-z]+\.[a-z_.]*[a-z_]", code)}
        dotted = {flag for flag in dotted if not flag.startswith("--trainer.strategy.")}
        assert dotted <= flags["fit"] | flags["predict"] | OF_PROJECTS | OF_CONTACTS | OF_CLASSES, page
    assert len(seen) > 5


def test_every_option_of_ours_is_explained(flags: dict[str, set[str]]) -> None:
    """Pages leave options to their docstrings: ``--help`` must have them."""
    text = help_of("fit", "--model_class=contactlm.RetrievalModule")
    groups = "model|data|budget|checkpoint|evaluation|guard|speed|dashboard|record"
    bare = re.findall(rf"^ +--((?:{groups})\.\w+)[^\n]*\n +\(type", text, re.MULTILINE)
    assert bare == []
