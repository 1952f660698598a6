"""What a terminal shows of a benchmark."""

from contactlm.cli.benchmark import as_text
from contactlm.report.table import grid


def test_a_page_is_shown_in_columns_without_marks() -> None:
    table = grid(["", "proteins", "`mcc`"], [["tiny", "8", "0.01 ± 0.002"], ["trivial (|i − j| ≤ 2)", "8", ""]])
    text = as_text(f"# Benchmark\n\nMeans under `ours`.\n\n{table}\n\nNote: x")
    assert text.splitlines() == [
        "Benchmark",
        "",
        "Means under ours.",
        "",
        "                       proteins           mcc",
        "tiny                          8  0.01 ± 0.002",
        "trivial (|i − j| ≤ 2)         8",
        "",
        "Note: x",
    ]
