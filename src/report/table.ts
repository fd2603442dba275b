/** Rows of cells as lines, each column as wide as its widest cell; `place` brings a cell to that width. */
export function tableLines(
  rows: readonly (readonly string[])[],
  place: (cell: string, width: number, column: number) => string,
  most = Number.POSITIVE_INFINITY,
): string[] {
  const widths = rows[0]!.map((_, column) =>
    Math.min(most, Math.max(...rows.map((row) => Bun.stringWidth(row[column]!)))),
  );
  return rows.map((row) =>
    row
      .map((cell, column) => place(cell, widths[column]!, column))
      .join("  ")
      .trimEnd(),
  );
}
