import { describe, expect, test } from "bun:test";
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { keysOf } from "../../src/cli/keys.ts";
import { fit, listLines, span } from "../../src/cli/runs-text.ts";
import { takeLock } from "../../src/io/run-lock.ts";
import { listRuns } from "../../src/report/runs.ts";
import { TemporaryFolder } from "../io/temporary.ts";
import { KEYS, Pty } from "../pty.ts";
import { makeRun, steps } from "../report/fixture.ts";
import { rlv } from "../run/program.ts";

/** Three runs: one live in this process. */
function three(root: string): Disposable {
  makeRun(root, "alpha", {
    rows: steps(40),
    checkpoints: ["step-10", "step-20", "step-30", "final"],
    outcome: 0,
  });
  makeRun(root, "beta", {
    recipe: "sft",
    rows: steps(5).map((row) => ({ ...row, time: row.time + 500 })),
    outcome: 1,
  });
  const gamma = makeRun(root, "gamma", { checkpoints: ["step-1", "step-2"] });
  const lock = takeLock(gamma);
  if (typeof lock === "number") throw new Error("held");
  return { [Symbol.dispose]: () => lock.release() };
}

const json = async (args: readonly string[]) => {
  const { code, out, err } = await rlv(["runs", ...args, "--json"]);
  return { code, err, result: out === "" ? null : JSON.parse(out) };
};

describe("rlv runs, by command", () => {
  test("list and show: as lines and as one JSON object", async () => {
    using at = new TemporaryFolder();
    using _ = three(at.path);
    const dir = ["--dir", at.path];
    const { result } = await json(["list", ...dir]);
    expect(result.runs.map((run: { name: string; state: string }) => [run.name, run.state])).toEqual([
      ["gamma", "live"],
      ["beta", "crashed"],
      ["alpha", "finished"],
    ]);
    expect((await json(["list", ...dir, "--state", "crashed"])).result.runs.length).toBe(1);
    // Without a terminal and without an action: the list.
    const plain = await rlv(["runs", ...dir]);
    expect([plain.code, plain.out.split("\n").length]).toEqual([0, 5]);
    expect(plain.out).toContain("reward_mean 1");
    const shown = await rlv(["runs", "show", "alpha", ...dir, "--metric", "train/loss"]);
    expect(shown.out).toMatch(/train\/loss {2}█.*▁ {2}-39 … 0, last -39/);
    expect(shown.out).toContain("step-20");
    const { result: run } = await json(["show", join(at.path, "alpha")]);
    expect(run).toMatchObject({ state: "finished", last: { "train/reward_mean": 1 } });
    expect(run.curve.values.length).toBe(40);
    expect((await rlv(["runs", "show", "alpha", ...dir, "--metric", "train/los"])).err).toContain(
      "train/loss",
    );
  });

  test("rename, tag, rm, prune, export; exit code 2 with a remedy where they cannot", async () => {
    using at = new TemporaryFolder();
    using _ = three(at.path);
    const dir = ["--dir", at.path];
    expect((await json(["tag", "alpha", "--add", "a,b", ...dir])).result).toEqual({
      run: "alpha",
      tags: ["a", "b"],
    });
    expect((await json(["rename", "alpha", "delta", ...dir])).result.dir).toBe(at.file("delta"));
    const held = await json(["rm", "gamma", "--yes", ...dir]);
    expect(held.code).toBe(2);
    expect(held.err).toMatch(/cannot delete: the run is live/);
    const unasked = await json(["rm", "beta", ...dir]);
    expect(unasked.code).toBe(2);
    expect(unasked.err).toMatch(/nobody to ask.*--yes/);
    const dry = await json(["prune", "--all", "--dry_run", ...dir]);
    expect(dry.result).toMatchObject({ dry_run: true, runs: [{ run: "delta" }] });
    expect(readdirSync(at.file("delta/checkpoints")).length).toBe(4);
    const pruned = await json(["prune", "delta", "--keep_last", "0", "--yes", ...dir]);
    expect(pruned.result.bytes).toBeGreaterThan(3000);
    expect(readdirSync(at.file("delta/checkpoints"))).toEqual(["final"]);
    expect((await json(["prune", ...dir])).err).toMatch(/no runs named.*--all/);
    expect((await json(["rm", "beta", "--yes", ...dir])).result.removed).toEqual([at.file("beta")]);
    expect((await json(["export", "delta", "--out", at.file("out"), ...dir])).result.checkpoint).toBe(
      "final",
    );
    expect((await rlv(["runs", "lst"])).err).toMatch(/unknown action "lst".*list/);
    expect((await rlv(["runs", "rename", "delta", ...dir])).code).toBe(2);
    expect((await json(["list", "--dir", at.file("nowhere")])).result).toEqual({ runs: [] });
    expect((await rlv(["runs", "prune", "--help"])).out).toContain("--keep_every");
  });
});

describe("rlv runs on a terminal", () => {
  test("list, inspect, rename, tag, filter, prune and delete by keys; the screen before comes back", async () => {
    using at = new TemporaryFolder();
    using _ = three(at.path);
    await using screen = Pty.rlv(["runs", "--dir", at.path], { env: { NO_COLOR: "1" }, cwd: at.path });
    await screen.waitFor(/> gamma .*live[\s\S]*quit/);
    // A live run keeps its name.
    screen.write("r");
    await screen.waitFor("new name: gamma");
    screen.write(`x${KEYS.enter}`);
    await screen.waitFor("the run is live");
    screen.write(KEYS.down + KEYS.down);
    await screen.waitFor("> alpha");
    screen.write(KEYS.enter);
    await screen.waitFor(/train\/reward_mean {2}▁.*█/);
    await screen.waitFor("esc back");
    screen.write(KEYS.right);
    await screen.waitFor(/train\/loss {2}█.*▁/);
    screen.write(`t${"paper best"}${KEYS.enter}`);
    await screen.waitFor("tagged");
    screen.write(KEYS.escape);
    await screen.waitFor("#best #paper");
    screen.write(`r\x15omega${KEYS.enter}`);
    await screen.waitFor("renamed to omega");
    screen.write("p");
    await screen.waitFor("keep how many");
    screen.write(KEYS.enter);
    await screen.waitFor(/remove +step-10[\s\S]*remove 2 checkpoints\? \[y\/N\]/);
    screen.write("n");
    await screen.waitFor("nothing was done");
    expect(readdirSync(at.file("omega/checkpoints")).length).toBe(4);
    screen.write(`p${KEYS.enter}`);
    await screen.waitFor("[y/N]");
    screen.write("y");
    await screen.waitFor("removed 2 checkpoints");
    expect(readdirSync(at.file("omega/checkpoints")).sort()).toEqual(["final", "step-30"]);
    screen.write("/bet");
    await screen.waitFor("filter: bet");
    screen.write(KEYS.enter);
    await screen.waitFor("> beta");
    screen.write("d");
    await screen.waitFor(/delete beta .*\[y\/N\]/);
    screen.write("y");
    await screen.waitFor("deleted beta");
    expect(existsSync(at.file("beta"))).toBe(false);
    screen.write(KEYS.escape);
    await screen.waitFor("> ");
    screen.write("q");
    expect(await screen.exit()).toBe(0);
    expect(screen.raw).toEndWith("\x1b[?25h\x1b[?1049l");
    expect(readdirSync(at.path).sort()).toEqual(["gamma", "omega"]);
  }, 60_000);

  test("follows a live run, fits a small window, and Ctrl-C leaves it", async () => {
    using at = new TemporaryFolder();
    using _ = three(at.path);
    await using screen = Pty.rlv(["runs", "--dir", at.path], { cols: 40, rows: 8 });
    await screen.waitFor("gamma");
    screen.write(KEYS.enter);
    await screen.waitFor("gamma");
    screen.resize(100, 24);
    writeFileSync(at.file("gamma/metrics.jsonl"), '{"step":7,"time":1,"train/reward_mean":0.125}\n');
    await screen.waitFor("last 0.125");
    screen.write(KEYS.ctrlC);
    expect(await screen.exit()).toBe(0);
    expect(screen.raw).toEndWith("\x1b[?1049l");
  }, 60_000);
});

describe("lines", () => {
  test("no line is wider than asked, whatever a folder is called", () => {
    using at = new TemporaryFolder();
    makeRun(at.path, "日本語の名前".repeat(10), { rows: steps(1) });
    makeRun(at.path, "ctl\x1b[2J\nname");
    for (const width of [20, 40, 100])
      for (const line of listLines(listRuns([at.path]), 2000, width)) {
        expect(Bun.stringWidth(line)).toBeLessThanOrEqual(width);
        // biome-ignore lint/suspicious/noControlCharactersInRegex: they must not be there
        expect(line).not.toMatch(/[\x00-\x1f]/);
      }
    expect(fit("abcdef", 4)).toBe("abc…");
    expect([span(3), span(90), span(7200), span(200_000)]).toEqual(["3 s", "1 min", "2 h", "2 d"]);
  });

  test("keys: sequences, controls and runs of text", () => {
    expect(keysOf("ab\x1b[A\x1bOB\r\x7fü\x03\x1b[200~\x1b")).toEqual([
      { text: "ab" },
      "up",
      "down",
      "enter",
      "backspace",
      { text: "ü" },
      "ctrl-c",
      "escape",
    ]);
  });
});
