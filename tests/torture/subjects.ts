/** Short runs of every recipe on small worlds: what may happen to a run happens to these. Worlds are made when asked for. */
import { Database } from "bun:sqlite";
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeJudgeModel } from "../../scripts/make-judge-model.ts";
import { makeWorld } from "../run/preference-world.ts";
import { digest, type Ended, goOn, rlv, rolloutRows, timeless } from "../run/program.ts";
import { StoryWorld } from "../run/stories-world.ts";

type Flags = Readonly<Record<string, string | number | boolean>>;

const argv = (flags: Flags) => Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, String(value)]);

async function must(args: readonly string[]): Promise<void> {
  const { code, err } = await rlv(args);
  if (code !== 0) throw new Error(err);
}

/** What a run leaves that does not depend on the clock. */
export interface Left {
  readonly files: Readonly<Record<string, string>>;
  readonly metrics: readonly unknown[];
  readonly rollouts: unknown;
}

export function left(run: string): Left {
  const rollouts = rolloutRows(run);
  if (rollouts !== null) {
    using db = new Database(join(run, "rollouts.sqlite"), { readonly: true });
    const { integrity_check } = db.query("pragma integrity_check").get() as { integrity_check: string };
    if (integrity_check !== "ok") throw new Error(`${run}: rollouts.sqlite: ${integrity_check}`);
  }
  return { files: digest(join(run, "checkpoints/final")), metrics: timeless(run), rollouts };
}

/** What is wrong with how a run ended: it must get through, or say in one line what failed. */
export function faultOf({ code, err }: Ended): string | null {
  if (code === 0) return null;
  if (code > 128) return `it was ended by signal ${code - 128}: ${err}`;
  const lines = err.split("\n").filter((line) => line.startsWith("rlv: error: "));
  if (lines.length !== 1) return `${lines.length} error lines: ${err}`;
  return /^\s+at /m.test(err) ? `a stack: ${err}` : null;
}

/** A reward that does what a file beside it says at one of its calls: `{ call, fault }`. */
export const FAULT = "fault.json";
const LETTERS = `import { existsSync, readFileSync } from "node:fs";
const faults = {
  hang: () => new Promise(() => {}),
  spin: () => { for (;;); },
  throw: () => { throw new Error("no\\nanswer"); },
  exit: () => process.exit(0),
  kill: () => process.kill(process.pid, "SIGKILL"),
  nan: () => Number.NaN,
  infinity: () => -1 / 0,
  text: () => "1",
  nothing: () => undefined,
  "nan component": () => ({ reward: 1, components: { a: 0 / 0 } }),
  flood: (usual) => { for (let i = 0; i < 20_000; i++) console.log("x".repeat(200)); return usual; },
};
const path = new URL("${FAULT}", import.meta.url);
let calls = 0;
export default async ({ completion }) => {
  const { call, fault } = existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : {};
  const usual = completion.length % 3;
  return ++calls === call ? faults[fault](usual) : usual;
};
`;
export const MODULE_FAULTS = [...LETTERS.matchAll(/^ {2}"?([a-z ]+)"?: \(\w*\) =>/gm)].map(
  (match) => match[1]!,
);

export const RECIPES = [
  "arithmetic",
  "arithmetic as adapters",
  "arithmetic, a module's reward",
  "sft",
  "values",
  "hh-rm",
  "hh-grpo",
  "stories, routed",
] as const;
export type Recipe = (typeof RECIPES)[number];

export class Subjects implements Disposable {
  readonly root = mkdtempSync(join(tmpdir(), "rlv-torture-"));
  readonly #worlds = new Map<string, Promise<Flags>>();
  readonly #whole = new Map<Recipe, Promise<{ left: Left; seconds: number }>>();
  #stories: StoryWorld | undefined;

  /** The command line of a run; `at` is the folder it lies in. */
  async command(recipe: Recipe, name: string, at = this.root): Promise<string[]> {
    const [job, flags] = await this.#job(recipe);
    return ["train", job, ...argv({ ...flags, output_dir: at, run_name: name, threads: 1 })];
  }

  /** What the unbroken run leaves, and how long it takes. */
  whole(recipe: Recipe): Promise<{ left: Left; seconds: number }> {
    return this.#once(this.#whole, recipe, async () => {
      const name = `whole-${recipe.replaceAll(/\W+/g, "-")}`;
      const command = await this.command(recipe, name);
      const since = performance.now();
      await must(command);
      return { left: left(join(this.root, name)), seconds: (performance.now() - since) / 1000 };
    });
  }

  /**
   * Goes on with a run that something happened to, and says what is lost: null where it ends with the bytes, metrics and
   * rollouts of the unbroken one and leaves nothing behind.
   */
  async recover(recipe: Recipe, name: string, at = this.root): Promise<string | null> {
    const run = join(at, name);
    const temporary = () =>
      existsSync(run)
        ? readdirSync(run, { recursive: true }).filter((path) => String(path).includes(".tmp-"))
        : [];
    // Whoever is killed behind its last checkpoint leaves what the next to open the run puts away.
    if (!existsSync(join(run, "checkpoints/final")) || temporary().length > 0) {
      const { code, err } = await goOn(run, await this.command(recipe, name, at));
      if (code !== 0) return `it does not go on: ${err.trim()}`;
    }
    if (temporary().length > 0) return `left behind: ${temporary().join(", ")}`;
    const [want, got] = [(await this.whole(recipe)).left, left(run)];
    for (const part of ["files", "metrics", "rollouts"] as const)
      if (!Bun.deepEquals(want[part], got[part])) return `${part} differ from the unbroken run's`;
    // Thousands of sound ones would fill the disk.
    rmSync(run, { recursive: true });
    return null;
  }

  #once<K, V>(known: Map<K, Promise<V>>, key: K, make: () => Promise<V>): Promise<V> {
    let value = known.get(key);
    if (value === undefined) {
      value = make();
      known.set(key, value);
    }
    return value;
  }

  async #job(recipe: Recipe): Promise<[string, Flags]> {
    const short = { num_train_steps: 6, save_every: 1, eval_every: 3, eval_num_prompts: 4, log_every: 1 };
    // Two updates of a batch: a checkpoint may fall inside a generation, whose rollouts it must hold.
    const small = { ...short, batch_size: 2, group_size: 4, num_iterations: 2, loss_type: "grpo" };
    switch (recipe) {
      case "arithmetic":
        return ["arithmetic", small];
      case "arithmetic as adapters":
        return ["arithmetic", { ...small, lora: true, lora_r: 4, learning_rate: 1e-3 }];
      case "arithmetic, a module's reward": {
        writeFileSync(join(this.root, "letters.ts"), LETTERS);
        const reward = [{ name: join(this.root, "letters.ts"), params: { timeout: 1 } }];
        return ["arithmetic", { ...small, reward: JSON.stringify(reward) }];
      }
      case "sft": {
        const world = await this.#world("preferences");
        const { eval_num_prompts: _, ...steps } = short;
        return [
          "sft",
          { ...steps, model: world.model!, dataset: `${world.dataset}/sft.jsonl`, batch_size: 4 },
        ];
      }
      case "values":
        return ["values", { ...(await this.#world("judge")), ...small, dtype: "float32" }];
      case "hh-rm":
        return ["hh-rm", { ...(await this.#world("preferences")), ...this.#pairs }];
      case "hh-grpo": {
        const judge = await this.#world("reward model");
        const sizes = { max_prompt_length: 40, max_new_tokens: 12, batch_size: 2, group_size: 4 };
        const steps = { num_train_steps: 6, save_steps: 1, eval_steps: 3, eval_num_prompts: 4 };
        const log_dir = join(this.root, "logs");
        return ["hh-grpo", { ...(await this.#world("preferences")), ...judge, ...sizes, ...steps, log_dir }];
      }
      case "stories, routed": {
        const world = await this.#world("stories");
        const routed = {
          routing: "classic",
          lora_config: "r4",
          detector: "repetition",
          detector_recall: 0.7,
        };
        const sizes = { batch_size: 8, num_generations: 4, max_completion_length: 24, eval_num_prompts: 4 };
        const steps = { max_steps: 5, save_steps: 1, eval_routing_steps: 2, log_every: 1, lr: 1e-3 };
        return [
          "stories",
          { ...world, ...routed, ...sizes, ...steps, reward: "asked_ending,repeated_words" },
        ];
      }
    }
  }

  readonly #pairs = {
    ...{ max_length: 48, batch_size: 4, grad_accum: 2, eval_num_batches: 2, lr: 1e-3 },
    ...{ num_train_steps: 6, save_steps: 1, eval_steps: 3, log_dir: join(this.root, "logs") },
  };

  #world(name: "preferences" | "reward model" | "judge" | "stories"): Promise<Flags> {
    return this.#once(this.#worlds, name, async (): Promise<Flags> => {
      const at = join(this.root, name.replaceAll(" ", "-"));
      switch (name) {
        case "preferences": {
          const { policy, data } = await makeWorld(at, { train: 80, test: 20, sft: 100, steps: 5 });
          return { model: policy, dataset: data, dtype: "float32" };
        }
        case "reward model": {
          const flags = {
            ...(await this.#world("preferences")),
            ...this.#pairs,
            output_dir: at,
            run_name: "rm",
          };
          await must(["train", "hh-rm", ...argv(flags)]);
          return { reward_model_path: join(at, "rm/checkpoints/final") };
        }
        case "judge": {
          const world = await makeJudgeModel(at, { steps: 5, rows: 200, seed: 1 }, must);
          const files = { train_file: world.train, eval_file: world.held };
          const lengths = { max_prompt_length: 16, max_completion_length: 16 };
          return { model: world.model, rubric: world.rubric, ...files, ...lengths };
        }
        case "stories":
          this.#stories = await StoryWorld.make();
          return { model: this.#stories.model, dataset: this.#stories.dataset };
      }
    });
  }

  [Symbol.dispose](): void {
    this.#stories?.[Symbol.dispose]();
    rmSync(this.root, { recursive: true, force: true });
  }
}
