/** Figures of retain and forget adapters together and each by itself, side by side. */
import { tableLines } from "./table.ts";

/** By mode and figure: rewards/NAME, hack_rate … */
export type ModeFigures = Readonly<Record<string, Readonly<Record<string, number>>>>;

/** A line for the figures' names, then one a mode. */
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
