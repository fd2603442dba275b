/**
 * Writes docs/reference.md from the tables of --help: every command, recipe, flag, reward, detector and variable.
 *
 *   bun scripts/reference.ts [--check true]
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Flag } from "../src/cli/command.ts";
import { COMMANDS } from "../src/cli/commands.ts";
import { detectorHelp } from "../src/config/detectors.ts";
import { RECIPE_NAMES, RECIPES } from "../src/config/recipes.ts";
import { rewardHelp } from "../src/config/rewards.ts";
import { ENVIRONMENT } from "../src/core/env.ts";

export const PATH = join(resolve(import.meta.dir, ".."), "docs/reference.md");

const piped = (text: string) => text.replaceAll("|", "\\|");
const escaped = (text: string) => piped(text).replaceAll("<", "&lt;");

function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  return [head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`);
}

function flagTable(flags: readonly Flag[]): string[] {
  const rows = flags.map(({ name, value, aliases, fallback, description }) => {
    const also = aliases.length === 0 ? "" : ` Also ${aliases.map((each) => `\`--${each}\``).join(", ")}.`;
    const term = `\`--${name}${value === "" ? "" : ` ${piped(value)}`}\``;
    const known =
      fallback === undefined ? "" : fallback === "required" ? "required" : `\`${piped(fallback)}\``;
    return [term, known, `${escaped(description.replace(/\.$/, ""))}.${also}`];
  });
  return table(["flag", "default", "meaning"], rows);
}

const shell = (lines: readonly string[]) => ["```text", ...lines, "```"];

async function commandText(name: string): Promise<string[]> {
  const { command } = await COMMANDS[name]!.load();
  const head = [
    `## rlv ${name}`,
    "",
    `${command.summary[0]!.toUpperCase()}${command.summary.slice(1)}.`,
    "",
    ...shell([`rlv ${command.usage}`, "", ...command.examples([])]),
  ];
  if (name !== "train") {
    const words = command.completes?.words ?? [];
    const known = new Set(command.flags([]).map((flag) => flag.name));
    const own = words.flatMap((word) => {
      const flags = command.flags([word]).filter((flag) => !known.has(flag.name));
      return flags.length === 0 ? [] : ["", `### rlv ${name} ${word}`, "", ...flagTable(flags)];
    });
    const flags = command.flags([]);
    return [...head, ...(flags.length === 0 ? [] : ["", ...flagTable(flags)]), ...own, ""];
  }
  const recipes = RECIPE_NAMES.flatMap((recipe) => [
    "",
    `### rlv train ${recipe}`,
    "",
    `${RECIPES[recipe].summary[0]!.toUpperCase()}${RECIPES[recipe].summary.slice(1)}.`,
    "",
    ...flagTable(command.flags([recipe])),
  ]);
  return [...head, ...recipes, ""];
}

const listed = (each: readonly { readonly name: string; readonly text: string }[]) =>
  table(
    ["name", "meaning"],
    each.map(({ name, text }) => [`\`${name}\``, escaped(text)]),
  );

export async function referenceText(): Promise<string> {
  const commands: string[] = [];
  for (const name of Object.keys(COMMANDS)) commands.push(...(await commandText(name)));
  const variables = Object.entries(ENVIRONMENT).map(([name, meaning]) => [
    `\`${name}\``,
    `${escaped(meaning)}.`,
  ]);
  return `${[
    "# Reference",
    "",
    "Made by `scripts/reference.ts` from the schemas that the program itself checks by. Flags are written `--a_b` or `--a-b`,",
    "`--flag value` or `--flag=value`; a boolean may stand alone, `--no_flag` is `--flag=false`. Every key of a recipe may stand",
    "in a YAML or JSON file.",
    "",
    ...commands,
    "## Rewards",
    "",
    "All take the parameter `timeout`, seconds of a call.",
    "",
    ...listed(rewardHelp()),
    "",
    "## Detectors",
    "",
    ...listed(detectorHelp()),
    "",
    "## Environment",
    "",
    ...table(["variable", "meaning"], variables),
  ].join("\n")}\n`;
}

if (import.meta.main) {
  const text = await referenceText();
  if (process.argv.includes("--check")) {
    if (readFileSync(PATH, "utf8") === text) process.exit(0);
    process.stderr.write(
      "rlv: error: docs/reference.md is not what the schemas say: docs: run bun scripts/reference.ts\n",
    );
    process.exit(1);
  }
  writeFileSync(PATH, text);
}
