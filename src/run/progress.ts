import { MultiBar, type SingleBar } from "cli-progress";
import { colours } from "../core/env.ts";
import { brief, type EngineMessage, linesOf } from "./reporter.ts";

interface Stream {
  write(text: string): unknown;
  isTTY?: boolean;
}

/** Shows a run to a person. */
export interface Progress {
  show(message: EngineMessage): void;
  /** A line of the parent's own. */
  line(text: string): void;
  close(): void;
}

/**
 * A progress bar with the live reward on a terminal, lines otherwise.
 * @param out where lines go (stdout; stderr when stdout is kept for one JSON object)
 * @param bar where the bar is drawn, if it is a terminal
 */
export function openProgress(out: Stream, bar: Stream): Progress {
  return bar.isTTY === true ? new Bar(out, bar) : new Lines(out);
}

class Lines implements Progress {
  #total = 0;
  constructor(readonly out: Stream) {}
  show(message: EngineMessage): void {
    if (message.type === "plan") this.#total = message.totalSteps;
    if (message.type === "error" || (message.type === "step" && !message.print)) return;
    for (const text of linesOf(message, this.#total)) this.line(text);
  }
  line(text: string): void {
    this.out.write(`${text}\n`);
  }
  close(): void {}
}

class Bar implements Progress {
  #bars: MultiBar;
  #bar: SingleBar | undefined;
  #total = 0;
  #live = "";
  #evaluation = "";
  readonly #colours: boolean;
  constructor(
    readonly out: Stream,
    readonly screen: Stream,
  ) {
    this.#colours = colours(screen);
    this.#bars = new MultiBar({
      stream: screen as unknown as NodeJS.WritableStream,
      format: `step {value}/{total} ${this.#tint("{bar}")} {eta_formatted} left  {live}{evaluation}`,
      barCompleteChar: "\u2588",
      barIncompleteChar: "\u2591",
      barsize: 24,
      hideCursor: true,
      clearOnComplete: true,
      etaBuffer: 20,
      fps: 8,
      gracefulExit: false,
      // The bar is cut to the terminal's width; lines above it wrap as usual.
      linewrap: true,
    });
  }
  #tint(text: string): string {
    return this.#colours ? `\u001b[36m${text}\u001b[39m` : text;
  }
  #payload() {
    return { live: this.#live, evaluation: this.#evaluation };
  }
  show(message: EngineMessage): void {
    switch (message.type) {
      case "error":
        return;
      case "plan":
        this.#total = message.totalSteps;
        for (const text of linesOf(message, this.#total)) this.line(text);
        this.#bar = this.#bars.create(message.totalSteps, message.startStep, this.#payload());
        return;
      case "step": {
        const reward = message.metrics["train/reward_mean"];
        const loss = message.metrics["train/loss"];
        this.#live =
          reward === undefined
            ? loss === undefined
              ? ""
              : `loss ${brief(loss)}`
            : `reward ${brief(reward)}`;
        this.#bar?.update(message.step, this.#payload());
        if (this.out.isTTY === true || !message.print) return;
        break;
      }
      case "eval": {
        const reward = message.metrics["eval/reward"] ?? message.metrics["eval/loss"];
        if (reward !== undefined) this.#evaluation = `  eval ${brief(reward)}`;
        this.#bar?.update(this.#payload());
        break;
      }
      case "done":
        this.close();
        break;
    }
    for (const text of linesOf(message, this.#total)) this.line(text);
  }
  line(text: string): void {
    // Lines appear above the bar where both share the terminal; a piped stdout gets them directly.
    if (this.#bar !== undefined && this.out.isTTY === true) {
      this.#bars.log(`${text}\n`);
      // cli-progress keeps lines until the next redraw, and drops them when it is stopped before.
      this.#bars.update();
    } else this.out.write(`${text}\n`);
  }
  close(): void {
    if (this.#bar !== undefined) this.#bars.stop();
    this.#bar = undefined;
  }
}
