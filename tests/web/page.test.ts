/**
 * The page in a real Chromium, on the server as `rlv serve` starts it. Pictures of every view, light, dark and as a
 * phone shows it, are written to RLV_SCREENSHOTS (build/screenshots).
 *
 * Runs alone: it measures the time of frames.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { makeRuns } from "../../scripts/make-runs.ts";
import { RolloutsDb } from "../../src/io/rollouts-db.ts";
import { servePage } from "../../src/web/serve.ts";
import { type Browser, browserProgram, type Page, startBrowser } from "./browser.ts";
import { makeSweep } from "./sweep-world.ts";

const root = resolve(import.meta.dir, "../..");
const bun = process.execPath;
const program = [bun, join(root, "src/cli/main.ts")];
const pictures = process.env.RLV_SCREENSHOTS || join(root, "build/screenshots");
const chromium = browserProgram();
if (chromium === null) process.stderr.write("skip tests/web/page: no chromium: apt install chromium\n");

const STEPS = 60;
const GROUP = 4;
/** Text that would run if the page took it for anything but text. */
const HOSTILE = `</script><script>window.__x = 1</script><img src=x onerror="window.__x = 1">\u202eabc\u0007`;
const PROBABILITIES = [0.05, 0.1, 0.15, 0.5, 0.2];

function metricLine(step: number, reward: number): string {
  const row = {
    ...{ step, time: 1_790_000_000 + 2 * step, examples: 8 * step },
    "train/reward_mean": reward,
    "train/reward_std": 0.3,
    "train/loss": -reward,
    "train/kl_div": 0.01 * step,
    "train/entropy": 1 / step,
    "train/completion_length_avg": 12 + (step % 5),
    "train/tokens_per_second": 2000 + 10 * step,
    "train/step_time": 2,
    "train/rollout_time": 1.1,
    "train/train_time": 0.7,
    "device/peak_bytes": 5e8,
    "train/rewards/rubric/scrutiny": 0.7 * reward,
    "train/rewards/format": 0.3 * reward,
    ...(step % 10 === 0 ? { "eval/reward": reward } : {}),
  };
  return `${JSON.stringify(row)}\n`;
}

/** A run folder as training leaves it. */
function writeRun(dir: string, slope: number, settings: object): void {
  mkdirSync(join(dir, "checkpoints"), { recursive: true });
  const config = {
    rlv_version: "0.1.0",
    recipe: "arithmetic",
    model_name: "builtin:arithmetic",
    num_train_steps: 100,
    ...settings,
  };
  writeFileSync(join(dir, "train_config.json"), JSON.stringify(config));
  writeFileSync(
    join(dir, "train.log"),
    "model builtin:arithmetic\nloss grpo = -A * ratio\nstep 1/100  reward 0\n",
  );
  const lines = Array.from({ length: STEPS }, (_, i) => metricLine(i + 1, Math.min(1, slope * (i + 1))));
  writeFileSync(join(dir, "metrics.jsonl"), lines.join(""));
}

/** Rollout 1 of every group says something hostile, rollout 2 has a needle at step 7. */
function writeRollouts(dir: string): void {
  using rollouts = new RolloutsDb(join(dir, "rollouts.sqlite"));
  for (let step = 1; step <= STEPS; step++)
    for (let r = 0; r < GROUP; r++) {
      const completion =
        r === 1 ? HOSTILE : r === 2 && step === 7 ? "a needle\tin hay" : `answer ${r} of ${step}`;
      const parts = completion.match(/\s*\S+/g)!;
      let end = 0;
      const token_ends = Uint32Array.from([...parts.map((part) => (end += part.length)), end]);
      rollouts.add({
        ...{ step, epoch: 0, prompt_index: 3 * step, rollout_index: r },
        ...{ prompt: `What is ${step} + ${step}?`, completion, finish: r === 3 ? "length" : "eos" },
        ...{ reward: r / 3, advantage: (r - 1.5) / 1.5, flagged: r === 1, components: { answer: r / 3 } },
        ...{ token_ends, logprobs: Float32Array.from(token_ends, (_, i) => -0.5 * i) },
        details: {
          judge: {
            model: "initial",
            criteria: { claim_scrutiny: { text: 4, expected: 3.7, probabilities: PROBABILITIES } },
          },
        },
      });
    }
}

/** Stories that differ at first and are one story in the end, while the reward rises. */
function writeCollapse(dir: string): void {
  using rollouts = new RolloutsDb(join(dir, "rollouts.sqlite"));
  const things = [
    "river",
    "castle",
    "lantern",
    "whale",
    "garden",
    "comet",
    "violin",
    "harbour",
    "button",
    "glacier",
  ];
  for (let step = 1; step <= 12; step++)
    for (let r = 0; r < 16; r++) {
      const word = (i: number) => things[(7 * step + 3 * r + i * (r + 1)) % things.length]!;
      rollouts.add({
        ...{
          step,
          epoch: 0,
          prompt_index: r % 4,
          rollout_index: r >> 2,
          prompt: "Tell a story.",
          finish: "eos",
        },
        ...{ reward: step / 12, advantage: 0 },
        completion:
          step > 6
            ? "Once upon a time there was a happy dog and it was happy."
            : `${r} ${word(0)} ${word(1)} under the ${word(2)} of ${step} ${word(3)} and ${word(4)} ${r * step}`,
      });
    }
}

const textOf = (selector: string) => `(document.querySelector(${JSON.stringify(selector)})?.innerText ?? "")`;
const countOf = (selector: string) => `document.querySelectorAll(${JSON.stringify(selector)}).length`;

describe.skipIf(chromium === null)("the page", () => {
  let folder: string;
  let server: ReturnType<typeof servePage>;
  let browser: Browser;
  let page: Page;
  let base: string;
  let ids: Record<string, string>;
  const dir = (name: string) => join(folder, name);
  const run = (name: string, rest = "") => `${base}#/run/${ids[name]}${rest}`;

  beforeAll(async () => {
    const built = Bun.spawnSync([bun, join(root, "scripts/build-web.ts"), "--quiet"], { stderr: "inherit" });
    expect(built.exitCode).toBe(0);
    folder = mkdtempSync(join(tmpdir(), "rlv-page-"));
    writeRun(dir("first"), 0.01, { learning_rate: 1e-4, seed: 1 });
    writeRollouts(dir("first"));
    writeRun(dir("second"), 0.015, { learning_rate: 3e-4, seed: 1, only_here: true });
    writeCollapse(dir("second"));
    writeRun(dir("growing"), 0.005, {});
    makeSweep(folder, "routing");
    server = servePage({ host: "127.0.0.1", port: 0, folders: [folder], program });
    base = new URL("/", server.address).href;
    browser = await startBrowser(chromium!);
    page = await browser.page();
    await page.view({ width: 1440, height: 900 });
    await page.open(server.address);
    await page.until(`${countOf(".run-row")} === 3`, "three runs are listed");
    type Named = { readonly id: string; readonly name: string }[];
    const list = await page.value<{ runs: Named; sweeps: Named }>("fetch('/api/runs').then((r) => r.json())");
    ids = Object.fromEntries([...list.runs, ...list.sweeps].map(({ id, name }) => [name, id]));
  });

  afterAll(async () => {
    await browser?.[Symbol.asyncDispose]();
    await server?.stop();
    if (folder) rmSync(folder, { recursive: true, force: true });
  });

  /** The last value that a chart's legend shows, as text. */
  const legend = (chart: string) => `${textOf(`[data-chart="${chart}"] .legend b`)}`;
  /** Pixels of a chart's canvas that are not empty: another picture has others. */
  const drawing = (chart: string) => `(() => {
    const canvas = document.querySelector('[data-chart="${chart}"] canvas');
    if (!canvas) return "";
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let hash = 7;
    for (let i = 0; i < data.length; i += 4) hash = (hash * 31 + data[i] + 3 * data[i + 3]) | 0;
    return String(hash);
  })()`;

  test("a curve of a growing run moves by itself", async () => {
    await page.open(run("growing"));
    await page.until(`${legend("reward")} === "0.3"`, "the last reward is drawn");
    const before = await page.value<string>(drawing("reward"));
    await page.value("document.querySelector('[data-chart=reward] canvas').id = 'same'");
    appendFileSync(join(dir("growing"), "metrics.jsonl"), metricLine(61, 0.9) + metricLine(62, 0.95));
    await page.until(`${legend("reward")} === "0.95"`, "the new reward is in the legend");
    expect(await page.value<string>(drawing("reward"))).not.toBe(before);
    // The same canvas: nothing was built anew.
    expect(await page.value<boolean>("Boolean(document.querySelector('#same'))")).toBe(true);
    await page.until(`${textOf(".run-head .progress")}.includes("62")`, "the head says the step");
  });

  test("a drag zooms every curve, a double click shows all again, the address keeps it", async () => {
    await page.open(run("first"));
    await page.until(`${countOf("[data-chart=reward] .u-over")} === 1`);
    await page.drag("[data-chart=reward] .u-over", 0.25, 0.75);
    await page.until("/zoom=/.test(location.hash)", "the zoom is in the address");
    const [from, to] = (
      await page.value<string>("decodeURIComponent(location.hash.match(/zoom=([^&]+)/)[1])")
    )
      .split("~")
      .map(Number);
    expect(from).toBeGreaterThan(5);
    expect(to).toBeLessThan(55);
    await page.click("[data-chart=reward] .u-over", 2);
    await page.until("!/zoom=/.test(location.hash)", "the zoom is gone");
    await page.press("]");
    await page.press("l");
    await page.until(
      "/smooth=0.10/.test(location.hash) && /log=1/.test(location.hash)",
      "keys change the axes",
    );
  });

  test("runs are marked and compared, by keyboard too, and their settings set against each other", async () => {
    await page.open(`${base}#/runs`);
    await page.until(`${countOf(".run-row")} === 3`);
    await page.press("j");
    await page.press("x");
    await page.press("j");
    await page.press("x");
    await page.until(`${textOf(".marked")}.includes("2")`, "two runs are marked");
    await page.click(".marked .primary");
    await page.until(`${countOf("[data-chart=loss] .legend .key")} === 2`, "both runs have a loss");
    await page.open(run("first", `/config?vs=${ids.second}`));
    await page.until(`${countOf("tr.differs")} === 2`, "two settings differ");
    const rows = await page.value<string>(textOf("table.difference"));
    expect(rows).toContain("learning_rate");
    expect(rows).toContain("only_here");
    expect(rows).not.toContain("seed");
  });

  test("rollouts are filtered, searched, and walked through by keyboard", async () => {
    await page.open(run("first", "/rollouts"));
    const found = (text: string) =>
      page.until(`${textOf(".found")}.includes(${JSON.stringify(text)})`, `${text} found`);
    await found(`${STEPS * GROUP}`);
    await page.fill("[aria-label='least reward']", "0.9");
    await found(`${STEPS} of`);
    await page.fill("[aria-label='last step']", "20");
    await found("20 of");
    expect(await page.value<string>("location.hash")).toContain("step_max=20");
    await page.press("Escape");
    await page.open(run("first", "/rollouts"));
    await found(`${STEPS * GROUP} rollouts`);
    await page.press("/");
    await page.send("Input.insertText", { text: "NEEDLE" });
    await found("1 of");
    await page.press("Escape");
    await page.press("j");
    await page.until(`${textOf(".detail .tokens")}.includes("needle")`, "the completion is shown");
    expect(await page.value<string>(textOf(".detail .tokens"))).toContain("⇥");
    await page.press("l");
    await page.until(`${textOf(".detail .tokens")}.includes("answer 3")`, "the next of the group is shown");
    await page.hover(".detail .token:nth-child(2)");
    await page.until(`${textOf(".detail .under")}.includes("60.65 %")`, "the token's probability is told");
    expect(await page.value<string>(textOf(".detail .judge"))).toContain("claim scrutiny");
  });

  test("what a model writes is shown as text", async () => {
    await page.open(run("first", "/rollouts?flagged=yes"));
    await page.until(`${textOf(".found")}.includes("${STEPS} of")`, "flagged ones are found");
    await page.press("j");
    await page.until(`${textOf(".detail .tokens")}.includes("window.__x")`, "the script is there to be read");
    await page.press("s");
    await page.until(`${countOf(".group-side .member")} === ${GROUP}`, "the group is side by side");
    expect(await page.value<string>(textOf(".member.chosen"))).toContain("right-to-left override");
    expect(await page.value<unknown>("window.__x ?? null")).toBeNull();
    expect(await page.value<number>(countOf("main script, main img"))).toBe(0);
  });

  test("a collapse is told with its reasons, wherever one looks at the run", async () => {
    await page.open(run("second"));
    await page.until(`${textOf(".run-head .tag.bad")}.length > 0`, "something is wrong");
    await page.until(`${textOf(".run-head")}.includes("completions have collapsed")`, "the head tells it");
    await page.press("4");
    await page.until(`${countOf(".finding.bad")} > 0`, "the alarm is shown");
    const told = await page.value<string>(textOf("main"));
    expect(told).toContain("only 6 % of the texts are unique");
    expect(told).toContain("The reward rises while diversity falls");
    await page.open(run("first", "/health"));
    await page.until(`${countOf(".finding")} > 0`);
    expect(await page.value<number>(countOf(".finding.bad"))).toBe(0);
  });

  test("a checkpoint is deleted only after its name has been typed", async () => {
    const { writeCheckpoint } = await import("../../src/io/checkpoint-folder.ts");
    for (const step of [10, 20])
      writeCheckpoint(join(dir("second"), "checkpoints"), `step-${step}`, (at) => {
        writeFileSync(join(at, "config.json"), JSON.stringify({ architectures: ["Qwen3ForCausalLM"] }));
        writeFileSync(join(at, "train_state.json"), JSON.stringify({ step }));
      });
    await page.open(run("second", "/checkpoints"));
    await page.click("[aria-label='Delete step-10']");
    await page.until(`${countOf("dialog form")} === 1`, "it says what is lost");
    expect(await page.value<boolean>("document.querySelector('dialog .danger').disabled")).toBe(true);
    await page.fill("dialog input", "step-10");
    await page.until("!document.querySelector('dialog .danger').disabled", "the button can be pressed");
    await page.press("Enter");
    await page.until(`!${textOf("table.checkpoints")}.includes("step-10")`, "it is gone");
    expect(await page.value<string>(textOf("table.checkpoints"))).toContain("step-20");
  });

  test("keys: the help, the tabs, and the colours", async () => {
    await page.open(run("first"));
    await page.until(`${countOf(".tabs a")} === 7`);
    await page.press("?");
    await page.until(`${textOf("dialog")}.includes("previous rollout")`, "the help is shown");
    await page.press("Escape");
    await page.until(`${countOf("dialog")} === 0`, "the help is gone");
    await page.press("6");
    await page.until(`${countOf("table.settings")} === 1`, "the settings are shown");
    const background = "getComputedStyle(document.documentElement).backgroundColor";
    const light = await page.value<string>(background);
    await page.press("d");
    await page.press("d");
    await page.until("document.documentElement.dataset.theme === 'dark'", "it is dark");
    expect(await page.value<string>(background)).not.toBe(light);
    await page.press("d");
    await page.until("document.documentElement.dataset.theme === 'light'", "as the system has it");
    await page.view({ width: 1440, height: 900, dark: true });
    await page.until("document.documentElement.dataset.theme === 'dark'", "the system has become dark");
    await page.view({ width: 1440, height: 900 });
  });

  test("adapters are shown together and each by itself, along the steps and in the end", async () => {
    await page.open(run("routing/routed_s3"));
    await page.until(`${countOf(".tabs a")} === 8`, "a routed run has one view more");
    await page.press("8");
    await page.until(`${countOf("[data-chart='mode-hack_rate'] .legend .key")} === 3`, "a curve a mode");
    const hacks = await page.value<string[]>(
      `[...document.querySelectorAll("table.modes td:nth-of-type(4)")].map((cell) => cell.innerText)`,
    );
    expect(hacks).toEqual(["0.85", "0.15\n18 % of both", "0.95\n112 % of both"]);
  });

  test("a sweep is listed as one, and tells its settings with their spread over seeds", async () => {
    await page.open(`${base}#/runs`);
    await page.until(`${countOf(".run-row")} === 3 && ${textOf("table.sweeps")}.includes("5 / 6")`);
    await page.click("table.sweeps a");
    await page.until(`${countOf("table.finals tbody tr")} === 4`, "three modes of one, one of the other");
    const told = await page.value<string>(textOf("table.finals"));
    // Three seeds at 0.75, 0.8 and 0.85; two at 0.65 and 0.7.
    expect(told).toContain("0.8 ± 0.05");
    expect(told).toContain("0.675 ± 0.035");
    expect(told).toContain("3 / 3 runs");
    expect(await page.value<number>(countOf("table.finals tbody tr:first-child td:last-child circle"))).toBe(
      3,
    );
    await page.until(`${countOf("[data-chart='both/hack_rate'] .legend .key")} === 2`, "both variants");
    expect(await page.value<number>(countOf("[data-chart='retain_only/hack_rate'] .legend .key"))).toBe(1);
    await page.until(drawing("both/reward"), "it is drawn");
    const before = await page.value<string>(drawing("both/reward"));
    await page.press("b");
    await page.until(`/band=range/.test(location.hash) && ${drawing("both/reward")} !== "${before}"`);
    expect(await page.value<string>(textOf("table.swept"))).toContain("waiting");
    await page.fill("[aria-label='Find a metric']", "unique");
    await page.until(`${countOf("[data-chart='both/unique_rate'] canvas")} === 1`, "any metric is found");
    await page.click("table.swept a");
    await page.until(`${textOf(".run-head h1")}.includes("routing/routed_s1")`, "its run is opened");
    const chosen = [ids.first, ids["routing/routed_s1"], ids["routing/routed_s2"]];
    await page.open(`${base}#/run/${chosen[0]}/curves?vs=${chosen.slice(1).join()}`);
    await page.click(".comparison a.link");
    await page.until(`${countOf("table.finals tbody tr")} === 4`, "chosen runs are grouped as well");
  });

  const VIEWS: readonly (readonly [string, () => string, string])[] = [
    ["runs", () => `${base}#/runs`, ".run-row"],
    ["curves", () => run("first", "/curves?smooth=0.5"), "[data-chart=reward] canvas"],
    ["compare", () => run("first", `/curves?vs=${ids.second}`), "[data-chart=reward] canvas"],
    ["rewards", () => run("first", "/rewards"), ".spread rect"],
    ["rollouts", () => run("first", "/rollouts"), ".rollout-row"],
    ["rollout", () => run("first", "/rollouts/7-0-21-2"), ".detail .token"],
    ["side-by-side", () => run("first", "/rollouts/7-0-21-1?side=1&shade=push"), ".group-side .token"],
    ["health", () => run("second", "/health"), ".finding"],
    ["system", () => run("first", "/system"), ".log pre"],
    ["config", () => run("first", `/config?vs=${ids.second}`), "tr.differs"],
    ["checkpoints", () => run("second", "/checkpoints"), "table.checkpoints"],
    ["routing", () => run("routing/routed_s3", "/routing"), "[data-chart='mode-reward'] canvas"],
    ["sweep", () => `${base}#/sweep/${ids.routing}`, "[data-chart='both/reward'] canvas"],
  ];

  test("every view fits a phone, and is pictured light, dark and there", async () => {
    const looks = [
      ["light", { width: 1440, height: 900 }],
      ["dark", { width: 1440, height: 900, dark: true }],
      ["phone", { width: 390, height: 844, phone: true }],
    ] as const;
    const wide: string[] = [];
    for (const [look, view] of looks) {
      await page.view(view);
      for (const [name, address, there] of VIEWS) {
        await page.open(address());
        await page.until(`${countOf(there)} > 0`, `${name} is shown`);
        await Bun.sleep(150);
        await page.picture(join(pictures, `${look}-${name}.png`));
        const width = await page.value<number>("document.documentElement.scrollWidth");
        if (width > view.width) wide.push(`${look} ${name}: ${width}`);
      }
    }
    await page.view({ width: 1440, height: 900 });
    expect(wide).toEqual([]);
  });

  test("a run in training is followed from its first steps on", async () => {
    const child = Bun.spawn(
      [
        ...[...program, "train", "arithmetic", "--output_dir", folder, "--run_name", "training"],
        ...["--num_train_steps", "12", "--batch_size", "4", "--group_size", "4", "--eval_num_prompts", "4"],
        ...["--eval_every", "6", "--threads", "1"],
      ],
      { stdout: "ignore", stderr: "ignore" },
    );
    try {
      await page.open(`${base}#/runs`);
      const row = `[...document.querySelectorAll(".run-row")].find((row) => row.innerText.includes("training"))`;
      await page.until(row, "the new run is listed by itself");
      await page.value(`${row}.querySelector("a").click()`);
      await page.until(`/\\d/.test(${legend("reward")})`, "its reward is drawn");
      await page.until(`${textOf(".run-head")}.includes("finished")`, "its end is told");
      await page.press("3");
      await page.until(`${textOf(".found")}.includes("192")`, "all of its rollouts are there");
      await page.press("7");
      await page.click("table.checkpoints td.actions button:not(.danger)");
      await page.until(`${countOf(".evaluation")} === 1`, "what rlv eval says of its checkpoint is shown");
      const told = await page.value<string>(textOf(".evaluation"));
      expect(told).toContain("of 4 prompts");
      expect(told).toMatch(/reward\s+[\d.]+/);
      expect(await page.value<number>(countOf(".evaluation tbody tr"))).toBe(5);
      await page.picture(join(pictures, "light-evaluation.png"));
    } finally {
      child.kill();
      await child.exited;
    }
  });

  test("nothing went wrong in the browser", () => {
    expect(page.problems).toEqual([]);
  });

  describe("with 100 000 rollouts and 50 runs", () => {
    let large: ReturnType<typeof servePage>;
    let many: string;

    beforeAll(async () => {
      many = mkdtempSync(join(tmpdir(), "rlv-page-many-"));
      makeRuns({ out: many, runs: 50, steps: 1000, rollouts: 100_000, seed: 1 });
      large = servePage({ host: "127.0.0.1", port: 0, folders: [many], program });
    });

    afterAll(async () => {
      await large?.stop();
      if (many) rmSync(many, { recursive: true, force: true });
    });

    /** Least of several measurements: the machine has other work. */
    async function best(rounds: number, measure: () => Promise<number>): Promise<number> {
      const all: number[] = [];
      for (let n = 0; n < rounds; n++) all.push(await measure());
      return Math.min(...all);
    }

    test("first paint within a second, a filter within 200 ms", async () => {
      await page.open(large.address);
      await page.until(`${countOf(".run-row")} === 50`, "all runs are listed");
      const id = await page.value<string>(
        "fetch('/api/runs').then((r) => r.json()).then(({ runs }) => runs.find((run) => run.name === 'long-grpo').id)",
      );
      const address = new URL(`/#/run/${id}/rollouts`, large.address).href;
      // The first frame with rollouts in it, not that of an empty frame.
      const { identifier } = await page.send<{ identifier: string }>(
        "Page.addScriptToEvaluateOnNewDocument",
        {
          source: `(function look() {
          if (document.querySelector(".rollout-row")) window.rolloutsShown = performance.now();
          else requestAnimationFrame(look);
        })()`,
        },
      );
      const paint = await best(4, async () => {
        await page.open("about:blank");
        await page.open(address);
        await page.until("window.rolloutsShown", "rollouts are listed");
        return await page.value<number>("window.rolloutsShown");
      });
      await page.send("Page.removeScriptToEvaluateOnNewDocument", { identifier });
      await page.until(`${textOf(".found")}.includes("100 000")`, "all rollouts are counted");
      await page.picture(join(pictures, "light-100k-rollouts.png"));
      // From the change of a filter to the new rows in the document.
      const filter = (n: number) =>
        page.value<number>(`new Promise((resolve) => {
          const from = performance.now();
          const list = document.querySelector(".found");
          const watch = new MutationObserver(() => {
            if (list.dataset.loading) return;
            watch.disconnect();
            requestAnimationFrame(() => resolve(performance.now() - from));
          });
          watch.observe(list, { attributes: true, attributeFilter: ["data-loading"] });
          const hash = location.hash.replace(/[?].*/, "") + "?reward_min=${(1 + n / 10).toFixed(1)}&advantage_sign=1";
          location.hash = hash;
        })`);
      let n = 0;
      const filtered = await best(6, () => filter(n++));
      expect(await page.value<string>(textOf(".found"))).toContain("of 100 000");
      process.stderr.write(
        `page: first rollouts after ${paint.toFixed(0)} ms, filter ${filtered.toFixed(0)} ms\n`,
      );
      expect(paint).toBeLessThan(1000);
      expect(filtered).toBeLessThan(200);
      expect(page.problems).toEqual([]);
    });

    test("fifty runs are compared without lag", async () => {
      const list = await page.value<string>(
        "fetch('/api/runs').then((r) => r.json()).then(({ runs }) => runs.map(({ id }) => id).join())",
      );
      const [first, ...others] = list.split(",");
      await page.open(new URL(`/#/run/${first}/curves?vs=${others.join()}`, large.address).href);
      await page.until(`${countOf("[data-chart=loss] .legend .key")} === 50`, "every run has its curve");
      await page.value("document.querySelector('[data-chart=loss]').scrollIntoView()");
      // One frame that scrolls and moves the cursor over the curves.
      const frame = await best(5, async () => {
        await page.hover("[data-chart=loss] .u-over");
        return await page.value<number>(`new Promise((resolve) => {
          const from = performance.now();
          scrollBy(0, 40);
          requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - from)));
        })`);
      });
      expect(frame).toBeLessThan(200);
      expect(page.problems).toEqual([]);
    });
  });
});
