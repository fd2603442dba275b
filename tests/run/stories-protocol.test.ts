/** What is no clean experiment is refused before the first step, in one line; openings of stories. */
import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parse } from "yaml";
import { DEFAULTS, makeStories } from "../../scripts/make-stories-model.ts";
import { baseOf, resolveTrain } from "../../src/config/resolve.ts";
import { storyRunName } from "../../src/config/run-name.ts";
import type { StoriesConfig } from "../../src/config/schema-stories.ts";
import { UsageError } from "../../src/core/errors.ts";
import { Openings, openingOf, storyPrompts } from "../../src/data/stories.ts";
import { readParquet } from "../../src/io/parquet.ts";
import { requireLabels } from "../../src/run/routing.ts";
import { rlv } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-protocol-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const tokenizer = makeStories(join(scratch, "world"), { ...DEFAULTS, train: 60, test: 10 });
const dataset = join(scratch, "world/dataset");

let files = 0;
function config(flags: Record<string, string> = {}, text = ""): StoriesConfig {
  const path = join(scratch, `${files++}.yaml`);
  writeFileSync(path, `recipe: stories\n${text}`);
  const base = baseOf({ target: path, configFile: undefined, checkpoint: undefined });
  return resolveTrain(base, new Map(Object.entries(flags))) as StoriesConfig;
}

test("defaults are the protocol's", () => {
  expect(config()).toMatchObject({
    ...{ model: "SimpleStories/SimpleStories-1.25M", dataset: "SimpleStories/SimpleStories" },
    ...{ beta: 0.02, batch_size: 32, num_generations: 16, lr: 1e-5, max_steps: 2000, loss_type: "grpo" },
    ...{ lora_alpha: 16, eval_routing_steps: 100, lora_target_modules: "all-linear", routing: "none" },
    ...{ reward: [{ name: "happy_binary", as: "happy_binary", weight: 1, params: {} }], eval_rewards: [] },
  });
});

describe("a protocol that is broken", () => {
  const dual = { lora_config: "r8" };
  const word = { detector: "word_count" };
  test.each<[string, Record<string, string>, RegExp]>([
    [
      "routing without labels",
      { ...dual, routing: "classic" },
      /routing classic needs labels: name a detector/,
    ],
    ["routing without adapters", { ...word, routing: "classic" }, /needs retain and forget adapters/],
    [
      "exclusive on a plain one",
      { ...word, lora_rank: "16", routing: "exclusive" },
      /needs retain and forget/,
    ],
    ["both kinds of adapters", { ...dual, lora_rank: "16" }, /lora_rank is one plain adapter: drop it/],
    ["half a pair", { retain_rank: "4" }, /retain_rank and forget_rank: give both/],
    ["a placebo of nothing", { ...word, placebo: "true" }, /placebo labels without a routing change nothing/],
    [
      "advantages of nothing routed",
      { ...word, lora_rank: "16", routing: "screening", routing_advantages: "unflagged" },
      /routing_advantages is about routing classic and exclusive, given screening/,
    ],
    ["recall without a detector", { detector_recall: "0.5" }, /detector_recall is about labels/],
    ["a penalty elsewhere", { ...word, ...dual, routing: "classic", rh_penalty: "2" }, /rh_penalty is about/],
    ["alpha without adapters", { lora_alpha: "8" }, /lora_alpha is about adapters/],
    ["parts of groups", { batch_size: "24" }, /batch_size 24 \(completions\) is not a multiple of num_gen/],
    [
      "an unknown detector",
      { detector: "word_cuont" },
      /unknown detector "word_cuont".*did you mean word_count/,
    ],
    ["a detector without a name", { detector: "{params: {least: 2}}" }, /detector without a name/],
    [
      "a detector's parameter",
      { detector: "{name: word_count, params: {lest: 2}}" },
      /parameters: word, least/,
    ],
    [
      "an unknown component",
      { eval_rewards: "happy_binry" },
      /unknown reward "happy_binry".*did you mean happy_bin/,
    ],
    ["a length that is none", { reward: "sentence_length_0" }, /unknown reward.*sentence_length_N/],
    ["a preset that is none", { lora_config: "r7" }, /lora_config expects one of r1, r2, r4, r8, r16, r32/],
  ])("%s", (_, flags, message) => {
    expect(() => config(flags)).toThrow(message);
    expect(() => config(flags)).toThrow(UsageError);
  });

  test("a detector without a name in a file", () => {
    expect(() => config({}, "detector: {params: {least: 2}}\n")).toThrow(/detector without a name.*line 2/);
    expect(() => config({}, "detector: {name: word_count, least: 2}\n")).toThrow(/unknown key least/);
    expect(
      config({ detector: "word_count" }, "detector: {name: word_count, params: {least: 3}}\n").detector,
    ).toEqual({
      name: "word_count",
      params: { least: 3 },
    });
    expect(config({ detector: "none" }, "detector: word_count\n").detector).toBeNull();
    expect(config({ eval_rewards: "none" }, "eval_rewards: [happy_count]\n").eval_rewards).toEqual([]);
  });

  test("labels that got lost", () => {
    const rows = [{ flagged: true }, {}, { flagged: false }] as unknown as Parameters<
      typeof requireLabels
    >[0];
    expect(() => requireLabels(rows, 3)).toThrow(/1 of 3 completions have no label: step 3/);
  });

  test("before the first step: adapters on a missing layer, an end of text inside a prompt, a column that is not there", async () => {
    const model = resolve(import.meta.dir, "../../src/recipe/arithmetic/model");
    const broken = join(scratch, "broken");
    mkdirSync(broken);
    cpSync(join(dataset, "test.jsonl"), join(broken, "test.jsonl"));
    const lines = readFileSync(join(dataset, "train.jsonl"), "utf8").trimEnd().split("\n");
    const eos = "<|endoftext|>";
    const own = JSON.parse(readFileSync(join(model, "tokenizer_config.json"), "utf8")).eos_token ?? eos;
    lines[17] = JSON.stringify({ story: `a sad story${own} about ben the fox. he ran.` });
    writeFileSync(join(broken, "train.jsonl"), lines.join("\n"));
    const refused = async (args: string[], message: RegExp) => {
      const runs = join(scratch, "refused");
      const ended = await rlv([
        ...["train", "stories", "--model", model, "--output_dir", runs],
        ...["--max_prompt_length", "128", "--max_completion_length", "16", ...args],
      ]);
      expect(ended.err.trimEnd()).toMatch(message);
      expect([ended.err.trimEnd().split("\n").length, ended.code]).toEqual([1, 2]);
      expect(existsSync(join(runs, "refused"))).toBe(false);
    };
    await refused(
      [
        "--lora_config",
        "r4",
        "--lora_target_modules",
        "q_proj,layers.77.q_proj",
        "--run_name",
        "layer",
        "--dataset",
        dataset,
      ],
      /no linear map layers\.77\.q_proj: lora_target_modules/,
    );
    await refused(
      ["--dataset", broken, "--run_name", "eos"],
      /token \d+ of the opening is the end of a text .*train\.jsonl:18: take it out/,
    );
    await refused(
      ["--story_column", "text", "--run_name", "column", "--dataset", dataset],
      /no text in column text: .*jsonl:\d+/,
    );
  }, 60_000);
});

test("the experiment that ships and all it is compared with are protocols", () => {
  const examples = resolve(import.meta.dir, "../../examples");
  const sweep = parse(readFileSync(join(examples, "stories-routing-sweep.yaml"), "utf8")) as {
    readonly recipe: string;
    readonly variants: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
    readonly grid: { readonly seed: readonly number[] };
  };
  const base = baseOf({ target: join(examples, sweep.recipe), configFile: undefined, checkpoint: undefined });
  const configs = Object.entries(sweep.variants).map(([variant, settings]): [string, StoriesConfig] => {
    const flags = Object.entries(settings).map(([key, value]): [string, string] => [key, String(value)]);
    return [variant, resolveTrain(base, new Map(flags)) as StoriesConfig];
  });
  expect(new Set(configs.map(([, config]) => storyRunName(config))).size).toBe(configs.length);
  expect(new Set(sweep.grid.seed).size).toBe(5);
  // Fair: but for what becomes of labels, variants have the same settings, and adapters of the same rank and scale.
  const shared = (config: StoriesConfig) => {
    const {
      lora_config,
      lora_rank,
      lora_alpha,
      routing,
      routing_advantages,
      placebo,
      detector_recall,
      ...rest
    } = config;
    const rank = lora_rank ?? 2 * Number(lora_config!.slice(1));
    const scale = lora_alpha / (lora_rank ?? Number(lora_config!.slice(1)));
    expect([routing, routing_advantages, placebo, detector_recall]).not.toContain(undefined);
    return { ...rest, rank, scale };
  };
  for (const [, config] of configs) expect(shared(config)).toEqual(shared(configs[0]![1]));
});

describe("names of runs", () => {
  test.each<[Record<string, string>, string]>([
    [{}, "happy_binary_full_lr1e-5_beta0.02_s42"],
    [{ lora_rank: "8" }, "happy_binary_lora_r8_lr1e-5_beta0.02_s42"],
    [
      { reward: "happy_count", lora_config: "r8", detector: "word_count", routing: "classic", seed: "7" },
      "happy_count_dual_r8_classic_word_count_lr1e-5_beta0.02_s7",
    ],
    [
      { retain_rank: "8", forget_rank: "4", lr: "0.001", beta: "0", max_steps: "60", temperature: "0.7" },
      "happy_binary_dual_r8+4_lr0.001_beta0_steps60_temperature0.7_s42",
    ],
    [{ output_dir: "x", threads: "1", log_every: "3" }, "happy_binary_full_lr1e-5_beta0.02_s42"],
  ])("%p", (flags, name) => {
    expect(storyRunName(config(flags))).toBe(name);
  });

  test("parameters are told apart; a long name is cut and still is one of its own", () => {
    const names = ["1", "2"].map((most) =>
      storyRunName(config({ reward: `[{name: happy_count, params: {most: ${most}}}]` })),
    );
    expect(names[0]).toMatch(/^happy_count-[0-9a-f]{6}_full_lr1e-5_beta0.02_s42$/);
    expect(names[0]).not.toBe(names[1]!);
    const long = { weight_decay: "0.125", adam_beta1: "0.125", adam_beta2: "0.125", warmup_steps: "12345" };
    const more = { max_prompt_length: "100", entropy_coef: "0.125", min_p: "0.125", top_k: "12345" };
    const cut = ["0.5", "0.6"].map((top_p) => storyRunName(config({ ...long, ...more, top_p })));
    expect(cut[0]).not.toBe(cut[1]!);
    for (const name of cut) expect(name.length).toBeLessThanOrEqual(180);
  });
});

describe("openings", () => {
  test.each<[string, number | null, string | null]>([
    ["One day. Then more.", null, "One day."],
    ['"Stop!" she said. More.', null, '"Stop!"'],
    ["Only one sentence.", null, null],
    ["  a b c d", 3, "a b c"],
    ["a b c", 3, null],
    ["", 2, null],
  ])("%j by %p: %p", (story, words, opening) => {
    expect(openingOf(story, words)).toBe(opening);
  });

  const options = { column: "story", words: null, maxLength: 64, fields: [] };
  const own = { ...options, most: null, held: 5, draws: 40 };

  test("are drawn by the seed, held-out ones from the test split, ids without special tokens", async () => {
    const { training, held, longest } = await storyPrompts(dataset, tokenizer, 3, own);
    const drawn = Array.from({ length: 60 }, (_, i) => training.at(i).item);
    expect(new Set(drawn.map(({ index }) => index)).size).toBe(60);
    for (const { ids, text } of [...drawn, ...held]) {
      expect([...ids]).toEqual([...tokenizer.encode(text)]);
      expect(ids.some((id) => tokenizer.eosIds.includes(id))).toBe(false);
      expect(ids.length).toBeLessThanOrEqual(longest);
    }
    const test = readFileSync(join(dataset, "test.jsonl"), "utf8").split("\n");
    for (const { index, text } of held) expect(JSON.parse(test[index]!).story).toStartWith(`${text} `);
    const again = await storyPrompts(dataset, tokenizer, 3, own);
    expect(again.training.at(11).item.text).toBe(drawn[11]!.text);
    const other = await storyPrompts(dataset, tokenizer, 4, own);
    expect(Array.from({ length: 60 }, (_, i) => other.training.at(i).item.index)).not.toEqual(
      drawn.map(({ index }) => index),
    );
  });

  test("only the first stories count where fewer are wanted; none that is short enough is an error", async () => {
    const few = await Openings.open(dataset, "train", tokenizer, options, 7);
    expect([few.count, few.first(100).map(({ index }) => index)]).toEqual([7, [0, 1, 2, 3, 4, 5, 6]]);
    const passed = await Openings.open(dataset, "train", tokenizer, { ...options, maxLength: 2 });
    expect(passed.first(5)).toEqual([]);
    expect(() => passed.shuffled(1).at(0)).toThrow(
      /none of 60 stories has a first sentence of at most 2 tokens/,
    );
    const lacking = await Openings.open(dataset, "train", tokenizer, { ...options, fields: ["mood"] });
    expect(() => lacking.at(0)).toThrow(/no column mood, which a reward needs/);
  });

  test("of a parquet file no more row groups are read than are wanted", async () => {
    const path = resolve(import.meta.dir, "../io/parquet/transcripts.parquet");
    const whole = await readParquet(path, ["chosen"]);
    const part = await readParquet(path, ["chosen"], 1);
    expect(part.length).toBeGreaterThanOrEqual(1);
    expect(part.length).toBeLessThan(whole.length);
    expect(part.row(0)).toEqual(whole.row(0));
  });
});
