import { didYouMean } from "../config/suggest.ts";
import { debugging } from "../core/env.ts";
import { errorLine, exitCodeOf, UsageError } from "../core/errors.ts";
import {
  CHAT_COMMAND,
  CONFINE_COMMAND,
  DATA_COMMAND,
  ENGINE_COMMAND,
  MODULE_COMMAND,
  UI_COMMAND,
  VERSION,
} from "../core/version.ts";
import type { Command } from "./command.ts";

/** One line and one module a command; a module is loaded when its command is called. */
const COMMANDS: Readonly<
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
  version: { usage: "version", summary: "print the version", load: () => import("./version.ts") },
};

async function main(argv: readonly string[]): Promise<number> {
  if (argv[0] === ENGINE_COMMAND) {
    (await import("./engine.ts")).engine();
    return -1;
  }
  if (argv[0] === CONFINE_COMMAND || argv[0] === MODULE_COMMAND) {
    await (argv[0] === CONFINE_COMMAND
      ? import("../reward/confine-main.ts")
      : import("../reward/module-main.ts"));
    return -1;
  }
  if (argv[0] === CHAT_COMMAND) {
    (await import("./chat-process.ts")).chatProcess();
    return -1;
  }
  if (argv[0] === DATA_COMMAND) {
    (await import("../web/data-process.ts")).serveData();
    return -1;
  }
  if (argv[0] === UI_COMMAND) {
    (await import("./ui.ts")).serveTraining();
    return -1;
  }
  // Until the command is known only its position is: the first word, or after --help.
  const at = argv.findIndex((word) => !word.startsWith("-"));
  const name =
    at === 0
      ? argv[0]
      : argv.slice(0, at).every((word) => word === "--help" || word === "-h")
        ? argv[at]
        : undefined;
  if (name === undefined) return withoutCommand(argv);
  const entry = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (name === "help" && argv.length <= 2)
    return argv[1] === undefined ? withoutCommand(["--help"]) : main([argv[1], "--help"]);
  if (entry === undefined)
    throw new UsageError(
      `unknown command ${JSON.stringify(name)}`,
      undefined,
      didYouMean(name, Object.keys(COMMANDS), "rlv --help lists the commands", "rlv "),
    );
  const { command } = await entry.load();
  const words = argv.filter((_, index) => index !== at);
  if (words.includes("--help") || words.includes("-h")) {
    const { commandHelp } = await import("./help.ts");
    const rest = words.filter((word) => word !== "--help" && word !== "-h");
    process.stdout.write(commandHelp(command, rest, command.flags(rest)));
    return 0;
  }
  const { parse } = await import("./argv.ts");
  return command.run(parse(command, words, command.flags(words)));
}

async function withoutCommand(argv: readonly string[]): Promise<number> {
  const first = argv[0];
  if (first === "--version" || first === "-v") {
    process.stdout.write(`rlv ${VERSION}\n`);
    return 0;
  }
  if (first !== undefined && first !== "--help" && first !== "-h")
    throw new UsageError(
      `unknown flag ${first.split("=")[0]}`,
      "rlv",
      "the command comes first: rlv COMMAND [flags]",
    );
  const { programHelp } = await import("./help.ts");
  process.stdout.write(programHelp(VERSION, Object.values(COMMANDS)));
  return 0;
}

/** A reader that has had enough (`rlv … | head`) is no failure. What has state to save is asked to end, as by SIGTERM. */
function outputGone(error: NodeJS.ErrnoException): void {
  if (process.listenerCount("SIGTERM") > 0) process.emit("SIGTERM");
  else process.exit(error.code === "EPIPE" ? 0 : 1);
}
process.stdout.on("error", outputGone);
process.stderr.on("error", outputGone);

main(process.argv.slice(2)).then(
  (code) => {
    if (code >= 0) process.exitCode = code;
  },
  (error: unknown) => {
    process.stderr.write(`${errorLine(error)}\n`);
    if (debugging() && error instanceof Error) process.stderr.write(`${error.stack}\n`);
    process.exitCode = exitCodeOf(error);
  },
);
