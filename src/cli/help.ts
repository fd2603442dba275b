import type { Command, Flag } from "./command.ts";

const WIDTH = 110;
const INDENT = 6;

export function wrap(text: string, indent: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > WIDTH - indent) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  lines.push(line);
  return lines.map((part) => " ".repeat(indent) + part);
}

function flagLines(flag: Flag): string[] {
  const fallback =
    flag.fallback === undefined ? "" : flag.fallback === "required" ? "  (required)" : `  [${flag.fallback}]`;
  const aliases =
    flag.aliases.length === 0 ? "" : ` Also ${flag.aliases.map((name) => `--${name}`).join(", ")}.`;
  const value = flag.value === "" ? "" : ` ${flag.value}`;
  return [
    `  --${flag.name}${value}${fallback}`,
    ...wrap(`${flag.description}.${aliases}`.replace("..", "."), INDENT),
  ];
}

/** Help of one command: examples first. */
export function commandHelp(command: Command, argv: readonly string[], flags: readonly Flag[]): string {
  const lines = [
    ...command.examples(argv).map((example) => `  $ ${example}`),
    "",
    `${command.summary[0]!.toUpperCase()}${command.summary.slice(1)}.`,
    "",
    `usage: rlv ${command.usage} [flags]`,
    ...(command.notes?.(argv) ?? []),
  ];
  if (flags.length > 0)
    lines.push("", "flags (--a_b or --a-b, --flag value or --flag=value):", ...flags.flatMap(flagLines));
  return `${lines.join("\n")}\n`;
}

/** Help of the program: the first job first. */
export function programHelp(
  version: string,
  commands: readonly { usage: string; summary: string }[],
): string {
  const width = Math.max(...commands.map((command) => command.usage.length));
  return `${[
    "  $ rlv train        teach the model inside rlv arithmetic by reinforcement, in about two minutes",
    "  $ rlv chat         talk to a model",
    "",
    `rlv ${version} trains small language models by reinforcement on this machine.`,
    "",
    "commands:",
    ...commands.map((command) => `  ${command.usage.padEnd(width)}  ${command.summary}`),
    "",
    "rlv COMMAND --help shows its flags. Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 diverged,",
    "130 interrupted after saving.",
  ].join("\n")}\n`;
}
