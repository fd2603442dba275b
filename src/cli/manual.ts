/** The page of the manual, rlv.1, from the tables of --help: commands, their flags, the environment. */
import { RECIPE_NAMES, RECIPES } from "../config/recipes.ts";
import { ENVIRONMENT } from "../core/env.ts";
import { VERSION } from "../core/version.ts";
import type { Flag } from "./command.ts";
import { COMMANDS } from "./commands.ts";

/** Text for roff: no escapes, no requests, hyphens that can be searched for, and ASCII alone. */
export function roff(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replace(
      /[^\n -~]/gu,
      (letter) => `\\[u${letter.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}]`,
    )
    .replace(/^(?=[.'])/gm, "\\&");
}

const bold = (text: string) => `\\fB${roff(text)}\\fR`;
const italic = (text: string) => `\\fI${roff(text)}\\fR`;

const defined = (term: string, text: string): string[] => [".TP", term, roff(text)];

function flagLines(flag: Flag): string[] {
  const { name, aliases, value, description, fallback } = flag;
  const known = fallback === undefined || fallback === "required" ? "" : ` [${fallback}]`;
  const also = aliases.length === 0 ? "" : ` Also ${aliases.map((each) => `--${each}`).join(", ")}.`;
  const needed = fallback === "required" ? " Required." : "";
  const term = `${bold(`--${name}`)}${value === "" ? "" : ` ${italic(value)}`}${roff(known)}`;
  return defined(term, `${description.replace(/\.$/, "")}.${also}${needed}`);
}

const example = (lines: readonly string[]): string[] => [".PP", ".EX", ...lines.map(roff), ".EE"];

/** Flags of `words` behind a command beyond those that `shared` has with the same default. */
function beyond(flags: readonly Flag[], shared: readonly Flag[]): readonly Flag[] {
  const key = (flag: Flag) => JSON.stringify([flag.name, flag.fallback]);
  const known = new Set(shared.map(key));
  return flags.filter((flag) => !known.has(key(flag)));
}

async function commandLines(name: string): Promise<string[]> {
  const { command } = await COMMANDS[name]!.load();
  const flags = command.flags([]);
  const summary = `${command.summary[0]!.toUpperCase()}${command.summary.slice(1)}.`;
  const words = name === "train" ? RECIPE_NAMES : (command.completes?.words ?? []);
  const variants = words.flatMap((word) => {
    const own = beyond(command.flags([word]), flags);
    const said = name === "train" ? [roff(`${RECIPES[word as (typeof RECIPE_NAMES)[number]].summary}.`)] : [];
    if (own.length === 0 && said.length === 0) return [];
    return [".PP", `${bold(`rlv ${name} ${word}`)}:`, ...said, ...own.flatMap(flagLines)];
  });
  return [
    `.SS ${bold(`rlv ${command.usage}`)}`,
    roff(summary),
    ...example(command.examples([])),
    ...flags.flatMap(flagLines),
    ...variants,
  ];
}

const EXITS: readonly (readonly [code: string, meaning: string])[] = [
  ["0", "done"],
  ["1", "failed"],
  ["2", "bad usage or bad input"],
  ["3", "diverged: NaN or infinity in loss, gradient or weights"],
  ["130", "interrupted, after saving"],
];

/** @param seconds since 1970, the date of the page */
export async function manualPage(seconds: number): Promise<string> {
  const date = new Date(1000 * seconds).toISOString().slice(0, 10);
  const commands: string[] = [];
  for (const name of Object.keys(COMMANDS)) commands.push(...(await commandLines(name)));
  return `${[
    `.TH RLV 1 ${date} "rlv ${roff(VERSION)}"`,
    ".SH NAME",
    "rlv \\- train small language models by reinforcement on this machine",
    ".SH SYNOPSIS",
    `${bold("rlv")} ${italic("COMMAND")} [${italic("FLAGS")}]`,
    ".SH DESCRIPTION",
    roff("Flags are written --a_b or --a-b, and --flag value or --flag=value; defaults are in brackets."),
    roff("A boolean may stand alone; --no_flag is --flag=false. Results go to stdout, talk to stderr."),
    ".SH COMMANDS",
    ...commands,
    ".SH ENVIRONMENT",
    ...Object.entries(ENVIRONMENT).flatMap(([name, meaning]) => defined(bold(name), `${meaning}.`)),
    ".SH EXIT STATUS",
    ...EXITS.flatMap(([code, meaning]) => defined(bold(code), `${meaning}.`)),
  ].join("\n")}\n`;
}
