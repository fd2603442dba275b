/**
 * What may follow on a command line, for shells: the very tables that --help prints. A line of the answer is a word,
 * a tab and what it means; FILES asks the shell for its own names of files.
 */

import type { Command, Flag } from "./command.ts";
import { COMMANDS } from "./commands.ts";

export const FILES = ":files";

/** @param words those behind `rlv`, the last one unfinished, perhaps empty */
export async function complete(words: readonly string[]): Promise<string[]> {
  const current = words.at(-1) ?? "";
  const before = words.slice(0, -1);
  const [name, ...rest] = before;
  if (name === undefined) return matching(current, commandWords());
  if (name === "help") return rest.length === 0 ? matching(current, commandWords()) : [];
  const entry = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (entry === undefined) return [];
  const { command } = await entry.load();
  const flags = flagsOf(command, rest);
  const [, typed, value] = /^(--[^=]+)=(.*)$/s.exec(current) ?? [];
  if (typed !== undefined) {
    const flag = flagNamed(flags, typed);
    return flag === undefined ? [] : valuesOf(flag, value!, `${typed}=`);
  }
  const open = rest.at(-1);
  const asking = open?.startsWith("-") && !open.includes("=") ? flagNamed(flags, open) : undefined;
  // A boolean may stand alone, so other flags may follow it too.
  if (asking !== undefined && !asking.boolean) return valuesOf(asking, current, "");
  if (current.startsWith("-")) {
    const given = new Set(rest.map((word) => flagNamed(flags, word.split("=")[0]!)?.name));
    const left = flags.filter((flag) => !given.has(flag.name));
    return matching(
      current,
      left.map((flag) => [`--${flag.name}`, sentence(flag.description)] as const),
    );
  }
  return argumentsOf(command, flags, rest, current, asking);
}

type Candidate = readonly [word: string, meaning: string];

function matching(prefix: string, candidates: readonly Candidate[]): string[] {
  return candidates
    .filter(([word]) => word.startsWith(prefix))
    .map(([word, meaning]) => `${word}\t${meaning}`);
}

function commandWords(): Candidate[] {
  return Object.entries(COMMANDS).map(([name, { summary }]) => [name, summary]);
}

/** The line may be unfinished: what cannot be taken apart yet has the command's ordinary flags. */
function flagsOf(command: Command, words: readonly string[]): readonly Flag[] {
  const finished = words.at(-1)?.startsWith("-") ? words.slice(0, -1) : words;
  try {
    return command.flags(finished);
  } catch {
    return command.flags([]);
  }
}

function flagNamed(flags: readonly Flag[], word: string): Flag | undefined {
  if (!word.startsWith("--")) return undefined;
  const name = word.slice(2).replaceAll("-", "_");
  return flags.find((flag) => flag.name === name || flag.aliases.includes(name));
}

/** `float32|bfloat16` names its values; `N` and `X` are numbers; what is left may be a file. */
function valuesOf({ value, boolean }: Flag, prefix: string, ahead: string): string[] {
  const choices = boolean ? ["true", "false"] : /^[\w.-]+(\|[\w.-]+)+$/.test(value) ? value.split("|") : null;
  if (choices !== null) return choices.filter((each) => each.startsWith(prefix)).map((each) => ahead + each);
  return /^[NX]$/.test(value) ? [] : [FILES];
}

function argumentsOf(
  command: Command,
  flags: readonly Flag[],
  rest: readonly string[],
  current: string,
  open: Flag | undefined,
): string[] {
  // Words behind flags that take a value are not arguments.
  let taken = 0;
  for (let i = 0; i < rest.length; i++) {
    const flag = flagNamed(flags, rest[i]!);
    if (flag !== undefined && !flag.boolean) i += 1;
    else if (!rest[i]!.startsWith("-")) taken += 1;
  }
  const { words = [], files = false } = command.completes ?? {};
  return [
    ...(open === undefined ? [] : ["true", "false"].filter((each) => each.startsWith(current))),
    ...(taken === 0 ? words.filter((word) => word.startsWith(current)) : []),
    ...(files && taken < command.maxArgs ? [FILES] : []),
  ];
}

const sentence = (text: string) => text.split(/[\n\t]/)[0]!;
