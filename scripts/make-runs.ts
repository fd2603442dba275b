/**
 * Writes run folders as training leaves them, to look at the page and to measure it: many runs with thousands of steps,
 * one of them with many rollouts.
 *
 *   bun scripts/make-runs.ts --out DIR [--runs 50] [--steps 3000] [--rollouts 100000] [--seed 1]
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { writeCheckpoint } from "../src/io/checkpoint-folder.ts";
import { jsonLine } from "../src/io/jsonl.ts";
import { RolloutsDb } from "../src/io/rollouts-db.ts";

export interface MadeRuns {
  readonly out: string;
  readonly runs: number;
  /** Steps of each run; the first has as many as its rollouts need. */
  readonly steps: number;
  /** Rollouts of the first run; the others have none. */
  readonly rollouts: number;
  readonly seed: number;
}

/** Completions of a prompt, and prompts of a step. */
const GROUP = 16;
const PROMPTS = 4;
const START_S = 1_760_000_000;

const WORDS =
  "the a of and to in that it is was for on with as by at from this be not are but have had they which one you were all her she there would their we him been has when who will no more if out so up said what its about than into them can only other time new some could these two may first then do any like my now over such our man me even most made after also did many off before must well back through years much where your way down should because long each just state those people too mr how little good world make very year still see own work men day get here old between both life being under three never know same last another while us might great go come since against right came take used himself few house american use place during high without again home around small however found mrs part school thought went say general once upon war every left does united number course until always away something fact water though less public put think almost hand enough far look head called eyes better nothing night end why didn asked later knew point next program city give group toward days young let room word door river stone garden letter bridge winter captain silver lantern forest mountain question answer".split(
    " ",
  );

/** xorshift32: the same runs for the same seed. */
function random(seed: number): () => number {
  let state = seed * 2654435761 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

const MODELS = ["builtin:arithmetic", "Qwen/Qwen3-0.6B", "SimpleStories/SimpleStories-1.25M"];
const COMPONENTS = ["format", "answer", "length"];

/** Makes the runs; returns the folder of the one with rollouts. */
export function makeRuns({ out, runs, steps, rollouts, seed }: MadeRuns): string {
  const draw = random(seed);
  const dirs = Array.from({ length: runs }, (_, i) => {
    const dir = join(out, i === 0 ? "long-grpo" : `grpo-${String(i).padStart(2, "0")}-s${seed + i}`);
    mkdirSync(join(dir, "checkpoints"), { recursive: true });
    const total = i === 0 ? Math.max(steps, Math.ceil(rollouts / (GROUP * PROMPTS))) : steps;
    const config = {
      rlv_version: "0.1.0",
      recipe: i % 3 === 2 ? "hh-grpo" : "arithmetic",
      model_name: MODELS[i % MODELS.length],
      seed: seed + i,
      learning_rate: 1e-5 * (1 + (i % 4)),
      kl_coeff: [0.01, 0.02, 0.04][i % 3],
      group_size: GROUP,
      batch_size: PROMPTS,
      num_train_steps: total,
    };
    writeFileSync(join(dir, "train_config.json"), `${JSON.stringify(config, null, 2)}\n`);
    writeFileSync(
      join(dir, "train.log"),
      `model ${config.model_name}\nloss -A log p + ${config.kl_coeff} (log p - log p_ref)^2\n`,
    );
    writeFileSync(join(dir, "metrics.jsonl"), metricLines(draw, total, START_S + 5000 * i));
    if (i % 5 !== 4) checkpoint(dir, "final", total);
    checkpoint(dir, `step-${total - 1}`, total - 1);
    writeFileSync(
      join(dir, "outcome.json"),
      JSON.stringify({
        exit_code: i % 5 === 4 ? 1 : 0,
        error: i % 5 === 4 ? "disk full" : null,
        time: START_S,
      }),
    );
    return dir;
  });
  fillRollouts(dirs[0]!, draw, rollouts);
  return dirs[0]!;
}

function checkpoint(dir: string, name: string, step: number): void {
  writeCheckpoint(join(dir, "checkpoints"), name, (at) => {
    writeFileSync(join(at, "config.json"), JSON.stringify({ architectures: ["LlamaForCausalLM"] }));
    writeFileSync(join(at, "model.safetensors"), new Uint8Array(4096));
    writeFileSync(join(at, "train_state.json"), JSON.stringify({ step }));
  });
}

function metricLines(draw: () => number, steps: number, start: number): string {
  const lines: string[] = [];
  const slope = 0.5 + draw();
  for (let step = 1; step <= steps; step++) {
    const done = step / steps;
    const reward = 1 - Math.exp(-3 * slope * done) + (draw() - 0.5) * 0.1;
    const row: Record<string, number> = {
      step,
      time: start + step * 1.1,
      "train/loss": 0.2 * (1 - done) + (draw() - 0.5) * 0.05,
      "train/policy_loss": 0.1 * (draw() - 0.5),
      "train/kl_div": 0.02 * done + draw() * 0.002,
      "train/reward_mean": reward,
      "train/reward_std": 0.3 * (1 - done) + draw() * 0.02,
      "train/frac_zero_std": done * draw(),
      "train/clip_ratio": draw() * 0.05,
      "train/entropy": 2 - done + draw() * 0.1,
      "train/completion_length_avg": 80 + 40 * done + 5 * draw(),
      "train/completion_length_max": 128,
      "train/proper_ending_rate": Math.min(1, 0.6 + 0.4 * done),
      "train/grad_norm": 1 + draw(),
      "train/lr": 1e-5 * (1 - done),
      "train/step_time": 1 + draw() * 0.2,
      "train/rollout_time": 0.5 + draw() * 0.1,
      "train/reward_time": 0.01,
      "train/train_time": 0.5 + draw() * 0.1,
      "train/tokens_per_second": 2000 + 200 * draw(),
      "train/sampler_logp_diff_max": 0,
      "device/peak_bytes": 5e8 + step,
    };
    for (const name of COMPONENTS) row[`train/rewards/${name}`] = reward / COMPONENTS.length;
    if (step % 50 === 0) {
      row["eval/reward"] = reward - 0.05;
      row["eval/reward_greedy"] = reward;
    }
    lines.push(jsonLine(row));
  }
  return `${lines.join("\n")}\n`;
}

function sentence(draw: () => number, words: number): string {
  let text = "";
  for (let i = 0; i < words; i++) {
    const word = WORDS[Math.floor(draw() ** 2 * WORDS.length)]!;
    const end = i % 12 === 11 || i === words - 1;
    text += `${i % 12 === 0 ? word[0]!.toUpperCase() + word.slice(1) : word}${end ? ". " : " "}`;
  }
  return text.trimEnd();
}

/** Ends of its words, each with the space behind it, as a tokenizer would cut them. */
function tokenEnds(text: string): Uint32Array {
  const ends = [...text.matchAll(/\S+\s*/g)].map((match) => match.index + match[0].length);
  return Uint32Array.from(ends);
}

function fillRollouts(dir: string, draw: () => number, rows: number): void {
  using db = new RolloutsDb(join(dir, "rollouts.sqlite"));
  const prompts = Array.from({ length: 500 }, () => `Write a story that begins so: ${sentence(draw, 14)}`);
  for (let i = 0; i < rows; i++) {
    const step = 1 + Math.floor(i / (GROUP * PROMPTS));
    const prompt_index = (step * PROMPTS + (Math.floor(i / GROUP) % PROMPTS)) % prompts.length;
    const completion =
      sentence(draw, 60 + Math.floor(draw() * 120)) + (i % 9973 === 17 ? " A rare Zebra-42." : "");
    const token_ends = tokenEnds(completion);
    const parts = COMPONENTS.map(() => draw());
    db.add({
      step,
      epoch: Math.floor((step * PROMPTS) / prompts.length),
      prompt_index,
      rollout_index: i % GROUP,
      prompt: prompts[prompt_index]!,
      completion,
      reward: parts.reduce((a, b) => a + b, 0),
      advantage: draw() * 4 - 2,
      components: Object.fromEntries(COMPONENTS.map((name, at) => [name, parts[at]!])),
      finish: draw() < 0.8 ? "eos" : "length",
      logprobs: Float32Array.from(token_ends, () => -3 * draw() ** 3),
      token_ends,
      flagged: draw() < 0.05,
    });
    if (i % 5000 === 4999) db.flush();
  }
  for (let step = 100; step * GROUP * PROMPTS <= rows; step += 100)
    for (const mode of ["", "greedy"])
      for (let prompt_index = 0; prompt_index < 16; prompt_index++)
        db.addEval({
          step,
          epoch: 0,
          mode,
          prompt_index,
          rollout_index: 0,
          prompt: prompts[prompt_index]!,
          completion: sentence(draw, 80),
          reward: draw(),
          finish: "eos",
        });
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      out: { type: "string" },
      runs: { type: "string", default: "50" },
      steps: { type: "string", default: "3000" },
      rollouts: { type: "string", default: "100000" },
      seed: { type: "string", default: "1" },
    },
  });
  if (values.out === undefined) {
    process.stderr.write("rlv: error: no folder: --out DIR: name one to write to\n");
    process.exit(2);
  }
  makeRuns({
    out: values.out,
    runs: Number(values.runs),
    steps: Number(values.steps),
    rollouts: Number(values.rollouts),
    seed: Number(values.seed),
  });
}
