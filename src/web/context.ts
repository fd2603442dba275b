import type { Router } from "./router.ts";
import type { SpeakingRun } from "./speakers.ts";

/** A run or a checkpoint as the page names it, found on disk. */
export interface FoundRun {
  readonly id: string;
  readonly name: string;
  readonly dir: string;
}

/** A sweep's folder, in which its runs lie. */
export interface FoundSweep {
  readonly id: string;
  readonly name: string;
  readonly dir: string;
}

export interface FoundCheckpoint {
  readonly run: FoundRun;
  readonly name: string;
  readonly dir: string;
}

/** What the parts of the server have in common. */
export interface WebContext {
  /** How this program is started again: the words before its command. */
  readonly program: readonly string[];
  /** Throws HttpError 404 where there is none. */
  run(id: string): FoundRun;
  checkpoint(run: string, name: string): FoundCheckpoint;
  /** The runs with models to talk to that are there now; the process that reads runs looks. */
  speakers(): Promise<readonly SpeakingRun[]>;
  /** Called when the server ends: child processes are ended here. */
  onClose(action: () => void | Promise<void>): void;
}

/** A part of the server adds its routes. */
export type Register = (router: Router, context: WebContext) => void;
