/**
 * Makes an offline stand-in for preference data: pairs of answers in the format and folders of Anthropic/hh-rlhf whose
 * hidden preference (preference-grammar.ts) is known, text on which a small policy learns good and bad answers alike,
 * a tokenizer and the config of a tiny model.
 *
 *   bun scripts/make-preferences.ts --out DIR [--train N] [--test N] [--sft N] [--good P] [--gap G] [--noise P] [--broken P]
 *   [--seed N]
 *
 * --good: probability that each part of an answer of the policy's text is good. --gap: least difference in preference
 * between the two answers of a pair. --noise: share of training pairs whose label is turned round.
 * --broken: share of answers that no speaker of the language would give, words exchanged, doubled and left out: what a
 * reward model has not met, a policy soon finds. Same seed, same bytes.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { gzipSync } from "node:zlib";
import { Purpose, Random } from "../src/core/rng.ts";
import { jsonLines } from "../src/io/jsonl.ts";
import { breakAnswer, drawAnswer, drawQuestion, hiddenPreference, WORDS } from "./preference-grammar.ts";
import { smallQwen3 } from "./small-qwen3.ts";
import { writeSmallTokenizer } from "./small-tokenizer.ts";

export interface PreferenceSizes {
  readonly train: number;
  readonly test: number;
  readonly sft: number;
  readonly good: number;
  readonly gap: number;
  readonly noise: number;
  readonly broken: number;
  readonly seed: number;
}

export const DEFAULTS: PreferenceSizes = {
  train: 4000,
  test: 800,
  sft: 4000,
  good: 0.5,
  gap: 0.15,
  noise: 0,
  broken: 0,
  seed: 1,
};

/** The pairs are parted among these. */
const FOLDERS = ["harmless-base", "helpful-base"];

/** A pair whose answers are as good as chance has it, from bad to good: the reward model meets them all. */
function drawPair(
  random: Random,
  { gap, broken }: PreferenceSizes,
  noise: number,
): { chosen: string; rejected: string } {
  const { prompt, thing } = drawQuestion(random);
  const draw = () => {
    const spoken = drawAnswer(thing, 0.1 + 0.85 * random.uniform(), random);
    const answer = broken > 0 && random.uniform() < broken ? breakAnswer(spoken, random) : spoken;
    return { answer, preference: hiddenPreference(prompt, answer) };
  };
  const one = draw();
  let other = draw();
  while (Math.abs(one.preference - other.preference) < gap) other = draw();
  const turned = random.uniform() < noise;
  const first = one.preference > other.preference !== turned;
  const [chosen, rejected] = first ? [one, other] : [other, one];
  return { chosen: prompt + chosen.answer, rejected: prompt + rejected.answer };
}

/** Writes everything into a folder. */
export function makePreferences(out: string, sizes: PreferenceSizes): void {
  const { seed } = sizes;
  FOLDERS.forEach((folder, i) => {
    mkdirSync(join(out, folder), { recursive: true });
    for (const [split, stream] of [
      ["train", 0],
      ["test", 1],
    ] as const) {
      const random = new Random(seed, Purpose.data, stream, i);
      const count = Math.floor(sizes[split] / FOLDERS.length) + (i < sizes[split] % FOLDERS.length ? 1 : 0);
      const noise = split === "train" ? sizes.noise : 0;
      const rows = Array.from({ length: count }, () => drawPair(random, sizes, noise));
      writeFileSync(join(out, folder, `${split}.jsonl.gz`), gzipSync(jsonLines(rows)));
    }
  });
  const random = new Random(seed, Purpose.data, 2);
  const said = Array.from({ length: sizes.sft }, () => {
    const { prompt, thing } = drawQuestion(random);
    return { prompt, completion: drawAnswer(thing, sizes.good, random) };
  });
  writeFileSync(join(out, "sft.jsonl"), jsonLines(said));
  const tokenizer = writeSmallTokenizer(join(out, "tokenizer"), WORDS, 128);
  const vocab = 32 * Math.ceil(tokenizer.vocabSize / 32);
  const size = { vocab, eos: tokenizer.eosId!, hidden: 64, ffn: 192, layers: 2, headDim: 16 };
  writeFileSync(join(out, "config.json"), `${JSON.stringify(smallQwen3(size), null, 2)}\n`);
}

if (import.meta.main) {
  const number = { type: "string" } as const;
  const { values } = parseArgs({
    options: {
      out: { type: "string" },
      ...{
        train: number,
        test: number,
        sft: number,
        good: number,
        gap: number,
        noise: number,
        broken: number,
        seed: number,
      },
    },
  });
  const { out, ...given } = values;
  if (out === undefined) throw new Error("--out DIR: where to write");
  const sizes = { ...DEFAULTS, ...Object.fromEntries(Object.entries(given).map(([k, v]) => [k, Number(v)])) };
  for (const [name, value] of Object.entries(sizes))
    if (!Number.isFinite(value) || value < 0) throw new Error(`--${name}: not a number of at least 0`);
  makePreferences(out, sizes);
}
