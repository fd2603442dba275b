/** Figures of retain and forget adapters together and each by itself, side by side. */

/** What such adapters are evaluated as; metrics are eval/MODE/FIGURE. A model without them has the first alone. */
export const MODE_NAMES = ["both", "retain_only", "forget_only"] as const;
export type ModeName = (typeof MODE_NAMES)[number];

/** By mode and figure: rewards/NAME, hack_rate … */
export type ModeFigures = Readonly<Record<string, Readonly<Record<string, number>>>>;

/** Mode and figure of a metric under `source`; null: it is of no mode. */
export function modeOf(metric: string, source: string): { mode: ModeName; figure: string } | null {
  const mode = MODE_NAMES.find((each) => metric.startsWith(`${source}/${each}/`));
  return mode === undefined ? null : { mode, figure: metric.slice(source.length + mode.length + 2) };
}
