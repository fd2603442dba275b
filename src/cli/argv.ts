import cac from "cac";
import { didYouMean } from "../config/suggest.ts";
import { UsageError } from "../core/errors.ts";
import type { Command, Flag, Invocation } from "./command.ts";

/**
 * The command line is normalised before cac sees it. cac by itself turns 007 into 7 and 1e5 into 100000, refuses
 * `--eval_steps -1`, tells --a_b from --a-b and lets unknown flags pass. Here every flag becomes `--name==value`:
 * cac splits at the first `=`, and what begins with `=` is no number, so values arrive as they were typed.
 */

export type Token = { readonly flag: string; readonly value: string } | { readonly arg: string };

const MARK = "=";
const BUILT_IN: readonly Flag[] = [
  {
    name: "help",
    aliases: ["h"],
    boolean: true,
    value: "",
    description: "show this help",
    fallback: undefined,
  },
];

/** A next word that is a value although it begins with a dash: a negative number, or `-` for a stream. */
function isValue(word: string): boolean {
  return !word.startsWith("-") || word === "-" || /^-(\d|\.\d)/.test(word);
}

/** Takes argv apart by a table of flags; unknown, doubled and value-less flags are usage errors. */
export function tokenize(argv: readonly string[], flags: readonly Flag[], command: string): Token[] {
  const byName = new Map<string, Flag>();
  for (const flag of [...flags, ...BUILT_IN])
    for (const name of [flag.name, ...flag.aliases]) byName.set(name, flag);
  const tokens: Token[] = [];
  const seen = new Set<string>();
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i]!;
    if (word === "--") {
      tokens.push(...argv.slice(i + 1).map((arg) => ({ arg })));
      break;
    }
    if (isValue(word)) {
      tokens.push({ arg: word });
      continue;
    }
    const [, dashes, written, given] = /^(--?)([^=]*)(?:=(.*))?$/s.exec(word)!;
    const name = written!.replaceAll("-", "_");
    let flag = byName.get(name);
    let value = given;
    if (flag === undefined && name.startsWith("no_") && value === undefined) {
      const negated = byName.get(name.slice(3));
      if (negated?.boolean) {
        flag = negated;
        value = "false";
      }
    }
    if (flag === undefined || (dashes === "-" && written!.length > 1))
      throw new UsageError(
        `unknown flag ${word.split("=")[0]}`,
        `rlv ${command}`.trim(),
        didYouMean(
          name,
          [...byName.keys()].filter((known) => known.length > 1),
          `rlv ${command} --help lists the flags`.replace("  ", " "),
          "--",
        ),
      );
    if (flag.pairs) {
      const words = value === undefined ? [] : [value];
      while (/^[\w-]+=/.test(argv[i + 1] ?? "") && isValue(argv[i + 1]!)) words.push(argv[++i]!);
      if (words.length === 0)
        throw new UsageError(
          `--${flag.name} needs a value`,
          `rlv ${command}`.trim(),
          `write --${flag.name} ${flag.value}`,
        );
      const before = tokens.findIndex((token) => "flag" in token && token.flag === flag.name);
      const earlier = before < 0 ? [] : [(tokens.splice(before, 1)[0] as { value: string }).value];
      tokens.push({ flag: flag.name, value: [...earlier, ...words].join("\n") });
      continue;
    }
    if (seen.has(flag.name))
      throw new UsageError(`--${flag.name} is given twice`, `rlv ${command}`.trim(), "keep one of them");
    seen.add(flag.name);
    const next = argv[i + 1];
    if (value === undefined && flag.boolean) {
      value = next === "true" || next === "false" ? next : "true";
      if (value === next) i += 1;
    } else if (value === undefined) {
      if (next === undefined || !isValue(next))
        throw new UsageError(
          `--${flag.name} needs a value`,
          `rlv ${command}`.trim(),
          `write --${flag.name} ${flag.value}, or --${flag.name}=${flag.value} if it begins with a dash`,
        );
      value = next;
      i += 1;
    }
    tokens.push({ flag: flag.name, value });
  }
  return tokens;
}

/** What cac gets: the command, the arguments, every flag as `--name==value`. */
export function protect(command: string, tokens: readonly Token[]): string[] {
  const args = tokens.flatMap((token) => ("arg" in token ? [token.arg] : []));
  const flags = tokens.flatMap((token) => ("flag" in token ? [`--${token.flag}=${MARK}${token.value}`] : []));
  return ["", "", command, ...flags, "--", ...args];
}

/** Parses the words after the command's name. */
export function parse(command: Command, argv: readonly string[], flags: readonly Flag[]): Invocation {
  const tokens = tokenize(argv, flags, command.name);
  const cli = cac("rlv");
  const known = cli.command(command.name, command.summary);
  for (const flag of [...flags, ...BUILT_IN]) known.option(`--${flag.name} <value>`, flag.description);
  const { options } = cli.parse(protect(command.name, tokens), { run: false });
  const args = (options["--"] ?? []) as string[];
  const values = new Map<string, string>();
  for (const flag of [...flags, ...BUILT_IN]) {
    const value: unknown = options[flag.name];
    if (typeof value === "string") values.set(flag.name, value.slice(MARK.length));
  }
  const switchOf = (name: string): boolean => {
    const value = values.get(name);
    values.delete(name);
    if (value !== undefined && value !== "true" && value !== "false")
      throw new UsageError(
        `--${name} expects true or false, given ${JSON.stringify(value)}`,
        `rlv ${command.name}`,
      );
    return value === "true";
  };
  values.delete("help");
  const json = switchOf("json");
  if (args.length > command.maxArgs)
    throw new UsageError(
      `unexpected argument ${JSON.stringify(args[command.maxArgs])}`,
      `rlv ${command.name}`,
      `usage: rlv ${command.usage}`,
    );
  return { args, flags: values, json };
}
