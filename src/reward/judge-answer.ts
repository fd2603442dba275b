/** The score in what a judge says. */
import type { Scale } from "./rubric.ts";

const WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
const NUMBER = String.raw`(?<![\w.,]|[\w)]\s?[-−]|^[-−])(\d+(?:[.,]\d+)?|${WORDS.join("|")})(?![\w]|[.,]\d)`;
const LABEL = "(?:score|rating|grade|mark|answer|verdict|result|points?)";
/** "4/5", "4 out of 5": a value and the end of the scale. */
const OUT_OF = new RegExp(String.raw`${NUMBER}\s*(?:\/|out\s+of|of)\s*${NUMBER}`, "giu");
/** "Score: 4", "a rating of 4", "score is **4**", "I give it 4". */
const LABELLED = new RegExp(
  String.raw`(?:\b${LABEL}\b(?:\s+(?:is|of|would\s+be|should\s+be))?\s*[:=]?|\bgive\s+(?:it|this|that)(?:\s+an?)?(?:\s+${LABEL}\s+of)?)\s*[:=]?\s*${NUMBER}`,
  "giu",
);
const ANY = new RegExp(NUMBER, "giu");
const FIRST = new RegExp(`^${NUMBER}`, "iu");

/** Thoughts, emphasis and quotes around a number say nothing about it. */
function plain(text: string): string {
  return text
    .replace(/<think>[\s\S]*?<\/think>/g, " ")
    .replace(/<\/?[a-z_]+>/gi, " ")
    .replace(/[*_`"'“”‘’#[\](){}\\$]|boxed/g, " ")
    .replace(/[０-９]/g, (wide) => String.fromCharCode(wide.charCodeAt(0) - 0xfee0))
    .replace(/\s+/g, " ")
    .trim();
}

/**
 * The value of the scale that a text answers, or null: a fraction of the scale's end ("4/5"), else a labelled number
 * ("Score: 4"), else the number it begins with, else the only one it has. A number off the scale, between its values
 * or a choice of two ("3 or 4", "3-4") is no answer.
 */
export function parseScore(text: string, scale: Scale): number | null {
  const said = plain(text)
    // The scale itself: "on a scale of 1 to 5", "(1-5)".
    .replace(
      new RegExp(
        String.raw`\b(?:on|from|scale)?\s*(?:a\s+scale\s+)?(?:of|from)?\s*${scale.min}\s*(?:-|–|to)\s*${scale.max}\b`,
        "giu",
      ),
      (range, at: number) => (/scale|from/i.test(range) || at > 0 ? " " : range),
    )
    .trim();
  if (/\d\s?(?:-|–|to|or)\s?\d/iu.test(said)) return null;
  const fractions = [...said.matchAll(OUT_OF)];
  if (fractions.length > 0) {
    const values = fractions.map(([, value, end]) => (number(end!) === scale.max ? number(value!) : null));
    return single(values, scale);
  }
  const labelled = [...said.matchAll(LABELLED)].map(([, value]) => number(value!));
  if (labelled.length > 0) return single(labelled, scale);
  const first = FIRST.exec(said);
  if (first) return single([number(first[1]!)], scale);
  return single(
    [...said.matchAll(ANY)].map(([, value]) => number(value!)),
    scale,
  );
}

function number(word: string): number {
  const at = WORDS.indexOf(word.toLowerCase());
  return at >= 0 ? at : Number(word.replace(",", "."));
}

/** The one value that all of them are, if the scale has it. */
function single(values: readonly (number | null)[], { min, max }: Scale): number | null {
  const [value] = values;
  if (value === undefined || value === null || values.some((other) => other !== value)) return null;
  return Number.isInteger(value) && value >= min && value <= max ? value : null;
}
