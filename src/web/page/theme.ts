import { keptStore } from "./store.ts";

type ThemeChoice = "auto" | "light" | "dark";

const dark = matchMedia("(prefers-color-scheme: dark)");
export const themeChoice = keptStore<ThemeChoice>(
  "rlv-theme",
  "auto",
  (value): value is ThemeChoice => value === "auto" || value === "light" || value === "dark",
);

/** Canvases cannot inherit colours: they draw again on this event. */
export const THEME_CHANGED = "rlv-theme";

function shownTheme(): "light" | "dark" {
  const choice = themeChoice.get();
  return choice === "auto" ? (dark.matches ? "dark" : "light") : choice;
}

function apply(): void {
  document.documentElement.dataset.theme = shownTheme();
  dispatchEvent(new Event(THEME_CHANGED));
}

export function startTheme(): void {
  apply();
  themeChoice.follow(apply);
  dark.addEventListener("change", apply);
}

export function nextTheme(): void {
  const order: ThemeChoice[] = ["auto", "light", "dark"];
  themeChoice.set(order[(order.indexOf(themeChoice.get()) + 1) % order.length]!);
}

/** A colour of the style sheet, as the theme has it now. */
export const colour = (name: string): string =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** The colours that tell series apart, in the order they are given out; eight, then again. */
export const seriesName = (index: number): string => `s${(index % 8) + 1}`;
export const seriesColour = (index: number): string => colour(seriesName(index));
