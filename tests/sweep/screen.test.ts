/** What a sweep shows: a table that keeps to its terminal, lines elsewhere. And what a pool does with memory. */
import { expect, test } from "bun:test";
import { SweepScreen } from "../../src/cli/sweep-text.ts";
import { planSweep } from "../../src/sweep/plan.ts";
import { type PoolWork, runPool, secondsLeft, sweepSecondsLeft, viewsOf } from "../../src/sweep/pool.ts";
import { readRequest } from "../../src/sweep/request.ts";

const plan = planSweep(readRequest("stories", ["seed=1,2,3,4,5,6"], ["max_steps=10"]), null, null);
const todos = (todo: "start" | "nothing") => plan.runs.map((run) => [run, todo] as const);

const ESC = String.fromCharCode(27);
/** So many lines up, all below cleared, then text. */
const REDRAW = new RegExp(`^(?:\\r${ESC}\\[(\\d+)A)?(?:${ESC}\\[J)?(.*)$`, "s");

/** A terminal: what the last screen shows. */
function terminal(columns: number, rows: number) {
  const lines: string[] = [];
  return {
    ...{ isTTY: true, columns, rows, lines },
    write(text: string) {
      const [, up, rest] = REDRAW.exec(text)!;
      if (up !== undefined) lines.splice(lines.length - Number(up));
      lines.push(...rest!.split("\n").slice(0, -1));
    },
  };
}

test("the table is redrawn in its place, within width and height; each note once", () => {
  const views = viewsOf(todos("start"));
  const out = terminal(50, 8);
  const screen = new SweepScreen(out, views, 2);
  Object.assign(views[4]!, { state: "running", step: 3, steps: 10, reward: 0.5 });
  views[4]!.began = { time: performance.now() - 3000, step: 0 };
  Object.assign(views[5]!, { state: "failed", error: `planted ${"x".repeat(300)}` });
  screen.changed(views[4]!, false);
  screen.line("a note");
  screen.line("a note");
  screen.changed(views[5]!, false);
  screen.close();
  expect(out.lines.filter((line) => line === "a note").length).toBe(1);
  const plain = out.lines.map((line) => Bun.stripANSI(line));
  expect(Math.max(...plain.map((line) => Bun.stringWidth(line)))).toBeLessThanOrEqual(50);
  // The note, four runs of six, how many are left out, the totals.
  expect(plain.length).toBe(7);
  expect(plain[1]).toMatch(/s5 +running +3\/10 reward 0\.5/);
  expect(plain[2]).toMatch(/s6 +failed +planted x+…$/);
  expect(plain.at(-1)).toStartWith("6 runs: 1 running, 1 failed, 4 waiting");
});

test("time left: at a run's own speed; of all, at the mean speed and as many at once", () => {
  const views = viewsOf(todos("start")).slice(0, 3);
  expect(secondsLeft(views[0]!, 5000)).toBeNull();
  expect(sweepSecondsLeft(views, 2, 5000)).toBeNull();
  Object.assign(views[0]!, { state: "running", step: 5, began: { time: 1000, step: 1 } });
  expect(secondsLeft(views[0]!, 5000)).toBe(5);
  // 5 + 10 + 10 steps at a second each, two at once.
  expect(sweepSecondsLeft(views, 2, 5000)).toBe(12.5);
});

test("a pool keeps to its number and to memory, starts one alone to learn its plan, and outlives failures", async () => {
  const most = async (memory: number | null, atOnce: number) => {
    const views = viewsOf(todos("start"));
    let [running, peak, started] = [0, 0, 0];
    const alone: number[] = [];
    const work: PoolWork = {
      async train(run, _resume, _threads, progress) {
        running += 1;
        started += 1;
        peak = Math.max(peak, running);
        await Bun.sleep(2);
        alone.push(started);
        progress.show({
          type: "plan",
          bytes: { weights: 350e6 },
          totalSteps: 10,
          startStep: 0,
          lines: [],
        });
        await Bun.sleep(4);
        running -= 1;
        if (run.index === 1) throw new Error("planted");
        return { exitCode: run.index === 2 ? 3 : 0, done: undefined, failure: undefined };
      },
      evaluate: async () => null,
    };
    const screen = { changed: () => {}, line: () => {} };
    const options = { atOnce, memory, threads: 1, evaluate: false };
    expect(await runPool(todos("start"), views, work, screen, options)).toBe(false);
    expect(views.map(({ state }) => state)).toEqual([
      ...(["finished", "failed", "diverged", "finished", "finished", "finished"] as const),
    ]);
    return { peak, alone: alone[0] };
  };
  expect(await most(null, 3)).toMatchObject({ peak: 3 });
  // 350 MB and 150 MB for the process: two fit into 1.1 GB.
  expect(await most(1.1e9, 6)).toEqual({ peak: 2, alone: 1 });
  expect(await most(1e6, 6)).toEqual({ peak: 1, alone: 1 });
});
