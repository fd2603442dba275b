import type { Command } from "./command.ts";

/** One line and one module a command; a module is loaded when its command is called. */
export const COMMANDS: Readonly<
  Record<string, { usage: string; summary: string; load(): Promise<{ command: Command }> }>
> = {
  train: {
    usage: "train [RECIPE | FILE]",
    summary: "train a model: arithmetic (default), sft, or a config file",
    load: () => import("./train.ts"),
  },
  sweep: {
    usage: "sweep RECIPE|FILE.yaml --grid K=A,B …",
    summary: "run every combination of settings, and say what the seeds spread",
    load: () => import("./sweep.ts"),
  },
  generate: {
    usage: "generate --model DIR --in F --out F",
    summary: "complete the prompts of a JSONL file",
    load: () => import("./generate.ts"),
  },
  logprob: {
    usage: "logprob --model DIR --in F --out F",
    summary: "log-probabilities of given completions",
    load: () => import("./logprob.ts"),
  },
  score: {
    usage: "score --model RM_DIR --in F --out F",
    summary: "rewards of given texts by a reward model",
    load: () => import("./score.ts"),
  },
  chat: {
    usage: "chat [MODEL]",
    summary: "talk to models in the terminal, or on a page (--web)",
    load: () => import("./chat.ts"),
  },
  eval: {
    usage: "eval RUN|CHECKPOINT …",
    summary: "report reward, diversity and collapse of a checkpoint",
    load: () => import("./eval.ts"),
  },
  runs: {
    usage: "runs [ACTION]",
    summary: "list, inspect and tidy up runs",
    load: () => import("./runs.ts"),
  },
  merge: {
    usage: "merge --model DIR --adapter DIR --out DIR",
    summary: "put an adapter into the weights of its model",
    load: () => import("./merge.ts"),
  },
  quantize: {
    usage: "quantize --model DIR",
    summary: "write a model in 8 or 4 bits and measure what that changes",
    load: () => import("./quantize.ts"),
  },
  serve: {
    usage: "serve [RUNS_DIR]",
    summary: "show runs, and talk to models, on a page in the browser",
    load: () => import("./serve.ts"),
  },
  download: {
    usage: "download REPO [FILE]",
    summary: "fetch a model or a dataset from the hub",
    load: () => import("./download.ts"),
  },
  bench: {
    usage: "bench [NAME]",
    summary: "measure speed against this machine's limits",
    load: () => import("./bench.ts"),
  },
  doctor: {
    usage: "doctor",
    summary: "check this machine and this installation",
    load: () => import("./doctor.ts"),
  },
  completions: {
    usage: "completions SHELL",
    summary: "print what completes commands and flags in bash, zsh or fish",
    load: () => import("./completions.ts"),
  },
  version: { usage: "version", summary: "print the version", load: () => import("./version.ts") },
};
