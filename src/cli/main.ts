import { didYouMean } from "../config/suggest.ts";
import { debugging } from "../core/env.ts";
import { errorLine, exitCodeOf, UsageError } from "../core/errors.ts";
import {
  CHAT_COMMAND,
  COMPLETE_COMMAND,
  CONFINE_COMMAND,
  DATA_COMMAND,
  ENGINE_COMMAND,
  MODULE_COMMAND,
  UI_COMMAND,
  VERSION,
} from "../core/version.ts";
import { COMMANDS } from "./commands.ts";

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
  if (argv[0] === COMPLETE_COMMAND) {
    const lines = await (await import("./complete.ts")).complete(argv.slice(1));
    process.stdout.write(lines.map((line) => `${line}\n`).join(""));
    return 0;
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
