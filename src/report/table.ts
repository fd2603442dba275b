/** Tables as text. */
import type { ModeFigures } from "./modes.ts";

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

/** Figures by mode: a line for their names, then one a mode. */
export function modeTable(modes: ModeFigures, text: (value: number) => string): string[] {
  const figures = [...new Set(Object.values(modes).flatMap((each) => Object.keys(each)))];
  const rows = [
    ["mode", ...figures.map((name) => name.replace(/^rewards\//, ""))],
    ...Object.entries(modes).map(([mode, each]) => [
      mode,
      ...figures.map((name) => (each[name] === undefined ? "" : text(each[name]))),
    ]),
  ];
  return tableLines(rows, (cell, width, column) =>
    column === 0 ? cell.padEnd(width) : cell.padStart(width),
  );
}

/** Comma-separated values, RFC 4180 with line feeds. */
export function csv(rows: readonly (readonly string[])[]): string {
  const cell = (text: string) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return rows.map((row) => `${row.map(cell).join(",")}\n`).join("");
}
