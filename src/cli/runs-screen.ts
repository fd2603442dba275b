/** The screen of `rlv runs`: a list, a run, a question. Drawn whole, read again every second. */
import { colours } from "../core/env.ts";
import { RlvError } from "../core/errors.ts";
import {
  deleteRun,
  exportRun,
  type PruneRule,
  planPrune,
  pruneRun,
  renameRun,
  tagRun,
} from "../report/manage.ts";
import { listRuns, type Run, type RunSummary, readRun } from "../report/runs.ts";
import { bytesText } from "../run/reporter.ts";
import { type Key, keysOf } from "./keys.ts";
import { Curve, cut, fit, listLines, planLines, showLines } from "./runs-text.ts";

export interface Size {
  readonly columns: number;
  readonly rows: number;
}

/** A line that is being typed. */
interface Question {
  readonly kind: "text";
  readonly label: string;
  answer: string;
  /** May throw an RlvError, whose line is shown. */
  readonly done: (answer: string) => void;
  /** At every change of the answer. */
  readonly live?: (answer: string) => void;
}

/** Yes or no; what it is about stands above. */
interface Confirmation {
  readonly kind: "confirm";
  readonly label: string;
  readonly lines: readonly string[];
  readonly done: () => void;
}

const LIST_KEYS = "↑↓ move  enter open  / filter  r rename  t tag  d delete  p prune  e export  q quit";
const RUN_KEYS = "↑↓ scroll  ←→ metric  r rename  t tag  d delete  p prune  e export  esc back  q quit";
const PRUNE: Omit<PruneRule, "keepLast"> = {
  keepEvery: null,
  keepBest: null,
  best: "max",
  keepBroken: false,
};

/** The screen's state: keys go in, frames come out. */
export class RunsScreen {
  #runs: RunSummary[] = [];
  #selected: string | null = null;
  #filter = "";
  /** The run that is open; null: the list. */
  #open: Run | null = null;
  #metric: string | null = null;
  #curve: Curve | null = null;
  #scroll = 0;
  #asking: Question | Confirmation | null = null;
  #notice = "";
  ended = false;

  constructor(
    readonly roots: readonly string[],
    readonly bold: (text: string) => string,
    readonly inverse: (text: string) => string,
  ) {
    this.refresh();
  }

  /** Reads the folders again. */
  refresh(): void {
    this.#runs = listRuns(this.roots);
    if (!this.#shown.some((run) => run.dir === this.#selected)) this.#selected = this.#shown[0]?.dir ?? null;
    if (this.#open === null) return;
    try {
      this.#open = readRun(this.#open.dir);
      this.#metric ??= this.#open.metric;
    } catch {
      this.#open = null;
      this.#notice = "the run is gone";
    }
  }

  get #shown(): RunSummary[] {
    const words = this.#filter.toLowerCase().split(/\s+/).filter(Boolean);
    return this.#runs.filter((run) => {
      const text = [run.name, run.recipe, run.state, ...run.tags.map((tag) => `#${tag}`)]
        .join(" ")
        .toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  get #target(): RunSummary | null {
    return this.#open ?? this.#runs.find((run) => run.dir === this.#selected) ?? null;
  }

  key(key: Key): void {
    if (key === "ctrl-c") {
      this.ended = true;
      return;
    }
    this.#notice = "";
    try {
      if (this.#asking?.kind === "confirm") this.#confirmKey(this.#asking, key);
      else if (this.#asking !== null) this.#questionKey(this.#asking, key);
      else this.#commandKey(key);
    } catch (error) {
      if (!(error instanceof RlvError)) throw error;
      this.#asking = null;
      this.#notice = error.message;
    }
  }

  #confirmKey({ done }: Confirmation, key: Key): void {
    this.#asking = null;
    if (typeof key === "object" && /^[yY]/.test(key.text)) done();
    else this.#notice = "nothing was done";
    this.refresh();
  }

  #questionKey(question: Question, key: Key): void {
    if (key === "escape" || key === "ctrl-d") {
      this.#asking = null;
      question.live?.("");
      return;
    }
    if (key === "enter") {
      this.#asking = null;
      question.done(question.answer.trim());
      this.refresh();
      return;
    }
    if (key === "backspace") question.answer = [...question.answer].slice(0, -1).join("");
    else if (key === "ctrl-u") question.answer = "";
    else if (typeof key === "object") question.answer += key.text;
    question.live?.(question.answer);
  }

  #commandKey(key: Key): void {
    if (typeof key === "object") {
      // Typed or pasted fast: each letter is a command of its own.
      for (const letter of key.text) {
        if (this.#asking !== null) this.key({ text: letter });
        else this.#letter(letter);
      }
      return;
    }
    if (key === "ctrl-d") this.ended = true;
    else if (key === "escape" || (key === "left" && this.#open === null)) this.#back();
    else if (key === "up") this.#move(-1);
    else if (key === "down") this.#move(1);
    else if (key === "page-up") this.#move(-10);
    else if (key === "page-down") this.#move(10);
    else if (key === "home") this.#move(Number.NEGATIVE_INFINITY);
    else if (key === "end") this.#move(Number.POSITIVE_INFINITY);
    else if (key === "left" || key === "right") this.#otherMetric(key === "left" ? -1 : 1);
    else if (key === "enter") this.#enter();
  }

  #letter(letter: string): void {
    const commands: Record<string, () => void> = {
      q: () => {
        this.ended = true;
      },
      k: () => this.#move(-1),
      j: () => this.#move(1),
      h: () => this.#back(),
      l: () => this.#enter(),
      "/": () =>
        this.#ask(
          "filter",
          this.#filter,
          () => {},
          (answer) => this.#setFilter(answer),
        ),
      r: () => this.#withRun((run) => this.#ask("new name", run.name, (name) => this.#rename(run, name))),
      t: () =>
        this.#withRun((run) =>
          this.#ask("tags", run.tags.join(" "), (text) => {
            const tags = text.split(/[\s,]+/).filter(Boolean);
            const gone = run.tags.filter((tag) => !tags.includes(tag));
            tagRun(run.dir, tags, gone);
            this.#notice = "tagged";
          }),
        ),
      d: () => this.#withRun((run) => this.#delete(run)),
      p: () =>
        this.#withRun((run) =>
          this.#ask("keep how many of the newest step checkpoints", "1", (text) => this.#prune(run, text)),
        ),
      e: () =>
        this.#withRun((run) =>
          this.#ask("export to (new folder, or .csv for metrics)", `${run.name}-export`, (out) => {
            const { files, bytes } = exportRun(run.dir, out, null);
            this.#notice = `wrote ${files.length} files (${bytesText(bytes)}): ${out}`;
          }),
        ),
    };
    commands[letter]?.();
  }

  #withRun(body: (run: RunSummary) => void): void {
    const run = this.#target;
    if (run === null) this.#notice = "no run is selected";
    else body(run);
  }

  #ask(label: string, answer: string, done: (answer: string) => void, live?: (answer: string) => void): void {
    this.#asking = { kind: "text", label, answer, done, ...(live ? { live } : {}) };
  }

  #setFilter(text: string): void {
    this.#filter = text;
    this.#open = null;
    if (!this.#shown.some((run) => run.dir === this.#selected)) this.#selected = this.#shown[0]?.dir ?? null;
  }

  #rename(run: RunSummary, name: string): void {
    if (name === run.name) return;
    const dir = renameRun(run.dir, name, this.roots);
    this.#selected = dir;
    if (this.#open !== null) this.#open = readRun(dir);
    this.#notice = `renamed to ${name}`;
  }

  #delete(run: RunSummary): void {
    const { bytes, saved } = readRun(run.dir);
    this.#asking = {
      kind: "confirm",
      label: `delete ${run.name} with all it holds?`,
      lines: [`${run.dir}: ${bytesText(bytes)}, ${saved.length} checkpoints, ${run.step} steps`],
      done: () => {
        deleteRun(run.dir, this.roots);
        this.#open = null;
        this.#notice = `deleted ${run.name}`;
      },
    };
  }

  #prune(run: RunSummary, text: string): void {
    const keepLast = Number(text);
    if (!/^\d+$/.test(text)) throw new RlvError(`${JSON.stringify(text)} is no number of checkpoints`);
    const rule = { ...PRUNE, keepLast };
    const plan = planPrune(readRun(run.dir), rule);
    const gone = plan.filter(({ keep }) => !keep).length;
    if (gone === 0) {
      this.#notice =
        plan.length === 0 ? "it has no checkpoints" : `nothing to remove: ${plan.at(-1)!.reason}`;
      return;
    }
    this.#asking = {
      kind: "confirm",
      label: `remove ${gone} checkpoints?`,
      lines: planLines(run.name, plan, false),
      done: () => {
        const removed = pruneRun(run.dir, rule, this.roots).filter(({ keep }) => !keep);
        this.#notice = `removed ${removed.length} checkpoints`;
      },
    };
  }

  #move(by: number): void {
    if (this.#open !== null) {
      this.#scroll = Math.max(0, Math.min(1e6, this.#scroll + by));
      return;
    }
    const shown = this.#shown;
    const at = shown.findIndex((run) => run.dir === this.#selected);
    const to = Math.max(0, Math.min(shown.length - 1, at + by));
    this.#selected = shown[to]?.dir ?? null;
  }

  #otherMetric(by: number): void {
    const names = Object.keys(this.#open?.last ?? {});
    if (names.length === 0) return;
    const at = Math.max(0, names.indexOf(this.#metric ?? ""));
    this.#metric = names[(at + by + names.length) % names.length]!;
  }

  #enter(): void {
    if (this.#open !== null || this.#selected === null) return;
    this.#open = readRun(this.#selected);
    this.#metric = this.#open.metric;
    this.#scroll = 0;
  }

  #back(): void {
    if (this.#open !== null) this.#open = null;
    else if (this.#filter !== "") this.#setFilter("");
  }

  /** The lines of the screen, `rows` of them. */
  draw({ columns, rows }: Size, now: number): string[] {
    const body = Math.max(1, rows - 2);
    const lines = this.#body(columns, body, now);
    while (lines.length < body) lines.push("");
    const asking = this.#asking;
    const status =
      asking?.kind === "confirm"
        ? this.bold(`${asking.label} [y/N]`)
        : asking?.kind === "text"
          ? `${this.bold(`${asking.label}:`)} ${asking.answer}▏`
          : this.#notice === "" && this.#filter !== ""
            ? `filter: ${this.#filter}`
            : this.#notice;
    const help = asking?.kind === "text" ? "enter accept  esc cancel" : this.#open ? RUN_KEYS : LIST_KEYS;
    return [...lines.slice(0, body), cut(status, columns), cut(help, columns)];
  }

  #curveOf(dir: string): Curve | null {
    if (this.#metric === null) return null;
    if (this.#curve?.dir !== dir || this.#curve.metric !== this.#metric)
      this.#curve = new Curve(dir, this.#metric);
    return this.#curve;
  }

  #body(columns: number, body: number, now: number): string[] {
    if (this.#asking?.kind === "confirm") return this.#asking.lines.map((line) => fit(line, columns));
    if (this.#open !== null) {
      const lines = showLines(
        this.#open,
        this.#metric,
        this.#curveOf(this.#open.dir)?.read() ?? null,
        columns,
      );
      this.#scroll = Math.max(0, Math.min(this.#scroll, lines.length - body));
      const [title, ...rest] = lines.slice(this.#scroll, this.#scroll + body);
      return this.#scroll === 0 ? [this.bold(title!), ...rest] : [title!, ...rest];
    }
    const shown = this.#shown;
    if (shown.length === 0)
      return [this.#filter === "" ? `no runs in ${this.roots.join(", ")}` : `no run matches ${this.#filter}`];
    const [head, ...rows] = listLines(shown, now, columns - 2);
    const at = shown.findIndex((run) => run.dir === this.#selected);
    const room = Math.max(1, body - 1);
    const first = Math.max(0, Math.min(at - Math.floor(room / 2), rows.length - room));
    return [
      this.bold(`  ${head}`),
      ...rows
        .slice(first, first + room)
        .map((row, i) => (first + i === at ? this.inverse(`> ${row}`) : `  ${row}`)),
    ];
  }
}

const REFRESH_MS = 1000;

/** Shows the screen until it is left. Returns the exit code. */
export async function runsScreen(roots: readonly string[]): Promise<number> {
  const { stdin, stdout } = process;
  const styled = (on: number, off: number) => (text: string) => `\x1b[${on}m${text}\x1b[${off}m`;
  const plain = (text: string) => text;
  const coloured = colours(stdout);
  const screen = new RunsScreen(roots, coloured ? styled(1, 22) : plain, coloured ? styled(7, 27) : plain);
  const ended = Promise.withResolvers<number>();
  const decoder = new TextDecoder();
  const draw = () => {
    const lines = screen.draw({ columns: stdout.columns ?? 80, rows: stdout.rows ?? 24 }, Date.now() / 1000);
    stdout.write(`\x1b[H${lines.map((line) => `${line}\x1b[K`).join("\r\n")}\x1b[J`);
  };
  const guarded = (body: () => void) => () => {
    try {
      body();
      if (screen.ended) ended.resolve(0);
    } catch (error) {
      ended.reject(error);
    }
  };
  const refresh = guarded(() => {
    screen.refresh();
    draw();
  });
  const onData = (chunk: Buffer) =>
    guarded(() => {
      for (const key of keysOf(decoder.decode(chunk, { stream: true }))) screen.key(key);
      draw();
    })();
  const onResize = guarded(draw);
  const onEnd = () => ended.resolve(0);
  // The other screen: what was on this one comes back. The cursor is hidden.
  stdout.write("\x1b[?1049h\x1b[?25l");
  stdin.setRawMode(true);
  stdin.on("data", onData);
  stdin.on("end", onEnd);
  stdout.on("resize", onResize);
  process.on("SIGTERM", onEnd);
  process.on("SIGHUP", onEnd);
  const timer = setInterval(refresh, REFRESH_MS);
  try {
    draw();
    return await ended.promise;
  } finally {
    clearInterval(timer);
    stdin.off("data", onData);
    stdin.off("end", onEnd);
    stdout.off("resize", onResize);
    process.off("SIGTERM", onEnd);
    process.off("SIGHUP", onEnd);
    stdin.setRawMode(false);
    stdin.pause();
    stdout.write("\x1b[?25h\x1b[?1049l");
  }
}
