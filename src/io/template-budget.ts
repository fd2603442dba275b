/**
 * What a chat template may do while it renders: it comes from elsewhere, and loops in loops, text that doubles, or lists
 * that hold themselves twice would take all time and memory. One unit is about the work of one expression, 64 characters
 * of text or four items of a list; a chat takes some hundred for each message.
 */
const UNITS = 1_000_000;
/** More for each value of what is rendered, and for four characters of text. */
const UNITS_PER_VALUE = 500;
/** Characters of one text, and more for each unit that the input adds. */
const MOST_TEXT = 1 << 24;
const TEXT_PER_UNIT = 64;

let all = Number.POSITIVE_INFINITY;
let left = all;

/** Runs `body` with all units that rendering `input` may take. */
export function withBudget<T>(input: unknown, body: () => T): T {
  const before = [all, left] as const;
  all = UNITS + unitsOf(input);
  left = all;
  try {
    return body();
  } finally {
    [all, left] = before;
  }
}

function unitsOf(input: unknown): number {
  if (typeof input === "string") return UNITS_PER_VALUE + (input.length >> 2);
  if (typeof input !== "object" || input === null) return UNITS_PER_VALUE;
  return Object.values(input).reduce((sum: number, value) => sum + unitsOf(value), UNITS_PER_VALUE);
}

/** Takes units; throws where there are none left. */
export function spend(units: number): void {
  left -= units;
  if (left < 0) throw new Error(`it does more than ${all} steps`);
}

/** Asked before a text of `characters` is made. */
export function spendText(characters: number): void {
  const most = MOST_TEXT + TEXT_PER_UNIT * (all - UNITS);
  if (characters > most) throw new Error(`it makes a text of more than ${most} characters`);
  spend(1 + (characters >> 6));
}
