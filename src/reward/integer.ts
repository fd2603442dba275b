/**
 * Numbers in free text. Digits are ASCII. A sign is ASCII or typographic minus or plus right before the digits, unless
 * a digit, letter or closing bracket stands before it: then it is an operator ("10-3" ends in 3) or a hyphen.
 * Thousands separators: comma, apostrophe or no-break or thin space between groups of exactly three digits
 * ("1,234,567"; "1,2,3" is a list). A decimal part or exponent belongs to its number: "3.14" holds no 14.
 */
const NUMBER =
  /(?:(?<![\p{L}\p{N}_)\]}])([-+\u2212\u2013\uFE63\uFF0D\uFF0B]))?(\d{1,3}(?:([,'\u2019\u00A0\u202F\u2009])\d{3})(?:\3\d{3})*(?!\d)|\d+)((?:\.\d+)*)([eE][-+]?\d+)?/gu;

const LEADING_POINT = /(?<![\p{L}\p{N}.])$/u;

/**
 * The last integer written in `text`, null if there is none. "5." and "5.0" are 5; numbers with another fraction,
 * with an exponent or with several points (versions, dates) are not integers and are passed over. Any size is exact.
 */
export function lastInteger(text: string): bigint | null {
  let last: bigint | null = null;
  for (const match of text.matchAll(NUMBER)) {
    const [, sign, digits, , fraction, exponent] = match;
    if (exponent || !/^(?:\.0+)?$/.test(fraction!)) continue;
    if (startsAsFraction(text, match.index, sign)) continue;
    const value = BigInt(digits!.replace(/\D/g, ""));
    last = sign && !/[+\uFF0B]/.test(sign) ? -value : value;
  }
  return last;
}

/** ".5" is one half, but in "Done.5" and "...5" the point ends a sentence. */
function startsAsFraction(text: string, index: number, sign: string | undefined): boolean {
  return sign === undefined && text[index - 1] === "." && LEADING_POINT.test(text.slice(0, index - 1));
}
