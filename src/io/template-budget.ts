/**
 * What a chat template may do while it renders: it comes from elsewhere, and loops in loops, text that doubles, or lists
 * that hold themselves twice would take all time and memory. One unit is about the work of one expression, 64 characters
 * of text or four items of a list; a chat of five thousand messages takes a million or two.
 */
const UNITS = 4_000_000;
/** Characters of one text. */
const MOST_TEXT = 1 << 26;

let left = Number.POSITIVE_INFINITY;

/** Runs `body` with all units of one rendering. */
export function withBudget<T>(body: () => T): T {
  const before = left;
  left = UNITS;
  try {
    return body();
  } finally {
    left = before;
  }
}

/** Takes units; throws where there are none left. */
export function spend(units: number): void {
  left -= units;
  if (left < 0) throw new Error(`it does more than ${UNITS} steps`);
}

/** Asked before a text of `characters` is made. */
export function spendText(characters: number): void {
  if (characters > MOST_TEXT) throw new Error(`it makes a text of more than ${MOST_TEXT} characters`);
  spend(1 + (characters >> 6));
}
