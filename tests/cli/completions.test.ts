/** What completes command lines, asked directly and by the shells themselves. */
import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { COMMANDS } from "../../src/cli/commands.ts";
import { complete, FILES } from "../../src/cli/complete.ts";
import { completionScript, SHELLS } from "../../src/cli/completion-scripts.ts";
import { RECIPE_NAMES } from "../../src/config/recipes.ts";
import { KEYS, Pty } from "../pty.ts";

const MAIN = resolve(import.meta.dir, "../../src/cli/main.ts");
const scratch = mkdtempSync(join(tmpdir(), "rlv-completions-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Candidates alone. */
async function words(line: string): Promise<string[]> {
  const typed = line.split(" ").slice(1);
  return (await complete(typed)).map((each) => each.split("\t")[0]!);
}

describe("complete", () => {
  test("commands, with what they do", async () => {
    expect(await words("rlv ")).toEqual(Object.keys(COMMANDS));
    expect(await complete(["do"])).toEqual([
      "download\tfetch a model or a dataset from the hub",
      "doctor\tcheck this machine and this installation",
    ]);
    expect(await words("rlv help tr")).toEqual(["train"]);
    expect(await words("rlv nonsense ")).toEqual([]);
  });

  test("every flag of every command is the one that its help lists", async () => {
    for (const [name, { load }] of Object.entries(COMMANDS)) {
      const flags = (await load()).command.flags([]).map((flag) => `--${flag.name}`);
      expect(await words(`rlv ${name} -`)).toEqual(flags);
    }
  });

  test("flags of the recipe, the bench and the action on the line; none twice", async () => {
    expect(await words("rlv train values --rub")).toEqual(["--rubric"]);
    expect(await words("rlv train sft --rub")).toEqual([]);
    expect(await words("rlv bench decode --batch")).not.toEqual(await words("rlv bench --batch"));
    expect(await words("rlv runs prune --keep_l")).toEqual(["--keep_last"]);
    expect(await words("rlv train --seed 3 --see")).toEqual([]);
    expect(await words("rlv train --seed=3 --see")).toEqual([]);
  });

  test("values: choices, booleans, nothing for numbers, files otherwise", async () => {
    expect(await words("rlv train --device ")).toEqual(["auto", "cpu", "metal", "soft"]);
    expect(await words("rlv train --device=m")).toEqual(["--device=metal"]);
    expect(await words("rlv train --optimizer-dtype b")).toEqual(["bfloat16"]);
    expect(await words("rlv train --seed ")).toEqual([]);
    expect(await words("rlv train --model ")).toEqual([FILES]);
    expect(await words("rlv train --ui f")).toEqual(["false", FILES]);
  });

  test("arguments: recipes and files, and no more than the command takes", async () => {
    expect(await words("rlv train ")).toEqual([...RECIPE_NAMES, FILES]);
    expect(await words("rlv train --seed 3 hh")).toEqual(["hh-rm", "hh-grpo", FILES]);
    expect(await words("rlv train sft ")).toEqual([]);
    expect(await words("rlv completions ")).toEqual([...SHELLS]);
    expect(await words("rlv doctor ")).toEqual([]);
  });
});

// The shells find this `rlv`: it completes as the program does, and otherwise says what it was called with.
const bin = join(scratch, "bin");
mkdirSync(bin);
mkdirSync(join(scratch, "work"));
writeFileSync(join(scratch, "work/my prompts.jsonl"), "");
writeFileSync(join(scratch, "work/jobs.yaml"), "");
writeFileSync(
  join(bin, "rlv"),
  `#!/bin/sh
if [ "$1" = __complete ]; then exec '${process.execPath}' '${MAIN}' "$@"; fi
printf 'RAN'; printf ' <%s>' "$@"; echo
`,
);
chmodSync(join(bin, "rlv"), 0o755);
for (const shell of SHELLS) writeFileSync(join(scratch, shell), completionScript(shell));

const START: Readonly<Record<(typeof SHELLS)[number], readonly string[]>> = {
  bash: ["bash", "--norc", "--noprofile", "-i"],
  zsh: ["zsh", "-f", "-i"],
  fish: ["fish", "--no-config", "-i"],
};
const SETUP: Readonly<Record<(typeof SHELLS)[number], string>> = {
  bash: `PS1='> '; bind 'set enable-bracketed-paste off'; . ${scratch}/bash`,
  zsh: `PS1='> '; autoload -U compinit; compinit -u -D; . ${scratch}/zsh`,
  fish: `function fish_prompt; echo '> '; end; source ${scratch}/fish`,
};

describe.each([...SHELLS])("%s", (shell) => {
  const absent = Bun.which(shell) === null;
  if (absent) process.stdout.write(`skip completions in ${shell}: it is not installed\n`);

  test.skipIf(absent)("completes commands, flags, values and files", async () => {
    await using pty = new Pty(START[shell], {
      cwd: join(scratch, "work"),
      env: { PATH: `${bin}:/usr/bin:/bin`, HOME: scratch, PS1: "> " },
    });
    pty.write(`${SETUP[shell]}; echo rea''dy\r`);
    await pty.waitFor("ready");
    const lines: [typed: string, added: string, ran: string][] = [
      [`rlv doct${KEYS.tab}`, "or", "<doctor>"],
      [`rlv train values --rubr${KEYS.tab}x`, "ic", "<train> <values> <--rubric> <x>"],
      [`rlv train --device me${KEYS.tab}`, "tal", "<train> <--device> <metal>"],
      [`rlv train --device=me${KEYS.tab}`, "tal", "<train> <--device=metal>"],
      [`rlv train jo${KEYS.tab}`, "bs.yaml", "<train> <jobs.yaml>"],
      [`rlv generate --in my${KEYS.tab}`, ".jsonl", "<generate> <--in> <my prompts.jsonl>"],
    ];
    for (const [typed, added, ran] of lines) {
      const [before, after = ""] = typed.split(KEYS.tab);
      pty.write(`${before}${KEYS.tab}`);
      await pty.waitFor(added);
      pty.write(`${after}\r`);
      // What counts is what the program is called with.
      const said = await pty.waitFor(/RAN .*\n/);
      expect(said.slice(said.lastIndexOf("RAN")).trim()).toBe(`RAN ${ran}`);
    }
  });
});
