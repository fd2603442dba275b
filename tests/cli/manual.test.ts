import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { COMMANDS } from "../../src/cli/commands.ts";
import { manualPage, roff } from "../../src/cli/manual.ts";
import { ENVIRONMENT } from "../../src/core/env.ts";

const page = await manualPage(1_700_000_000);

/** The page as a program that shows pages understands it. */
function shown(command: readonly string[], env: Record<string, string> = {}): { text: string; said: string } {
  const folder = mkdtempSync(join(tmpdir(), "rlv-manual-"));
  try {
    const path = join(folder, "rlv.1");
    writeFileSync(path, page);
    const { stdout, stderr, exitCode } = Bun.spawnSync([...command, path], {
      env: { ...process.env, MANWIDTH: "300", LC_ALL: "C.UTF-8", ...env },
    });
    return { text: stdout.toString(), said: `${exitCode === 0 ? "" : `code ${exitCode} `}${stderr}` };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

test("roff: neither escapes nor requests in what texts say", () => {
  expect(roff(".a\n'b\\c -1 é")).toBe("\\&.a\n\\&'b\\ec \\-1 \\[u00E9]");
});

test("every command, every flag and every variable of the environment is there", async () => {
  for (const name of Object.keys(ENVIRONMENT)) expect(page).toContain(`\\fB${name}\\fR`);
  for (const [name, { load }] of Object.entries(COMMANDS)) {
    const { command } = await load();
    expect(page).toContain(`.SS \\fB${roff(`rlv ${name}`)}`);
    for (const word of ["", ...(command.completes?.words ?? [])])
      for (const flag of command.flags(word === "" ? [] : [word]))
        expect(page).toContain(`\\fB${roff(`--${flag.name}`)}\\fR`);
  }
  expect(page).toStartWith(".TH RLV 1 2023-11-14 ");
});

for (const [program, ...flags] of [
  ["mandoc", "-T", "lint", "-W", "warning"],
  ["man", "--warnings", "-E", "UTF-8", "-l"],
]) {
  const absent = Bun.which(program!) === null || (program === "man" && process.platform === "darwin");
  if (absent) process.stdout.write(`skip the manual in ${program}: it is not installed\n`);
  test.skipIf(absent)(`${program} finds nothing wrong with it`, () => {
    const { text, said } = shown([program!, ...flags], { MANPAGER: "cat", PAGER: "cat" });
    expect(said).toBe("");
    if (program === "mandoc") expect(text).toBe("");
    else expect(text).toContain("--learning_rate");
  });
}
