"""How rows and footage are spread over values: what `View.distribution` returns, shown as text and in a notebook."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True, slots=True)
class Distribution:
    """How rows and footage are spread over the values of some columns.

    Attributes:
        table: `by` columns, then rows, share_rows, footage_s (seconds), share_footage.
        n_rows: all rows of the view.
        footage_s: the seconds that they stand for.
        denominator_s: seconds of all footage: for frames what was scanned (from `gops`), looked at or not.
    """

    by: tuple[str, ...]
    table: pl.DataFrame
    n_rows: int
    footage_s: float
    denominator_s: float

    def __repr__(self) -> str:
        share = f" ({self.footage_s / self.denominator_s:.1%})" if self.denominator_s else ""
        head = f"{self.n_rows:,} rows stand for {self.footage_s:,.0f} s of {self.denominator_s:,.0f} s of footage{share}"
        with pl.Config(tbl_rows=40, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, float_precision=3):
            return f"{head}\n{self.table}"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>".split("\n")[0] + str(self.table._repr_html_())

    def to_polars(self) -> pl.DataFrame:
        """Return the table."""
        return self.table
