/** Figures of retain and forget adapters together and each by itself, as every view shows them. */
import { type ModeName, modeOf } from "../../report/modes.ts";

/** The colour that a mode has where a colour is no run or setting. */
export const MODE_COLOURS: Readonly<Record<ModeName, number>> = { both: 0, retain_only: 2, forget_only: 1 };

export const modeText = (mode: ModeName): string => mode.replaceAll("_", " ");

/** Figures that one looks at first: what is wanted, and what is not. */
const MAIN = [/^reward$/, /^rewards\//, /^hack_rate$/];
export const isMain = (figure: string): boolean => MAIN.some((each) => each.test(figure));

/** What modes were evaluated by among these metrics, the main figures before the others. */
export function figuresByMode(metrics: Iterable<string>, source: string): string[] {
  const distinct = [...new Set([...metrics].flatMap((metric) => modeOf(metric, source)?.figure ?? []))];
  const main = MAIN.flatMap((each) => distinct.filter((figure) => each.test(figure)));
  return [...main, ...distinct.filter((figure) => !isMain(figure))];
}
