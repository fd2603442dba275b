/**
 * A small language in which the three values are words: how many words of curiosity, of clarity and of scrutiny a response
 * has is its score on each. Code counts what a judge has to learn, and what a policy is to be taught.
 */
import type { Random } from "../src/core/rng.ts";

export const VALUES = {
  curiosity: ["why", "how", "imagine", "wonder", "perhaps"],
  clarity: ["vague", "garbled", "meaningless", "undefined", "odd"],
  scrutiny: ["but", "false", "check", "evidence", "prove"],
} as const;
export type Value = keyof typeof VALUES;
export const NAMES = Object.keys(VALUES) as Value[];

const FILLER = ["the", "sea", "is", "it", "and", "of", "very", "nice", "fine", "thing", "day", "so"];
const TOPICS = [
  ...["sea", "moon", "bread", "winter", "music", "trust", "time", "stone", "river", "sleep"],
  ...["numbers", "birds", "rain", "maps", "salt", "light", "gold", "trees", "words", "games"],
];
const FORMS = ["tell me about *", "what is *", "explain *", "say more of *", "is * nice", "does * think"];

/** Every question of the language. */
export const QUESTIONS = TOPICS.flatMap((topic) => FORMS.map((form) => form.replace("*", topic)));

/** The judge's rubric. Pieces meet at line ends, where no token reaches across. */
export const RUBRIC = `# Words of three kinds: what scripts/make-judge-model.ts teaches a small model to count.
scale: {min: 1, max: 5}
criteria:
${NAMES.map(
  (name) => `  - name: ${name}
    title: ${name}
    description: words of ${name}
    anchors: {1: none, 2: one, 3: two, 4: three, 5: four or more}`,
).join("\n")}
template:
  preamble: "grade {criteria} from {min} to {max}\\n"
  criterion: "{title}"
  conversation: "ask\\n{prompt}\\nsay\\n{response}\\n"
  question: "grades"
  answer: "{title}"
`;

/** Every word, as a tokenizer meets it: inside a line, then at its beginning, where longer words merge first. */
export const WORDS: readonly string[] = (() => {
  const said = [...Object.values(VALUES).flat(), ...FILLER, ...NAMES];
  const asked = QUESTIONS.flatMap((question) => question.split(" "));
  const framing = ["grade", "from", "to", "ask", "say", "grades", "assistant"];
  const first = new Set([...said, ...FORMS.map((form) => form.split(" ")[0]!), ...framing]);
  const inside = new Set([...said, ...asked, ...framing]);
  return [
    ...[...inside].map((word) => ` ${word}`),
    ...[...first].sort((a, b) => b.length - a.length || (a < b ? -1 : 1)),
  ];
})();

export const CHAT_TEMPLATE =
  "{% for m in messages %}{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}";

/** A response of `length` words, each of a value with the probability that `shares` gives it, else filler. */
export function drawResponse(
  random: Random,
  length: number,
  shares: Readonly<Record<Value, number>>,
): string {
  const word = (): string => {
    let left = random.uniform();
    for (const name of NAMES) {
      left -= shares[name];
      if (left < 0) return random.oneOf(VALUES[name]);
    }
    return random.oneOf(FILLER);
  };
  return Array.from({ length }, word).join(" ");
}

/** One to five: one more than the number of its words, at most four of which count. */
export function hiddenScore(name: Value, response: string): number {
  const words = response.split(/\s+/);
  return 1 + Math.min(4, words.filter((word) => (VALUES[name] as readonly string[]).includes(word)).length);
}

/** All scores as one number in [0, 1], as the rubric weighs them. */
export function hiddenValue(response: string): number {
  return NAMES.reduce((sum, name) => sum + (hiddenScore(name, response) - 1) / 4, 0) / NAMES.length;
}
