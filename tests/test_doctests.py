"""The examples in docstrings of public names, run as they stand: offline, each in an empty folder."""

import doctest
import importlib
from pathlib import Path

import pytest

import contactlm

EXAMPLES = {
    "contactlm.callbacks": ["TokenBudget"],
    "contactlm": [
        *("Chain", "read_chains", "contact_map", "ContactMap.save", "predict_contacts"),
        *("ContactDataModule", "ContactModule"),
    ],
    "contactlm.maps": ["categorical_jacobian"],
    "contactlm.metrics": ["ProteinMCC", "PrecisionAtL"],
}
NAMES = [f"{module}.{name}" for module, names in EXAMPLES.items() for name in names]


def example(name: str) -> doctest.DocTest:
    """The example of a public name, found where users import it from."""
    module = next(module for module in sorted(EXAMPLES, key=len, reverse=True) if name.startswith(f"{module}."))
    found: object = importlib.import_module(module)
    for part in name.removeprefix(f"{module}.").split("."):
        found = getattr(found, part)
    # no globals: what an example uses it imports
    return doctest.DocTestParser().get_doctest(str(found.__doc__), {}, name, None, None)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    test = example(name)
    assert test.examples, f"{name} has no example"
    shown: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=shown.append)
    assert not shown, "".join(shown)


def test_every_public_name_has_an_example() -> None:
    shown = {name.split(".")[0] for name in EXAMPLES["contactlm"]}
    others = [getattr(contactlm, name) for name in set(contactlm.__all__) - shown]
    assert all(issubclass(found, contactlm.MapModule) for found in others)  # the same module with another head
