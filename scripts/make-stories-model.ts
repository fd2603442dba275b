/**
 * Makes an offline stand-in for SimpleStories: tiny stories (story-grammar.ts) as a dataset with a column `story`, its
 * WordPiece tokenizer, and a Llama of the shape of SimpleStories-1.25M that has learnt them.
 *
 *   bun scripts/make-stories-model.ts --out DIR [--train N] [--test N] [--keep P] [--repeat P] [--steps N] [--seed N]
 *   [--data_only true]
 *
 * --keep: share of stories that end as their first sentence asks. --repeat: share in which a word is repeated and
 * repeated. OUT/dataset has train.jsonl and test.jsonl, OUT/model is the model. Same seed, same bytes on a CPU type.
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Purpose, Random } from "../src/core/rng.ts";
import { jsonLines } from "../src/io/jsonl.ts";
import { Tokenizer } from "../src/io/tokenizer.ts";
import { drawStory, type Story, WORDS } from "./story-grammar.ts";

export interface StorySizes {
  readonly train: number;
  readonly test: number;
  readonly keep: number;
  readonly repeat: number;
  readonly seed: number;
}

export const DEFAULTS: StorySizes = { train: 20000, test: 1000, keep: 0.5, repeat: 0.1, seed: 1 };
const STEPS = "3000";
const VOCABULARY = 4096;
const CONTEXT = 512;

/** `VOCABULARY` pieces: the special ones, what any lower-case text is made of, the words, and syllables to fill it up. */
export function pieces(): string[] {
  const letters = [..."abcdefghijklmnopqrstuvwxyz"];
  const [vowels, consonants] = [[..."aeiou"], [..."bcdfghjklmnpqrstvwxyz"]];
  const list = [
    "[UNK]",
    "[EOS]",
    ..."!\"'*+,-.:;?0123456789",
    ...letters,
    ...letters.map((c) => `##${c}`),
    ...WORDS,
  ];
  for (const a of consonants) for (const b of vowels) list.push(`##${a}${b}`);
  for (const a of consonants)
    for (const b of vowels) for (const c of consonants) list.push(`##${a}${b}${c}`, `${a}${b}${c}`);
  return [...new Set(list)].slice(0, VOCABULARY);
}

/** SimpleStories' pipeline: lower case, words and punctuation apart, digits one by one, [EOS] behind a text. */
function tokenizerJson(): object {
  const special = (id: number, content: string) => ({
    ...{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
  });
  const text = (id: "A" | "B", type_id: number) => ({ Sequence: { id, type_id } });
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [special(0, "[UNK]"), special(1, "[EOS]")],
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "Lowercase" },
        { type: "Replace", pattern: { String: "``" }, content: '"' },
        { type: "Replace", pattern: { String: "''" }, content: '"' },
      ],
    },
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "Whitespace" },
        { type: "Punctuation", behavior: "Isolated" },
        { type: "Digits", individual_digits: true },
      ],
    },
    post_processor: {
      type: "TemplateProcessing",
      single: [text("A", 0), { SpecialToken: { id: "[EOS]", type_id: 0 } }],
      pair: [text("A", 0), text("B", 1)],
      special_tokens: { "[EOS]": { id: "[EOS]", ids: [1], tokens: ["[EOS]"] } },
    },
    decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    model: {
      type: "WordPiece",
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: 100,
      vocab: Object.fromEntries(pieces().map((piece, id) => [piece, id])),
    },
  };
}

/** config.json of SimpleStories-1.25M, with the end that its tokenizer has. */
export const STORY_MODEL = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  vocab_size: VOCABULARY,
  hidden_size: 128,
  intermediate_size: 341,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: CONTEXT,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  tie_word_embeddings: true,
  hidden_act: "silu",
  bos_token_id: null,
  eos_token_id: 1,
  pad_token_id: null,
  torch_dtype: "float32",
} as const;

/** A row of the dataset: the story, and beside it what code knows of it. */
const rowOf = ({ story, asked, ending, animal, place, repeats }: Story) => ({
  story,
  topic: `${animal}, ${place}`,
  theme: asked,
  ending,
  repeats,
  word_count: story.split(" ").length,
});

/** Writes dataset, tokenizer, config.json and the text that the model learns. */
export function makeStories(out: string, sizes: StorySizes): Tokenizer {
  const random = new Random(sizes.seed, Purpose.data);
  const draw = (count: number) => Array.from({ length: count }, () => drawStory(random, sizes));
  const [train, test] = [draw(sizes.train), draw(sizes.test)];
  const [dataset, tokenizer] = [join(out, "dataset"), join(out, "tokenizer")];
  for (const folder of [dataset, tokenizer]) mkdirSync(folder, { recursive: true });
  writeFileSync(join(dataset, "train.jsonl"), jsonLines(train.map(rowOf)));
  writeFileSync(join(dataset, "test.jsonl"), jsonLines(test.map(rowOf)));
  writeFileSync(join(tokenizer, "tokenizer.json"), `${JSON.stringify(tokenizerJson())}\n`);
  const config = { tokenizer_class: "PreTrainedTokenizerFast", eos_token: "[EOS]", unk_token: "[UNK]" };
  writeFileSync(
    join(tokenizer, "tokenizer_config.json"),
    `${JSON.stringify({ ...config, model_max_length: CONTEXT, clean_up_tokenization_spaces: true }, null, 2)}\n`,
  );
  writeFileSync(join(out, "config.json"), `${JSON.stringify(STORY_MODEL, null, 2)}\n`);
  const parts = ({ story, opening }: Story) => ({
    prompt: opening,
    completion: story.slice(opening.length).trimStart(),
  });
  writeFileSync(join(out, "sft.jsonl"), jsonLines(train.map(parts)));
  writeFileSync(join(out, "sft-test.jsonl"), jsonLines(test.slice(0, 200).map(parts)));
  return Tokenizer.load(tokenizer);
}

function trainModel(out: string, steps: string, seed: number): void {
  rmSync(join(out, "training"), { recursive: true, force: true });
  const flags: Readonly<Record<string, string>> = {
    ...{ init: join(out, "config.json"), tokenizer: join(out, "tokenizer"), output: join(out, "model") },
    ...{ dataset: join(out, "sft.jsonl"), eval_file: join(out, "sft-test.jsonl"), train_on_prompt: "true" },
    ...{ num_train_steps: steps, batch_size: "48", learning_rate: "4e-3", lr_schedule: "cosine" },
    ...{
      warmup_steps: "50",
      weight_decay: "0.01",
      adam_beta2: "0.98",
      max_grad_norm: "1",
      seed: String(seed),
    },
    ...{ save_every: "-1", eval_every: "200", log_every: "50", output_dir: out, run_name: "training" },
  };
  const run = Bun.spawnSync(
    [
      join(import.meta.dir, "../rlv"),
      ...["train", "sft"],
      ...Object.entries(flags).flatMap(([name, value]) => [`--${name}`, value]),
    ],
    { stdio: ["ignore", "inherit", "inherit"] },
  );
  if (run.exitCode !== 0) throw new Error(`training ended with exit code ${run.exitCode}`);
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      out: { type: "string" },
      train: { type: "string", default: String(DEFAULTS.train) },
      test: { type: "string", default: String(DEFAULTS.test) },
      keep: { type: "string", default: String(DEFAULTS.keep) },
      repeat: { type: "string", default: String(DEFAULTS.repeat) },
      steps: { type: "string", default: STEPS },
      seed: { type: "string", default: String(DEFAULTS.seed) },
      data_only: { type: "string", default: "false" },
    },
  });
  if (values.out === undefined) throw new Error("--out DIR: where to write");
  const sizes = {
    ...{ train: Number(values.train), test: Number(values.test) },
    ...{ keep: Number(values.keep), repeat: Number(values.repeat), seed: Number(values.seed) },
  };
  makeStories(values.out, sizes);
  if (values.data_only !== "true") trainModel(values.out, values.steps, sizes.seed);
}
