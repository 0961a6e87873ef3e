"""What was written freely, as a table."""

from streamcache.measure.fluency import Part
from streamcache.report.tables import Table, number


def fluency_table(found: list[Part], title: str) -> Table:
    """A row a configuration and part of its text."""
    rows = tuple(
        (
            each.configuration,
            f"{each.begin:,} to {each.end:,}",
            number(each.ppl),
            *(f"{share:.2f}" for share in each.distinct),
            f"{100 * each.repeated:.0f} %",
        )
        for each in found
    )
    return Table(
        title,
        ("configuration", "tokens", "PPL", "distinct-1", "distinct-2", "distinct-4", "repeated"),
        rows,
        (
            "PPL: of the written text, with all of it in sight up to the trained context",
            "distinct-n: different n-grams over all, within 256 tokens",
            "repeated: tokens that end 16 which stood in the text before",
        ),
    )
